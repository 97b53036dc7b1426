import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, ndimage, stats
from scipy.special import log_softmax
from tiny_batchnorm import DOMAIN, draw, features, generator, make_teacher

from freia_kd.domain import DOMAINS, Domain
from freia_kd.errors import UsageError
from freia_kd.objectives.batchnorm import LayerStatistics
from freia_kd.synthesizers import SYNTHESIZERS
from freia_kd.synthesizers.knowledge_within import (
    KnowledgeWithinOptions,
    KWGaussian,
    KWInception,
    KWMixture,
    KWStatistics,
    clipped_gaussian,
    clipped_moments,
    gaussian_divergence,
    roughness,
)
from freia_kd.teachers import Teacher, build_net

OPTIONS = KnowledgeWithinOptions(images=12, batch_size=6, steps=2)
SCHEMES = {"kw-inception": KWInception, "kw-bns": KWStatistics, "kw-mixture": KWMixture}
TERMS = {
    "kw-inception": ["inception", "smoothness"],
    "kw-bns": ["statistics"],
    "kw-mixture": ["statistics", "inception", "smoothness"],
}


def fit(kind, options=OPTIONS, seed=0, teacher=None, run=None):
    synthesizer = kind(options)
    synthesizer.fit(teacher or make_teacher(), None, run, generator(seed))
    return synthesizer


@pytest.mark.parametrize("name", SCHEMES)
def test_losses_have_their_terms(name):
    loss = SCHEMES[name](OPTIONS).loss(make_teacher(), None)
    assert [key for key, _ in loss(*draw()).items()] == TERMS[name]


@pytest.mark.parametrize("target", ["probability", "logit"])
def test_every_term_is_that_of_the_docstring(target):
    teacher, (x, y) = make_teacher(), draw()
    options = KnowledgeWithinOptions(
        target=target, statistics=2.0, inception=3.0, smoothness=5.0, blur=0.8
    )
    terms = dict(KWMixture(options).loss(teacher, None)(x, y).items())
    scores = teacher.net(x).numpy()
    scores = scores if target == "logit" else log_softmax(scores, 1)
    assert terms["inception"].item() == pytest.approx(-3 * scores[np.arange(6), y].mean(), rel=1e-5)
    assert terms["smoothness"].item() == pytest.approx(5 * roughness_by_hand(x, 0.8), rel=1e-4)
    layers = []
    for h, layer in zip(features(teacher.net, x), (teacher.net[1], teacher.net[4]), strict=True):
        pairs = zip(
            layer.running_mean.tolist(),
            (layer.running_var + 1e-5).sqrt().tolist(),
            h.mean(1),
            np.sqrt(h.var(1) + 1e-5),
            strict=True,
        )
        layers.append(np.mean([divergence_by_hand(*pair) for pair in pairs]))
    assert terms["statistics"].item() == pytest.approx(2 * np.mean(layers), rel=1e-4)


def test_a_target_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match=r"kw\.target: expected 'probability' or 'logit'"):
        KnowledgeWithinOptions(target="odds")


def divergence_by_hand(mean_p, std_p, mean_q, std_q):
    p, q = stats.norm(mean_p, std_p), stats.norm(mean_q, std_q)
    low, high = mean_p - 12 * std_p, mean_p + 12 * std_p
    return integrate.quad(lambda v: p.pdf(v) * (p.logpdf(v) - q.logpdf(v)), low, high)[0]


def roughness_by_hand(x, std):
    # Beside the replicated edges, scipy's "nearest"; its reach in pixels is int(truncate s + 0.5).
    blurred = ndimage.gaussian_filter(
        x.double().numpy(), (0, 0, std, std), mode="nearest", truncate=round(3 * std) / std
    )
    return np.square(x.numpy() - blurred).mean()


@pytest.mark.parametrize("std", [0.1, 0.5, 1.0, 1.7])
def test_roughness(std):
    x, _ = draw()
    expected = roughness_by_hand(x, std) if std > 0.2 else 0.0
    assert roughness(x, std).item() == pytest.approx(expected, rel=1e-4, abs=1e-8)
    assert roughness(torch.full((1, 3, 5, 5), 0.7), std).item() == pytest.approx(0, abs=1e-10)


def test_statistics_of_dead_channels_are_finite():
    zero = torch.zeros(3, requires_grad=True)
    record = LayerStatistics("1", zero, zero, torch.zeros(3), torch.tensor([0.0, 1.0, 1e-20]))
    divergence = gaussian_divergence([record])
    divergence.backward()
    assert torch.isfinite(divergence)
    assert torch.isfinite(zero.grad).all()
    same = LayerStatistics("1", *[torch.ones(3)] * 4)
    assert gaussian_divergence([same]).item() == 0


