"""Structured pruning: whole channels are removed, the least important first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...config import Natural, Share
from ...optional import require
from ..cost import count_macs
from ..method import Compressed, Compression, as_usage
from ..modules import require_finite, require_inputs
from ..quantize.layers import FakeQuantized
from .groups import Importance, find_groups, without
from .prune import changed_shapes, choose_channels, read_shapes, truncated

MAX_PRUNED = 100  # times fewer weights than before, as far as is believed of a file


@dataclass(frozen=True)
class Prune(Compression):
    r"""A share of the multiply-accumulates stays, the least important channels go.

    Channels that residual connections or depthwise convolutions tie together go together
    (torch-pruning's dependency graph). What it proposes is proved first: a group of channels is
    removed only if the smaller net gives the same outputs as one in which nothing reads those
    channels. All other groups, such as that of the output layer, stay as they are and are listed.

    The importance of a channel is

    .. math:: \sum_w |w|\ \Bigl|\frac{\partial}{\partial w} \sum_{n,c} v_{nc} f_c(x_n)\Bigr|
              \quad \text{(taylor)} \quad \text{or} \quad \sum_w w^2 \quad \text{(magnitude)}

    over the weights that make and read it, relative to the mean of its group. The channels of all
    groups are ranked together; a tenth of each group stays. Molchanov et al. take the gradient of
    the training loss. Here the loss is the divergence from the net itself, which has none, so
    that the logits' own change counts, in 8 directions of random signs :math:`v`.

    Arguments:
        keep_ratio: The share of the multiply-accumulates to keep at most.
        importance: `"taylor"`, the first-order change of the logits, or `"magnitude"`. The first
            leaves a better net, the second one that is at least as good once it is distilled.
        keep: Names or shell-style patterns of layers whose output channels stay.
        seed: The seed of the signs.

    Raises:
        ConfigError: If a value makes no sense.

    References:
        | DepGraph: Towards Any Structural Pruning (Fang et al., 2023)
        | https://arxiv.org/abs/2301.12900
        | Importance Estimation for Neural Network Pruning (Molchanov et al., 2019)
        | Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion (Yin et al., 2020),
        | for pruning on synthetic images

    Example:
        >>> from freia_kd.teachers.lenet5 import LeNet5
        >>> made = Prune(keep_ratio=0.5).apply(LeNet5(), torch.rand(4, 1, 32, 32))
        >>> made.step["macs"][1] <= 0.5 * made.step["macs"][0], made.net.fc2.out_features
        (True, 10)
    """

    name: ClassVar[str] = "prune"
    skipped_verb: ClassVar[str] = "was not pruned"
    keep_ratio: Share = 0.5
    importance: Importance = "magnitude"
    keep: tuple[str, ...] = ()
    seed: Natural = 0

    def check(self, net: nn.Module, noise: Tensor, arch: str = "") -> nn.Module:
        return replace(self, importance="magnitude").apply(net, noise, arch).net

    @as_usage()
    def apply(self, net: nn.Module, inputs: Tensor, arch: str = "") -> Compressed:
        require("torch_pruning", "prune")
        require_finite(net)
        inputs = require_inputs(net, inputs)
        if any(isinstance(module, FakeQuantized) for module in net.modules()):
            raise ValueError("Expected a net in floating point: prune before you quantise.")
        generator = torch.Generator().manual_seed(self.seed)
        groups, skipped = find_groups(net, inputs, self.importance, self.keep, generator)
        chosen = choose_channels(net, groups, inputs.shape[1:], self.keep_ratio, skipped)
        smaller, same = without(net, chosen, inputs)
        if not same:
            raise ValueError(
                "The pruned net does not compute what it should: its groups of channels, each "
                "proved alone, depend on one another. Name some of their layers in `keep`."
            )
        step = {
            "method": self.name,
            "shapes": changed_shapes(net, smaller),
            **self.to_dict(),
            "macs": [count_macs(n, inputs.shape[1:]) for n in (net, smaller)],
            "skipped": skipped,
        }
        student = self.rebuild(net, step)  # a clean copy, with the net's modes and flags
        student.load_state_dict(smaller.state_dict())
        return Compressed(student, step)

    @classmethod
    def rebuild(cls, net: nn.Module, step: Mapping[str, Any]) -> nn.Module:
        return truncated(net, read_shapes(step))

    @classmethod
    def original_state(
        cls, state: Mapping[str, Tensor], step: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        shapes = read_shapes(step)
        after = sum(value.numel() for value in state.values())
        if sum(math.prod(old) for old, _ in shapes.values()) > MAX_PRUNED * after:
            raise ValueError(
                f"Expected a net that keeps at least 1/{MAX_PRUNED} of its weights; got less."
            )
        before = {name: torch.empty(old, device="meta") for name, (old, _) in shapes.items()}
        return {**state, **before}

    @classmethod
    def describe(cls, step: Mapping[str, Any]) -> str:
        return "MACs {:,} → {:,}".format(*step["macs"])
