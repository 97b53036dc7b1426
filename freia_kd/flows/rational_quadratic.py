"""Monotonic rational-quadratic splines as a coupling block of FrEIA."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Block, Dims, Output

MINIMUM = 1e-3  # of a bin's share of the interval, and of a derivative
UNIT = math.log(math.expm1(1 - MINIMUM))  # softplus(UNIT) + MINIMUM = 1


def rational_quadratic(
    x: Tensor, parameters: Tensor, bound: float, rev: bool = False
) -> tuple[Tensor, Tensor]:
    r"""A monotonic spline on :math:`[-b, b]`, elementwise, and the identity outside.

    With bin widths `w`, heights `h`, derivatives `d` at the knots (1 at the ends), slope
    :math:`s = h/w` and :math:`\xi = (x - x_k)/w_k`,

    .. math:: y = y_k + h_k \frac{s\xi^2 + d_k\xi(1-\xi)}
              {s + (d_{k+1} + d_k - 2s)\,\xi(1-\xi)}

    (Durkan et al., 2019, equations 4 to 8; the inverse solves a quadratic). Parameters of zero give
    the identity.

    Arguments:
        x: Values of any shape.
        parameters: With shape `(*x.shape, 3 * bins - 1)`: unnormalised widths, heights and
            inner derivatives.
        bound: The bound `b`.
        rev: Whether to evaluate the inverse.

    Returns:
        The values, and the log-derivative of the direction evaluated, both with the shape of `x`.
    """
    bins = (parameters.shape[-1] + 1) // 3
    inside = x.abs() < bound
    value = torch.where(inside, x, torch.zeros_like(x))
    x_knots, widths = _knots(parameters[..., :bins], bound)
    y_knots, heights = _knots(parameters[..., bins : 2 * bins], bound)
    derivatives = F.pad(F.softplus(parameters[..., 2 * bins :] + UNIT) + MINIMUM, (1, 1), value=1.0)
    knots = y_knots if rev else x_knots
    k = (value.unsqueeze(-1) >= knots[..., 1:-1]).sum(-1, keepdim=True)  # the bin, 0 to bins - 1

    def pick(values: Tensor, index: Tensor) -> Tensor:
        return values.gather(-1, index).squeeze(-1)

    x0, w, y0, h = (pick(v, k) for v in (x_knots, widths, y_knots, heights))
    d0, d1 = pick(derivatives, k), pick(derivatives, k + 1)
    s = h / w
    curve = d1 + d0 - 2 * s
    if rev:
        rise = value - y0
        a = h * (s - d0) + rise * curve
        b = h * d0 - rise * curve
        xi = 2 * s * rise / (b + (b.square() + 4 * a * s * rise).clamp(min=0).sqrt())
        result = x0 + xi * w
    else:
        xi = (value - x0) / w
        result = y0 + h * (s * xi.square() + d0 * xi * (1 - xi)) / (s + curve * xi * (1 - xi))
    slope = d1 * xi.square() + 2 * s * xi * (1 - xi) + d0 * (1 - xi).square()
    ladj = 2 * s.log() + slope.log() - 2 * (s + curve * xi * (1 - xi)).log()
    ladj = torch.where(inside, -ladj if rev else ladj, torch.zeros_like(x))
    return torch.where(inside, result, x), ladj


def _knots(parameters: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Knots from -bound to bound, `(..., bins + 1)`, and the sizes between them, `(..., bins)`."""
    bins = parameters.shape[-1]
    sizes = MINIMUM + (1 - MINIMUM * bins) * parameters.softmax(-1)
    knots = 2 * bound * F.pad(sizes.cumsum(-1), (1, 0)) - bound
    return knots, knots[..., 1:] - knots[..., :-1]


class SplineCoupling(Block):
    """A one-sided coupling: a spline of the last channels, with knots from the first ones.

    It has the signature of FrEIA's `AffineCouplingOneSided`, so that the same subnet constructors
    serve, and takes vectors and images. FrEIA has splines only in its git master
    (`RationalQuadraticSpline`).

    Arguments:
        dims_in: The shape `(C, ...)` of the input, as a list with one entry.
        dims_c: The shapes of conditions, which the subnet gets as further channels.
        subnet_constructor: Makes a net from numbers of channels `(c_in, c_out)`.
        bins: The number of bins of a spline.
        bound: Values beyond it pass unchanged.
        split_len: The share of the channels that pass unchanged.

    Example:
        >>> block = SplineCoupling([(4,)], subnet_constructor=nn.Linear)
        >>> (y,), ladj = block([torch.ones(2, 4)])
        >>> y.shape, ladj.shape
        (torch.Size([2, 4]), torch.Size([2]))
    """

    def __init__(
        self,
        dims_in: Dims,
        dims_c: Dims | None = None,
        *,
        subnet_constructor: Callable[[int, int], nn.Module],
        bins: int = 8,
        bound: float = 5.0,
        split_len: float = 0.5,
    ) -> None:
        super().__init__(dims_in, dims_c)
        if bins < 2 or bins * MINIMUM >= 1 or bound <= 0:
            raise ValueError(
                f"Expected a positive bound and 2 to {int(1 / MINIMUM) - 1} bins; "
                f"got bound={bound} and bins={bins}."
            )
        channels = self.dims_in[0][0]
        self.keep = round(channels * split_len)
        self.bins = bins
        self.bound = bound
        c_in = self.keep + sum(dims[0] for dims in self.dims_c)
        self.subnet = subnet_constructor(c_in, (channels - self.keep) * (3 * bins - 1))

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> Output:
        (x,) = x_or_z
        x1, x2 = x[:, : self.keep], x[:, self.keep :]
        conditions = list(c or []) if self.dims_c else []
        parameters = self.subnet(torch.cat([x1, *conditions], 1)).to(x.dtype)
        shape = (x.shape[0], x2.shape[1], 3 * self.bins - 1, *x.shape[2:])
        parameters = parameters.reshape(shape).movedim(2, -1)
        y2, ladj = rational_quadratic(x2, parameters, self.bound, rev)
        return (torch.cat([x1, y2], 1),), ladj.flatten(1).sum(1)