def test_optimisation_does_what_each_scheme_says():
    teacher, banks = make_teacher(), {}
    weights = {"images": 30, "batch_size": 30, "inception": 1.0, "statistics": 1.0}
    weights["target"] = "logit"
    options = KnowledgeWithinOptions(**weights, steps=20, learning_rate=0.2)
    untrained = KnowledgeWithinOptions(**weights, steps=1, learning_rate=1e-9)
    loss = KWMixture(options).loss(teacher, None)

    def measure(method, labels):
        terms = dict(loss(DOMAIN.normalize(method.inputs), labels).items())
        return {key: value.item() for key, value in terms.items()}

    for name, kind in SCHEMES.items():
        method = fit(kind, options, teacher=teacher)
        # the labels asked for come from the seed alone
        labels = fit(KWMixture, untrained, teacher=teacher).labels
        banks[name] = measure(method, labels)
    noise = measure(fit(KWMixture, untrained, teacher=teacher), labels)
    rough = replace(options, smoothness=0.0)
    smooth_free = measure(fit(KWInception, rough, teacher=teacher), labels)
    assert banks["kw-bns"]["statistics"] < 0.8 * noise["statistics"]
    assert banks["kw-inception"]["inception"] < noise["inception"] - 0.5
    assert banks["kw-inception"]["smoothness"] < smooth_free["smoothness"]
    assert banks["kw-mixture"]["inception"] < noise["inception"] - 0.5
    assert banks["kw-mixture"]["statistics"] < banks["kw-inception"]["statistics"]


def test_the_statistics_scheme_takes_the_teachers_labels_and_the_others_their_own():
    teacher = make_teacher()
    method = fit(KWStatistics, teacher=teacher)
    with torch.no_grad():
        assert torch.equal(method.labels, teacher(method.inputs).argmax(1))
    for kind in (KWInception, KWMixture):
        assert fit(kind, teacher=teacher).labels.bincount().tolist() == [4, 4, 4]


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "svhn", "digits"])
def test_gaussian_images_have_the_domains_statistics_after_clipping(name):
    domain = DOMAINS[name]
    noise = KWGaussian()
    noise.fit(Teacher(build_net("lenet5", domain), domain, "lenet5"))
    x = noise.draw(100, generator())
    assert x.shape == (100, *domain.shape)
    assert x.min() >= 0
    assert x.max() <= 1
    assert x.mean((0, 2, 3)).tolist() == pytest.approx(domain.mean, abs=4e-3)
    assert x.std((0, 2, 3)).tolist() == pytest.approx(domain.std, abs=4e-3)


def test_gaussian_images_are_labelled_by_the_teacher():
    teacher, noise = make_teacher(), KWGaussian()
    assert SYNTHESIZERS["kw-gaussian"] is KWGaussian
    noise.fit(teacher)
    x, y = noise.sample(20, generator=generator())
    with torch.no_grad():
        assert torch.equal(y, teacher(x).argmax(1))
    assert torch.equal(noise.sample(20, generator=generator())[0], x)
    label = y.mode().values.repeat(5)
    x, _ = noise.sample(5, label, generator())
    with torch.no_grad():
        assert torch.equal(teacher(x).argmax(1), label)


def test_gaussian_vectors_are_not_clipped():
    domain = Domain((3,), 2, (1.0, -2.0, 5.0), (2.0,))
    noise = KWGaussian()
    noise.fit(Teacher(torch.nn.Linear(3, 2), domain, "linear"))
    x = noise.draw(4000, generator())
    assert x.mean(0).tolist() == pytest.approx(domain.mean, abs=0.15)
    assert x.std(0).tolist() == pytest.approx([2.0] * 3, rel=0.05)


def test_moments_of_a_clipped_gaussian():
    for mean, std in ((0.3, 0.2), (-1.6, 1.9), (0.9, 0.05), (2.0, 1.0)):
        density = stats.norm(mean, std)
        for power, have in enumerate(clipped_moments(mean, std), 1):
            inside = integrate.quad(lambda v: v**power * density.pdf(v), 0, 1)[0]  # noqa: B023
            assert have == pytest.approx(inside + density.sf(1), rel=1e-6)


def test_impossible_statistics_are_taken_as_they_are():
    assert clipped_gaussian(0.0, 1.0) == (0.0, 1.0)
    assert clipped_gaussian(0.5, 0.6) == (0.5, 0.6)
    mean, std = clipped_gaussian(0.1307, 0.3081)
    first, second = clipped_moments(mean, std)
    assert first == pytest.approx(0.1307, abs=1e-6)
    assert math.sqrt(second - first**2) == pytest.approx(0.3081, abs=1e-6)


@pytest.mark.parametrize("settings", [{"statistics": -1.0}, {"smoothness": -1.0}, {"blur": 0.0}])
def test_options_that_make_no_sense_are_refused(settings):
    with pytest.raises(UsageError, match=f"{next(iter(settings))}: expected"):
        KWMixture.build("best", settings)
    with pytest.raises(UsageError, match=r"Unknown option 'kw-mixture\.competition'"):
        KWMixture.build("best", {"competition": 1.0})


@pytest.mark.parametrize("kind", SCHEMES.values())
@pytest.mark.parametrize("preset", ["quick", "standard"])
def test_presets(kind, preset):
    assert kind.build(preset).options.steps < kind.build("best").options.steps
