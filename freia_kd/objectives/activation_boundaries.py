"""A student's hidden neurons fire where the teacher's do (Heo et al., 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..modes import evaluating

# As ATen calls them; ReLU6 is a hardtanh there.
RELUS = ("relu", "leaky_relu", "_prelu_kernel", "hardtanh", "elu", "gelu", "silu")


class Features(NamedTuple):
    """Layer outputs by module name, filled while the nets run."""

    student: dict[str, Tensor]
    teacher: dict[str, Tensor]


class ActivationBoundaries(nn.Module):
    r"""The alternative loss of activation boundaries, between chosen layers before their ReLU.

    .. math:: \Bigl\langle \mathbb{1}_{t > 0}\,\mathrm{relu}(\mu - r(s))^2
              + \mathbb{1}_{t \le 0}\,\mathrm{relu}(\mu + r(s))^2 \Bigr\rangle

    from the teacher's values t, the student's s, a margin :math:`\mu` and a learned 1x1 connector r
    (a linear one for vectors). It is summed over layers and averaged over the batch and a layer's
    neurons; the paper sums over neurons, so that its weight depends on their number. Layers of one
    size have no connector. The paper's connectors also normalise by batch; these do not. They are
    trained with the student and thrown away after.

    Arguments:
        student: The student net.
        teacher: The teacher net.
        layers: Names of the student's layers (as in `named_modules`) to names of the teacher's.
        example: A batch of inputs, to learn the layers' sizes from.
        margin: The margin :math:`\mu`.
        generator: The source of the connectors' initial weights.

    Raises:
        ValueError: If a layer does not exist or run, or sizes other than channels differ.

    References:
        | Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons
        | (Heo et al., 2019), eq. (6), https://arxiv.org/abs/1811.03233

    Example:
        >>> student, teacher = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 5))
        >>> x = torch.zeros(2, 3)
        >>> loss = ActivationBoundaries(student, teacher, {"0": "0"}, x)
        >>> with loss.observe(student, teacher) as features:
        ...     logits = student(x), teacher(x)
        >>> loss(features).shape
        torch.Size([])
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        layers: Mapping[str, str],
        example: Tensor,
        margin: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("Expected at least one pair of layers; got none.")
        if not margin > 0:
            raise ValueError(f"Expected a positive margin; got {margin}.")
        self.layers = dict(layers)
        self.margin = margin
        with evaluating(student, teacher), self.observe(student, teacher) as features:
            student(example)
            teacher(example)
        self.connectors = nn.ModuleList(
            _connector(*self._pair(features, name), name, generator) for name in self.layers
        )

    @contextmanager
    def observe(self, student: nn.Module, teacher: nn.Module) -> Iterator[Features]:
        """Collects the layers' outputs while the block runs; hooks are always removed."""
        features = Features({}, {})
        wanted = [
            *((_find(student, name, "student"), features.student, name) for name in self.layers),
            *((_find(teacher, n, "teacher"), features.teacher, n) for n in self.layers.values()),
        ]
        handles = [
            layer.register_forward_hook(partial(_keep, store, name))
            for layer, store, name in wanted
        ]
        try:
            yield features
        finally:
            for handle in handles:
                handle.remove()

    def forward(self, features: Features) -> Tensor:
        """The loss of what was observed, a scalar to be minimised; the teacher gets no gradient."""
        losses = []
        for connector, name in zip(self.connectors, self.layers, strict=True):
            student, teacher = self._pair(features, name)
            fires, value = teacher.detach() > 0, connector(student)
            shortfall = torch.where(fires, self.margin - value, self.margin + value)
            losses.append(shortfall.relu().square().mean())
        return torch.stack(losses).sum()

    def _pair(self, features: Features, name: str) -> tuple[Tensor, Tensor]:
        try:
            return features.student[name], features.teacher[self.layers[name]]
        except KeyError as error:
            raise ValueError(
                f"Expected layer {error} to run and give a tensor; it did not. "
                "Run student and teacher inside observe()."
            ) from error


def boundary_layers(net: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """The layers whose output goes straight into a ReLU or one of its kin, with its shape.

    They are found by running the net, so that `torch.relu` and the like count as much as modules.

    Arguments:
        net: The net, which is left as it was.
        example: A batch of inputs.

    Returns:
        The outputs' shapes without the batch, by the names of the layers (as in `named_modules`),
        in the order in which they run.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> boundary_layers(net, torch.zeros(1, 3))
        {'0': (4,)}
    """
    outputs: list[tuple[str, Tensor]] = []

    def remember(name: str, layer: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append((name, output))

    handles = [
        layer.register_forward_hook(partial(remember, name))
        for name, layer in net.named_modules()
        if name
    ]
    try:
        with evaluating(net), _ReLUInputs() as watch:
            net(example)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, tuple[int, ...]] = {}
    taken: set[int] = set()
    for name, output in outputs:  # the innermost of nested layers comes first
        if id(output) in watch.seen and id(output) not in taken:
            taken.add(id(output))
            found[name] = tuple(output.shape[1:])
    return found


class _ReLUInputs(TorchDispatchMode):
    """Remembers what goes into ReLUs, by identity: the tensors are kept, so that no id recurs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__.rstrip("_") in RELUS:
            self.seen[id(args[0])] = args[0]
        return func(*args, **(kwargs or {}))


def _find(net: nn.Module, name: str, kind: str) -> nn.Module:
    modules = dict(net.named_modules())
    if name not in modules:
        known = ", ".join(key for key in modules if key)
        raise ValueError(f"Expected a layer of the {kind}, one of {known}; got {name!r}.")
    return modules[name]


def _keep(
    store: dict[str, Tensor], name: str, layer: nn.Module, inputs: object, output: object
) -> None:
    if isinstance(output, Tensor):
        # An in-place ReLU that follows would otherwise overwrite what is kept.
        store[name] = output.clone()


def _connector(
    student: Tensor, teacher: Tensor, name: str, generator: torch.Generator | None
) -> nn.Module:
    if student.shape[2:] != teacher.shape[2:] or student.ndim not in (2, 4):
        raise ValueError(
            f"Expected features (B, C) or (B, C, H, W) that differ in channels only at {name!r}; "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    sizes = (student.shape[1], teacher.shape[1])
    if sizes[0] == sizes[1]:
        return nn.Identity()
    options = {"bias": False, "device": student.device, "dtype": student.dtype}
    skip = torch.nn.utils.skip_init
    connector = (
        skip(nn.Linear, *sizes, **options)
        if student.ndim == 2
        else skip(nn.Conv2d, *sizes, kernel_size=1, **options)
    )
    std = math.sqrt(1 / sizes[0])
    with torch.no_grad():
        weight = torch.randn(connector.weight.shape, generator=generator, dtype=torch.float64)
        connector.weight.copy_(std * weight)
    return connector
