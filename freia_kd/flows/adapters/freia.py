"""FrEIA's networks as conditional flows."""

from __future__ import annotations

from typing import Any

from FrEIA.framework import GraphINN, SequenceINN
from FrEIA.modules import InvertibleModule
from torch import Tensor, nn

from ..bases import Base, GaussianBase
from ..blocks import keep_constants, label_dims, pack_labels
from .common import Condition, ConditionSpec, GuestFlow, anchor


class FreiaFlow(GuestFlow):
    """A FrEIA network (`GraphINN`, `SequenceINN` or one block) as a :class:`ConditionalFlow`.

    FrEIA's forward direction is `encode`. Conditions are told from the network: one without any
    ignores the class, and labels are brought to the shape of each by :func:`fit_condition`.
    Several inputs or outputs are flattened into one tensor.

    The parameters are registered as `blocks`, in an order that follows from the graph alone:
    FrEIA orders the branches of a `GraphINN` by memory address, so that its own state dict may
    load with branches swapped in another process (FrEIA issue 168). Constants, such as FrEIA's
    permutations and fixed kernels, become buffers of the same name
    (:func:`freia_kd.flows.blocks.keep_constants`).

    Arguments:
        flow: The network.
        shape: The shape of one input.
        classes: The number of classes.
        base: The base density, the standard Gaussian if `None`: FrEIA has none.
        squash: As for :class:`ConditionalFlow`.
        condition: As for :func:`freia_kd.flows.adapters.as_conditional_flow`; a callable may
            return a list with one tensor for each condition.

    Raises:
        ValueError: If the shapes or the conditions do not fit.
    """

    def __init__(
        self,
        flow: InvertibleModule,
        shape: tuple[int, ...],
        classes: int | None,
        base: Base | None = None,
        squash: nn.Module | None = None,
        condition: ConditionSpec = "one-hot",
    ) -> None:
        inputs, latents = _shapes(flow)
        conditions = _condition_shapes(flow)
        super().__init__(
            shape,
            classes,
            GaussianBase(shape) if base is None else base,
            squash,
            Condition(condition, classes, used=bool(conditions)),
            inputs,
            latents,
        )
        self.condition_shapes = conditions
        self.blocks = nn.ModuleList(_blocks(flow))
        keep_constants(flow)
        self._flow = (flow,)  # in a tuple: its parameters are registered as blocks
        if base is None:
            self.base.to(anchor(self.blocks))
        self.probe()

    @property
    def flow(self) -> InvertibleModule:
        """The FrEIA network."""
        return self._flow[0]

    def host_decode(self, z: list[Tensor], context: Any) -> tuple[list[Tensor], Tensor | float]:
        return self._call(z, context, rev=True)

    def host_encode(self, x: list[Tensor], context: Any) -> tuple[list[Tensor], Tensor | float]:
        return self._call(x, context, rev=False)

    def _call(
        self, parts: list[Tensor], context: Any, rev: bool
    ) -> tuple[list[Tensor], Tensor | float]:
        options = {"c": self._fit(context)} if self.condition_shapes else {}
        # FrEIA's git master takes a tensor only here, and 0.2 takes one too.
        value = parts[0] if isinstance(self.flow, SequenceINN) else tuple(parts)
        out, ladj = self.flow(value, rev=rev, **options)
        return [out] if isinstance(out, Tensor) else list(out), ladj

    def _fit(self, context: Any) -> list[Tensor]:
        shapes = self.condition_shapes
        given = list(context) if isinstance(context, list | tuple) else [context] * len(shapes)
        if len(given) != len(shapes):
            raise ValueError(f"Expected {len(shapes)} conditions; got {len(given)}.")
        return [fit_condition(c, s) for c, s in zip(given, shapes, strict=True)]


def fit_condition(c: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A condition in the shape that a FrEIA block asks for.

    Arguments:
        c: A vector for each row, with shape `(B, K)`, or what has the right shape already.
        shape: `(K,)`; `(K, H, W)`, over which vectors are tiled; or the shape of packed labels,
            see :func:`freia_kd.flows.blocks.pack_labels`.

    Returns:
        A tensor with shape `(B, *shape)`.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> import torch
        >>> fit_condition(torch.eye(3), (3, 2, 2))[1].flatten(1).tolist()
        [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    """
    if c.ndim == 2 and len(shape) > 1:
        features = c.shape[1]
        if shape[0] != features and label_dims(features, shape) == shape:
            return pack_labels(c, shape)
        c = c.reshape(*c.shape, *(1,) * (len(shape) - 1)).expand(*c.shape, *shape[1:])
    if tuple(c.shape[1:]) != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"Expected a condition with shape (B, {expected}); got {tuple(c.shape)}.")
    return c


def _shapes(flow: InvertibleModule) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    if isinstance(flow, GraphINN):
        return flow.dims_in, flow.global_out_shapes
    if isinstance(flow, SequenceINN):
        return flow.shapes[:1], flow.shapes[-1:]
    return flow.dims_in, flow.output_dims(flow.dims_in)


def _condition_shapes(flow: InvertibleModule) -> list[tuple[int, ...]]:
    if not isinstance(flow, SequenceINN):
        return [tuple(s) for s in flow.dims_c]
    # The `dims_c` of a SequenceINN is empty whatever its blocks take.
    found: dict[int, tuple[int, ...]] = {}
    for index, block in zip(flow.conditions, flow.module_list, strict=True):
        if index is not None:
            found[index] = tuple(block.dims_c[0])
    if not found:
        return []
    unused = next(iter(found.values()))
    return [found.get(i, unused) for i in range(max(found) + 1)]


def _blocks(flow: InvertibleModule) -> list[nn.Module]:
    if isinstance(flow, SequenceINN):
        return list(flow.module_list)
    if not isinstance(flow, GraphINN):
        return [flow]
    ordered: list[Any] = []
    stack = [(node, False) for node in reversed(flow.out_nodes)]
    seen: set[int] = set()
    while stack:  # depth first from the outputs; a node follows those that it takes from
        node, done = stack.pop()
        if done:
            ordered.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((source, False) for source, _ in reversed(node.inputs))
    return [node.module for node in ordered if node.module is not None]
