"""What the adapters of all host libraries share."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...optional import require as require
from ..bases import Base
from ..contract import ConditionalFlow, one_hot

ConditionSpec = Literal["one-hot", "index"] | Callable[[Tensor], Any] | None
"""How the host sees the condition, see :func:`freia_kd.flows.adapters.as_conditional_flow`."""


def as_log_det(ladj: Tensor | float, like: Tensor) -> Tensor:
    """A host's log-determinant or log-density as a tensor with shape `(B,)`.

    Arguments:
        ladj: A number, or a tensor with shape `()`, `(1,)` or `(B,)`.
        like: A tensor with `B` rows, whose device and dtype (float32 at least) are taken.

    Raises:
        ValueError: If there are more dimensions, or another number of rows.

    Example:
        >>> as_log_det(2.0, torch.zeros(3, 2))
        tensor([2., 2., 2.])
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    ladj = torch.as_tensor(ladj, dtype=dtype, device=like.device)
    n = like.shape[0]
    if ladj.ndim > 1 or (ladj.ndim == 1 and ladj.shape[0] not in (1, n)):
        raise ValueError(
            f"Expected a log-determinant with shape (), (1,) or ({n},) from the host; "
            f"got {tuple(ladj.shape)}."
        )
    return ladj.expand(n)


def anchor(module: nn.Module) -> Tensor:
    """A tensor that knows the device and the dtype of a module.

    The least precise parameter, since some bases keep theirs in float64 in any case.
    """
    tensors: list[Tensor] = [*module.parameters()] or [*module.buffers()]
    floating = [t for t in tensors if t.is_floating_point()]
    return min(floating, key=Tensor.element_size, default=torch.zeros(()))


