"""Optimising batches of images pixel by pixel under a loss, which several methods share."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ranks
from ..config import Count, Decay, Natural, Positive, Probability, Size
from ..data.datasets import LabelledData
from ..domain import Domain
from ..objectives.contract import Terms
from ..teachers.classifier import Classifier, Teacher, remedies
from ..training import Checkpoints, Stateful, TrainingLoop, own_generator
from .bank import Augment, AugmentedBank, Bank, BankOptions

TENSORS = ("full", "half", "labels", "finished", "finished_labels")  # what a canvas keeps
# What fits two CPU cores: few steps need larger ones. One core takes, with ResNet14 on 32 x 32
# images, about 20 s for the quick ones and 80 s for the standard ones.
QUICK: dict[str, Any] = {
    "images": 256,
    "batch_size": 128,
    "steps": 50,
    "learning_rate": 0.2,
    "decay": True,
    "jitter": 1,
    "augment": "few",
}
STANDARD: dict[str, Any] = {**QUICK, "images": 512, "steps": 100}
# Of normalised images (B, *shape) and labels (B,). Processes that share them all have the whole
# batch, of which each asks the teacher for its rows.
Loss = Callable[[Tensor, Tensor], Terms]


@dataclass(frozen=True)
class InversionOptions(BankOptions):
    """How images are optimised; the values are DeepInversion's on CIFAR-10.

    Arguments:
        augment: As of :class:`~freia_kd.synthesizers.bank.BankOptions`; no paper augments images
            that are finished.
        images: How many images the bank gets, rounded up to whole batches.
        batch_size: Images that are optimised together.
        steps: Steps of Adam for each batch.
        learning_rate: Adam's, in units of normalised pixels (:func:`unit`).
        decay: Whether the learning rate falls to 0 as a cosine within each batch. Off, as in the
            paper's code for CIFAR-10; that for ImageNet does it, and few steps need it.
        jitter: The most pixels by which a step rolls the images, each way.
        flip: Whether every second step, at random, mirrors the images. Off, as in the paper's code
            for CIFAR-10, since mirrored digits are none; on is for objects.
        coarse: The share of the steps, the first ones, that optimise images of half the size.
        min_probability: The teacher's mean probability of the classes asked for under which
            students do not learn from the images; 0 for whatever comes.

    Raises:
        ConfigError: If a value makes no sense.
    """

    images: Size = 5_120
    batch_size: Size = 256
    steps: Count = 2_000
    learning_rate: Positive = 0.05
    decay: bool = False
    jitter: Natural = 2
    flip: bool = False
    coarse: Decay = 0.0
    min_probability: Probability = 0.9
    augment: Augment = "never"


class Inversion(AugmentedBank):
    """A bank of images that Adam optimises from Gaussian noise under a loss, batch by batch.

    The images are optimised in the units that the teacher takes, from noise of the mean and
    standard deviation that it normalises by (where these were not measured, say because it takes 0
    to 255, a quarter of the range counts as one unit, :func:`unit`), and every step clips them to
    pixels in [0, 1]. The teacher is frozen and in eval mode. The whole bank is one training stage,
    whose state holds the finished images, those at work and Adam's moments; it resumes exactly.

    With `coarse` the first images have half the size and are enlarged bilinearly before the teacher
    sees them, so that it may be one of a fixed input size.

    A few hundred images are not varied enough to learn from as they are, so that students see them
    augmented (the options `augment` and `mixing`), by the teacher's answers; :meth:`sample` shows
    them as they are.
    """

    needs_images = True
    family = "inversion"
    is_shared = True

    @property
    def min_probability(self) -> float:
        return self.options.min_probability

    def check(self, teacher: Teacher) -> None:
        few = self.options.images < self.options.batch_size
        option = "images" if few else "batch_size"
        ranks.share(getattr(self.options, option), f"{self.name}.{option}")

    @abstractmethod
    def loss(self, teacher: Teacher, student: Classifier | None) -> Loss:
        """The loss of normalised images `(B, *shape)` and their labels `(B,)`, as named terms."""

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        checkpoints: Checkpoints | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        device = next(teacher.parameters()).device
        generator = own_generator(generator, device)
        options = self.options
        loss = self.loss(_fast(teacher), None if student is None else _fast(student))
        batches = -(-options.images // options.batch_size)
        canvas = Canvas(teacher.domain, min(options.images, options.batch_size), batches, generator)
        optimizer = torch.optim.Adam([canvas.half, canvas.full], options.learning_rate)
        parts: dict[str, Stateful] = {"canvas": canvas, "optimizer": optimizer}
        steps = batches * options.steps
        advice = remedies(f"{self.name}.learning_rate", teacher)
        loop = TrainingLoop(
            "invert", steps, parts, generator, optimizer, checkpoints, ["canvas"], advice
        )
        for step in loop:
            batch, t = divmod(step, options.steps)
            coarse = t < round(options.coarse * options.steps)
            if canvas.prepare(batch, coarse):
                optimizer.state.clear()
                loop.mark()  # a rollback must not lead back into another batch
            rate = options.learning_rate * (_cosine(t / options.steps) if options.decay else 1)
            optimizer.param_groups[0]["lr"] = rate * unit(teacher.domain) / 2**loop.rollbacks
            x = augment(canvas.whole(), options.jitter, options.flip, generator)
            terms = loss(x, canvas.labels)
            if loop.accept(terms.total, terms.items()):
                loop.backward(terms.total)
                optimizer.step()
                canvas.clip()
            if t == options.steps - 1:
                canvas.finish()
        self.inputs, self.domain = canvas.finished, teacher.domain
        self.labels = self.label(teacher, canvas.finished, canvas.finished_labels)
        self.keep(checkpoints)

    def sample(
        self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        return Bank.sample(self, n, labels, generator)

    def unanswered(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Images for the teacher to answer, where they are few augmented and of no class asked."""
        x, labels = self.sample(n, generator=generator)
        change = self._augmentation()
        return (x, labels) if change is None else (change(x, generator, self.domain), None)

    def label(self, teacher: Teacher, images: Tensor, labels: Tensor) -> Tensor:
        """The labels of finished images: those that were asked for."""
        return labels


