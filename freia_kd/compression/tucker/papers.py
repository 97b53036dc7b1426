"""The papers' students: KegNet's, which BDNF uses too, and the like of any other net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from ..modules import listed, require_sound
from .plan import Plan, Ranks, make_plan

Student = Literal["1", "2", "3"]

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
    net: nn.Module, arch: str, student: Student, shape: Sequence[int] | None = None
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
        ValueError: If the net is not sound, lacks the layers of its architecture, or no layer
            would gain.

    References:
        | Knowledge Extraction with No Observable Data (Yoo et al., 2019), section 4.1
    """
    if arch in PAPERS:
        return make_plan(net, PAPERS[arch][student], keep=True)
    layers: str | Sequence[str] | Mapping[str, Ranks] = _largest(net) if student == "1" else "all"
    if arch == "mlp":
        layers = _shares_of_widths(net, SHARES[student])
    plan = make_plan(net, layers, shape=shape, scale=0.5 if student == "3" else 1.0)
    if not plan.layers:
        raise ValueError(
            f"Expected a layer that gains by compression; found none "
            f"({listed(plan.skipped) or 'the last layer stays as it is'}). "
            "Give smaller ranks, or a ratio."
        )
    return plan


def _largest(net: nn.Module, share: float = 0.5) -> list[str]:
    """The largest layers that together hold a share of the compressible weights."""
    sizes = {name: layer.weight.numel() for name, layer in require_sound(net).items()}
    chosen: list[str] = []
    for name in sorted(sizes, key=lambda n: -sizes[n]):
        if sum(sizes[n] for n in chosen) >= share * sum(sizes.values()):
            break
        chosen.append(name)
    return chosen


def _shares_of_widths(net: nn.Module, share: float) -> dict[str, Ranks]:
    """The rank of each layer but the last: a share of its outputs, as far as the layer has it."""
    *hidden, last = require_sound(net).items()
    ranks: dict[str, Ranks] = {last[0]: "keep"}
    for name, layer in hidden:
        ranks[name] = min(max(2, round(share * layer.weight.shape[0])), *layer.weight.shape[:2])
    return ranks
