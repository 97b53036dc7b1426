from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon
from tiny_batchnorm import DOMAIN, draw, features, generator, make_student, make_teacher

from freia_kd.errors import UsageError
from freia_kd.objectives.contract import Terms
from freia_kd.synthesizers.deep_inversion import (
    AdaptiveDeepInversion,
    AdaptiveDeepInversionOptions,
    DeepInversion,
    DeepInversionOptions,
)
from freia_kd.synthesizers.inversion import Canvas, augment, total_variation, unit
from freia_kd.teachers import Teacher
from freia_kd.training import Checkpoints

SMALL = {"images": 12, "batch_size": 6, "steps": 4}
OPTIONS = DeepInversionOptions(**SMALL, coarse=0.5, flip=True)


def fit(options=OPTIONS, seed=0, teacher=None, run=None, kind=DeepInversion, student=None):
    synthesizer = kind(options)
    synthesizer.fit(teacher or make_teacher(), None, run, generator(seed), student)
    return synthesizer


def hooks(module):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules())


def test_the_bank():
    synthesizer = fit()
    assert synthesizer.distinct == 12
    assert synthesizer.inputs.shape == (12, *DOMAIN.shape)
    assert synthesizer.inputs.min() >= 0
    assert synthesizer.inputs.max() <= 1
    assert not synthesizer.inputs.requires_grad
    assert len(synthesizer.inputs.unique(dim=0)) == 12
    assert synthesizer.labels.bincount().tolist() == [4, 4, 4]


def test_images_are_those_of_the_labels_asked_for():
    synthesizer = fit()
    wanted = torch.tensor([2, 2, 0, 1])
    x, y = synthesizer.sample(4, wanted, generator())
    assert torch.equal(y, wanted)
    for image, label in zip(x, wanted, strict=True):
        row = (synthesizer.inputs == image).flatten(1).all(1)
        assert synthesizer.labels[row].tolist() == [label]


def test_students_see_few_images_augmented_and_samples_are_as_they_are(tmp_path):
    run = Checkpoints(tmp_path, "deepinversion")
    synthesizer = fit(replace(OPTIONS, augment="few"), run=run)
    restored = DeepInversion(replace(OPTIONS, augment="few"))
    restored.restore(DOMAIN, run)
    for bank in (synthesizer, restored):
        assert bank.distinct is None
        x, labels = bank.unanswered(30, generator(1))
        assert labels is None  # mixed images have none
        assert x.shape == (30, *DOMAIN.shape)
        assert 0 <= x.min() <= x.max() <= 1
        assert len(x.flatten(1).unique(dim=0)) == 30
        torch.testing.assert_close(x, synthesizer.unanswered(30, generator(1))[0])
        shown = bank.sample(30, torch.arange(30) % 3, generator(1))[0]
        assert len(torch.cat([shown, synthesizer.inputs]).flatten(1).unique(dim=0)) == 12


@pytest.mark.parametrize(("augment", "images"), [("never", 12), ("few", 1_002)])
def test_images_that_are_not_augmented_keep_their_labels(augment, images):
    options = DeepInversionOptions(images=images, batch_size=6, steps=1, augment=augment)
    synthesizer = fit(options)
    assert synthesizer.distinct == images
    x, labels = synthesizer.unanswered(5, generator(1))
    for image, label in zip(x, labels, strict=True):
        row = (synthesizer.inputs == image).flatten(1).all(1)
        assert label in synthesizer.labels[row]


def test_labels_are_balanced_over_batches_and_in_random_order():
    canvas = Canvas(DOMAIN, 5, 3, generator())
    labels = []
    for batch in range(3):
        canvas.prepare(batch, False)
        labels.append(canvas.labels)
    assert torch.cat(labels).bincount().tolist() == [5, 5, 5]
    assert any(part.tolist() != sorted(part.tolist()) for part in labels)


def test_images_are_rounded_up_to_whole_batches():
    assert fit(DeepInversionOptions(images=7, batch_size=3, steps=1)).distinct == 9
    assert fit(DeepInversionOptions(images=3, batch_size=8, steps=1)).distinct == 3


