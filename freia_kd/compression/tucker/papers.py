"""The papers' students: KegNet's, those of BDNF's code, and the like of any other net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ...config import PaperStudent
from ..modules import listed, matches, require_sound
from .plan import Plan, Ranks, make_plan

# KegNet's students: patterns of layers by EVBMF, unless ranks are given.
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

# The students of BDNF's published code: patterns of layers and the share of both channels that is
# kept, rounded down. Of a ResNet14 in colour (SVHN's) other shares than of one in grey.
_GREY, _COLOUR = (0.6, 0.3), (0.4, 0.2)
BDNF: dict[str, dict[str, dict[str, float]]] = {
    "lenet5": {
        "1": {"conv3": 0.15},
        "2": {"conv2": 0.5, "conv3": 0.15},
        "3": {"conv2": 0.3, "conv3": 0.15},
    },
    **{
        f"resnet14, {channels} channels": {
            "1": {"layers2.*.conv1": 0.9, "layers3.*.conv1": first},
            "2": {"layers2.*.conv2": 0.6, "layers3.*.conv2": second},
            "3": {
                "layers2.*.conv1": 0.9,
                "layers2.*.conv2": 0.6,
                "layers3.*.conv1": first,
                "layers3.*.conv2": second,
            },
        }
        for channels, (first, second) in {1: _GREY, 3: _COLOUR}.items()
    },
}

# The ranks of a multilayer perceptron's students, as a share of each hidden layer's width.
SHARES = {"1": 1 / 4, "2": 1 / 8, "3": 1 / 16}


def student_plan(
    net: nn.Module, arch: str, student: PaperStudent, shape: Sequence[int] | None = None
) -> Plan:
    """The plan of a paper's student 1, 2 or 3, from the least to the most compressed.

    For LeNet5 and ResNet14 `"1"` to `"3"` are KegNet's, `"kegnet-1"` to `"kegnet-3"` by their full
    name. `"bdnf-1"` to `"bdnf-3"` are those of BDNF's published code, on which the paper's Table 1
    rests: not EVBMF's ranks but shares of the channels, which leave far less. Both exist for these
    two nets only. A multilayer perceptron's
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
        student: `"1"`, `"2"` or `"3"`, or one of a paper's own, as `"bdnf-1"`.
        shape: The shape of one input, to tell better which layers gain (:func:`make_plan`).

    Raises:
        ValueError: If the net is not sound, lacks the layers of its architecture, has no student
            of that paper, or no layer would gain.

    References:
        | Knowledge Extraction with No Observable Data (Yoo et al., 2019), section 4.1
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), section 5.2
        | https://github.com/5yearsKim/Knowlede-Extraction-Flow, teacher_student_experiment
    """
    paper, _, number = student.rpartition("-")
    if paper and arch not in PAPERS:
        raise ValueError(
            f"Expected one of {' and '.join(PAPERS)} for the student {student}; got "
            f"{arch or 'a net of no name'}. For any other net there are the students 1, 2 and 3."
        )
    if student.startswith("bdnf-"):
        return make_plan(net, _bdnf_ranks(net, arch, number), keep=True)
    if arch in PAPERS:
        return make_plan(net, PAPERS[arch][number], keep=True)
    layers: str | Sequence[str] | Mapping[str, Ranks] = _largest(net) if number == "1" else "all"
    if arch == "mlp":
        layers = _shares_of_widths(net, SHARES[number])
    plan = make_plan(net, layers, shape=shape, scale=0.5 if number == "3" else 1.0)
    if not plan.layers:
        raise ValueError(
            f"Expected a layer that gains by compression; found none "
            f"({listed(plan.skipped) or 'the last layer stays as it is'}). "
            "Give smaller ranks, or a ratio."
        )
    return plan


def _bdnf_ranks(net: nn.Module, arch: str, number: str) -> dict[str, Ranks]:
    """The input and output rank of each layer of a student of BDNF's code."""
    found = require_sound(net)
    if arch != "lenet5":
        colours = next(iter(found.values())).weight.shape[1]
        arch = f"{arch}, {1 if colours == 1 else 3} channels"
    ranks: dict[str, Ranks] = {}
    for pattern, share in BDNF[arch][number].items():
        for name in (name for name in found if matches(name, [pattern])):
            outs, ins = found[name].weight.shape[:2]
            ranks[name] = (max(1, int(ins * share)), max(1, int(outs * share)))
    return ranks


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
