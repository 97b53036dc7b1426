"""The inputs of the paper's rows, in the units of the teacher's net, beyond pixels too."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.datasets import LabelledData
from ..device import send
from ..objectives.batchnorm import BatchStatistics, LayerStatistics, normalization_layers
from ..objectives.contract import Terms
from ..objectives.distill import cross_entropy
from ..synthesizers.contract import TEACHER_BATCH_SIZE
from ..synthesizers.generators import (
    ImageGenerator,
    as_distribution,
    build_seeded,
    perceptron,
)
from ..synthesizers.kegnet import KegNetOptions, diversity
from ..teachers.classifier import Teacher
from ..training import Checkpoints, Stateful, TrainingLoop
from .keflow import KeFlow
from .recipes import Recipe

Made = tuple[Tensor, Tensor]  # inputs of the net with shape (N, *shape), and labels (N, classes)
LEVELS = 5  # of 256 over which the code spreads a sample's pixel
KEPT = 0.9  # of the range of pixels, about its middle, so that no logit is infinite
DRAWN = 64  # inputs that are made at a time, which share what is drawn once a batch


def noise_inputs(kind: str, teacher: Teacher, recipe: Recipe, generator: torch.Generator) -> Made:
    """Uniform or normal noise, as it is, and the teacher's probabilities.

    Arguments:
        kind: `"uniform"` or `"normal"`.
        teacher: The teacher.
        recipe: The settings.
        generator: The source of all random numbers.
    """
    shape = (recipe.set_size, *teacher.domain.shape)
    if kind == "normal":
        u = torch.randn(shape, generator=generator)
    else:
        u = recipe.uniform * (2 * torch.rand(shape, generator=generator) - 1)
    return u.cpu(), ask(teacher, u)


def sample_inputs(teacher: Teacher, recipe: Recipe, samples: LabelledData) -> Made:
    """The samples ten times over and their true labels, of which students see one round a step."""
    x, y = samples.take(torch.arange(len(samples)).repeat(10))
    u = x if recipe.raw_samples else teacher.domain.normalize(x)
    return u, F.one_hot(y, teacher.domain.classes).float()


def flow_inputs(
    teacher: Teacher,
    recipe: Recipe,
    samples: LabelledData | None,
    generator: torch.Generator,
    checkpoints: Checkpoints,
) -> Made:
    """Inputs of a flow that learns by eq. (4), or with samples by eq. (9).

    Arguments:
        teacher: The teacher.
        recipe: The settings.
        samples: The few real samples, if any.
        generator: The source of all random numbers.
        checkpoints: Where states and metrics are kept.
    """
    flow = train_flow(teacher, recipe, samples, generator, checkpoints)
    parts = []
    with torch.no_grad():
        for n in _portions(recipe.set_size):
            x, _ = flow.decode(*_latents(flow, recipe, n, generator))
            parts.append(_show(teacher, recipe, x, recipe.stretch, generator))
    u = torch.cat(parts)
    return u.cpu(), ask(teacher, u)


def train_flow(
    teacher: Teacher,
    recipe: Recipe,
    samples: LabelledData | None,
    generator: torch.Generator,
    checkpoints: Checkpoints,
) -> KeFlow:
    """The flow of a recipe, trained; arguments as of :func:`flow_inputs`."""
    domain = teacher.domain
    flow = build_seeded(
        lambda: KeFlow(domain.shape, domain.classes, hidden_features=recipe.width), generator
    ).to(_device(teacher))
    optimizer = torch.optim.Adam(
        flow.parameters(), recipe.rate, weight_decay=recipe.weight_decay, fused=True
    )
    parts: dict[str, Stateful] = {"flow": flow, "optimizer": optimizer}
    loop = TrainingLoop("train the flow", recipe.steps, parts, generator, optimizer, checkpoints)
    for _ in loop:
        terms = flow_loss(flow, teacher, recipe, samples, generator)
        if loop.accept(terms.total, terms.items()):
            optimizer.zero_grad()
            terms.total.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), recipe.clip)
            optimizer.step()
    return flow.eval()


def flow_loss(
    flow: KeFlow,
    teacher: Teacher,
    recipe: Recipe,
    samples: LabelledData | None,
    generator: torch.Generator,
) -> Terms:
    r"""What the flow minimises, eq. (4) and with samples eq. (9), on latents that it draws.

    The terms are `cls` :math:`= -\langle \log(p_y + f) \rangle`, `volume` :math:`= -\alpha
    \langle \log|\det \partial x / \partial z| \rangle`, `batchnorm` :math:`= \beta \sum_l w_l
    (m \|\mu_l - \hat\mu_l\| + \|\sigma^2_l - \hat\sigma^2_l\|)` for teachers that have such layers,
    and `reverse`, gamma times the negative log-likelihood of all samples.
    """
    z, c = _latents(flow, recipe, recipe.batch_size, generator)
    x, ladj = flow.decode(z, c)
    u = _show(teacher, recipe, x, recipe.stretch and samples is None, generator)
    with BatchStatistics().observe(teacher.net) as records:
        logits = teacher.net(u)
    labels = flow.soft(c)
    if samples is None and recipe.floor:
        cls = -(labels * (logits.softmax(1) + recipe.floor).log()).sum(1).mean()
    else:
        cls = cross_entropy(logits, labels)
    terms = Terms(cls=cls, volume=-recipe.alpha * ladj.mean())
    if recipe.beta and normalization_layers(teacher.net):
        terms += Terms(batchnorm=recipe.beta * _statistics(records, recipe))
    if samples is not None:
        terms += Terms(reverse=recipe.gamma * _reverse(flow, samples, generator))
    return terms


def kegnet_inputs(
    teacher: Teacher,
    recipe: Recipe,
    options: KegNetOptions,
    generator: torch.Generator,
    checkpoints: Checkpoints,
) -> Made:
    """Inputs of one of KegNet's generators, whose outputs the net takes as they are.

    As in its code the net is in training mode while the generator learns.

    Arguments:
        teacher: The teacher.
        recipe: The settings of Table 1.
        options: Those of KegNet.
        generator: The source of all random numbers.
        checkpoints: Where states and metrics are kept.
    """
    domain, latents = teacher.domain, options.latents
    device = _device(teacher)
    maker = build_seeded(lambda: ImageGenerator(latents, domain.shape, domain.classes), generator)
    decoder = build_seeded(_decoder(teacher, options), generator).to(device)
    maker.to(device)
    optimizer = torch.optim.Adam(
        [*maker.parameters(), *decoder.parameters()], options.learning_rate
    )
    parts: dict[str, Stateful] = {"generator": maker, "decoder": decoder, "optimizer": optimizer}
    net = copy.deepcopy(teacher.net).train()
    loop = TrainingLoop(
        "train the generator", recipe.kegnet_steps, parts, generator, optimizer, checkpoints
    )
    for _ in loop:
        c = torch.randint(domain.classes, (recipe.kegnet_batch,), generator=generator).to(device)
        z = torch.randn(len(c), latents, generator=generator).to(device)
        u, y = maker(z, c), as_distribution(c, domain.classes)
        terms = Terms(
            label=F.kl_div(net(u).log_softmax(1), y, reduction="batchmean"),
            noise=options.alpha * F.mse_loss(decoder(u.flatten(1)), z),
            **({"diversity": options.beta * diversity(z, u)} if options.beta else {}),
        )
        if loop.accept(terms.total, terms.items()):
            optimizer.zero_grad()
            terms.total.backward()
            optimizer.step()
    maker.eval()
    made = []
    with torch.no_grad():
        for n in _portions(recipe.set_size):
            c = torch.randint(domain.classes, (n,), generator=generator).to(device)
            made.append(maker(torch.randn(n, latents, generator=generator).to(device), c))
    u = torch.cat(made)
    return u.cpu(), ask(teacher, u)


@torch.no_grad()
def ask(teacher: Teacher, u: Tensor) -> Tensor:
    """The teacher's probabilities `(N, classes)` for inputs of its net, on the CPU."""
    parts = u.to(_device(teacher)).split(TEACHER_BATCH_SIZE)
    return torch.cat([teacher.net(part).softmax(1) for part in parts]).cpu()


