from pathlib import Path

import pytest
import torch

from freia_kd.data.datasets import LabelledData
from freia_kd.errors import CheckpointError
from freia_kd.flows.bases import SpectralBase
from freia_kd.objectives.monitors import examine
from freia_kd.runs.run import Run
from freia_kd.synthesizers import SYNTHESIZERS
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions
from freia_kd.synthesizers.noise import Normal, Spectral, Uniform

OPTIONS = BDNFOptions(steps=3, batch_size=8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


CASES = {
    "bdnf": lambda: BDNF(OPTIONS),
    "bdnf, the paper's": lambda: BDNF(
        BDNFOptions(steps=3, batch_size=8, base="gaussian", prior=False)
    ),
    "uniform": lambda: Uniform(),
    "normal": lambda: Normal(),
    "spectral": lambda: Spectral(),
}


@pytest.mark.parametrize("name", list(CASES))
def test_contract(name, teacher):
    synthesizer = CASES[name]()
    synthesizer.fit(teacher, generator=generator())
    x, y = synthesizer.sample(12, generator=generator(1))
    assert x.shape == (12, 1, 32, 32)
    assert y.shape == (12,)
    assert 0 <= x.min() < x.max() <= 1
    again, labels = synthesizer.sample(12, generator=generator(1))
    assert torch.equal(x, again)
    assert torch.equal(y, labels)
    assert not torch.equal(x, synthesizer.sample(12, generator=generator(2))[0])
    wanted = torch.arange(10)
    assert torch.equal(synthesizer.sample(10, wanted, generator(1))[1], wanted)
    assert not x.requires_grad


@pytest.mark.parametrize("flow", ["glow", "realnvp", "spline", "my_flow.yaml"])
def test_every_flow_can_be_trained(flow, teacher):
    path = Path(__file__).parents[2] / "examples" / flow
    synthesizer = BDNF(BDNFOptions(str(path) if path.exists() else flow, steps=1, batch_size=2))
    synthesizer.fit(teacher, generator=generator())
    x, _ = synthesizer.sample(2, generator=generator())
    assert x.shape == (2, 1, 32, 32)
    assert 0 <= x.min() < x.max() <= 1


@pytest.mark.parametrize("name", list(CASES))
def test_fitting_twice_gives_the_same(name, teacher):
    first, second = CASES[name](), CASES[name]()
    torch.manual_seed(0)
    first.fit(teacher, generator=generator())
    torch.manual_seed(1)  # the global generator plays no part
    second.fit(teacher, generator=generator())
    assert torch.equal(
        first.sample(4, generator=generator(3))[0], second.sample(4, generator=generator(3))[0]
    )


def test_fit_leaves_the_global_generator_alone(teacher):
    torch.manual_seed(5)
    BDNF(OPTIONS).fit(teacher, generator=generator())
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))


SHORT = {
    "bdnf": {"steps": 1, "batch_size": 2},
    "kegnet": {"steps": 1, "batch_size": 2, "generators": 1},
    "dfad": {"steps": 1, "batch_size": 2, "student_steps": 1, "channels": (4, 3)},
    "rdskd": {"steps": 1, "batch_size": 2, "channels": (4, 3)},
    "kw-inception": {"steps": 1, "batch_size": 2, "images": 2},
}


@pytest.mark.parametrize("name", list(SHORT))
def test_without_a_generator_torchs_seed_decides(name, teacher):
    seen = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        synthesizer = SYNTHESIZERS[name].build("best", SHORT[name])
        synthesizer.fit(teacher, student=teacher)
        seen.append((synthesizer.sample(2, generator=generator())[0], torch.rand(3)))
    (x, after), (same, again), (other, _) = seen
    assert torch.equal(x, same)
    assert torch.equal(after, again)  # and goes on from there: nobody reseeded it
    assert not torch.equal(x, other)


