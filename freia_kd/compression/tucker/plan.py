"""Plans: which layers get low ranks, how, and which; and nets that are made by them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ...errors import UsageError
from ..cost import LayerUse, trace_layers
from ..modules import candidates, copied, listed, matches, require_sound, swapped
from .decompose import (
    Convolution,
    evbmf_ranks,
    is_matrix,
    svd_layers,
    svd_linear,
    tucker2,
    tucker2_layers,
    usable_ranks,
)

Makers = Mapping[str, Callable[..., nn.Module]]
FRESH: Makers = {"tucker2": tucker2_layers, "svd": svd_layers}
RANKS = "ranks 'evbmf', 'keep', a ratio between 0 and 1, a number or [in, out]"
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
class Plan:
    """Which layers of a net are compressed, and how.

    Arguments:
        layers: Layer names, as `net.named_modules()` gives them, and their plans.
        skipped: Layers that were considered and left alone, each with the reason.

    Example:
        >>> plan = Plan({"conv3": LayerPlan("tucker2", (5, 8))})
        >>> Plan.from_dict(plan.to_dict()) == plan
        True
    """

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        return {
            "layers": {
                name: {"method": layer.method, "ranks": list(layer.ranks)}
                for name, layer in self.layers.items()
            },
            "skipped": dict(self.skipped),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Plan:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If a field is missing, unknown or malformed.
        """
        try:
            layers = {name: LayerPlan(**layer) for name, layer in fields["layers"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"Not a compression plan: {fields!r} ({error!r}).") from error
        skipped = fields.get("skipped")  # which older files list in another way
        return cls(layers, skipped if isinstance(skipped, Mapping) else {})


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
    rules = _match(layers, list(found), refused)
    uses = None if shape is None else trace_layers(net, shape)
    planned: dict[str, LayerPlan] = {}
    skipped = {name: reason for name, reason in refused.items() if matches(name, layers)}
    for name, layer in found.items():
        if rules.get(name, "keep") == "keep":
            continue
        plan = plan_layer(layer, rules[name], scale, name)
        reason = no_gain_reason(layer, plan, None if uses is None else uses[name])
        if reason is None or keep:
            planned[name] = plan
        else:
            skipped[name] = reason
    return Plan(planned, skipped)


def _match(
    rules: Mapping[str, Ranks], names: list[str], refused: Mapping[str, str]
) -> dict[str, Ranks]:
    """The ranks of each layer that a pattern matches; the last pattern counts.

    Raises:
        ValueError: If a pattern matches no layer that can be compressed.
    """
    matched: dict[str, Ranks] = {}
    for pattern, ranks in rules.items():
        hits = [name for name in names if matches(name, [pattern])]
        matched.update(dict.fromkeys(hits, ranks))
        if hits or ranks == "keep":
            continue
        why = {n: reason for n, reason in refused.items() if matches(n, [pattern])}
        if why:
            raise ValueError(f"No layer of {pattern!r} can be compressed ({listed(why)}).")
        raise ValueError(f"No layer matches {pattern!r}; the net has {', '.join(names)}.")
    return matched


def apply_plan(net: nn.Module, plan: Plan) -> nn.Module:
    """Compresses a copy of a net; the net itself is not modified.

    A layer that the net uses in several places is replaced in all of them. The new layers are
    trainable, on the device and of the dtype that the old ones were.

    Raises:
        ValueError: If the net is not sound or cannot be copied, or the plan does not fit it.
    """
    require_sound(net)
    return _replace(net, plan, {"tucker2": tucker2, "svd": svd_linear})


def restructure(net: nn.Module, plan: Plan | Mapping[str, Any]) -> nn.Module:
    """A copy of a net with a plan's layers but fresh weights there, to load a student into.

    Arguments:
        net: A net of the teacher's architecture, with any weights. It is not modified.
        plan: The student's plan, or the dictionary that :meth:`Plan.to_dict` made of it.

    Raises:
        ValueError: If the plan is malformed or does not fit the net.

    Example:
        >>> net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> plan = make_plan(net, "0", ranks=4)
        >>> student = restructure(net, plan.to_dict())
        >>> student.load_state_dict(apply_plan(net, plan).state_dict())
        <All keys matched successfully>
    """
    plan = plan if isinstance(plan, Plan) else Plan.from_dict(plan)
    return _replace(net, plan, FRESH)


def fresh_layer(layer: Any, plan: LayerPlan) -> nn.Module:
    """The layers that a plan makes of one, with fresh weights."""
    return _replacement("layer", layer, plan, FRESH)


def _replace(net: nn.Module, plan: Plan, makers: Makers) -> nn.Module:
    """A copy with the planned layers replaced; fresh weights take no one's random numbers."""
    net = copied(net)
    found, refused = candidates(net)
    replacements: dict[int, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        for name, layer_plan in plan.layers.items():
            if name not in found:
                why = refused.get(name, f"the net has {', '.join(found) or 'none'}")
                raise ValueError(f"Layer {name!r} of the plan cannot be compressed: {why}.")
            replacements[id(found[name])] = _replacement(name, found[name], layer_plan, makers)
    return swapped(net, replacements)


def _replacement(name: str, layer: nn.Module, plan: LayerPlan, makers: Makers) -> nn.Module:
    if plan.method == "tucker2" and isinstance(layer, nn.Linear):
        raise ValueError(
            f"Layer {name!r}: expected the method svd for a linear layer; got tucker2."
        )
    ranks = plan.ranks if plan.method == "tucker2" else plan.ranks[0]
    try:
        return makers[plan.method](layer, ranks)
    except ValueError as error:
        raise ValueError(f"Layer {name!r}: {error}") from error


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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"Not a YAML file: {path} ({error}).") from error
    if not isinstance(rules, dict) or not rules:
        raise ValueError(f"Expected layer patterns and their ranks in {path}; got {rules!r}.")
    faults = [f"{name}: {value!r}" for name, value in rules.items() if not is_ranks(value)]
    if faults:
        raise ValueError(f"Expected {RANKS} in {path}; got {'; '.join(faults)}.")
    return {str(name): value for name, value in rules.items()}


def is_ranks(value: object) -> bool:
    """Whether a value says ranks as :func:`make_plan` takes them."""
    if isinstance(value, bool):
        return False
    if isinstance(value, (list, tuple)):
        return len(value) in (1, 2) and all(isinstance(v, int) and v >= 1 for v in value)
    if isinstance(value, float):
        return 0 < value < 1
    return value in ("evbmf", "keep") or (isinstance(value, int) and value >= 1)


def parse_ranks(text: str) -> Ranks:
    """Ranks from text: `evbmf`, a ratio such as `0.25`, a number, or two with a comma between.

    Raises:
        UsageError: If the text is none of these.

    Example:
        >>> parse_ranks("0.25"), parse_ranks("8"), parse_ranks("5,8")
        (0.25, 8, (5, 8))
    """
    ranks: Any = text
    try:
        if text != "evbmf":
            numbers = tuple(int(part) for part in text.split(",")) if "." not in text else ()
            ranks = (numbers if len(numbers) > 1 else numbers[0]) if numbers else float(text)
    except ValueError:
        ranks = None
    if not is_ranks(ranks):
        raise UsageError(
            f"Expected ranks evbmf, a ratio between 0 and 1, a number, or IN,OUT; got {text!r}."
        )
    return ranks


def plan_layer(
    layer: nn.Linear | Convolution, ranks: Ranks = "evbmf", scale: float = 1.0, name: str = "layer"
) -> LayerPlan:
    """The plan of one layer, from ranks as :func:`make_plan` takes them.

    Raises:
        ValueError: If the ranks do not fit the layer, or its weights are not finite.
    """
    outs, ins = layer.weight.shape[:2]
    largest = (min(ins, outs),) if is_matrix(layer) else (ins, outs)
    if not is_ranks(ranks):
        raise ValueError(f"Expected for layer {name!r} {RANKS}; got {ranks!r}.")
    if isinstance(ranks, str):
        try:
            chosen = tuple(max(1, round(scale * r)) for r in evbmf_ranks(layer))
        except ValueError as error:
            raise ValueError(f"Layer {name!r}: {error}") from error
    elif isinstance(ranks, float):
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


def no_gain_reason(
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