def test_every_term_is_the_papers():
    teacher, (x, y) = make_teacher(), draw()
    options = DeepInversionOptions(form="norms", statistics=2.0, variation=0.3, norm=0.7)
    terms, logits = DeepInversion(options).terms(teacher, x, y)
    values = {name: float(value) for name, value in terms.items()}
    scores = logits.double().numpy()
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert values["cls"] == pytest.approx(-np.log(chances[np.arange(6), y]).mean(), rel=1e-5)
    expected = sum(
        np.linalg.norm(h.mean(1) - layer.running_mean.numpy())
        + np.linalg.norm(h.var(1) - layer.running_var.numpy())
        for h, layer in zip(features(teacher.net, x), (teacher.net[1], teacher.net[4]), strict=True)
    )
    assert values["statistics"] == pytest.approx(2 * expected, rel=1e-5)
    assert values["norm"] == pytest.approx(0.7 * np.sqrt((x.numpy() ** 2).sum()), rel=1e-5)
    assert values["variation"] == pytest.approx(0.3 * variation_by_hand(x.numpy()), rel=1e-5)
    assert list(values) == ["cls", "statistics", "variation", "norm"]


def variation_by_hand(x):
    total = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        squares = 0.0
        for i in range(x.shape[2] - down):
            for j in range(max(0, -right), x.shape[3] - max(0, right)):
                squares += ((x[:, :, i, j] - x[:, :, i + down, j + right]) ** 2).sum()
        total += np.sqrt(squares)
    return total


def test_variation_of_a_constant_image_is_0():
    assert total_variation(torch.full((2, 1, 4, 4), 0.3)).item() == 0


def test_optimisation_lowers_the_loss():
    teacher = make_teacher()
    options = DeepInversionOptions(
        images=30, batch_size=30, steps=30, learning_rate=0.2, statistics=3.0
    )
    method = fit(options, teacher=teacher)
    noise = Canvas(DOMAIN, 30, 1, generator())
    noise.prepare(0, False)
    before, _ = method.terms(teacher, noise.whole().detach(), noise.labels)
    after, _ = method.terms(teacher, DOMAIN.normalize(method.inputs), method.labels)
    assert after.terms["statistics"] < 0.85 * before.terms["statistics"]
    assert after.terms["cls"] < 0.95 * before.terms["cls"]
    assert torch.equal(noise.labels, method.labels)


def test_the_competition_is_one_minus_jensen_shannon():
    teacher, student, (x, y) = make_teacher(), make_student().eval(), draw()
    options = AdaptiveDeepInversionOptions(competition=5.0)
    terms = AdaptiveDeepInversion(options).loss(teacher, student)(x, y)
    with torch.no_grad():
        ours, theirs = (
            (net(x).double() / 3).softmax(1).numpy() for net in (teacher.net, student.net)
        )
    divergence = (jensenshannon(ours, theirs, axis=1) ** 2).mean()
    assert divergence > 0.01
    assert terms.terms["competition"].item() == pytest.approx(5 * (1 - divergence), rel=1e-5)
    plain = DeepInversion(options).loss(teacher, None)(x, y)
    assert terms.total.item() == pytest.approx(
        (plain.total + terms.terms["competition"]).item(), rel=1e-5
    )


def test_competition_increases_the_disagreement():
    teacher, student = make_teacher(), make_student().eval()

    def agreement(weight):
        options = AdaptiveDeepInversionOptions(
            images=30,
            batch_size=30,
            steps=20,
            learning_rate=0.2,
            jitter=0,
            statistics=0.1,
            competition=weight,
        )
        x = fit(options, 0, teacher, kind=AdaptiveDeepInversion, student=student).inputs
        with torch.no_grad():
            p, q = teacher(x).softmax(1), student(x).softmax(1)
        return 1 - (jensenshannon(p, q, axis=1) ** 2).mean()

    assert agreement(10.0) < agreement(0.0) - 0.1


def test_gradients_reach_the_images_alone_and_hooks_are_removed():
    teacher, (x, y) = make_teacher(), draw()
    terms, _ = DeepInversion(OPTIONS).terms(teacher, x.requires_grad_(), y)
    terms.total.backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert hooks(teacher) == 0


def test_an_adaptive_one_without_a_student_is_refused():
    with pytest.raises(UsageError, match="needs a student"):
        fit(AdaptiveDeepInversionOptions(**SMALL), kind=AdaptiveDeepInversion)
    assert "student" in AdaptiveDeepInversion.unsupported_reason(make_teacher(), student=False)
    assert AdaptiveDeepInversion.unsupported_reason(make_teacher()) is None
    assert DeepInversion.unsupported_reason(make_teacher(), student=False) is None


