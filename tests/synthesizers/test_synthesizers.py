import json
import re
from pathlib import Path

import pytest
import torch

from freia_kd.data.datasets import LabelledData
from freia_kd.errors import CheckpointError
from freia_kd.flows.bases import SpectralBase
from freia_kd.objectives.monitors import diagnose
from freia_kd.objectives.reverse_likelihood import ReverseLikelihood
from freia_kd.synthesizers import SYNTHESIZERS, build_synthesizers, get_synthesizer
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions
from freia_kd.synthesizers.noise import Spectral, Uniform
from freia_kd.training import Checkpoints, TrainingLoop

OPTIONS = BDNFOptions(steps=3, batch_size=8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("flow", ["glow", "realnvp", "spline", "my_flow.yaml"])
def test_every_flow_can_be_trained(flow, teacher):
    path = Path(__file__).parents[2] / "examples" / flow
    synthesizer = BDNF(BDNFOptions(str(path) if path.exists() else flow, steps=1, batch_size=2))
    synthesizer.fit(teacher, generator=generator())
    x, _ = synthesizer.sample(2, generator=generator())
    assert x.shape == (2, 1, 32, 32)
    assert 0 <= x.min() < x.max() <= 1


def test_noise_is_the_papers_in_the_teachers_units(teacher):
    noise = Uniform()
    noise.fit(teacher)
    x, _ = noise.sample(200, generator=generator())
    raw = teacher.domain.normalize(x)  # mean 0.3, std 0.3: U(-1, 1) is U(0, 0.6) in pixels
    assert raw.min() == pytest.approx(-1, abs=0.01)
    assert raw.max() == pytest.approx(1, abs=0.01)
    assert raw.var().item() == pytest.approx(1 / 3, rel=0.02)


def test_noise_of_a_label_is_what_the_teacher_says(teacher):
    noise = Spectral()
    noise.fit(teacher)
    _, frequent = noise.sample(500, generator=generator())
    label = frequent.mode().values
    x, _ = noise.sample(20, label.repeat(20), generator())
    with torch.no_grad():
        assert (teacher(x).argmax(1) == label).all()


def test_training_makes_the_teacher_recognise_the_labels(teacher):
    torch.manual_seed(0)
    synthesizer = BDNF(BDNFOptions(steps=60, batch_size=32, alpha=1e-3))
    synthesizer.fit(teacher, generator=generator())
    untrained = BDNF(BDNFOptions(steps=1, batch_size=1, learning_rate=1e-9))
    untrained.fit(teacher, generator=generator())
    labels = torch.arange(10).repeat(20)

    def cross_entropy(method):
        x, _ = method.sample(200, labels, generator(4))
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(teacher(x), labels).item()

    assert cross_entropy(synthesizer) < cross_entropy(untrained) - 0.01


def test_an_untrained_flow_samples_its_base(teacher):
    synthesizer = BDNF(BDNFOptions(steps=1, batch_size=1, learning_rate=1e-12))
    synthesizer.fit(teacher, generator=generator())
    base = SpectralBase.for_domain(teacher.domain)
    x, _ = synthesizer.sample(4, torch.arange(4), generator(7))
    u = base.sample(4, generator=generator(7))
    assert torch.allclose(x, synthesizer.flow.to_input(u)[0], atol=1e-4)
    assert (x - torch.sigmoid(u)).abs().max() < 0.02  # a sigmoid but for its ends


def test_a_flow_of_another_architecture_is_refused(teacher, tmp_path):
    run = Checkpoints(tmp_path, "stage")
    BDNF(OPTIONS).fit(teacher, checkpoints=run, generator=generator())
    with pytest.raises(CheckpointError, match="another flow"):
        BDNF(BDNFOptions(flow="realnvp")).restore(teacher.domain, run)


def test_samples_of_another_shape_are_refused(teacher):
    data = LabelledData(torch.zeros(2, 1, 28, 28), torch.arange(2), "few")
    with pytest.raises(ValueError, match="expected inputs of shape"):
        BDNF(OPTIONS).fit(teacher, data)


@pytest.mark.parametrize(("augment", "count"), [(True, 4), (False, 2)])
def test_the_flow_sees_augmented_samples(teacher, augment, count, monkeypatch):
    """Few of them as often as a quarter of the latents, and none of them mixed."""
    seen = []
    original = ReverseLikelihood.__call__
    monkeypatch.setattr(
        ReverseLikelihood,
        "__call__",
        lambda self, flow, t, batch: seen.append(batch) or original(self, flow, t, batch),
    )
    images = torch.rand(2, 1, 32, 32, generator=generator(8))
    data = LabelledData(images, torch.tensor([4, 7]), "few")
    options = BDNFOptions(steps=6, batch_size=16, augment=augment)
    BDNF(options).fit(teacher, data, generator=generator())
    first = seen[0]
    assert len(first.x) == len(first.y) == count
    assert set(torch.cat([batch.y for batch in seen]).tolist()) == {4, 7}
    known = [any(torch.equal(x, image) for image in images) for x in first.x]
    assert known == [not augment] * count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"base": "spectal"},
            "bdnf.base: expected 'spectral' or 'gaussian'; got 'spectal'. Did you mean 'spectral'?",
        ),
        ({"steps": 0}, "bdnf.steps: expected at least 1; got 0"),
        ({"batch_size": 0}, "bdnf.batch_size: expected at least 1; got 0"),
        ({"learning_rate": 0.0}, "bdnf.learning_rate: expected more than 0"),
        ({"clip": -1.0}, "bdnf.clip: expected more than 0"),
        ({"ema": 1.0}, "bdnf.ema: expected less than 1"),
        ({"alpha": -1.0}, "bdnf.alpha: expected at least 0"),
        ({"gamma": -1.0}, "bdnf.gamma: expected at least 0"),
        ({"contrast": (2.0, 1.0)}, "a contrast"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BDNFOptions(**options)


def test_the_papers_preset():
    options = BDNF.build("paper").options
    latents, epochs = 20_000, 30  # of the paper's code, in batches of 64
    assert options.batch_size == 64
    assert options.steps == epochs * -(-latents // 64)
    assert (options.alpha, options.beta, options.gamma) == (1e-2, 1, 1e-2)
    assert options.learning_rate == 1e-4
    assert (options.base, options.prior, options.ema) == ("gaussian", False, 0)
    assert not options.augment


BUILD = TrainingLoop.__init__


def averages(teacher, folder, monkeypatch, **options):
    """The flow that samples, and the state of all parts after the last step."""
    states, save = [], Checkpoints.save

    def keep(self, state):
        states.append(state["parts"])
        save(self, state)

    with monkeypatch.context() as patch:
        patch.setattr("freia_kd.training.loop.TrainingLoop.__init__", whole)
        patch.setattr(Checkpoints, "save", keep)
        synthesizer = BDNF(BDNFOptions(batch_size=8, **options))
        synthesizer.fit(teacher, checkpoints=Checkpoints(folder, "stage"), generator=generator())
    return synthesizer.flow, states[-1]


def whole(self, *arguments):
    BUILD(self, *arguments[:6])  # without the parts that are wanted after the last step


def test_the_average_of_the_weights_is_what_samples(teacher, tmp_path, monkeypatch):
    flow, parts = averages(teacher, tmp_path, monkeypatch, steps=2, ema=0.5)
    name, value = next((k, v) for k, v in flow.named_parameters() if v.abs().max() > 0)
    assert torch.equal(parts["averaged"][f"module.{name}"], value)
    assert any(
        not torch.equal(parts["averaged"][f"module.{k}"], v) for k, v in parts["flow"].items()
    )


def test_an_average_of_decay_0_is_the_last_weights(teacher, tmp_path, monkeypatch):
    _, parts = averages(teacher, tmp_path, monkeypatch, steps=3, ema=0.0)
    assert all(torch.equal(parts["averaged"][f"module.{k}"], v) for k, v in parts["flow"].items())


def test_contrast_changes_what_the_teacher_sees(teacher):
    seen = []

    def record(module, inputs):
        seen.append((inputs[0].detach().min().item(), inputs[0].detach().max().item()))

    handle = teacher.register_forward_pre_hook(record)
    BDNF(OPTIONS).fit(teacher, generator=generator())
    assert all(low >= 0 and high <= 1 for low, high in seen)
    seen.clear()
    BDNF(BDNFOptions(steps=3, batch_size=8, contrast=(2.0, 2.0))).fit(
        teacher, generator=generator()
    )
    handle.remove()
    assert min(low for low, _ in seen) < -0.4
    assert max(high for _, high in seen) > 1.4


def test_health_sees_a_collapse(teacher):
    synthesizer = BDNF(OPTIONS)
    synthesizer.fit(teacher, generator=generator())
    healthy = synthesizer.diagnose(teacher, generator())
    assert not [w for w in healthy.warnings() if "collapsed" in w]
    reference, _ = synthesizer.sample(40, generator=generator())
    with torch.no_grad():  # all samples become nearly the same
        synthesizer.flow.base.contrasts.fill_(1e-4)
        synthesizer.flow.base.means.zero_()
    labels = torch.arange(10).repeat(4)
    x, _ = synthesizer.sample(40, labels, generator())
    with torch.no_grad():
        health = diagnose(teacher(x), x, labels, reference)
    assert [w for w in health.warnings() if "collapsed" in w]


@pytest.mark.parametrize("name", list(SYNTHESIZERS.builtin))
def test_advice_names_options_that_there_are_with_values_that_they_take(name):
    synthesizer = get_synthesizer(name)()
    for advice in synthesizer.advice().values():
        assert advice.endswith("another --synthesizer")
        for option, value in re.findall(r"--set (\S+)=([^\s,]+)", advice):
            changed = build_synthesizers(name, "standard", {option: json.loads(value)})[0]
            old, new = (
                getattr(s.options, option.partition(".")[2]) for s in (synthesizer, changed)
            )
            assert old != new
    if name == "bdnf":
        assert len(re.findall("--set", " ".join(synthesizer.advice().values()))) == 7
