"""What methods with unconditional generators share: drawing, and the teacher's labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..domain import Domain
from ..teachers.classifier import Teacher
from ..training import Checkpoints
from .bank import Bank
from .contract import TEACHER_BATCH_SIZE
from .generators import DenseGenerator, ImageGenerator, as_inputs, build_seeded

KEPT = 1024  # inputs kept in a run's folder, for those who have no teacher
TRIES = 10  # how many times more inputs are drawn, at most, when labels are asked for


class InputGenerator(nn.Module):
    """A net from latents `(B, latents)` to inputs of a domain (pixels in [0, 1] for images).

    Images come from DAFL's generator, which DFAD and RDSKD use as well: a linear layer, doublings
    by nearest neighbours with 3x3 convolutions, a tanh, and batch normalisation without weights,
    so that inputs have mean 0 and variance 1 in the teacher's normalised units. It has a
    convolution per doubling, without bias, and an activation before each; theirs has biases, one
    convolution more and no activation before the first. Vectors come from linear layers.

    Arguments:
        domain: The domain of the inputs.
        latents: The length of a latent.
        channels: The channels of the first grid and of those that follow, for images; the widths
            of the hidden layers, for vectors.

    Example:
        >>> net = InputGenerator(Domain((1, 8, 8), 10), 16, (4, 2))
        >>> net(torch.randn(5, 16)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(self, domain: Domain, latents: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.domain = domain
        self.net: nn.Module
        if domain.is_image:
            self.net = ImageGenerator(
                latents,
                domain.shape,
                hidden=(),
                channels=channels,
                upsample="nearest",
                activation=_leaky,
                head=nn.Sequential(nn.Tanh(), nn.BatchNorm2d(domain.shape[0], affine=False)),
            )
        else:
            self.net = DenseGenerator(latents, domain.shape[0], hidden=channels)

    def forward(self, z: Tensor) -> Tensor:
        """Inputs with shape `(B, *domain.shape)` for latents `z` with shape `(B, latents)`."""
        return as_inputs(self.net(z), self.domain)

    @classmethod
    def seeded(
        cls, domain: Domain, latents: int, channels: Sequence[int], generator: torch.Generator
    ) -> InputGenerator:
        """One whose weights come from `generator`, on its device."""
        return build_seeded(lambda: cls(domain, latents, channels), generator)


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


class Unconditional(Bank):
    """Inputs of trained generators that take no label; the teacher says what they show.

    Labels asked for are met by drawing up to `TRIES` times as many inputs; a label that the
    generators make too seldom has its inputs repeated, and one that they never make has any
    inputs. Restored from a run's folder, without the teacher, it draws from `KEPT` inputs that
    the folder holds.

    A subclass calls :meth:`finish` at the end of `fit`.
    """

    teacher: Teacher | None = None
    generators: Sequence[nn.Module]

    def finish(
        self,
        teacher: Teacher,
        generators: Sequence[nn.Module],
        latents: int,
        checkpoints: Checkpoints | None,
        generator: torch.Generator,
    ) -> None:
        """Takes the trained generators, and keeps some of their inputs in the run.

        Arguments:
            teacher: What labels the inputs.
            generators: Nets in eval mode, each of which makes an equal share of the inputs.
            latents: The length of their latents.
            checkpoints: Where the run keeps them, if anywhere.
            generator: Draws the inputs that are kept.
        """
        self.teacher, self.generators, self.latents = teacher, generators, latents
        # Drawn without checkpoints as well, which thus changes no random number.
        self.inputs, self.labels = self.sample(KEPT, generator=generator)
        self.keep(checkpoints)

    @property
    def distinct(self) -> int | None:
        return super().distinct if self.teacher is None else None

    def part(self, heldout: bool) -> Bank:
        return super().part(heldout) if self.teacher is None else self

    @torch.no_grad()
    def sample(
        self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.teacher is None:
            return super().sample(n, labels, generator)
        if labels is None:
            return self._draw(self.teacher, n, generator)
        return self._pool(self.teacher, labels, generator).sample(n, labels, generator)

    def _pool(self, teacher: Teacher, labels: Tensor, generator: torch.Generator | None) -> Bank:
        """A bank that has enough inputs of each label, as far as the generators make them."""
        classes = teacher.domain.classes
        wanted = (labels if labels.ndim == 1 else labels.argmax(1)).bincount(minlength=classes)
        pool, drawn = copy.copy(self), list[tuple[Tensor, Tensor]]()
        pool.teacher, have = None, torch.zeros(classes, dtype=torch.long)
        while len(drawn) < TRIES and (have < wanted.cpu()).any():
            drawn.append(self._draw(teacher, max(64, len(labels)), generator))
            have += drawn[-1][1].cpu().bincount(minlength=classes)
        pool.inputs, pool.labels = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return pool

    def _draw(
        self, teacher: Teacher, n: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        device = next(teacher.parameters()).device
        z = torch.randn(n, self.latents, generator=generator, device=device)
        which = torch.randint(len(self.generators), (n,), generator=generator, device=device)
        x = z.new_empty(n, *teacher.domain.shape)
        for k, net in enumerate(self.generators):
            for rows in torch.nonzero(which == k).flatten().split(256):
                x[rows] = net(z[rows])
        return x, torch.cat([teacher(part).argmax(1) for part in x.split(TEACHER_BATCH_SIZE)])
