"""How a student is trained."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import scipy.stats
import torch

from freia_kd.compression import batchnorm_layers
from freia_kd.config import DistillationOptions, losses
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter, dequantise, quantise
from freia_kd.distillation import GENTLE_RATE, NEW_RATE, distance, learning_rate, mix, train_student
from freia_kd.errors import UsageError
from freia_kd.objectives import ActivationBoundaries
from freia_kd.synthesizers import build_synthesizers
from freia_kd.synthesizers.on_the_fly import OnTheFlySet
from freia_kd.teachers import Classifier
from freia_kd.training import Checkpoints, TrainingLoop
from freia_kd.training.checkpoints import read_metrics
from stopping import Stopping


@pytest.fixture
def data(teacher, tmp_path):
    x = quantise(torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        logits = teacher(dequantise(x))
    SyntheticWriter(tmp_path / "set", teacher.domain).append(x, logits, logits.argmax(1))
    return SyntheticSet(tmp_path / "set")


def worse(teacher, scale=0.02):
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter += scale * noise
    return Classifier(student.net, teacher.domain, teacher.arch)


@pytest.mark.parametrize("divergence", ["forward-kl", "reverse-kl", "js", "l1"])
def test_training_brings_the_student_to_the_teacher(teacher, data, divergence):
    student = worse(teacher)
    x, logits, _ = data.batch(torch.arange(64))

    def distance():
        with torch.no_grad():
            return (student(x).softmax(1) - logits.softmax(1)).abs().mean().item()

    before = distance()
    options = DistillationOptions(divergence, steps=30, batch_size=32)
    train_student(student, data, options, torch.Generator().manual_seed(0))
    assert distance() < before / 2
    assert not student.training


def test_the_best_weights_on_held_out_inputs_are_kept(teacher, data, monkeypatch):
    """Told that the third of four looks was the best, the student ends with its weights."""
    scores, seen = iter([0.05, 0.1, 0.9, 0.2]), []  # before any training, then every two steps

    def score(student, heldout, half):
        assert half == "even"  # the others measure
        seen.append(copy.deepcopy(student.state_dict()))
        return next(scores)

    monkeypatch.setattr("freia_kd.distillation.agreement", score)
    student = worse(teacher)
    options = DistillationOptions(steps=6, batch_size=8, check_every=2)
    train_student(student, data, options, torch.Generator().manual_seed(0), heldout=data)
    assert len(seen) == 4
    assert all(torch.equal(v, seen[2][k]) for k, v in student.state_dict().items())
    assert any(not torch.equal(v, seen[3][k]) for k, v in student.state_dict().items())


@pytest.mark.parametrize("boundaries", [0.0, 0.5])
def test_a_student_is_never_worse_than_its_start(teacher, data, tmp_path, boundaries, monkeypatch):
    """Seen to fail: the weights before training were no candidate."""
    start = worse(teacher, scale=0.002)
    before = copy.deepcopy(start.state_dict())
    options = DistillationOptions(
        steps=8, batch_size=8, learning_rate=0.3, check_every=2, boundaries=boundaries
    )
    run = Checkpoints(tmp_path, "student")
    for _ in range(2):  # the second goes on from the end
        student = copy.deepcopy(start)
        train_student(student, data, options, None, run, heldout=data, teacher=teacher)
        assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    again = copy.deepcopy(start)
    train_student(again, data, options, None, teacher=teacher)  # without held-out inputs
    assert any(not torch.equal(v, before[k]) for k, v in again.state_dict().items())


def test_the_best_weights_survive_a_resume(teacher, data, tmp_path):
    options = DistillationOptions(steps=8, batch_size=8, learning_rate=0.5, check_every=2)

    def train(run):
        student = worse(teacher)
        generator = torch.Generator().manual_seed(0)
        train_student(student, data, options, generator, run, heldout=data)
        return student.state_dict()

    whole = train(Checkpoints(tmp_path / "a", "student"))
    with pytest.raises(KeyboardInterrupt):
        train(Stopping(tmp_path / "b", "student", at=("student", 5)))
    resumed = train(Checkpoints(tmp_path / "b", "student"))
    assert all(torch.equal(resumed[k], v) for k, v in whole.items())


def test_training_stops_early_when_agreement_gets_no_better(teacher, data, tmp_path):
    options = DistillationOptions(steps=50, batch_size=8, learning_rate=0.0, check_every=2)
    for patience, steps in ((None, 50), (3, 6)):  # no check is better than the start
        how, run = replace(options, patience=patience), Checkpoints(tmp_path, f"{patience}")
        for _ in range(2):  # the second goes on from the end
            train_student(worse(teacher), data, how, None, run, data)
            assert run.load()["step"] == steps


def test_batch_statistics_of_the_student_stay_where_nothing_was_compressed(tmp_path):
    from freia_kd.domain import Domain
    from freia_kd.teachers import Teacher, build_net

    domain = Domain((1, 16, 16), 3)
    torch.manual_seed(0)
    teacher = Teacher(build_net("resnet14", domain), domain, "resnet14")
    x = quantise(torch.rand(16, 1, 16, 16))
    with torch.no_grad():
        logits = teacher(dequantise(x))
    SyntheticWriter(tmp_path / "set", domain).append(x, 2 * logits, logits.argmax(1))
    student = Classifier(copy.deepcopy(teacher.net), domain, "resnet14")
    options = DistillationOptions(steps=2, batch_size=8)
    train_student(student, SyntheticSet(tmp_path / "set"), options, teacher=teacher)
    before, after = teacher.net.state_dict(), student.net.state_dict()
    running = [k for k in before if "running" in k]
    assert running
    assert all(torch.equal(before[k], after[k]) for k in running)
    assert not torch.equal(before["linear.weight"], after["linear.weight"])


def weights(teacher, data, run=None, heldout=None, **changes):
    """The weights of a student trained in six steps, which a run may keep."""
    student = worse(teacher)
    options = DistillationOptions(**{"steps": 6, "batch_size": 8, **changes})
    generator = torch.Generator().manual_seed(0)
    train_student(student, data, options, generator, run, heldout=heldout, teacher=teacher)
    return student.state_dict()


def equal(one, other):
    return all(torch.equal(v, other[k]) for k, v in one.items())


WAYS = [
    {"divergence": "l1"},
    {"divergence": "centred-l1"},
    {"temperature": 4.0},
    {"pull": 1.0},
    {"boundaries": 0.5},
    {"mixup": 1.0},
    {"ema": 0.9},
]


def test_without_a_generator_torchs_seed_decides(teacher, data):
    seen = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        student = worse(teacher)
        train_student(student, data, DistillationOptions(steps=1, batch_size=4), teacher=teacher)
        seen.append((torch.cat([p.flatten() for p in student.parameters()]), torch.rand(3)))
    (weights, after), (same, again), (other, _) = seen
    assert torch.equal(weights, same)
    assert torch.equal(after, again)
    assert not torch.equal(weights, other)


@pytest.mark.parametrize("changes", WAYS)
def test_every_option_has_an_effect_and_repeats(teacher, data, changes):
    one, usual = weights(teacher, data, **changes), weights(teacher, data)
    assert not equal(one, usual)
    assert equal(one, weights(teacher, data, **changes))


def on_the_fly(teacher):
    sources = build_synthesizers("spectral+uniform")
    for source in sources:
        source.fit(teacher)
    return OnTheFlySet(sources, teacher, seed=0, chunk=24)


@pytest.mark.parametrize("at", [("student-boundaries", 1), ("student", 1), ("student", 2)])
@pytest.mark.parametrize("source", ["stored", "on the fly"])
def test_all_options_resume_exactly(teacher, data, tmp_path, at, source):
    """Killed in either phase, in the middle of a chunk of inputs made on the fly too."""
    changes = {"boundaries": 0.5, "mixup": 1.0, "ema": 0.9, "check_every": 1}

    def train(run):
        inputs = data if source == "stored" else on_the_fly(teacher)
        return weights(teacher, inputs, run, heldout=data, **changes)

    whole = train(None)
    with pytest.raises(KeyboardInterrupt):
        train(Stopping(tmp_path, "student", at))
    assert equal(train(Stopping(tmp_path, "student")), whole)


def test_inputs_on_the_fly_differ_in_every_step(teacher, data, monkeypatch):
    seen = []
    endless = on_the_fly(teacher)
    original = endless.batch
    monkeypatch.setattr(endless, "batch", lambda rows, at: seen.append(rows) or original(rows, at))
    weights(teacher, endless, boundaries=0.5)  # both phases
    assert torch.equal(torch.cat(seen), torch.arange(6 * 8))


def test_the_teacher_answers_mixed_inputs(teacher, data, tmp_path):
    class Spy(type(teacher)):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    spy, seen = Spy(teacher.net, teacher.domain, teacher.arch), []
    student, run = worse(teacher), Checkpoints(tmp_path / "run", "student")
    options = DistillationOptions("l1", 1.0, steps=1, batch_size=16, mixup=1.0, learning_rate=0.0)
    train_student(student, data, options, torch.Generator().manual_seed(0), run, teacher=spy)
    (x,) = seen
    with torch.no_grad():
        expected = (student(x) - teacher(x)).abs().mean().item()
    assert read_metrics(run.folder)[-1]["loss"] == pytest.approx(expected, rel=1e-5)
    whole = data.batch(torch.arange(64))[0]
    distance = torch.cdist(x.flatten(1), whole.flatten(1)).amin(1)
    assert (distance > 0.1).sum() >= 12  # a permutation may pair some with themselves


def test_mix_is_a_beta_mixture_of_pairs():
    generator = torch.Generator().manual_seed(0)
    x = torch.eye(200)
    shares = []
    for _ in range(400):
        mixed = mix(x, 0.5, generator)
        assert torch.allclose(mixed.sum(1), torch.ones(200))
        assert ((mixed > 0).sum(1) <= 2).all()
        shares.append(mixed.diagonal().min().item())
    # Beta(1/2, 1/2) is the arcsine law
    assert scipy.stats.kstest(shares, scipy.stats.beta(0.5, 0.5).cdf).pvalue > 0.01


def test_the_distance_to_the_start_is_over_all_weights():
    weights = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    start = [torch.zeros(2), torch.ones(1, 1)]
    assert distance(weights, start).item() == 9.0


@pytest.mark.parametrize("boundaries", [0.0, 0.5])
def test_a_pull_keeps_weights_near_those_of_the_start(teacher, data, tmp_path, boundaries):
    start = worse(teacher).state_dict()

    def moved(pull):
        run = Checkpoints(tmp_path / f"{pull}", "student")
        options = DistillationOptions(steps=20, batch_size=16, pull=pull, boundaries=boundaries)
        student = worse(teacher)
        source = torch.Generator().manual_seed(0)
        train_student(student, data, options, source, run, teacher=teacher)
        apart = sum((v - start[k]).square().sum() for k, v in student.state_dict().items())
        lines = read_metrics(run.folder)
        return apart.item(), [line["loss"] for line in lines if line["stage"] == "student"]

    free, _ = moved(0.0)
    held, losses = moved(1e3)
    assert held < free / 4
    assert (losses[0] > 10) == bool(boundaries)  # no distance, and so no loss, at the start


def test_the_averaged_weights_are_kept(teacher, data, monkeypatch):
    before, original = [], TrainingLoop.accept

    def record(self, *arguments):
        before.append(copy.deepcopy(self.parts["student"].state_dict()))
        return original(self, *arguments)

    monkeypatch.setattr(TrainingLoop, "accept", record)
    last = weights(teacher, data, steps=3)
    before.clear()
    kept = weights(teacher, data, steps=3, ema=0.6)
    key = "net.conv2.weight"
    average = before[1][key]
    for step in (before[2][key], last[key]):
        average = 0.6 * average + 0.4 * step
    torch.testing.assert_close(kept[key], average)
    judged = []
    monkeypatch.setattr(
        "freia_kd.distillation.agreement",
        lambda student, heldout, half: judged.append(copy.deepcopy(student.state_dict())) or 1.0,
    )
    chosen = weights(teacher, data, steps=3, ema=0.6, learning_rate=2e-3, heldout=data)
    assert equal(chosen, kept)
    assert equal(chosen, judged[-1])


def test_activation_boundaries_are_learned_first(teacher, data, tmp_path):
    student, run = worse(teacher), Checkpoints(tmp_path / "run", "student")
    names = ("net.conv1", "net.conv2", "net.conv3", "net.fc1")
    x, _, _ = data.batch(torch.arange(64))
    loss = ActivationBoundaries(student, teacher, dict(zip(names, names, strict=True)), x)

    def distance():
        with torch.no_grad(), loss.observe(student, teacher) as features:
            student(x)
            teacher(x)
        return loss(features).item()

    before = distance()
    options = DistillationOptions(steps=21, boundaries=20 / 21, batch_size=64, learning_rate=2e-3)
    train_student(student, data, options, torch.Generator(), run, teacher=teacher)
    stages = {line["stage"]: line for line in read_metrics(run.folder)}
    assert stages["student-boundaries"]["step"] == 20
    assert stages["student"]["step"] == 1
    assert stages["student-boundaries"]["loss"] < before / 2
    assert distance() < before / 2


def test_losses_by_name():
    options = DistillationOptions(temperature=4.0)
    assert losses() == [
        "forward-kl",
        "reverse-kl",
        "js",
        "l1",
        "centred-l1",
        "centred-mse",
        "activation-boundaries",
    ]
    assert options.with_loss("js") == replace(options, divergence="js")
    assert options.with_loss("activation-boundaries") == replace(options, boundaries=0.25)
    assert not options.with_loss("js").needs_teacher
    assert options.with_loss("activation-boundaries").needs_teacher
    path = "freia_kd.objectives.divergences:l1"
    assert options.with_loss(path).divergence == path
    with pytest.raises(UsageError, match="js, l1, centred-l1, centred-mse, activation-boundaries"):
        options.with_loss("hinge")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"divergence": "hinge"}, "known ones are forward-kl, reverse-kl, js, l1"),
        ({"divergence": "activation-boundaries"}, "pass boundaries=0.25"),
        ({"temperature": 0.0}, "student.temperature: expected more than 0"),
        ({"boundaries": 1.0}, "student.boundaries: expected less than 1"),
        ({"mixup": -1.0}, "student.mixup: expected at least 0"),
        ({"pull": -1.0}, "student.pull: expected at least 0"),
        ({"ema": 1.0}, "student.ema: expected less than 1"),
        ({"steps": 0}, "student.steps: expected at least 1; got 0"),
        ({"batch_size": 0}, "student.batch_size: expected at least 1"),
        ({"learning_rate": float("nan")}, "student.learning_rate: expected a finite number"),
        ({"check_every": 0}, "student.check_every: expected at least 1"),
    ],
)
def test_options_without_sense_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        DistillationOptions(**changes)


@pytest.mark.parametrize("changes", [{"mixup": 1.0}, {"boundaries": 0.5}])
def test_options_that_need_the_teacher_say_so(teacher, data, changes):
    with pytest.raises(UsageError, match="pass teacher="):
        train_student(worse(teacher), data, DistillationOptions(**changes))


def test_activation_boundaries_need_layers_in_common(teacher, data):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10))
    student = Classifier(net, teacher.domain, "other")
    with pytest.raises(UsageError, match="conv1, conv2, conv3, fc1"):
        train_student(student, data, DistillationOptions(boundaries=0.5), teacher=teacher)


def test_the_memory_layout_changes_no_result(teacher, data, monkeypatch):
    fast = weights(teacher, data)
    assert all(v.is_contiguous() for v in fast.values())
    seen = []

    def score(student, heldout, half):
        weight = student.net.conv2.weight
        seen.append(weight.is_contiguous(memory_format=torch.channels_last))
        return 1.0

    monkeypatch.setattr("freia_kd.distillation.agreement", score)
    weights(teacher, data, heldout=data)
    assert seen == [False, True]  # before training and after it
    monkeypatch.setattr("freia_kd.distillation.channels_last", lambda net: nullcontext())
    for key, value in weights(teacher, data).items():
        torch.testing.assert_close(fast[key], value, rtol=1e-3, atol=1e-4)


def new_net(teacher, arch="resnet14"):
    from freia_kd.students import StudentSpec

    return StudentSpec(arch=arch).start(teacher, seed=1).classifier


def test_batch_normalisation_of_a_new_net_learns(teacher, data):
    """Seen to fail: in eval mode its statistics stay those of a new layer."""
    student = new_net(teacher)
    options = DistillationOptions(steps=3, batch_size=8)
    assert learning_rate(options, student) == NEW_RATE
    train_student(student, data, options, torch.Generator().manual_seed(0), heldout=data)
    assert not student.is_new
    assert not any(module.training for module in student.modules())
    assert learning_rate(options, student) == GENTLE_RATE
    layers = list(batchnorm_layers(student))
    assert all(int(layer.num_batches_tracked) == 3 for layer in layers)
    before = copy.deepcopy(student.state_dict())
    train_student(student, data, options, torch.Generator().manual_seed(0))  # no longer new
    after = student.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if "running" in k)


def test_a_new_net_needs_batches_to_normalise(teacher, data):
    with pytest.raises(UsageError, match="batches of 2 inputs or more; got 1"):
        train_student(new_net(teacher), data, DistillationOptions(steps=1, batch_size=1))
    train_student(new_net(teacher, "lenet5"), data, DistillationOptions(steps=1, batch_size=1))
