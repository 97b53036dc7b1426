"""Batch statistics of a teacher's normalisation layers: the paper's eq. (7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from ..ranks import moments

Form = Literal["norms", "divergence"]
FLOOR = 1e-3  # of a layer's mean running variance, which is added to every variance
EPS = 1e-12  # for layers that are dead altogether


class LayerStatistics(NamedTuple):
    """What one call of one layer saw, beside what its training data had; all of shape `(C,)`."""

    name: str
    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor


def normalization_layers(teacher: nn.Module) -> dict[str, nn.Module]:
    """The layers that remember the statistics of their training data, by name, in module order.

    These are BatchNorm1d, 2d and 3d, SyncBatchNorm, their subclasses and frozen variants
    (anything with `running_mean` and `running_var` that is no instance normalisation).

    Example:
        >>> list(normalization_layers(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))))
        ['1']
    """

    def remembers(module: nn.Module) -> bool:
        statistics = (getattr(module, "running_mean", None), getattr(module, "running_var", None))
        known = not isinstance(module, _InstanceNorm)
        return known and all(isinstance(s, Tensor) for s in statistics)

    return {name: module for name, module in teacher.named_modules() if remembers(module)}


def gaussian_divergence(record: LayerStatistics) -> Tensor:
    r"""How far a layer's features are from those it remembers, as Gaussians: nats a channel.

    .. math:: \Bigl\langle \frac{\sigma^2 + (\mu - \hat\mu)^2}{2 \hat\sigma^2} - \frac{1}{2}
              - \frac{1}{2} \log \frac{\sigma^2}{\hat\sigma^2} \Bigr\rangle

    It stays the same when all features are multiplied by a number.
    """
    floor = FLOOR * record.running_variance.mean() + EPS
    ours, theirs = record.variance + floor, record.running_variance + floor
    shift = (record.mean - record.running_mean).square()
    return (((ours + shift) / theirs - 1 - (ours / theirs).log()) / 2).mean()


def check_form(form: str) -> None:
    """Raises `ValueError` unless there is such a form of batch statistics."""
    if form not in get_args(Form):
        raise ValueError(
            f"Expected the form {' or '.join(get_args(Form))} of batch statistics; got {form!r}."
        )


@dataclass(frozen=True)
class BatchStatistics:
    r"""The distance of feature statistics to those that the teacher's layers remember, eq. (7).

    .. math:: \sum_l w_l \bigl(\|\mu_l - \hat\mu_l\|_2 + \|\sigma^2_l - \hat\sigma^2_l\|_2\bigr)

    with the mean and biased variance of the inputs of layer l over the batch, and the layer's
    running statistics with a hat. It is to be minimised; eq. (7) has the opposite sign because
    eq. (4) is maximised. The norms are not squared, as in the paper and in DeepInversion. (The
    paper's code doubles the distances of means.)

    That sum has the units of the teacher's features, and grows with layers and channels: between
    two teachers it may differ by a factor of thousands. `form="divergence"` has neither,

    .. math:: \frac{1}{\sum_l w_l} \sum_l w_l \Bigl\langle \mathrm{KL}\bigl(
              \mathcal{N}(\mu_l, \sigma^2_l) \,\|\, \mathcal{N}(\hat\mu_l, \hat\sigma^2_l)
              \bigr) \Bigr\rangle

    in nats, averaged over the channels of a layer. To both variances a thousandth of the layer's
    mean running variance is added, since dead channels have none.

    Arguments:
        form: `"norms"` for eq. (7) as published, `"divergence"` for the one without units.
        first: The weight of the first layer (the paper 1, its code 2).
        weights: Weights of single layers by module name; 1 for those not named.
        momentum: The share m of earlier batches in :math:`\mu_l, \sigma^2_l`: statistics
            are :math:`m\,\mathrm{earlier} + (1 - m)\,\mathrm{batch}` and the gradient goes through
            the batch only, scaled by :math:`1 - m`. Useful for small batches; 0 is the paper's.
        earlier: What momentum remembers, filled by :meth:`loss`: a dict of name to (mean, variance)
            on the CPU or device of the features. Save it with a checkpoint to resume exactly.

    Raises:
        ValueError: If the form is unknown, a weight is negative or momentum is outside [0, 1).

    References:
        | Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion (Yin et al., 2020)
        | https://arxiv.org/abs/1912.08795

    Example:
        >>> teacher = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
        >>> statistics = BatchStatistics()
        >>> with statistics.observe(teacher) as records:
        ...     logits = teacher(torch.tensor([[-1.0, 0.0, 3.0], [1.0, 0.0, 5.0]]))
        >>> # means (0, 0, 4) against 0, variances (1, 0, 1) against 1
        >>> statistics.loss(records).item()
        5.0
    """

    form: Form = "norms"
    first: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)
    momentum: float = 0.0
    earlier: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_form(self.form)
        if self.first < 0 or any(weight < 0 for weight in self.weights.values()):
            raise ValueError(
                f"Expected weights of at least 0; got first={self.first} and {dict(self.weights)}."
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"Expected a momentum in [0, 1); got {self.momentum}.")

    @contextmanager
    def observe(self, teacher: nn.Module) -> Iterator[list[LayerStatistics]]:
        """Records the statistics of every layer's inputs while the block runs.

        The hooks are removed when the block ends, whether or not it raises.

        Raises:
            ValueError: If `weights` names a layer that the teacher does not have.
        """
        layers = normalization_layers(teacher)
        unknown = sorted(set(self.weights) - set(layers))
        if unknown:
            raise ValueError(
                f"Expected names of normalisation layers, {', '.join(layers) or 'of which this '}"
                f"{'' if layers else 'teacher has none'}; got {', '.join(unknown)}."
            )
        records: list[LayerStatistics] = []
        handles = [
            layer.register_forward_pre_hook(partial(_record, records, name))
            for name, layer in layers.items()
        ]
        try:
            yield records
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, records: list[LayerStatistics]) -> Tensor:
        """The distance of what was observed, in the chosen form: a scalar to be minimised.

        Raises:
            ValueError: If nothing was observed.
        """
        if not records:
            raise ValueError(
                "Expected statistics of at least one layer; got none. Call the teacher inside "
                "observe(), or leave this term out for a teacher without batch normalisation."
            )
        weights = [self._weight(record, records[0]) for record in records]
        distances = [w * self._distance(r) for w, r in zip(weights, records, strict=True)]
        total = torch.stack(distances).sum()
        return total if self.form == "norms" else total / (sum(weights) or 1.0)

    def _weight(self, record: LayerStatistics, first: LayerStatistics) -> float:
        return self.weights.get(record.name, self.first if record.name == first.name else 1.0)

    def _distance(self, record: LayerStatistics) -> Tensor:
        mean, variance = self._blend(record)
        if self.form == "divergence":
            blended = record._replace(mean=mean, variance=variance)
            return gaussian_divergence(blended)
        return torch.linalg.vector_norm(mean - record.running_mean) + torch.linalg.vector_norm(
            variance - record.running_variance
        )

    def _blend(self, record: LayerStatistics) -> tuple[Tensor, Tensor]:
        mean, variance = record.mean, record.variance
        if not self.momentum:
            return mean, variance
        if record.name in self.earlier:
            old_mean, old_variance = (t.to(mean) for t in self.earlier[record.name])
            mean = torch.lerp(mean, old_mean, self.momentum)
            variance = torch.lerp(variance, old_variance, self.momentum)
        self.earlier[record.name] = (mean.detach(), variance.detach())
        return mean, variance


def _record(
    records: list[LayerStatistics], name: str, layer: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    mean, variance = moments(inputs[0])
    running_mean, running_variance = (
        layer.get_buffer("running_mean"),
        layer.get_buffer("running_var"),
    )
    records.append(
        LayerStatistics(name, mean, variance, running_mean.to(mean), running_variance.to(mean))
    )