class Canvas:
    """The images at work, and those that are finished; the state of an inversion.

    Arguments:
        domain: The input domain.
        size: How many images are at work.
        batches: How many batches there will be.
        generator: The source of noise and of the order of labels; its device is the images'.
    """

    def __init__(self, domain: Domain, size: int, batches: int, generator: torch.Generator) -> None:
        self.domain, self.size, self.generator = domain, size, generator
        device, (channels, *sides) = generator.device, domain.shape
        halves = [-(-side // 2) for side in sides]
        self.batch, self.coarse = -1, False
        # Two parameters, of which one is at work: Adam's moments do not change their shape.
        self.full = nn.Parameter(torch.zeros(size, *domain.shape, device=device))
        self.half = nn.Parameter(torch.zeros(size, channels, *halves, device=device))
        self.labels = torch.zeros(size, dtype=torch.long, device=device)
        self.finished = torch.zeros(size * batches, *domain.shape, device=device)
        self.finished_labels = torch.zeros(size * batches, dtype=torch.long, device=device)
        black, white = (torch.full((1, *domain.shape), v, device=device) for v in (0.0, 1.0))
        self.low = domain.normalize(black)[..., :1, :1]
        self.high = domain.normalize(white)[..., :1, :1]

    @property
    def x(self) -> nn.Parameter:
        """The normalised images at work, of half the size while they are coarse."""
        return self.half if self.coarse else self.full

    @torch.no_grad()
    def prepare(self, batch: int, coarse: bool) -> bool:
        """Starts a new batch, or enlarges coarse images; whether there was a need to."""
        if batch != self.batch:
            self._begin(batch, coarse)
            return True
        if self.coarse and not coarse:
            self.full.copy_(self.whole())
            self.coarse = False
            return True
        return False

    def _begin(self, batch: int, coarse: bool) -> None:
        """Fresh noise; labels are balanced over the bank, and in a random order."""
        self.batch, self.coarse = batch, coarse
        device = self.generator.device
        noise = torch.randn(self.x.shape, generator=self.generator, device=device)
        if not self.domain.is_measured:
            noise = (self.low + self.high) / 2 + unit(self.domain) * noise
        self.x.copy_(noise)
        self.clip()
        order = torch.randperm(self.size, generator=self.generator, device=device)
        self.labels = (order + batch * self.size) % self.domain.classes

    def whole(self) -> Tensor:
        """The images at work with the domain's shape, normalised."""
        if not self.coarse:
            return self.full
        return F.interpolate(self.half, self.domain.shape[1:], mode="bilinear", align_corners=False)

    @torch.no_grad()
    def clip(self) -> None:
        """Clips the images at work to pixels in [0, 1]."""
        self.x.copy_(torch.minimum(torch.maximum(self.x, self.low), self.high))

    @torch.no_grad()
    def finish(self) -> None:
        """Adds the images at work, as pixels, to the finished ones."""
        rows = slice(self.batch * self.size, (self.batch + 1) * self.size)
        self.finished[rows] = self.domain.denormalize(self.whole()).clamp(0, 1)
        self.finished_labels[rows] = self.labels

    def state_dict(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name).detach() for name in TENSORS}
        return {"batch": self.batch, "coarse": self.coarse, **tensors}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batch, self.coarse = state["batch"], state["coarse"]
        for name in TENSORS:
            getattr(self, name).copy_(state[name])


def unit(domain: Domain) -> float:
    """What counts as one unit of normalised pixels: 1, or else a quarter of their range.

    Rates and norms are meant for pixels that are normalised to a standard deviation of about 1.
    """
    if domain.is_measured:
        return 1.0
    return len(domain.std) / sum(domain.std) / 4


def augment(x: Tensor, jitter: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Rolls all images by up to `jitter` pixels each way, and mirrors them in half of the calls.

    Arguments:
        x: Images with shape `(B, C, H, W)`.
        jitter: The most pixels.
        flip: Whether to mirror them (left and right) at random.
        generator: The source of the random numbers.
    """
    device = generator.device
    if jitter:
        shifts = torch.randint(-jitter, jitter + 1, (2,), generator=generator, device=device)
        for dim, shift in zip((2, 3), shifts, strict=True):  # torch.roll would wait for them
            places = torch.arange(x.shape[dim], device=device)
            x = x.index_select(dim, (places - shift) % x.shape[dim])
    if flip:
        is_mirrored = torch.rand((), generator=generator, device=device) < 0.5
        x = torch.where(is_mirrored, x.flip(3), x)
    return x


def total_variation(x: Tensor) -> Tensor:
    r"""DeepInversion's total variation of a batch: :math:`\sum_d \|x - \mathrm{shift}_d(x)\|_2`.

    The differences to the right, lower, lower right and lower left neighbours d, and the norm over
    the whole batch (that of :class:`~freia_kd.objectives.image_priors.TotalVariation` is a sum of
    absolute values for each image, a log-density for flows).

    Arguments:
        x: Images with shape `(B, C, H, W)`.

    References:
        | Dreaming to Distill (Yin et al., 2020), eq. (3), after its public code for CIFAR-10
    """
    differences = (
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    return torch.stack([torch.linalg.vector_norm(d) for d in differences]).sum()


def _cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def _fast(classifier: Any) -> Any:
    """A frozen copy in eval mode, in the memory format in which CPUs convolve faster."""
    fast = copy.deepcopy(classifier).eval().requires_grad_(False)
    return fast.to(memory_format=torch.channels_last)