def _device(teacher: Teacher) -> torch.device:
    return next(teacher.parameters()).device


def _decoder(teacher: Teacher, options: KegNetOptions) -> Callable[[], nn.Module]:
    width = teacher.domain.shape[0] * teacher.domain.shape[1] * teacher.domain.shape[2]
    return lambda: perceptron([width, *[120] * options.decoder_layers, options.latents])


def _portions(size: int) -> list[int]:
    return [min(DRAWN, size - start) for start in range(0, size, DRAWN)]


def _latents(
    flow: KeFlow, recipe: Recipe, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    c = torch.randint(flow.classes, (n,), generator=generator)
    z = recipe.latent_std * torch.randn(n, *flow.shape, generator=generator)
    return send(z, flow.device), send(c, flow.device)


def _show(
    teacher: Teacher, recipe: Recipe, x: Tensor, stretched: bool, generator: torch.Generator
) -> Tensor:
    """What the teacher's net takes in place of pixels."""
    if not recipe.stretch:
        return teacher.domain.normalize(x)
    if not stretched:
        return x
    return (1 + torch.rand((), generator=generator).item()) * (x - 0.5)


def _statistics(records: list[LayerStatistics], recipe: Recipe) -> Tensor:
    def distance(record: LayerStatistics) -> Tensor:
        means = torch.linalg.vector_norm(record.mean - record.running_mean)
        return recipe.means * means + torch.linalg.vector_norm(
            record.variance - record.running_variance
        )

    weights = [recipe.first, *[1.0] * (len(records) - 1)]
    return torch.stack([w * distance(r) for w, r in zip(weights, records, strict=True)]).sum()


def _reverse(flow: KeFlow, samples: LabelledData, generator: torch.Generator) -> Tensor:
    """The negative log-likelihood of all samples, spread over some levels and off the ends."""
    x, y = samples.take(torch.arange(len(samples)))
    x = ((255 * x + LEVELS * torch.rand(x.shape, generator=generator)) / 256).clamp(0, 1)
    x = 0.5 + KEPT * (x - 0.5)
    return -flow.log_prob(x.to(flow.device), y.to(flow.device)).mean()