class Interrupted(DeepInversion):
    """Is killed at a step, or sees a loss that is not finite."""

    stop_at, bad = None, ()

    def loss(self, teacher, student):
        whole, self.calls = super().loss(teacher, student), 0

        def loss(x, y):
            call, self.calls = self.calls, self.calls + 1
            if call == self.stop_at:
                raise KeyboardInterrupt
            terms = whole(x, y)
            return terms + Terms(fault=x.sum() * torch.nan) if call in self.bad else terms

        return loss


@pytest.mark.parametrize("stop_at", [1, 3, 5, 7])  # coarse or not, in the first or second batch
def test_a_killed_run_is_resumed_bit_for_bit(stop_at, tmp_path):
    whole = fit()
    killed = Interrupted(OPTIONS)
    killed.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        killed.fit(make_teacher(), None, Checkpoints(tmp_path, "stage", every=0), generator())
    resumed = Interrupted(OPTIONS)
    resumed.fit(make_teacher(), None, Checkpoints(tmp_path, "stage"), generator(99))
    assert resumed.calls == 8 - stop_at
    assert torch.equal(resumed.inputs, whole.inputs)
    assert torch.equal(resumed.labels, whole.labels)
    again = Interrupted(OPTIONS)
    again.fit(make_teacher(), None, Checkpoints(tmp_path, "stage"), generator(98))
    assert again.calls == 0
    assert torch.equal(again.inputs, whole.inputs)


@pytest.mark.parametrize("bad", [4, 5, 7])
def test_a_loss_that_is_not_finite_leaves_the_other_batch_alone(bad):
    whole, troubled = fit(), Interrupted(OPTIONS)
    troubled.bad = {bad}
    troubled.fit(make_teacher(), None, None, generator())
    assert torch.equal(troubled.inputs[:6], whole.inputs[:6])
    assert torch.equal(troubled.labels, whole.labels)
    assert not torch.equal(troubled.inputs[6:], whole.inputs[6:])
    assert torch.isfinite(troubled.inputs).all()
    assert troubled.inputs[6:].flatten(1).std(1).min() > 0.01


