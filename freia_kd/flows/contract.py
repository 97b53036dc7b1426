"""The one contract that every conditional flow of this package, or an external flow, fulfils."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .bases import Base

Entry = Literal[
    "encode",
    "decode",
    "log_prob",
    "class_log_prob",
    "log_marginal",
    "posterior",
    "bits_per_dim",
    "sample",
    "sample_and_log_prob",
]
"""The methods that :meth:`ConditionalFlow.forward` dispatches to."""
ENTRIES = get_args(Entry)  # here, since torch.export of 2.4 cannot look into it


class Fixable(ABC):
    """A part of a flow whose weights give something that need not be made for every batch."""

    @property
    @abstractmethod
    def is_fixed(self) -> bool:
        """Whether it is kept."""

    @abstractmethod
    def fix(self) -> None:
        """Keeps what the weights give now, whatever becomes of them."""

    @abstractmethod
    def unfix(self) -> None:
        """Makes it anew from now on, for every batch."""


class ConditionalFlow(nn.Module, ABC):
    r"""A class-conditional bijection between latents and inputs, with a base density.

    Images are the composition of two bijections: a conditional one between the latent `z` and
    unbounded values `u` (:meth:`decode_unbounded`, :meth:`encode_unbounded`, what a subclass
    writes), and a fixed elementwise squash from `u` to pixels :math:`x \in [0, 1]` (`squash`).
    For vectors there is no squash, and :math:`x = u`.

    Sign of every log-determinant: `ladj` is that of the direction evaluated,
    :math:`\log|\det \partial x / \partial z|` from :meth:`decode` and
    :math:`\log|\det \partial z / \partial x|` from :meth:`encode`; both have shape `(B,)`.

    The condition `c` holds class indices with shape `(B,)` and any integer dtype, or soft labels
    with shape `(B, classes)`. A flow without classes takes none: leave `c` out.

    Arguments:
        shape: The shape of one input (and of one latent).
        classes: The number of classes; `None` for a flow without a condition.
        base: The base density, over latents with shape `(B, *shape)`.
        squash: A FrEIA invertible module from pixels (forward) to unbounded values, or `None`.
            Its attribute `support`, if any, is the interval of its pixels; [0, 1] if not.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        base: Base,
        squash: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.classes = classes or 0
        self.base = base
        self.squash = squash

    @property
    def support(self) -> tuple[float, float]:
        """The interval of the values of an input: [0, 1] for pixels, all numbers for vectors."""
        if self.squash is None:
            return -math.inf, math.inf
        return getattr(self.squash, "support", (0.0, 1.0))

    @property
    def edge(self) -> float:
        """The exponent of :func:`~freia_kd.flows.density.dequantize` that suits the squash."""
        return 1.0 if getattr(self.squash, "tail", None) is None else 8.0

    @abstractmethod
    def decode_unbounded(self, z: Tensor, c: Any) -> tuple[Tensor, Tensor]:
        r"""Maps latents to unbounded values: `u` and :math:`\log|\det \partial u/\partial z|`."""

    @abstractmethod
    def encode_unbounded(self, u: Tensor, c: Any) -> tuple[Tensor, Tensor]:
        r"""Maps unbounded values to latents: `z` and :math:`\log|\det \partial z/\partial u|`."""

    def to_input(self, u: Tensor) -> tuple[Tensor, Tensor]:
        r"""Squashes unbounded values: `x` and :math:`\log|\det \partial x/\partial u|`."""
        if self.squash is None:
            return u, u.new_zeros(u.shape[0])
        (x,), ladj = self.squash([u], rev=True)
        return x, ladj

    def from_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The inverse of :meth:`to_input`: `u` and :math:`\log|\det \partial u/\partial x|`."""
        if self.squash is None:
            return x, x.new_zeros(x.shape[0])
        (u,), ladj = self.squash([x])
        return u, ladj

    def decode(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
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

    def encode(
        self, x: Tensor, c: Tensor | None = None, check: bool = True
    ) -> tuple[Tensor, Tensor]:
        r"""Maps inputs to latents: `z` and :math:`\log|\det \partial z/\partial x|`.

        The inverse of :meth:`decode`.

        Arguments:
            x: Inputs with shape `(B, *shape)`.
            c: As for :meth:`decode`.
            check: Whether to refuse inputs outside the support (not looked at on accelerators,
                nor while compiling). Without it, such pixels are read as black or white.

        Raises:
            ValueError: As :meth:`decode`, or if an input lies outside the support.
        """
        self.check(x, c)
        if check:
            self.check_support(x)
        u, ladj_squash = self.from_input(x)
        z, ladj = self.encode_unbounded(u, c)
        return z, ladj + ladj_squash

    def base_log_prob(self, z: Tensor, c: Any = None) -> Tensor:
        r""":math:`\log p_Z(z)` with shape `(B,)`; the bases of this package ignore `c`."""
        return self.base.log_prob(z)

    def sample_base(
        self, c: Any, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Latents with shape `(B, *shape)`, one for each condition, or as many as `c` says."""
        n = c if isinstance(c, int) else c.shape[0]
        return self.base.sample(n, temperature=temperature, generator=generator)

    def log_prob(self, x: Tensor, c: Tensor | None = None, check: bool = True) -> Tensor:
        r""":math:`\log p_Z(z) + \log|\det \partial z/\partial x|` in nats, with shape `(B,)`.

        Arguments as those of :meth:`encode`.
        """
        z, ladj = self.encode(x, c, check)
        return self.base_log_prob(z, c) + ladj

    def class_log_prob(self, x: Tensor, check: bool = True) -> Tensor:
        r""":math:`\log p(x|c)` of every class, with shape `(B, classes)`."""
        if not self.classes:
            raise ValueError("Expected a flow with classes; this one has none, use log_prob.")
        labels = [
            torch.full((x.shape[0],), k, dtype=torch.int64, device=x.device)
            for k in range(self.classes)
        ]
        return torch.stack([self.log_prob(x, c, check) for c in labels], 1)

    def log_marginal(self, x: Tensor, prior: Tensor | None = None, check: bool = True) -> Tensor:
        r""":math:`\log p(x) = \log\sum_c p(c)\,p(x|c)` in nats, with shape `(B,)`.

        Arguments:
            x: Inputs with shape `(B, *shape)`.
            prior: The probabilities of the classes with shape `(classes,)`; uniform if `None`.
            check: As for :meth:`encode`.
        """
        if not self.classes:
            return self.log_prob(x, None, check)
        return torch.logsumexp(self.class_log_prob(x, check) + self._log_prior(prior, x), 1)

    def posterior(self, x: Tensor, prior: Tensor | None = None, check: bool = True) -> Tensor:
        r"""The flow as a classifier, by Bayes' rule: :math:`p(c|x) \propto p(c)\,p(x|c)`.

        Arguments as those of :meth:`log_marginal`.

        Returns:
            The probabilities of the classes, with shape `(B, classes)`.
        """
        return torch.softmax(self.class_log_prob(x, check) + self._log_prior(prior, x), 1)

    def _log_prior(self, prior: Tensor | None, x: Tensor) -> Tensor:
        if prior is None:
            return x.new_full((self.classes,), -math.log(self.classes))
        if tuple(prior.shape) != (self.classes,):
            raise ValueError(
                f"Expected a prior with shape ({self.classes},); got {tuple(prior.shape)}."
            )
        return (prior / prior.sum()).log().to(x)

    def bits_per_dim(
        self, x: Tensor, c: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Bits for each value of images of 256 levels, an upper bound, with shape `(B,)`.

        .. math:: \Bigl(8D - \log_2 p(\tilde x|c) + \log_2 q(\tilde x|x)\Bigr) / D

        with :math:`\tilde x` dequantised by :func:`~freia_kd.flows.density.dequantize`.

        Arguments:
            x: Images with shape `(B, *shape)`: uint8, or floats in [0, 1].
            c: As for :meth:`decode`.
            generator: The source of the noise.

        References:
            | A note on the evaluation of generative models (Theis et al., 2016), section 3.1
            | Flow++ (Ho et al., 2019), equation 9, for noise that is not uniform
        """
        from .density import dequantize

        spread, log_q = dequantize(x, generator, edge=self.edge, dtype=self.dtype)
        nats = self.log_prob(spread, c) - log_q
        return 8 - nats / (math.prod(self.shape) * math.log(2))

    def sample(
        self,
        c: Tensor | int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        sample_shape: Sequence[int] = (),
    ) -> Tensor:
        """Draws inputs.

        Arguments:
            c: Class indices with shape `(B,)` or soft labels with shape `(B, classes)`; or a
                number `B` of inputs, of classes drawn uniformly (or of a flow without classes).
            temperature: What multiplies the standard deviation of the base.
            generator: The source of random numbers.
            sample_shape: How many inputs for each condition.

        Returns:
            Inputs with shape `(*sample_shape, B, *shape)`.
        """
        return self._draw(c, temperature, generator, sample_shape, density=False)[0]

    def sample_and_log_prob(
        self,
        c: Tensor | int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        sample_shape: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        r"""As :meth:`sample`, with :math:`\log p_X(x|c)` from the same pass.

        .. math:: \log p_X(x|c) = \log p_Z(z) - \log|\det \partial x/\partial z|

        Returns:
            Inputs with shape `(*sample_shape, B, *shape)`, and their log-densities (at temperature
            1) with shape `(*sample_shape, B)`. With a number for `c`, the densities are those
            given the classes drawn.
        """
        return self._draw(c, temperature, generator, sample_shape, density=True)

    def _draw(
        self,
        c: Tensor | int,
        temperature: float,
        generator: torch.Generator | None,
        sample_shape: Sequence[int],
        density: bool,
    ) -> tuple[Tensor, Tensor]:
        sample_shape = tuple(sample_shape)
        labels: Any = c
        if isinstance(c, int):
            if c < 0:
                raise ValueError(f"Expected a number of samples of at least 0; got {c}.")
            batch = (*sample_shape, c)
            labels = math.prod(batch)
            if self.classes:
                device = self.device if generator is None else generator.device
                labels = torch.randint(
                    self.classes, (labels,), generator=generator, device=device
                ).to(self.device)
        else:
            if not self.classes:
                raise ValueError(
                    "Expected a number of samples for a flow without classes; got a condition with "
                    f"shape {tuple(c.shape)}."
                )
            self.check_condition(c, c.shape[0] if c.ndim else 0)
            batch = (*sample_shape, c.shape[0])
            if sample_shape:
                labels = c.expand(*sample_shape, *c.shape).reshape(math.prod(batch), *c.shape[1:])
        z = self.sample_base(labels, temperature, generator)
        condition = None if isinstance(labels, int) else labels
        x, ladj = self.decode(z, condition)
        log_prob = self.base_log_prob(z, condition) - ladj if density else ladj
        return x.reshape(*batch, *self.shape), log_prob.reshape(batch)

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """A region without gradients in which weights stay: what follows from them is made once.

        For many batches: flows of FrEIA modules then invert their 1x1 convolutions, and cast the
        weights of subnets in bfloat16, when the region is entered.

        Example:
            >>> from freia_kd.flows import NICE
            >>> flow = NICE((2,), classes=3, bf16=True)
            >>> with flow.fixed():
            ...     x = torch.cat([flow.sample(64) for _ in range(4)])
        """
        parts = [part for part in self.modules() if isinstance(part, Fixable) and not part.is_fixed]
        with torch.no_grad():
            try:
                for part in parts:
                    part.fix()
                yield
            finally:
                for part in parts:
                    part.unfix()

    def interpolate(
        self,
        first: Tensor,
        last: Tensor,
        c_first: Tensor | None = None,
        c_last: Tensor | None = None,
        steps: int = 8,
    ) -> Tensor:
        r"""Inputs between two batches, along great circles of the base's whitened latents.

        The straight line would pass through the middle of a Gaussian, where nothing is typical
        (White, 2016, "Sampling generative networks", section 2.1).

        Arguments:
            first: Inputs with shape `(B, *shape)`.
            last: Inputs with that shape.
            c_first: The conditions of the first.
            c_last: Those of the last, if they differ; soft labels then go straight between them.
            steps: How many inputs, both ends included.

        Returns:
            Inputs with shape `(steps, B, *shape)`.
        """
        ends = [(first, c_first), (last, c_first if c_last is None else c_last)]
        one, two = (self.base.whiten(self.encode(x, c)[0]).flatten(1) for x, c in ends)
        cosine = nn.functional.cosine_similarity(one, two, dim=1).clamp(-1, 1)
        angle = cosine.acos().clamp(min=1e-3).unsqueeze(1)  # nearly straight, at last
        path = []
        for t in torch.linspace(0, 1, steps).tolist():
            mixed = (one * ((1 - t) * angle).sin() + two * (t * angle).sin()) / angle.sin()
            z = self.base.unwhiten(mixed.reshape(first.shape))
            c = c_first
            if c_first is not None and c_last is not None:
                c = (1 - t) * self.soft(c_first, z.dtype) + t * self.soft(c_last, z.dtype)
            path.append(self.decode(z, c)[0])
        return torch.stack(path)

    def forward(
        self, value: Any, c: Tensor | None = None, direction: Entry = "encode", **options: Any
    ) -> Any:
        """Calls the method `direction`, so that DDP (and a hook) sees the call.

        Arguments:
            value: Its first argument.
            c: The condition; left out where the first argument is one, as for `"sample"`.
            direction: The method.
            options: Its further arguments, by name.

        Raises:
            ValueError: If there is no such method.
        """
        if direction not in ENTRIES:
            raise ValueError(f"Expected a direction among {', '.join(ENTRIES)}; got {direction!r}.")
        arguments = (value,) if c is None else (value, c)
        return getattr(self, direction)(*arguments, **options)

    @property
    def _like(self) -> Tensor:
        """A tensor with the flow's device and dtype."""
        floating = (t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point())
        return next(floating, torch.zeros(()))

    @property
    def device(self) -> torch.device:
        """The device of the flow."""
        return self._like.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the flow."""
        return self._like.dtype

    def check(self, value: Tensor, c: Tensor | None = None) -> None:
        """Raises `ValueError` unless `value` and `c` fit this flow (called before any work)."""
        if tuple(value.shape[1:]) != self.shape or value.ndim != len(self.shape) + 1:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(
                f"Expected values with shape (B, {expected}); got {tuple(value.shape)}."
            )
        if not value.is_floating_point():
            raise ValueError(f"Expected floating-point values; got {value.dtype}.")
        if value.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"Expected float32 or float64 values, since log-determinants need them; got "
                f"{value.dtype}. Keep the flow and its inputs in float32 and use autocast, or a "
                "flow made with bf16=True: both lower the precision of the subnets alone."
            )
        self.check_condition(c, value.shape[0])

    def check_condition(self, c: Tensor | None, n: int) -> None:
        """Raises `ValueError` unless `c` holds `n` conditions of this flow."""
        if c is None or not self.classes:
            if c is None and not self.classes:
                return
            if c is None:
                raise ValueError(
                    f"Expected class indices or soft labels of {self.classes} classes; got none. "
                    "For densities and samples whatever the class use log_marginal(x) and "
                    "sample(n)."
                )
            raise ValueError("Expected no condition for a flow without classes; got one.")
        as_indices = c.ndim == 1 and not c.is_floating_point() and not c.is_complex()
        as_soft = c.ndim == 2 and c.shape[1] == self.classes and c.is_floating_point()
        if not (as_indices or as_soft) or c.shape[0] != n:
            raise ValueError(
                f"Expected class indices with shape ({n},) and an integer dtype, or soft "
                f"labels with shape ({n}, {self.classes}) and a floating-point dtype; "
                f"got shape {tuple(c.shape)} of {c.dtype}."
            )
        if as_indices and readable(c):
            wrong = c[(c < 0) | (c >= self.classes)]
            if wrong.numel():
                raise ValueError(
                    f"Expected class indices from 0 to {self.classes - 1}; got {wrong[0].item()}."
                )

    def check_support(self, x: Tensor) -> None:
        """Raises `ValueError` unless all values lie in the support (if they can be read)."""
        low, high = self.support
        if low == -math.inf or not readable(x):
            return
        inside = (x >= low) & (x <= high)
        if not bool(inside.all()):
            raise ValueError(
                f"Expected pixels from {low:.4g} to {high:.4g}; got {x[~inside][0].item():.4g}. "
                "Divide images of 256 levels by 255, or pass check=False to read pixels outside "
                "as black or white."
            )

    def soft(self, c: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The condition as soft labels with shape `(B, classes)` (one-hot from indices)."""
        return one_hot(c, self.classes).to(dtype or torch.get_default_dtype())


def one_hot(c: Tensor, classes: int) -> Tensor:
    """Indices with shape `(B,)` and any integer dtype as `(B, classes)`; soft labels as they are.

    Unlike PyTorch's own it can be exported, and mapped by `torch.func.vmap`.
    """
    if c.is_floating_point():
        return c
    return (c.unsqueeze(-1) == torch.arange(classes, device=c.device)).to(torch.int64)


def mapped(value: Tensor) -> bool:
    """Whether a transform of `torch.func`, such as `vmap`, holds the value."""
    if torch.compiler.is_compiling():  # which cannot trace the question
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(value)


def readable(value: Tensor) -> bool:
    """Whether values may be looked at: not on an accelerator, nor while tracing or mapping."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling() and not mapped(value)
