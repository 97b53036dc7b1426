"""Whether a teacher's answers depend on its inputs at all: a look before any training."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError
from ..teachers.classifier import Teacher
from ..training import Progress
from .leaves import Leaves
from .noise import Noise, Normal, Spectral, Uniform

COUNT = 32  # inputs of each kind
CONTRASTS = (0.1, 0.25, 1.0, 4.0)  # of normal noise beside the kinds that synthesizers draw
ONE_SIDED = 0.99  # of all answers the same
SAME = 0.03  # the spread of logits over inputs, of their size, below which they are the same
STEPS, STEP = 30, 0.1  # of inputs towards another answer, in units of the domain's std


def check_answers(teacher: Teacher, progress: Progress | None = None) -> None:
    r"""Looks for teachers that say the same whatever they are shown.

    A sound teacher may give one class to all inputs of one kind (a LeNet5 on MNIST does so for
    noise of low contrast), and one of two classes may be rare on anything but its own data. So a
    teacher is refused only if nearly all inputs of all kinds get one class *and* the same logits:

    .. math:: \|\mathrm{std}_x z(x)\| < 0.03 \; \mathrm{E}_x \|z(x)\|,

    with logits z less their mean over classes. (Sound LeNet5s, MLPs and detectors of one digit
    have 0.2 to 1.9, untrained nets 0.2 to 0.5; dead weights 0, and a LeNet5 whose mean and std are
    those of pixels from 0 to 255 less than 0.007.)

    Where logits differ and yet hardly an input is found that is answered otherwise, a note says so.
    (Sound detectors of one digit change their answer to 0.94 of the inputs and more; those that
    have learned to say "none" to everything, to none.)

    Arguments:
        teacher: The teacher.
        progress: Where the note goes.

    Raises:
        UsageError: If the answers do not depend on the inputs.
    """
    x, logits = _first(teacher)
    if _commonest(logits)[1] < ONE_SIDED:
        return
    kinds = _kinds(teacher)
    logits = torch.cat([logits, *(_answer(teacher, part) for part in kinds)])
    label, share = _commonest(logits)
    if share < ONE_SIDED:
        return
    size, spread = logits.norm(dim=1).mean(), logits.std(0).norm()
    seen = f"{len(logits)} inputs of {1 + len(kinds)} kinds"
    if spread <= SAME * size:
        raise UsageError(
            f"The teacher gives class {label} and nearly the same logits to {seen}, whatever they "
            "show, so that there is nothing to learn from it: expected weights of a trained net, "
            "and the mean and std (--mean, --std) by which its training normalised pixels in "
            "[0, 1]."
        )
    if progress is not None and not _is_moved(teacher, x):
        progress.note(
            f"Warning: the teacher gives class {label} to {100 * share:.1f} % of {seen}, and a "
            "search by its gradient finds hardly any input that it answers otherwise: check its "
            "weights, --mean and --std."
        )


def _first(teacher: Teacher) -> tuple[Tensor, Tensor]:
    (x,) = _draw(teacher, [Leaves() if teacher.domain.is_image else Normal()])
    return x, _answer(teacher, x)


def _kinds(teacher: Teacher) -> list[Tensor]:
    """Inputs of several kinds, of low and of high contrast."""
    domain = teacher.domain
    drawn = _draw(teacher, [Spectral(), Uniform(), Normal()] if domain.is_image else [Uniform()])
    generator = torch.Generator().manual_seed(0)
    for contrast in CONTRASTS:
        noise = contrast * torch.randn(COUNT, *domain.shape, generator=generator)
        x = (0.5 + noise).clamp(0, 1) if domain.is_image else domain.denormalize(noise)
        drawn.append(x.to(drawn[0].device))
    return drawn


def _draw(teacher: Teacher, kinds: list[Noise]) -> list[Tensor]:
    device = next(teacher.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    for kind in kinds:
        kind.fit(teacher)
    return [kind.draw(COUNT, generator) for kind in kinds]


@torch.no_grad()
def _answer(teacher: Teacher, x: Tensor) -> Tensor:
    """Logits less their mean over the classes."""
    logits = teacher(x)
    return logits - logits.mean(1, keepdim=True)


def _commonest(logits: Tensor) -> tuple[int, float]:
    """The class that is answered most often, and the share of inputs to which it is."""
    counts = logits.argmax(1).bincount()
    return int(counts.argmax()), counts.max().item() / len(logits)


def _is_moved(teacher: Teacher, x: Tensor) -> bool:
    """Whether steps along the sign of the gradient lead one input in four to another answer."""
    domain = teacher.domain
    first = _answer(teacher, x).argmax(1)
    step = STEP * domain.denormalize(torch.ones_like(x)).sub(domain.denormalize(0 * x))
    for _ in range(STEPS):
        x = x.detach().requires_grad_(True)
        logits = teacher(x)
        own = logits.gather(1, first[:, None]).squeeze(1)
        others = logits.scatter(1, first[:, None], float("-inf")).amax(1)
        (slope,) = torch.autograd.grad((others - own).sum(), x)
        x = x + step * slope.sign()
        x = x.clamp(0, 1) if domain.is_image else x
    return bool((_answer(teacher, x).argmax(1) != first).float().mean() >= 0.25)
