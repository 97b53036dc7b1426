r"""Invertible modules that FrEIA lacks, for any FrEIA `SequenceINN` or `GraphINN`.

All follow FrEIA's contract: `block(x_or_z, c=None, rev=False, jac=True)` takes a list of tensors
and returns a tuple of tensors and the log-determinant *of the direction evaluated*, with shape
`(B,)`. Constants are buffers, nothing is written into inputs, and linear maps keep their precision
under autocast.

Classes as conditions. FrEIA's coupling blocks concatenate a condition to the channels, so it must
have the height and width of the block. :func:`pack_labels` folds a label vector with shape
`(B, classes)` into as few such planes as hold it (one, where the image has at least as many pixels
as there are classes), and :func:`unpack_labels` reads it back: the subnets of
:mod:`freia_kd.flows.subnets` and the blocks here do that on their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from FrEIA.modules import InvertibleModule
from torch import Tensor, nn

from .bases import dct_matrix, full_precision
from .contract import Fixable, mapped

Dims = Sequence[tuple[int, ...]]
Output = tuple[tuple[Tensor, ...], Tensor]


def label_dims(classes: int, dims: Sequence[int]) -> tuple[int, ...]:
    """The shape of packed labels for a block whose input has shape `dims`.

    Example:
        >>> label_dims(10, (3, 32, 32)), label_dims(100, (48, 4, 4)), label_dims(10, (64,))
        ((1, 32, 32), (7, 4, 4), (10,))
    """
    if len(dims) == 1:
        return (classes,)
    return (math.ceil(classes / math.prod(dims[1:])), *dims[1:])


def pack_labels(soft: Tensor, dims: Sequence[int]) -> Tensor:
    """Folds labels with shape `(B, classes)` into the shape `(B, *label_dims(classes, dims))`.

    Example:
        >>> labels = torch.eye(3)
        >>> torch.equal(unpack_labels(pack_labels(labels, (8, 2, 2)), 3), labels)
        True
    """
    packed = label_dims(soft.shape[1], dims)
    padded = F.pad(soft, (0, math.prod(packed) - soft.shape[1]))
    return padded.reshape(soft.shape[0], *packed[1:], packed[0]).movedim(-1, 1)


def unpack_labels(packed: Tensor, classes: int) -> Tensor:
    """The inverse of :func:`pack_labels`: labels with shape `(B, classes)`."""
    return packed.movedim(1, -1).flatten(1)[:, :classes]


def bounded(value: Tensor, clamp: float) -> Tensor:
    r""":math:`\kappa\tanh(v)` as :math:`\kappa(2\sigma(2v) - 1)`, a quarter of its time."""
    return clamp * (2 * torch.sigmoid(2 * value) - 1)


def mix_channels(x: Tensor, weight: Tensor) -> Tensor:
    """A linear map of the channels of vectors or images, `y[:, i] = weight[i, j] x[:, j]`.

    Where channels come last in memory this is one matrix product, in some two thirds of the time of
    a 1x1 convolution.
    """
    if x.ndim == 2:
        return F.linear(x, weight)
    if mapped(x) or not x.is_contiguous(memory_format=torch.channels_last):
        return F.conv2d(x, weight[:, :, None, None])
    return F.linear(x.movedim(1, -1), weight).movedim(-1, 1)


CONSTANTS = frozenset(
    [
        "w_perm",
        "w_perm_inv",
        "w_0",
        "perm",
        "perm_inv",
        "M",
        "M_inv",
        "b",
        "logDetM",
        "haar_weights",
        "downsample_kernel",
    ]
)
"""What FrEIA keeps as parameters that are never trained, by name."""


def keep_constants(net: nn.Module) -> None:
    """Makes the constants of FrEIA's modules buffers of the same names, in place.

    As parameters, unfreezing trains them (or crashes on integers), and averages of weights corrupt
    them: the flow is then no longer invertible.
    """
    for module in net.modules():
        if not isinstance(module, InvertibleModule):
            continue
        fixed = getattr(module, "fixed", False) is True  # an OrthogonalTransform's, all of it
        for name, parameter in list(module._parameters.items()):
            if parameter is None or parameter.requires_grad:
                continue
            if fixed or name in CONSTANTS or not parameter.is_floating_point():
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


class Block(InvertibleModule):
    """What the blocks here share: one input, whose shape is also that of the output.

    `takes_labels` says that the condition are labels with shape `(B, classes)`, not packed ones.
    """

    takes_labels: ClassVar[bool] = False

    def __init__(self, dims_in: Dims, dims_c: Dims | None = None) -> None:
        super().__init__(list(dims_in), list(dims_c or []))
        if len(self.dims_in) != 1:
            raise ValueError(f"Expected one input; got {len(self.dims_in)}.")

    def output_dims(self, input_dims: Dims) -> Dims:
        """The shapes of the outputs, given those of the inputs."""
        return input_dims


class AffineCoupling(Block):
    r"""An affine coupling of the last channels by the first ones, with the labels as biases.

    .. math:: y_1 = x_1, \qquad y_2 = x_2 \odot e^{s(x_1, c)} + t(x_1, c), \qquad
              s = \kappa \tanh(\hat s)

    (Dinh et al., 2017, equations 7 and 8.) The log-determinant of forward is :math:`\sum_i s_i`.
    FrEIA's `AffineCouplingOneSided` computes the same. Here the labels go to the subnet as they
    are and not as channels, which costs it copies; after a :class:`Conv1x1` this is a step of
    Glow in 0.8 of the time (`benchmarks/flows.py`).

    Arguments:
        dims_in: The shape `(C, ...)` of the input, as a list with one entry.
        dims_c: The shape `(classes,)` of the labels, as a list with one entry, or none.
        subnet_constructor: Makes a net from numbers of channels `(c_in, c_out)`. It is called
            with the first channels, and with the labels if there are any.
        clamp: The bound :math:`\kappa`.
        split_len: The share of the channels that pass unchanged.

    Raises:
        ValueError: If there is only one channel.

    Example:
        >>> block = AffineCoupling([(4,)], subnet_constructor=nn.Linear)
        >>> (y,), ladj = block([torch.ones(2, 4)])
        >>> y.shape, ladj.shape
        (torch.Size([2, 4]), torch.Size([2]))
    """

    takes_labels = True

    def __init__(
        self,
        dims_in: Dims,
        dims_c: Dims | None = None,
        *,
        subnet_constructor: Callable[[int, int], nn.Module],
        clamp: float = 1.0,
        split_len: float = 0.5,
    ) -> None:
        super().__init__(dims_in, dims_c)
        channels = self.dims_in[0][0]
        keep = round(channels * split_len)
        if not 0 < keep < channels:
            raise ValueError(f"Expected at least 2 channels to couple; got {self.dims_in[0]}.")
        self.sizes = [keep, channels - keep]
        self.clamp = clamp
        self.subnet = subnet_constructor(keep, 2 * (channels - keep))

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> Output:
        (x,) = x_or_z
        x1, x2 = x.split(self.sizes, 1)
        parameters = self.subnet(x1, *((c or []) if self.dims_c else [])).to(x.dtype)
        s, t = parameters.split(self.sizes[1], 1)
        s = bounded(s, -self.clamp if rev else self.clamp)  # of the direction evaluated
        y2 = (x2 - t) * torch.exp(s) if rev else torch.addcmul(t, x2, torch.exp(s))
        # Not of the flattened s, which would be a copy where channels come last.
        return (torch.cat([x1, y2], 1),), s.sum(list(range(1, s.ndim)))


class ClassAffine(Block):
    r"""A scale and a shift of every channel, by class: :math:`y = e^{s_c} x + t_c`.

    The log-scale is bounded, :math:`s_c = \kappa \tanh(\hat s_c)`, and linear in soft labels
    before that. The log-determinant of forward is :math:`HW \sum_i s_{c,i}` (:math:`HW = 1` for
    vectors). It starts as the identity whatever data come first, where ActNorm (Kingma and
    Dhariwal, 2018, section 3.1) is initialised by the first batch.

    Arguments:
        dims_in: The shape `(C, ...)` of the input, as a list with one entry.
        dims_c: The shape `(classes,)` of the labels, or that of packed ones (see
            :func:`pack_labels`), as a list with one entry; none for one scale and shift for all.
        classes: The number of classes, if there is a condition.
        clamp: The bound :math:`\kappa`.

    Example:
        >>> block = ClassAffine([(4,)], [(3,)], classes=3)
        >>> (y,), ladj = block([torch.ones(2, 4)], [torch.eye(3)[:2]])
        >>> y.shape, ladj.tolist()
        (torch.Size([2, 4]), [0.0, 0.0])
    """

    takes_labels = True

    def __init__(
        self,
        dims_in: Dims,
        dims_c: Dims | None = None,
        *,
        classes: int | None = None,
        clamp: float = 1.0,
    ) -> None:
        super().__init__(dims_in, dims_c)
        if bool(self.dims_c) != (classes is not None):
            raise ValueError(
                f"Expected classes and dims_c, or neither; got classes={classes} and "
                f"dims_c={self.dims_c}."
            )
        self.classes = classes
        self.clamp = clamp
        self.scale = nn.Parameter(torch.zeros(classes or 1, self.dims_in[0][0]))
        self.shift = nn.Parameter(torch.zeros(classes or 1, self.dims_in[0][0]))

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> Output:
        (x,) = x_or_z
        n = x.shape[0]
        scale: Tensor
        shift: Tensor
        with full_precision(x):
            if self.classes is None:
                scale, shift = self.scale.expand(n, -1), self.shift.expand(n, -1)
            elif c is None or len(c) != 1:
                raise ValueError("Expected one condition, the labels; got none or several.")
            else:
                labels = unpack_labels(c[0], self.classes).to(self.scale.dtype)
                scale, shift = labels @ self.scale, labels @ self.shift
        log_scale = bounded(scale, self.clamp)
        ladj = log_scale.sum(1) * math.prod(x.shape[2:])
        view = (n, x.shape[1]) + (1,) * (x.ndim - 2)
        log_scale, shift = log_scale.reshape(view), shift.reshape(view)
        if rev:
            return ((x - shift) * torch.exp(-log_scale),), -ladj
        return (x * torch.exp(log_scale) + shift,), ladj


class Conv1x1(Block, Fixable):
    r"""A learned invertible 1x1 convolution, or linear map of vectors: :math:`y = W x`.

    :math:`W = P L (U + \mathrm{diag}(\pm e^{s}))` (Kingma and Dhariwal, 2018, equations 10 and 11)
    with a fixed permutation and fixed signs, so that `W` is always invertible and forward has the
    log-determinant :math:`HW \sum_i s_i`.

    Arguments:
        dims_in: The shape `(C, H, W)` or `(C,)` of the input, as a list with one entry.
        initial: The initial `W` with shape `(C, C)`; the identity by default.

    Example:
        >>> block = Conv1x1([(3, 8, 8)], initial=2 * torch.eye(3))
        >>> (y,), ladj = block([torch.ones(1, 3, 8, 8)])
        >>> ladj.item() / math.log(2)  # 3 * 8 * 8
        192.0...
    """

    permutation: Tensor
    sign: Tensor
    fixed: Tensor | None

    def __init__(
        self, dims_in: Dims, dims_c: Dims | None = None, *, initial: Tensor | None = None
    ) -> None:
        super().__init__(dims_in, dims_c)
        channels = self.dims_in[0][0]
        initial = torch.eye(channels) if initial is None else initial
        if tuple(initial.shape) != (channels, channels):
            raise ValueError(
                f"Expected an initial matrix with shape ({channels}, {channels}); "
                f"got {tuple(initial.shape)}."
            )
        permutation, lower, upper = torch.linalg.lu(initial.to(torch.float64))
        diagonal = upper.diagonal()
        if not bool((diagonal != 0).all()):
            raise ValueError("Expected an invertible initial matrix; got a singular one.")
        dtype = torch.get_default_dtype()
        self.register_buffer("permutation", permutation.to(dtype))
        self.register_buffer("sign", diagonal.sign().to(dtype))
        self.lower = nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = nn.Parameter(upper.triu(1).to(dtype))
        self.log_scale = nn.Parameter(diagonal.abs().log().to(dtype))
        self.register_buffer("fixed", None, persistent=False)

    def matrix(self, inverse: bool = False) -> Tensor:
        """`W` or its inverse, with shape `(C, C)`."""
        if self.fixed is not None:
            return self.fixed[int(inverse)]
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_scale.exp())
        if not inverse:
            return self.permutation @ (upper + self.lower.tril(-1) @ upper)
        # Solving reads only the triangle that it needs, and costs a third of inverting `W`.
        half = torch.linalg.solve_triangular(
            self.lower, self.permutation.T, upper=False, unitriangular=True
        )
        return torch.linalg.solve_triangular(upper, half, upper=True)

    @torch.no_grad()
    def scale_inputs(self, log_scale: Tensor) -> None:
        r"""From now on every channel is scaled before: :math:`W \leftarrow W\,\mathrm{diag}(e^s)`.

        Arguments:
            log_scale: The logarithms s, with shape `(C,)`.
        """
        self.upper.mul_(log_scale.exp())
        self.log_scale.add_(log_scale)

    @property
    def is_fixed(self) -> bool:
        return self.fixed is not None

    @torch.no_grad()
    def fix(self) -> None:
        """Keeps `W` and its inverse as they are now: what runtimes without an inverse need."""
        self.fixed = None
        self.fixed = torch.stack([self.matrix(), self.matrix(inverse=True)])

    def unfix(self) -> None:
        self.fixed = None

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> Output:
        (x,) = x_or_z
        with full_precision(x):
            weight = self.matrix(inverse=rev)
            y = mix_channels(x, weight)
        ladj = (self.log_scale.sum() * math.prod(x.shape[2:])).expand(x.shape[0])
        return (y,), -ladj if rev else ladj


class DCT(Block):
    r"""The orthonormal DCT-II over all axes but the first of an image, or over a vector.

    Forward gives the coefficients :math:`y = D_H x D_W^\top` of each channel, or :math:`D x`;
    reverse the signal. The log-determinant is 0.

    Arguments:
        dims_in: The shape `(C, H, W)` or `(D,)` of the input, as a list with one entry.

    Example:
        >>> (y,), _ = DCT([(1, 4, 4)])([torch.ones(1, 1, 4, 4)])
        >>> y[0, 0, 0, 0].item(), y.square().sum().item()  # all in the mean, energy kept
        (4.0..., 16.0...)
    """

    def __init__(self, dims_in: Dims, dims_c: Dims | None = None) -> None:
        super().__init__(dims_in, dims_c)
        dims = self.dims_in[0]
        rows, columns = (dims[0], 1) if len(dims) == 1 else dims[1:]
        dtype = torch.get_default_dtype()
        self.register_buffer("rows", dct_matrix(rows).to(dtype), persistent=False)
        self.register_buffer("columns", dct_matrix(columns).to(dtype), persistent=False)

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> Output:
        (x,) = x_or_z
        rows, columns = (self.rows.T, self.columns.T) if rev else (self.rows, self.columns)
        with full_precision(x):
            y = rows @ x.reshape(-1, len(rows), len(columns)) @ columns.T
        return (y.reshape(x.shape),), x.new_zeros(x.shape[0])


class Permute(Block):
    """A fixed permutation of the channels, kept as a buffer: `y[:, i] = x[:, permutation[i]]`.

    The log-determinant is 0. FrEIA's `PermuteRandom` keeps its permutation as a parameter, which
    an average of weights (EMA) corrupts, and seeds numpy's global generator.

    Arguments:
        dims_in: The shape `(C, ...)` of the input, as a list with one entry.
        permutation: The indices `0..C-1` in their new order.

    Example:
        >>> (y,), _ = Permute([(3,)], permutation=[2, 0, 1])([torch.tensor([[1.0, 2.0, 3.0]])])
        >>> y.tolist()
        [[3.0, 1.0, 2.0]]
    """

    permutation: Tensor
    inverse: Tensor

    def __init__(
        self, dims_in: Dims, dims_c: Dims | None = None, *, permutation: Sequence[int] | Tensor
    ) -> None:
        super().__init__(dims_in, dims_c)
        order = torch.as_tensor(permutation, dtype=torch.int64)
        if not torch.equal(order.sort().values, torch.arange(self.dims_in[0][0])):
            raise ValueError(
                f"Expected a permutation of {self.dims_in[0][0]} channels; got {order.tolist()}."
            )
        self.register_buffer("permutation", order)
        self.register_buffer("inverse", order.argsort())

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> Output:
        (x,) = x_or_z
        order = self.inverse if rev else self.permutation
        return (x.index_select(1, order),), x.new_zeros(x.shape[0])


class Squeeze(Block):
    r"""Blocks of 2 x 2 pixels to channels, `(C, H, W)` to `(4C, H/2, W/2)`; log-determinant 0.

    Forward is `torch.nn.functional.pixel_unshuffle`; with `undo`, the other way round.

    Arguments:
        dims_in: The shape of the input, as a list with one entry.
        undo: Whether forward is from channels to pixels.
    """

    def __init__(self, dims_in: Dims, dims_c: Dims | None = None, *, undo: bool = False) -> None:
        super().__init__(dims_in, dims_c)
        self.undo = undo
        dims = self.dims_in[0]
        if len(dims) != 3 or (dims[0] % 4 if undo else dims[1] % 2 or dims[2] % 2):
            expected = "a multiple of 4 channels" if undo else "an even height and width"
            raise ValueError(f"Expected (C, H, W) with {expected}; got {dims}.")

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> Output:
        (x,) = x_or_z
        return (_shuffle(x, down=rev == self.undo),), x.new_zeros(x.shape[0])

    def output_dims(self, input_dims: Dims) -> Dims:
        ((channels, height, width),) = input_dims
        if self.undo:
            return [(channels // 4, 2 * height, 2 * width)]
        return [(4 * channels, height // 2, width // 2)]


def _shuffle(x: Tensor, down: bool) -> Tensor:
    """Pixels to channels or back. PyTorch's own leave an empty batch in the old shape."""
    if x.shape[0] > 0:
        return F.pixel_unshuffle(x, 2) if down else F.pixel_shuffle(x, 2)
    _, channels, height, width = x.shape
    if down:
        return x.reshape(0, 4 * channels, height // 2, width // 2)
    return x.reshape(0, channels // 4, 2 * height, 2 * width)


class Haar(Squeeze):
    r"""Blocks of 2 x 2 pixels to their details and their mean, `(C, H, W)` to `(4C, H/2, W/2)`.

    The first 3C channels of forward are the orthonormal Haar details, the last C the means, in
    the units of a pixel: :math:`\log|\det| = -CHW/4 \cdot \log 2`; reverse and `undo` have the
    opposite sign. FrEIA's `HaarDownsampling` writes into its input in reverse, and keeps its
    kernel as a parameter.

    Arguments:
        dims_in: The shape of the input, as a list with one entry.
        undo: Whether forward is from channels to pixels.
    """

    matrix: Tensor

    def __init__(self, dims_in: Dims, dims_c: Dims | None = None, *, undo: bool = False) -> None:
        super().__init__(dims_in, dims_c, undo=undo)
        signs = [[1.0, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1], [0.5] * 4]
        matrix = torch.tensor(signs, dtype=torch.get_default_dtype()) / 2
        self.register_buffer("matrix", torch.stack([matrix, torch.linalg.inv(matrix)]), False)

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> Output:
        (x,) = x_or_z
        down = rev == self.undo
        y = _shuffle(x, down=True) if down else x
        n, channels, height, width = y.shape
        k = channels // 4
        y = y.reshape((n, k, 4, height * width) if down else (n, 4, k, height * width))
        with full_precision(x):
            if down:
                y = torch.einsum("jk,bckp->bjcp", self.matrix[0], y)
            else:
                y = torch.einsum("kj,bjcp->bckp", self.matrix[1], y)
        y = y.reshape(n, channels, height, width)
        ladj = x.new_full((n,), -math.log(2) * channels * height * width / 4)
        return (y if down else _shuffle(y, down=False),), ladj if down else -ladj


class Partial(Block):
    """An invertible net on the last channels; the first ones pass unchanged (factored out).

    This is a multi-scale split without branches in the graph: the latents of all scales stay in
    one tensor, and no module order depends on the process (FrEIA#168).

    Arguments:
        dims_in: The shape `(C, ...)` of the input, as a list with one entry.
        dims_c: The shape `(classes,)` of the labels, as a list with one entry, or none.
        keep: How many channels pass unchanged.
        inner: The net for the others: a FrEIA module with one input and one output of equal
            shape that returns tuples, such as `SequenceINN(..., force_tuple_output=True)`. It is
            given the same list of conditions.
    """

    takes_labels = True

    def __init__(
        self,
        dims_in: Dims,
        dims_c: Dims | None = None,
        *,
        keep: int,
        inner: InvertibleModule,
    ) -> None:
        super().__init__(dims_in, dims_c)
        channels, *rest = self.dims_in[0]
        expected = (channels - keep, *rest)
        if [tuple(dims) for dims in inner.dims_in] != [expected]:
            raise ValueError(f"Expected an inner net for {expected}; got one for {inner.dims_in}.")
        self.keep = keep
        self.inner = inner

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> Output:
        (x,) = x_or_z
        options: dict[str, Any] = {"c": c} if self.dims_c else {}
        kept, rest = x.split([self.keep, x.shape[1] - self.keep], 1)
        (y,), ladj = self.inner([rest], rev=rev, jac=jac, **options)
        return (torch.cat([kept, y], 1),), ladj
