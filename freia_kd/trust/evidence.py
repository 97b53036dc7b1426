"""What can be seen of a student without real data: how it answers inputs of other families."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from ..compression.cost import affordable
from ..data.synthetic import dequantise
from ..modes import evaluating
from ..synthesizers.contract import TEACHER_BATCH_SIZE
from ..synthesizers.leaves import Leaves
from ..synthesizers.noise import Noise, Spectral
from ..synthesizers.on_the_fly import generate_labelled
from ..synthesizers.photos import Photos
from ..teachers import Classifier, Teacher

SIZE = 512  # inputs of each family
MACS, LEAST = 256e9, 64  # that these may take in the teacher: of large nets there are fewer
CONFIDENT = 0.9  # the probability from which the teacher counts as confident
MIN_INPUTS = 3  # of a class, to say anything of it
EPS = 1e-4  # nats, below which divergences are rounding
END = 0.005  # shares nearer to 0 or 1 count as this far from it: their logits are endless


@dataclass(frozen=True)
class Judge:
    """Inputs of one family of methods, with the teacher's answers.

    Arguments:
        family: The family.
        inputs: Pixels in [0, 1] with shape `(N, *shape)`.
        logits: The teacher's, with shape `(N, classes)`.
    """

    family: str
    inputs: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Evidence:
    r"""How far a student follows its teacher on inputs of several families.

    Arguments:
        families: The families that count: those from which the student did not learn, or all of
            them if it learned from each.
        divergence: For each family, the mean of :math:`\mathrm{KL}(p_T \| p_S)`, in nats.
        information: For each family, what the teacher says about its inputs, the mutual
            information :math:`H(\langle p_T \rangle) - \langle H(p_T) \rangle` in nats.
        overlap: For each family, the mean of :math:`\sum_k \min(p_T(k), p_S(k))`, in [0, 1].
        agreement: For each family, the share of inputs on which both name the same class: the mean
            over the classes that the teacher names.
        confident: The same where the teacher's probability is over 0.9; `None` where it nowhere is.
        is_new: Whether the student began as a new net, not as a copy of its teacher: such nets
            follow less far beyond what they learned from.
    """

    families: tuple[str, ...]
    divergence: dict[str, float]
    information: dict[str, float]
    overlap: dict[str, float]
    agreement: dict[str, float]
    confident: dict[str, float | None]
    is_new: bool = False

    @property
    def features(self) -> dict[str, float]:
        """Numbers by which agreement on real data can be predicted, means over the families."""
        return {
            "divergence": mean(math.log(self.divergence[f] + EPS) for f in self.families),
            "overlap": mean(logit(self.overlap[f]) for f in self.families),
            "agreement": mean(logit(self.agreement[f]) for f in self.families),
            "information": mean(self.information[f] for f in self.families),
            "new": float(self.is_new),
        }


def logit(share: float) -> float:
    """The logit of a share, finite at 0 and 1.

    Example:
        >>> logit(0.5), round(logit(1.0), 2)
        (0.0, 5.29)
    """
    share = min(max(share, END), 1 - END)
    return math.log(share / (1 - share))


@torch.no_grad()
def make_judges(teacher: Teacher, seed: int = 0, size: int | None = None) -> list[Judge]:
    """Inputs of families that know nothing of the teacher but its domain, and its answers.

    Arguments:
        teacher: The teacher.
        seed: The seed of all random numbers.
        size: How many of each; by default 512, and down to 64 for large images and nets.

    Returns:
        Spectral noise, dead leaves and crops of photographs; nothing for vectors.
    """
    if not teacher.domain.is_image:
        return []
    if size is None:
        size = affordable(teacher, teacher.domain.shape, SIZE, MACS, LEAST)
    device = next(teacher.parameters()).device
    judges = []
    kinds: tuple[type[Noise], ...] = (Spectral, Leaves, Photos)
    for kind in kinds:
        source = kind()
        source.fit(teacher)
        generator = torch.Generator(device).manual_seed(seed)
        inputs, logits, _ = generate_labelled([source], teacher, size, generator)
        judges.append(Judge(source.family or source.name, dequantise(inputs), logits))
    return judges


def examine(
    student: Classifier,
    judges: Sequence[Judge],
    learned: Iterable[str] = (),
    is_new: bool = False,
) -> Evidence:
    """The evidence on a student.

    Arguments:
        student: The student.
        judges: What :func:`make_judges` gave for its teacher, at least one.
        learned: The families of methods from which it learned.
        is_new: Whether it began as a new net.
    """
    known = set(learned)
    unseen = tuple(judge.family for judge in judges if judge.family not in known)
    said = {judge.family: log_probabilities(student, judge.inputs) for judge in judges}
    taught = {judge.family: judge.logits.log_softmax(1) for judge in judges}
    return Evidence(
        families=unseen or tuple(said),
        divergence={f: _divergence(taught[f], said[f]) for f in said},
        information={f: _information(taught[f]) for f in said},
        overlap={f: _overlap(taught[f], said[f]) for f in said},
        agreement={f: _agreement(taught[f], said[f]) or 0.0 for f in said},
        confident={f: _agreement(taught[f], said[f], CONFIDENT) for f in said},
        is_new=is_new,
    )


def log_probabilities(student: Classifier, inputs: Tensor) -> Tensor:
    """What a student says about inputs, `(N, classes)`."""
    device = next(student.parameters()).device
    with evaluating(student):
        parts = [student(x.to(device)) for x in inputs.split(TEACHER_BATCH_SIZE)]
    return torch.cat(parts).log_softmax(1)


def _divergence(taught: Tensor, said: Tensor) -> float:
    return (taught.exp() * (taught - said)).sum(1).mean().item()


def _information(taught: Tensor) -> float:
    overall = taught.exp().mean(0)
    entropy = -(overall * overall.clamp(min=1e-12).log()).sum()
    return (entropy + (taught.exp() * taught).sum(1).mean()).item()


def _overlap(taught: Tensor, said: Tensor) -> float:
    return torch.minimum(taught.exp(), said.exp()).sum(1).mean().item()


def _agreement(taught: Tensor, said: Tensor, least: float = 0.0) -> float | None:
    confidence, answers = taught.exp().max(1)
    same = answers.eq(said.argmax(1))
    rows = [(confidence > least) & (answers == k) for k in range(taught.shape[1])]
    shares = [same[r].double().mean().item() for r in rows if int(r.sum()) >= MIN_INPUTS]
    return mean(shares) if shares else None
