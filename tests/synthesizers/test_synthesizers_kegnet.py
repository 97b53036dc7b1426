"""KegNet: its losses, its generators of images and vectors, and what makes it repeatable."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn

from freia_kd.domain import Domain
from freia_kd.errors import CheckpointError
from freia_kd.synthesizers.generators import (
    DenseGenerator,
    ImageGenerator,
    as_inputs,
    build_seeded,
)
from freia_kd.synthesizers.kegnet import KegNet, KegNetOptions, diversity
from freia_kd.teachers import Teacher
from freia_kd.training import Checkpoints
from freia_kd.training.checkpoints import read_metrics

IMAGE = Domain((1, 6, 5), 3, (0.3,), (0.4,), "image")
TABLE = Domain((4,), 3, (750.0, 0.0, -3.0, 1.0), (300.0, 1.0, 0.1, 2.0), "table")
DOMAINS = {"image": IMAGE, "colour": Domain((3, 8, 8), 2, (0.5,), (0.2,)), "table": TABLE}
OPTIONS = KegNetOptions(generators=2, steps=2, batch_size=16)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_teacher(domain):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = int(np.prod(domain.shape))
        last = nn.Linear(16, domain.classes)
        last.weight.data *= 10  # so that the teacher has opinions
        net = nn.Sequential(nn.Flatten(), nn.Linear(features, 16), nn.ReLU(), last)
        return Teacher(net, domain, "tiny")


def fitted(domain=TABLE, checkpoints=None, seed=0, **options):
    kegnet = KegNet(KegNetOptions(**{**vars(OPTIONS), **options}))
    kegnet.fit(make_teacher(domain), checkpoints=checkpoints, generator=generator(seed))
    return kegnet


# --- Labels ---


def test_labels_asked_for_are_the_condition():
    kegnet = fitted()
    wanted = torch.arange(3).repeat(4)
    x, y = kegnet.sample(12, wanted, generator(1))
    assert torch.equal(y, wanted)
    others, _ = kegnet.sample(12, (wanted + 1) % 3, generator(1))
    assert not torch.isclose(others, x).all(1).any()
    mixed, _ = kegnet.sample(12, torch.full((12, 3), 1 / 3), generator(1))
    assert not torch.isclose(mixed, x).all(1).any()


def test_labels_not_asked_for_are_uniform():
    _, y = fitted().sample(3000, generator=generator())
    assert (y.bincount(minlength=3) / 3000 - 1 / 3).abs().max() < 0.03


def test_training_makes_the_teacher_read_the_labels():
    teacher, labels = make_teacher(TABLE), torch.arange(3).repeat(50)
    read = []
    for steps in (1, 100):
        kegnet = fitted(generators=1, steps=steps, batch_size=64)
        x, _ = kegnet.sample(150, labels, generator(1))
        with torch.no_grad():
            read.append((teacher(x).argmax(1) == labels).double().mean().item())
    assert read[1] > 0.9 > read[0] + 0.1


# --- The losses ---


def test_diversity_is_the_papers_formula():
    rng = np.random.default_rng(0)
    z, u = rng.normal(size=(7, 3)), rng.normal(size=(7, 2, 2, 3))
    flat = u.reshape(7, -1)
    noise = cdist(z, z, "sqeuclidean") / 3
    apart = cdist(flat, flat, "cityblock") / 12
    expected = np.exp(-np.mean(noise * apart))
    value = diversity(torch.from_numpy(z), torch.from_numpy(u))
    assert value.item() == pytest.approx(expected)


def test_diversity_pushes_inputs_apart():
    z = torch.randn(6, 2, generator=generator())
    u = torch.randn(6, 5, generator=generator(1), requires_grad=True)
    before = diversity(z, u)
    (gradient,) = torch.autograd.grad(before, u)
    after = u.detach() - gradient
    assert diversity(z, after) < before
    assert torch.cdist(after, after, p=1).mean() > torch.cdist(u, u, p=1).mean()


@pytest.mark.parametrize("name", list(DOMAINS))
def test_the_loss_is_the_sum_that_the_paper_minimises(name):
    domain = DOMAINS[name]
    teacher = make_teacher(domain)
    kegnet = KegNet(KegNetOptions(alpha=0.5, beta=3.0, batch_size=9, latents=4))
    kegnet.domain = domain
    net = build_seeded(lambda: kegnet._build(domain), generator())
    decoder = build_seeded(lambda: kegnet._build_decoder(domain), generator())
    seen = {}

    def record(module, inputs, output):
        seen[module] = (*(v.detach().numpy() for v in inputs), output.detach().numpy())

    for module in (net, decoder, teacher):
        module.register_forward_hook(record)
    terms = dict(kegnet._losses(net, decoder, teacher, generator(4)).items())
    (z, c, _), (x, logits) = seen[net], seen[teacher]
    wide = logits.astype(float)
    log_p = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    assert terms["label"].item() == pytest.approx(-log_p[np.arange(9), c].mean(), rel=1e-5)
    decoded = seen[decoder][1]
    assert terms["noise"].item() == pytest.approx(0.5 * np.mean((decoded - z) ** 2), rel=1e-5)
    shape = (-1,) + (1,) * (x.ndim - 2)
    u = (x - np.reshape(domain.mean, shape)) / np.reshape(domain.std, shape)
    flat = u.reshape(9, -1)
    apart = np.abs(flat[:, None] - flat[None]).mean(2)
    noise = ((z[:, None] - z[None]) ** 2).mean(2)
    expected = 3 * np.exp(-np.mean(noise * apart))
    assert terms["diversity"].item() == pytest.approx(expected, rel=1e-4)
    assert np.allclose(seen[decoder][0], flat, atol=1e-3)  # the decoder reads what the teacher does


def test_every_weight_learns():
    kegnet = KegNet(KegNetOptions(batch_size=16))
    for domain in (IMAGE, TABLE):
        net = build_seeded(lambda d=domain: kegnet._build(d), generator())
        decoder = build_seeded(lambda d=domain: kegnet._build_decoder(d), generator())
        kegnet._losses(net, decoder, make_teacher(domain), generator()).total.backward()
        for parameter in (*net.parameters(), *decoder.parameters()):
            assert parameter.grad.abs().sum() > 0


def test_without_beta_there_is_no_diversity():
    kegnet = KegNet(KegNetOptions(beta=0.0, batch_size=8))
    net = build_seeded(lambda: kegnet._build(TABLE), generator())
    decoder = build_seeded(lambda: kegnet._build_decoder(TABLE), generator())
    terms = kegnet._losses(net, decoder, make_teacher(TABLE), generator())
    assert [name for name, _ in terms.items()] == ["label", "noise"]


# --- The ensemble, and resuming ---


class Constant(nn.Module):
    """A generator that gives one number."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, z, c=None):
        return self.value.expand(len(z), 4)


