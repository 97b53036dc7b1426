"""The one contract that every conditional flow of this package, or a guest's, fulfils."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .bases import Base


class ConditionalFlow(nn.Module, ABC):
    r"""A class-conditional bijection between latents and inputs, with a base density.

    Images are the composition of two bijections: a conditional one between the latent `z` and
    unbounded values `u` (:meth:`decode_unbounded`, :meth:`encode_unbounded`, what a subclass
    writes), and a fixed elementwise squash from `u` to pixels :math:`x \in [0, 1]` (`squash`).
    For vectors there is no squash, and :math:`x = u`.

    Sign of every log-determinant: `ladj` is that of the direction evaluated,
    :math:`\log|\det \partial x / \partial z|` from :meth:`decode` and
    :math:`\log|\det \partial z / \partial x|` from :meth:`encode`; both have shape `(B,)`.

    The condition `c` holds class indices with shape `(B,)`, or soft labels with shape
    `(B, classes)`.

    Arguments:
        shape: The shape of one input (and of one latent).
        classes: The number of classes.
        base: The base density, over latents with shape `(B, *shape)`.
        squash: A FrEIA invertible module from pixels (forward) to unbounded values, or `None`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        base: Base,
        squash: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.classes = classes
        self.base = base
        self.squash = squash

    @abstractmethod
    def decode_unbounded(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        r"""Maps latents to unbounded values: `u` and :math:`\log|\det \partial u/\partial z|`."""

    @abstractmethod
    def encode_unbounded(self, u: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        r"""Maps unbounded values to latents: `z` and :math:`\log|\det \partial z/\partial u|`."""

    def to_input(self, u: Tensor) -> tuple[Tensor, Tensor]:
        r"""Squashes unbounded values: `x` and :math:`\log|\det \partial x/\partial u|`."""
        if self.squash is None:
            return u, u.new_zeros(len(u))
        (x,), ladj = self.squash([u], rev=True)
        return x, ladj

    def from_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The inverse of :meth:`to_input`: `u` and :math:`\log|\det \partial u/\partial x|`."""
        if self.squash is None:
            return x, x.new_zeros(len(x))
        (u,), ladj = self.squash([x])
        return u, ladj

    def decode(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        r"""Maps latents to inputs.

        Arguments:
            z: Latents with shape `(B, *shape)`.
            c: Class indices with shape `(B,)` or soft labels with shape `(B, classes)`.

        Returns:
            `x` with shape `(B, *shape)` and :math:`\log|\det \partial x/\partial z|` with
            shape `(B,)`.

        Raises:
            ValueError: If a shape, a dtype or the condition does not fit.
        """
        self.check(z, c)
        u, ladj = self.decode_unbounded(z, c)
        x, ladj_squash = self.to_input(u)
        return x, ladj + ladj_squash

    def encode(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        r"""Maps inputs to latents: `z` and :math:`\log|\det \partial z/\partial x|`.

        The inverse of :meth:`decode`, with the same arguments and errors.
        """
        self.check(x, c)
        u, ladj_squash = self.from_input(x)
        z, ladj = self.encode_unbounded(u, c)
        return z, ladj + ladj_squash

    def base_log_prob(self, z: Tensor, c: Tensor) -> Tensor:
        r""":math:`\log p_Z(z)` with shape `(B,)`; the bases of this package ignore `c`."""
        return self.base.log_prob(z)

    def sample_base(
        self, c: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Latents with shape `(B, *shape)`, one for each condition."""
        return self.base.sample(len(c), temperature=temperature, generator=generator)

    def log_prob(self, x: Tensor, c: Tensor) -> Tensor:
        r""":math:`\log p_Z(z) + \log|\det \partial z/\partial x|` in nats, with shape `(B,)`."""
        z, ladj = self.encode(x, c)
        return self.base_log_prob(z, c) + ladj

    def sample(
        self, c: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Inputs with shape `(B, *shape)`, one for each condition."""
        return self.decode(self.sample_base(c, temperature, generator), c)[0]

    def forward(
        self, value: Tensor, c: Tensor, direction: Literal["encode", "decode"] = "encode"
    ) -> tuple[Tensor, Tensor]:
        """Dispatches to :meth:`encode` or :meth:`decode`, so that DDP sees the call."""
        return self.encode(value, c) if direction == "encode" else self.decode(value, c)

    def check(self, value: Tensor, c: Tensor) -> None:
        """Raises `ValueError` unless `value` and `c` fit this flow (called before any work)."""
        if tuple(value.shape[1:]) != self.shape or value.ndim != len(self.shape) + 1:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(
                f"Expected values with shape (B, {expected}); got {tuple(value.shape)}."
            )
        if not value.is_floating_point():
            raise ValueError(f"Expected floating-point values; got {value.dtype}.")
        as_indices = c.ndim == 1 and not c.is_floating_point()
        as_soft = c.ndim == 2 and c.shape[1] == self.classes and c.is_floating_point()
        if not (as_indices or as_soft) or len(c) != len(value):
            raise ValueError(
                f"Expected class indices with shape ({len(value)},) and an integer dtype, or soft "
                f"labels with shape ({len(value)}, {self.classes}) and a floating-point dtype; "
                f"got shape {tuple(c.shape)} of {c.dtype}."
            )
        # On an accelerator the values are not looked at, since that would wait for it.
        if as_indices and c.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = c[(c < 0) | (c >= self.classes)]
            if len(wrong):
                raise ValueError(
                    f"Expected class indices from 0 to {self.classes - 1}; got {wrong[0].item()}."
                )

    def soft(self, c: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The condition as soft labels with shape `(B, classes)` (one-hot from indices)."""
        dtype = dtype or torch.get_default_dtype()
        return (F.one_hot(c, self.classes) if c.ndim == 1 else c).to(dtype)
