"""Plans: which layers to compress, how, and with which ranks; and the papers' students."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .cost import LayerUse, trace_layers
from .surgery import candidates, require_sound
from .tucker import Convolution, evbmf_ranks, is_matrix, usable_ranks

Ranks = Literal["evbmf", "keep"] | float | int | Sequence[int]


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is compressed.

    Arguments:
        method: `"tucker2"` for a convolution, `"svd"` for a linear layer or a 1x1 convolution.
        ranks: The input and output rank of Tucker-2, or the one rank of an SVD.
    """

    method: Literal["tucker2", "svd"]
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = {"tucker2": 2, "svd": 1}
        if self.method not in lengths:
            raise ValueError(f"Expected the method tucker2 or svd; got {self.method!r}.")
        ranks = tuple(self.ranks)
        if len(ranks) != lengths[self.method] or not all(
            isinstance(r, int) and not isinstance(r, bool) and r >= 1 for r in ranks
        ):
            expected = "(in_rank, out_rank)" if self.method == "tucker2" else "(rank,)"
            raise ValueError(f"Expected ranks {expected} of at least 1; got {self.ranks!r}.")
        object.__setattr__(self, "ranks", ranks)


@dataclass(frozen=True)
class Skipped:
    """A layer that a plan leaves alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Which layers of a net are compressed, and how.

    Arguments:
        layers: Layer names, as `net.named_modules()` gives them, and their plans.
        skipped: Layers that were considered and left alone, with the reason.

    Example:
        >>> plan = Plan({"conv3": LayerPlan("tucker2", (5, 8))})
        >>> Plan.from_dict(plan.to_dict()) == plan
        True
    """

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        return {
            "layers": {
                name: {"method": layer.method, "ranks": list(layer.ranks)}
                for name, layer in self.layers.items()
            },
            "skipped": [{"name": s.name, "reason": s.reason} for s in self.skipped],
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Plan:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If a field is missing, unknown or malformed.
        """
        try:
            layers = {name: LayerPlan(**layer) for name, layer in fields["layers"].items()}
            return cls(layers, tuple(Skipped(**s) for s in fields.get("skipped", ())))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"Not a compression plan: {fields!r} ({error!r}).") from error


def make_plan(
    net: nn.Module,
    layers: str | Sequence[str] | Mapping[str, Ranks] = "all",
    ranks: Ranks = "evbmf",
    *,
    shape: Sequence[int] | None = None,
    scale: float = 1.0,
    keep: bool = False,
) -> Plan:
    """Plans the compression of the layers that match, each with the ranks asked for.

    Arguments:
        net: The net, which is not modified.
        layers: `"all"`, shell-style patterns of layer names such as `"layers3.*.conv1"`, or a
            mapping from patterns to ranks (:func:`read_rules`), where the last pattern that
            matches a layer counts and the ranks `"keep"` leave it as it is.
        ranks: `"evbmf"`, a ratio in (0, 1) of each layer's channels, or explicit ranks: one
            number for an SVD or both ranks of Tucker-2, or the pair `(in_rank, out_rank)`.
        shape: The shape of one input. If it is given, layers that would not need fewer
            multiply-accumulates are skipped too, and those that the net never calls.
        scale: A factor on the ranks that EVBMF finds.
        keep: Whether to plan layers that would not gain, too.

    Raises:
        ValueError: If the net is not sound (:func:`require_sound`), a pattern matches no layer,
            explicit ranks do not fit, or the net rejects inputs of the shape.

    Example:
        >>> make_plan(nn.Sequential(nn.Linear(64, 64)), ranks=0.25).layers
        {'0': LayerPlan(method='svd', ranks=(16,))}
    """
    require_sound(net)
    if not isinstance(layers, Mapping):
        layers = dict.fromkeys([layers] if isinstance(layers, str) else layers, ranks)
    found, refused = candidates(net)
    rules = _match(layers, list(found), dict(refused))
    uses = None if shape is None else trace_layers(net, shape)
    planned: dict[str, LayerPlan] = {}
    skipped = [Skipped(n, why) for n, why in refused if any(_matches(n, p) for p in layers)]
    for name, layer in found.items():
        if rules.get(name, "keep") == "keep":
            continue
        plan = plan_layer(layer, rules[name], scale, name)
        reason = why_no_gain(layer, plan, None if uses is None else uses[name])
        if reason is None or keep:
            planned[name] = plan
        else:
            skipped.append(Skipped(name, reason))
    return Plan(planned, tuple(skipped))


def read_rules(path: str | os.PathLike[str]) -> dict[str, Ranks]:
    """Reads patterns of layer names and their ranks, for :func:`make_plan`, from a YAML file.

    The last pattern that matches a layer counts::

        all: evbmf
        layers1.*: keep            # leave these as they are
        layers3.*.conv1: 0.25      # a ratio of the channels
        layers3.1.conv2: [16, 24]  # the input and the output rank
        linear: 8                  # the rank of an SVD

    Raises:
        ValueError: If the file is not such a mapping; all faults are reported together.
        OSError: If it cannot be read.
    """
    import yaml

    try:
        rules = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"Not a YAML file: {path} ({error}).") from error
    if not isinstance(rules, dict) or not rules:
        raise ValueError(f"Expected layer patterns and their ranks in {path}; got {rules!r}.")
    faults = [f"{name}: {value!r}" for name, value in rules.items() if not _is_ranks(value)]
    if faults:
        raise ValueError(
            f"Expected ranks 'evbmf', 'keep', a ratio between 0 and 1, a number or [in, out] in "
            f"{path}; got {'; '.join(faults)}."
        )
    return {str(name): value for name, value in rules.items()}


def _is_ranks(value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, list):
        return len(value) in (1, 2) and all(isinstance(v, int) and v >= 1 for v in value)
    if isinstance(value, float):
        return 0 < value < 1
    return value in ("evbmf", "keep") or (isinstance(value, int) and value >= 1)


def plan_layer(
    layer: nn.Linear | Convolution, ranks: Ranks = "evbmf", scale: float = 1.0, name: str = "layer"
) -> LayerPlan:
    """The plan of one layer, from ranks as :func:`make_plan` takes them.

    Raises:
        ValueError: If the ranks do not fit the layer, or its weights are not finite.
    """
    outs, ins = layer.weight.shape[:2]
    largest = (min(ins, outs),) if is_matrix(layer) else (ins, outs)
    if isinstance(ranks, str):
        if ranks != "evbmf":
            raise ValueError(f"Expected the ranks 'evbmf', a ratio or numbers; got {ranks!r}.")
        try:
            chosen = tuple(max(1, round(scale * r)) for r in evbmf_ranks(layer))
        except ValueError as error:
            raise ValueError(f"Layer {name!r}: {error}") from error
    elif isinstance(ranks, float):
        if not 0 < ranks < 1:
            raise ValueError(f"Expected a ratio of ranks between 0 and 1; got {ranks}.")
        chosen = tuple(max(1, round(ranks * size)) for size in largest)
    else:
        chosen = (ranks,) * len(largest) if isinstance(ranks, int) else tuple(ranks)
        if len(chosen) != len(largest) or any(
            not 1 <= r <= m for r, m in zip(chosen, largest, strict=False)
        ):
            raise ValueError(
                f"Expected for layer {name!r} {len(largest)} rank(s) of at most "
                f"{', '.join(map(str, largest))}; got {', '.join(map(str, chosen))}."
            )
    if isinstance(layer, nn.Linear) or is_matrix(layer):
        return LayerPlan("svd", chosen)
    return LayerPlan("tucker2", usable_ranks(layer, (chosen[0], chosen[1])))


def planned_weights(layer: nn.Linear | Convolution, plan: LayerPlan) -> int:
    """The number of weights, without the bias, that a layer has after compression."""
    return planned_macs(layer, plan, 1, 1)


def planned_macs(
    layer: nn.Linear | Convolution, plan: LayerPlan, positions_in: int, positions_out: int
) -> int:
    """The multiply-accumulates of a layer after compression.

    Arguments:
        layer: The layer as it is.
        plan: Its plan.
        positions_in: The number of pixels, or of rows of a linear layer, that go in.
        positions_out: How many come out.
    """
    outs, ins = layer.weight.shape[:2]
    if plan.method == "svd":
        return positions_out * plan.ranks[0] * (ins + outs)
    in_rank, out_rank = plan.ranks
    first = positions_in * ins * in_rank if in_rank < ins else 0  # merged where the rank is full
    last = positions_out * out_rank * outs if out_rank < outs else 0
    return first + positions_out * in_rank * out_rank * math.prod(layer.weight.shape[2:]) + last


def why_no_gain(
    layer: nn.Linear | Convolution, plan: LayerPlan, use: LayerUse | None = None
) -> str | None:
    """Why a layer should be left alone: it would not shrink, or is not called; else `None`."""
    ranks = ", ".join(map(str, plan.ranks))
    before, after = layer.weight.numel(), planned_weights(layer, plan)
    if after >= before:
        return f"would not gain: ranks {ranks} need {after} weights, not {before}"
    if use is None:
        return None
    if not use.calls:
        return "the net never calls it as a layer, so that its weight may be used directly"
    after = sum(planned_macs(layer, plan, i, o) for i, o in use.positions)
    if after >= use.macs:
        return f"would not gain: ranks {ranks} need {after} multiply-accumulates, not {use.macs}"
    return None


# The papers' students: patterns of layers by EVBMF, unless ranks are given.
PAPERS: dict[str, dict[str, dict[str, Ranks]]] = {
    "lenet5": {
        "1": {"conv3": "evbmf"},
        "2": {"conv2": "evbmf", "conv3": "evbmf"},
        "3": {"conv2": "evbmf", "conv3": (5, 8)},
    },
    "resnet14": {
        "1": {"layers3.*.conv1": "evbmf"},
        "2": {"layers3.*.conv2": "evbmf"},
        "3": {"layers3.*.conv1": "evbmf", "layers3.*.conv2": "evbmf"},
    },
}

# The ranks of a multilayer perceptron's students, as a share of each hidden layer's width.
SHARES = {"1": 1 / 4, "2": 1 / 8, "3": 1 / 16}


def student_plan(
    net: nn.Module, arch: str, student: str, shape: Sequence[int] | None = None
) -> Plan:
    """The plan of student 1, 2 or 3, from the least to the most compressed.

    For LeNet5 and ResNet14 these are KegNet's, which BDNF uses too. A multilayer perceptron's
    hidden layers get ranks of 1/4, 1/8 and 1/16 of their widths, and never below 2, as KegNet
    compresses its table classifiers of 100 units to ranks 10 and 5: EVBMF finds ranks of 1 or 2
    in matrices this small, which leave nothing to distil into. The last layer stays, since its
    rank bounds how many classes can be told apart. For any other net the students follow
    the papers' idea: 1 compresses the largest layers, as many as hold half of the compressible
    weights; 2 every layer; 3 every layer with half the ranks; all by EVBMF. Layers that would not
    gain are left alone, except in the papers' students.

    Arguments:
        net: The trained net, which is not modified.
        arch: The name of its architecture, `"lenet5"`, `"resnet14"`, `"mlp"` or any other.
        student: `"1"`, `"2"` or `"3"`.
        shape: The shape of one input, to tell better which layers gain (:func:`make_plan`).

    Raises:
        ValueError: If there is no such student, the net is not sound, it lacks the layers of
            its architecture, or no layer would gain.

    References:
        | Knowledge Extraction with No Observable Data (Yoo et al., 2019), section 4.1
    """
    if student not in ("1", "2", "3"):
        raise ValueError(
            f"Expected student 1, 2 or 3; got {student!r}. For other plans give layer patterns."
        )
    if arch in PAPERS:
        return make_plan(net, PAPERS[arch][student], keep=True)
    layers: str | Sequence[str] | Mapping[str, Ranks] = _largest(net) if student == "1" else "all"
    if arch == "mlp":
        layers = _shares_of_widths(net, SHARES[student])
    plan = make_plan(net, layers, shape=shape, scale=0.5 if student == "3" else 1.0)
    if not plan.layers:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in plan.skipped)
        raise ValueError(
            f"Expected a layer that gains by compression; found none "
            f"({reasons or 'the last layer stays as it is'}). "
            "Give smaller ranks, or a ratio."
        )
    return plan


def _largest(net: nn.Module, share: float = 0.5) -> list[str]:
    """The largest layers that together hold a share of the compressible weights."""
    require_sound(net)
    sizes = {name: layer.weight.numel() for name, layer in candidates(net)[0].items()}
    chosen: list[str] = []
    for name in sorted(sizes, key=lambda n: -sizes[n]):
        if sum(sizes[n] for n in chosen) >= share * sum(sizes.values()):
            break
        chosen.append(name)
    return chosen


def _shares_of_widths(net: nn.Module, share: float) -> dict[str, Ranks]:
    """The rank of each layer but the last: a share of its outputs, as far as the layer has it."""
    require_sound(net)
    *hidden, last = candidates(net)[0].items()
    ranks: dict[str, Ranks] = {last[0]: "keep"}
    for name, layer in hidden:
        ranks[name] = min(max(2, round(share * layer.weight.shape[0])), *layer.weight.shape[:2])
    return ranks


def _matches(name: str, pattern: str) -> bool:
    return pattern in ("all", name) or fnmatchcase(name, pattern)


def _match(
    rules: Mapping[str, Ranks], names: list[str], refused: Mapping[str, str]
) -> dict[str, Ranks]:
    """The ranks of each layer that a pattern matches; the last pattern counts.

    Raises:
        ValueError: If a pattern matches no layer that can be compressed.
    """
    matched: dict[str, Ranks] = {}
    for pattern, ranks in rules.items():
        hits = [name for name in names if _matches(name, pattern)]
        matched.update(dict.fromkeys(hits, ranks))
        if hits or ranks == "keep":
            continue
        why = [f"{n}: {reason}" for n, reason in refused.items() if _matches(n, pattern)]
        if why:
            raise ValueError(f"No layer of {pattern!r} can be compressed ({'; '.join(why)}).")
        raise ValueError(f"No layer matches {pattern!r}; the net has {', '.join(names)}.")
    return matched