def test_samples_come_from_all_generators():
    kegnet = fitted()
    assert len(kegnet.nets) == 2
    weights = [next(net.parameters()) for net in kegnet.nets]
    assert not torch.equal(*weights)
    kegnet.nets = [Constant(float(i)) for i in range(5)]
    x, _ = kegnet.sample(2000, generator=generator())
    share = TABLE.normalize(x)[:, 1].round().long().bincount(minlength=5) / 2000
    assert (share - 1 / 5).abs().max() < 0.03


def test_generators_of_another_shape_or_number_are_refused(tmp_path):
    run = Checkpoints(tmp_path, "kegnet")
    fitted(TABLE, run)
    assert sorted({m["stage"] for m in read_metrics(run.folder)}) == ["kegnet-1", "kegnet-2"]
    with pytest.raises(CheckpointError, match="another generator"):
        KegNet(KegNetOptions(latents=3)).restore(TABLE, run)
    with pytest.raises(CheckpointError, match="no trained generator 3 of 5"):
        KegNet(KegNetOptions()).restore(TABLE, run)


# --- The nets ---


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 30, 17), (2, 1, 9), (1, 8, 8)])
@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
def test_images_of_any_size_are_standardised(shape, upsample):
    net = build_seeded(lambda: ImageGenerator(5, shape, 4, upsample=upsample), generator())
    u = net(torch.randn(6, 5, generator=generator()), torch.arange(6) % 4)
    assert u.shape == (6, *shape)
    assert torch.allclose(u.mean((2, 3)), torch.zeros(6, shape[0]), atol=1e-5)
    assert torch.allclose(u.var((2, 3), correction=0), torch.ones(6, shape[0]), atol=1e-3)


def test_the_papers_image_generator_has_its_sizes():
    net = ImageGenerator(10, (1, 32, 32), 10)
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    doubling = [m for m in net.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.in_features, m.out_features) for m in linear[:2]] == [(20, 256), (256, 128)]
    assert linear[2].out_features == 64 * 4 * 4  # a 4x4 transposed convolution of one pixel
    assert [(m.in_channels, m.out_channels) for m in doubling] == [(64, 16), (16, 4), (4, 1)]


def test_vectors_are_standardised_over_the_batch():
    net = build_seeded(lambda: DenseGenerator(5, 4), generator())
    u = net(torch.randn(64, 5, generator=generator()))
    assert torch.allclose(u.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(u.var(0, correction=0), torch.ones(4), atol=1e-2)


def test_generators_know_whether_they_take_labels():
    z = torch.zeros(2, 5)
    with pytest.raises(ValueError, match="Expected labels for a generator of 3 classes"):
        DenseGenerator(5, 4, 3)(z)
    with pytest.raises(ValueError, match="Expected no labels"):
        DenseGenerator(5, 4)(z, torch.arange(2))


def test_pixels_are_clamped_with_a_gradient_that_passes():
    u = torch.tensor([-2.0, 0.0, 9.0]).view(3, 1, 1, 1).requires_grad_()
    domain = Domain((1, 1, 1), 2, (0.3,), (0.4,))
    x = as_inputs(u, domain)
    assert x.flatten().tolist() == pytest.approx([0.0, 0.3, 1.0])
    assert torch.autograd.grad(x.sum(), u)[0].flatten().tolist() == pytest.approx([0.4] * 3)
    assert torch.equal(x, domain.denormalize(u).clamp(0, 1))
    far = as_inputs(torch.tensor([[9.0, 9.0, 9.0, 9.0]]), TABLE)
    assert far.flatten().tolist() == pytest.approx([3450.0, 9.0, -2.1, 19.0])