@pytest.mark.parametrize("name", list(SHORT))
def test_a_run_changes_no_random_number(name, teacher, tmp_path):
    after = []
    for run in (None, Run(tmp_path, {})):
        source = generator()
        SYNTHESIZERS[name].build("best", SHORT[name]).fit(teacher, None, run, source, teacher)
        after.append(torch.rand(3, generator=source))
    assert torch.equal(*after)


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


def test_a_trained_flow_is_restored_from_its_run(teacher, tmp_path):
    run, synthesizer = Run(tmp_path, {}), BDNF(OPTIONS)
    with pytest.raises(CheckpointError, match="no trained flow"):
        BDNF(OPTIONS).restore(teacher.domain, run)
    with run.stage("bdnf"):
        synthesizer.fit(teacher, run=run, generator=generator())
    restored = BDNF(OPTIONS)
    restored.restore(teacher.domain, run)
    assert torch.equal(
        synthesizer.sample(5, generator=generator(2))[0],
        restored.sample(5, generator=generator(2))[0],
    )
    with pytest.raises(CheckpointError, match="another flow"):
        BDNF(BDNFOptions(flow="realnvp")).restore(teacher.domain, run)


def test_samples_of_another_shape_are_refused(teacher):
    data = LabelledData(torch.zeros(2, 1, 28, 28), torch.arange(2), "few")
    with pytest.raises(ValueError, match="expected inputs of shape"):
        BDNF(OPTIONS).fit(teacher, data)


def test_labels_of_another_length_are_refused(teacher):
    synthesizer = BDNF(OPTIONS)
    synthesizer.fit(teacher, generator=generator())
    with pytest.raises(ValueError, match="Expected 3 labels; got 2"):
        synthesizer.sample(3, torch.arange(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "spectal"}, "Expected the base 'spectral' or 'gaussian'; got 'spectal'"),
        ({"steps": 0}, "at least 1 for steps and batch_size; got 0 and 128"),
        ({"batch_size": 0}, "at least 1 for steps and batch_size; got 600 and 0"),
        ({"learning_rate": 0.0}, "positive learning_rate and clip; got 0.0 and 1.0"),
        ({"clip": -1.0}, "positive learning_rate and clip; got 0.001 and -1.0"),
        ({"ema": 1.0}, r"an ema in \[0, 1\); got 1.0"),
        ({"alpha": -1.0}, "alpha, beta and prior_weight of at least 0"),
        ({"gamma": -1.0}, "a gamma of at least 0; got -1.0"),
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


def test_registry():
    assert SYNTHESIZERS["bdnf"] is BDNF
    assert SYNTHESIZERS["spectral"] is Spectral


def test_the_average_of_the_weights_is_what_samples(teacher, tmp_path):
    run, synthesizer = Run(tmp_path, {}), BDNF(BDNFOptions(steps=2, batch_size=8, ema=0.5))
    synthesizer.fit(teacher, run=run, generator=generator())
    parts = run.load("bdnf")["parts"]
    name, value = next((k, v) for k, v in synthesizer.flow.named_parameters() if v.abs().max() > 0)
    assert torch.equal(parts["averaged"][f"module.{name}"], value)
    assert any(
        not torch.equal(parts["averaged"][f"module.{k}"], v) for k, v in parts["flow"].items()
    )


def test_an_average_of_decay_0_is_the_last_weights(teacher, tmp_path):
    run = Run(tmp_path, {})
    BDNF(BDNFOptions(steps=3, batch_size=8, ema=0.0)).fit(teacher, run=run, generator=generator())
    parts = run.load("bdnf")["parts"]
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
    healthy = synthesizer.examine(teacher, generator())
    assert not [w for w in healthy.warnings() if "collapsed" in w]
    reference, _ = synthesizer.sample(40, generator=generator())
    with torch.no_grad():  # all samples become nearly the same
        synthesizer.flow.base.contrasts.fill_(1e-4)
        synthesizer.flow.base.means.zero_()
    labels = torch.arange(10).repeat(4)
    x, _ = synthesizer.sample(40, labels, generator())
    with torch.no_grad():
        health = examine(teacher(x), x, labels, reference)
    assert [w for w in health.warnings() if "collapsed" in w]