def split(value: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Cuts `(B, *shape)` into parts with shapes `(B, *shapes[i])`, in row-major order."""
    sizes = [math.prod(shape) for shape in shapes]
    pieces = value.flatten(1).split(sizes, dim=1)
    return [p.reshape(p.shape[0], *shape) for p, shape in zip(pieces, shapes, strict=True)]


def join(parts: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`split`."""
    flat = [part.flatten(1) for part in parts]
    return (flat[0] if len(flat) == 1 else torch.cat(flat, 1)).reshape(flat[0].shape[0], *shape)


def gaussian(
    n: int, loc: Tensor, std: Tensor, temperature: float, generator: torch.Generator | None
) -> Tensor:
    """Draws `n` rows of a diagonal Gaussian; `loc` and `std` have shape `(n or 1, *shape)`."""
    shape = (n, *loc.shape[1:])
    white = torch.randn(shape, generator=generator, dtype=loc.dtype, device=loc.device)
    return loc + temperature * std * white


@contextmanager
def seeded(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Lets hosts that draw from torch's global generators draw from `generator` instead.

    The global state is as before afterwards. With `None` the host draws as it always does.
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class Condition(nn.Module):
    """From this package's condition to the host's.

    Arguments:
        spec: What the host sees, see :func:`freia_kd.flows.adapters.as_conditional_flow`.
        classes: The number of classes.
        used: Whether the host has a condition at all.

    Raises:
        ValueError: If `spec` is none of the choices.
    """

    def __init__(self, spec: ConditionSpec, classes: int | None, used: bool = True) -> None:
        super().__init__()
        if not (spec is None or callable(spec) or spec in ("one-hot", "index")):
            raise ValueError(
                f"Expected condition 'one-hot', 'index', a callable or None; got {spec!r}."
            )
        self.spec = spec if used and classes else None
        self.classes = classes or 0

    def forward(self, c: Tensor, dtype: torch.dtype) -> Any:
        """The host's condition for class indices `(B,)` or soft labels `(B, classes)`.

        Raises:
            ValueError: If the host takes indices and `c` holds soft labels.
        """
        if self.spec is None:
            return None
        if self.spec == "index":
            if c.ndim != 1:
                raise ValueError(
                    "Expected class indices with shape (B,), since condition='index'; got soft "
                    f"labels with shape {tuple(c.shape)}."
                )
            return c.to(torch.int64)
        soft = one_hot(c, self.classes).to(dtype)
        return soft if self.spec == "one-hot" else self.spec(soft)


class GuestBase(Base):
    r"""The base density of a host's flow, class-conditional or not.

    A class-conditional density without a condition is the mixture over uniform classes,
    :math:`p(z) = \frac{1}{K} \sum_k p(z|k)`.

    Arguments:
        host: The host's flow. It is referred to, not registered: it belongs to the adapter.
        shape: The shape of one latent.
        condition: What makes the host's condition.
        conditional: Whether the density depends on the condition.
    """

    def __init__(
        self, host: nn.Module, shape: tuple[int, ...], condition: Condition, conditional: bool
    ) -> None:
        super().__init__(shape)
        self.conditional = conditional
        self._hidden = (host, condition)  # in a tuple, so that they are not registered twice

    @property
    def host(self) -> Any:
        """The host's flow."""
        return self._hidden[0]

    @property
    def condition(self) -> Condition:
        """What makes the host's condition."""
        return self._hidden[1]

    @abstractmethod
    def density(self, z: Tensor, context: Any) -> Tensor:
        """The host's log-density of `z` with shape `(B, *shape)`, given its own condition."""

    @abstractmethod
    def draw(
        self, n: int, context: Any, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Draws `n` latents with shape `(n, *shape)`, given the host's own condition."""

    def log_prob(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """The log-density in nats, with shape `(B,)`; without `c`, that of the mixture."""
        if c is None and self.conditional:
            classes = self.condition.classes
            indices = torch.arange(classes, device=z.device)
            each = [self.log_prob(z, k.expand(z.shape[0])) for k in indices]
            return torch.logsumexp(torch.stack(each), 0) - math.log(classes)
        return as_log_det(self.density(z, self._context(c, z.dtype)), z)

    def sample(
        self,
        n: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        c: Tensor | None = None,
    ) -> Tensor:
        """Draws `n` latents; without `c`, of uniform classes.

        Raises:
            ValueError: If the host's density is not Gaussian and `temperature` is not 1.
        """
        like = anchor(self.host)
        if c is None and self.conditional:
            classes = self.condition.classes
            c = torch.randint(classes, (n,), generator=generator, device=like.device)
        z = self.draw(n, self._context(c, like.dtype), temperature, generator)
        return z.reshape(n, *self.shape).to(like.dtype)

    def _context(self, c: Tensor | None, dtype: torch.dtype) -> Any:
        return None if c is None else self.condition(c, dtype)

    def _refuse(self, temperature: float, host: object) -> None:
        if temperature != 1:
            raise ValueError(
                f"Expected temperature 1 for the base {type(host).__name__}, which has no scale "
                f"to multiply; got {temperature}. Give the adapter another `base`."
            )


class GuestFlow(ConditionalFlow):
    """A host library's flow as a :class:`ConditionalFlow`.

    Parameters are shared with the host's flow: training one trains the other.

    Arguments:
        shape: The shape of one input.
        classes: The number of classes.
        base: The base density.
        squash: As for :class:`ConditionalFlow`.
        condition: What makes the host's condition.
        input_shapes: The shapes of the host's inputs, as many numbers as `shape` in all.
        latent_shapes: The shapes of the host's latents, likewise. More than one (multi-scale
            flows) are flattened one after the other into one latent with the shape `shape`.

    Raises:
        ValueError: If the sizes do not agree.
    """

    native: ClassVar[Literal["encode", "decode"]] = "encode"  # the one every such host flow has

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        base: Base,
        squash: nn.Module | None,
        condition: Condition,
        input_shapes: Sequence[tuple[int, ...]],
        latent_shapes: Sequence[tuple[int, ...]],
    ) -> None:
        super().__init__(shape, classes, base, squash)
        self.condition = condition
        self.input_shapes = [tuple(s) for s in input_shapes]
        self.latent_shapes = [tuple(s) for s in latent_shapes]
        for name, shapes in (("inputs", self.input_shapes), ("latents", self.latent_shapes)):
            if sum(math.prod(s) for s in shapes) != math.prod(self.shape):
                raise ValueError(
                    f"Expected a host flow over {name} with {math.prod(self.shape)} numbers, for "
                    f"the shape {self.shape}; got one with the shapes {shapes}."
                )

    @abstractmethod
    def host_decode(self, z: list[Tensor], context: Any) -> tuple[list[Tensor], Tensor | float]:
        r"""The host's map from latents to inputs, and :math:`\log|\det \partial x/\partial z|`."""

    @abstractmethod
    def host_encode(self, x: list[Tensor], context: Any) -> tuple[list[Tensor], Tensor | float]:
        r"""The host's map from inputs to latents, and :math:`\log|\det \partial z/\partial x|`."""

    def decode_unbounded(self, z: Tensor, c: Any = None) -> tuple[Tensor, Tensor]:
        parts = split(z, self.latent_shapes)
        u, ladj = self.host_decode(parts, self._context(c, z.dtype))
        return join(u, self.shape), as_log_det(ladj, z)

    def encode_unbounded(self, u: Tensor, c: Any = None) -> tuple[Tensor, Tensor]:
        parts = split(u, self.input_shapes)
        z, ladj = self.host_encode(parts, self._context(c, u.dtype))
        return join(z, self.shape), as_log_det(ladj, u)

    def base_log_prob(self, z: Tensor, c: Any = None) -> Tensor:
        r""":math:`\log p_Z(z|c)` with shape `(B,)`."""
        if isinstance(self.base, GuestBase):
            return self.base.log_prob(z, c)
        return super().base_log_prob(z, c)

    def sample_base(
        self, c: Any, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        if isinstance(self.base, GuestBase):
            given = None if isinstance(c, int) else c
            n = c if given is None else given.shape[0]
            return self.base.sample(n, temperature, generator, given)
        return super().sample_base(c, temperature, generator)

    def _context(self, c: Any, dtype: torch.dtype) -> Any:
        return None if c is None else self.condition(c, dtype)

    def probe(self) -> None:
        """Sends two rows through a copy of the host's flow, so that misfits show at once.

        A copy, since layers with data-dependent initialisation remember what they saw.

        Raises:
            ValueError: If the host refuses it.
        """
        copied = copy.deepcopy(self).eval()
        value = anchor(copied).new_full((2, *self.shape), 0.25)
        value[1] = 0.75
        c = torch.arange(2, device=value.device) % self.classes if self.classes else None
        call = copied.encode_unbounded if self.native == "encode" else copied.decode_unbounded
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                out, _ = call(value, c)
                copied.base_log_prob(out, c)
        except Exception as error:
            shape = ", ".join(map(str, self.shape))
            raise ValueError(
                f"Expected a flow that takes inputs with shape (B, {shape}) and the condition "
                f"{self.condition.spec!r} of {self.classes} classes; got: {error}. Pass "
                "condition=None if the flow is unconditional, or a callable that maps soft labels "
                "(B, classes) to what it is conditioned on."
            ) from error