def rates_of(monkeypatch, options, bad=()):
    rates, step = [], torch.optim.Adam.step

    def record(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    synthesizer = Interrupted(options)
    synthesizer.bad = bad
    synthesizer.fit(make_teacher(), None, None, generator())
    return rates


def test_learning_rate_falls_as_a_cosine_within_a_batch(monkeypatch):
    options = DeepInversionOptions(**SMALL, learning_rate=0.4, decay=True)
    cosine = 0.2 * (1 + np.cos(np.pi * np.arange(4) / 4))
    assert rates_of(monkeypatch, options) == pytest.approx([*cosine, *cosine])


def test_learning_rate_is_constant_but_for_rollbacks(monkeypatch):
    options = DeepInversionOptions(**SMALL, learning_rate=0.4)
    assert rates_of(monkeypatch, options, {2}) == pytest.approx([0.4] * 2 + [0.2] * 5)


def test_without_jitter_and_flip_images_stay():
    x, _ = draw()
    source = generator()
    before = source.get_state()
    assert augment(x, 0, False, source) is x
    assert torch.equal(source.get_state(), before)


def test_jitter_rolls_by_every_shift_up_to_its_range():
    x, source = torch.zeros(1, 1, 9, 9), generator()
    x[0, 0, 4, 4] = 1
    seen = {divmod(int(augment(x, 2, False, source).argmax()), 9) for _ in range(400)}
    assert seen == {(i, j) for i in range(2, 7) for j in range(2, 7)}


def test_flip_mirrors_about_half_of_the_time():
    x, source = draw()[0], generator()
    results = [augment(x, 0, True, source) for _ in range(200)]
    mirrored = sum(torch.equal(r, torch.flip(x, (3,))) for r in results)
    assert 70 < mirrored < 130
    assert sum(torch.equal(r, x) for r in results) == 200 - mirrored


def test_digits_are_not_mirrored_by_default():
    assert not DeepInversionOptions().flip


def test_coarse_images_have_half_the_size_and_are_enlarged():
    canvas = Canvas(DOMAIN, 4, 1, generator())
    assert canvas.prepare(0, coarse=True)
    assert canvas.x.shape == (4, 2, 4, 4)  # 8 x 7, halved and rounded up
    assert canvas.whole().shape == (4, *DOMAIN.shape)
    assert not canvas.prepare(0, coarse=True)
    expected = F.interpolate(canvas.half, (8, 7), mode="bilinear", align_corners=False)
    assert canvas.prepare(0, coarse=False)
    assert torch.equal(canvas.x, expected)
    assert canvas.x is canvas.full
    assert not canvas.prepare(0, coarse=False)


def test_the_first_share_of_the_steps_is_coarse(monkeypatch):
    sizes, moments, step = [], [], torch.optim.Adam.step

    def record(self, *arguments):
        moments.append(len(self.state))
        sizes.append([p.shape[2] for p in self.param_groups[0]["params"] if p.grad is not None])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    fit(DeepInversionOptions(images=12, batch_size=6, steps=4, coarse=0.25))
    assert sizes == [[4], [8], [8], [8]] * 2
    assert moments == [0, 0, 1, 1] * 2  # Adam starts anew with each batch and size


def test_the_teacher_sees_pixels_of_its_own_size_only():
    teacher, seen = make_teacher(), []

    def record(module, inputs):
        seen.append(inputs[0].detach())

    handle = teacher.net.register_forward_pre_hook(record)
    fit(DeepInversionOptions(**SMALL, learning_rate=5.0, coarse=0.5), teacher=teacher)
    handle.remove()
    assert len(seen) == 8
    for x in seen:
        pixels = DOMAIN.denormalize(x)
        assert x.shape[1:] == DOMAIN.shape
        assert pixels.min() > -1e-5
        assert pixels.max() < 1 + 1e-5


def test_one_in_five_is_held_out():
    synthesizer = fit()
    parts = [synthesizer.part(heldout) for heldout in (False, True)]
    assert [p.distinct for p in parts] == [10, 2]
    together = torch.cat([p.inputs for p in parts])
    assert len(together.unique(dim=0)) == 12


@pytest.mark.parametrize("kind", [DeepInversion, AdaptiveDeepInversion])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1"),
        ({"batch_size": 1}, "batch_size"),
        ({"images": 0}, "images"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"coarse": 1.0}, "coarse"),
        ({"jitter": -1}, "jitter"),
        ({"statistics": -1.0}, "statistics: expected at least 0"),
        ({"variation": -1.0}, "variation: expected at least 0"),
        ({"flip": 1}, "flip"),
    ],
)
def test_options_that_make_no_sense_are_refused(kind, settings, message):
    with pytest.raises(UsageError, match=message):
        kind.build("best", settings)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"competition": -1.0}])
def test_options_of_the_competition(settings):
    with pytest.raises(UsageError, match=f"{next(iter(settings))}: expected"):
        AdaptiveDeepInversion.build("best", settings)


@pytest.mark.parametrize("preset", ["quick", "standard", "best"])
def test_presets(preset):
    options = AdaptiveDeepInversion.build(preset).options
    best = DeepInversionOptions()
    assert options.images * options.steps <= best.images * best.steps
    assert (options.steps == best.steps) == (preset == "best")


class Raw(torch.nn.Module):
    """A net that eats pixels of 0 to 255, and is the same classifier as one that eats others."""

    def __init__(self, net, domain):
        super().__init__()
        self.net, self.domain = net, domain

    def forward(self, x):
        return self.net(self.domain.normalize(x / 255))


def test_a_teacher_that_eats_0_to_255_gets_the_same_images():
    """Its units change neither the rate, nor the noise of the start, nor norms of images."""
    standard = replace(DOMAIN, mean=(0.0,), std=(0.25,))  # whose unit is a quarter of the range too
    raw = replace(DOMAIN, mean=(0.0,), std=(1 / 255,))
    net = make_teacher().net
    options = DeepInversionOptions(images=6, batch_size=6, steps=8, variation=1e-2, norm=1e-2)
    made = []
    for domain, own in ((standard, net), (raw, Raw(net, standard))):
        assert unit(domain) == pytest.approx(1.0 if domain is standard else 63.75)
        source = DeepInversion(options)
        source.fit(Teacher(own, domain, "tiny"), generator=generator())
        made.append(source.inputs)
    torch.testing.assert_close(made[0], made[1], atol=2e-3, rtol=0)
    assert made[1].std() > 0.1


def test_a_form_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match=r"deepinversion.form: expected 'norms' or 'divergence'"):
        DeepInversionOptions(form="l2")
