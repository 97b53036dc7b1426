r"""Losses of a student against its teacher, by name.

Every divergence is called as `divergence(student_logits, teacher_logits, temperature=1.0)` on
logits with shape `(B, classes)`, or `(B, classes, ...)` for dense predictions, and returns a
scalar: the mean over the batch (and positions), in nats for the three that compare probabilities.
With

.. math:: p = \mathrm{softmax}(t / T),\quad q = \mathrm{softmax}(s / T)

from teacher logits t and student logits s, those three carry the factor :math:`T^2`, which keeps
the size of their gradients when T changes (Hinton et al., 2015). At large T the first tends to half
the centred squared error, so a temperature leads from probabilities to centred logits.

A constant added to all logits of an input changes no probability. `"l1"` asks a student for it all
the same, on which a small one wastes its ranks; the three above and the centred ones do not.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import DIVERGENCES as DIVERGENCES


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r""":math:`T^2\,\mathrm{KL}(p \| q) = T^2 \sum p \log (p / q)`: the student covers the teacher.

    References:
        | Distilling the Knowledge in a Neural Network (Hinton et al., 2015)
        | https://arxiv.org/abs/1503.02531

    Example:
        >>> forward_kl(torch.zeros(1, 2), torch.tensor([[100.0, 0.0]])).item()  # log 2
        0.6931...
    """
    log_q, log_p = _log_softmax(student_logits, teacher_logits, temperature)
    return temperature**2 * _kl(log_p, log_q)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r""":math:`T^2\,\mathrm{KL}(q \| p)`: the student says only what the teacher would."""
    log_q, log_p = _log_softmax(student_logits, teacher_logits, temperature)
    return temperature**2 * _kl(log_q, log_p)


def jensen_shannon(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    r""":math:`T^2 \bigl(\mathrm{KL}(p \| m) + \mathrm{KL}(q \| m)\bigr) / 2`, m = (p + q) / 2.

    At most :math:`T^2 \log 2`.

    References:
        | Dreaming to Distill (Yin et al., 2020), section 3.3, https://arxiv.org/abs/1912.08795
    """
    log_q, log_p = _log_softmax(student_logits, teacher_logits, temperature)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return temperature**2 * (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2


def l1(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r""":math:`\langle |s - t| \rangle / T`, the mean over classes too (DFAD's model discrepancy).

    Arguments:
        student_logits: Logits with shape `(B, classes, ...)`.
        teacher_logits: Logits with the same shape.
        temperature: Divides both logits; there is no :math:`T^2`.

    References:
        | Data-Free Adversarial Distillation (Fang et al., 2019), https://arxiv.org/abs/1912.11006
    """
    _check(student_logits, teacher_logits, temperature)
    return F.l1_loss(student_logits, teacher_logits) / temperature


def centred_l1(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r""":math:`\langle |(s - \bar s) - (t - \bar t)| \rangle / T`, blind to the mean logit.

    Example:
        >>> centred_l1(torch.tensor([[5.0, 7.0]]), torch.tensor([[0.0, 0.0]])).item()
        1.0
    """
    return l1(_centred(student_logits), _centred(teacher_logits), temperature)


def centred_mse(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r""":math:`\langle ((s - \bar s) - (t - \bar t))^2 \rangle / T^2`, blind to the mean logit.

    It is the limit of :math:`2\,\mathrm{KL}(p \| q)` at large T, where `forward_kl` carries
    :math:`T^2` beside.

    References:
        | Distilling the Knowledge in a Neural Network (Hinton et al., 2015), section 2.1
        | https://arxiv.org/abs/1503.02531
    """
    _check(student_logits, teacher_logits, temperature)
    return F.mse_loss(_centred(student_logits), _centred(teacher_logits)) / temperature**2


def _centred(logits: Tensor) -> Tensor:
    """Logits without the mean over classes, which no probability depends on."""
    return logits - logits.mean(1, keepdim=True)


def _check(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    if student_logits.shape != teacher_logits.shape or student_logits.ndim < 2:
        raise ValueError(
            "Expected logits of student and teacher with the same shape (B, classes, ...); "
            f"got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}."
        )
    if not temperature > 0:
        raise ValueError(f"Expected a positive temperature; got {temperature}.")


def _log_softmax(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    _check(student_logits, teacher_logits, temperature)
    return (
        F.log_softmax(student_logits / temperature, 1),
        F.log_softmax(teacher_logits / temperature, 1),
    )


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q), summed over dim 1, averaged over all others."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1).mean()
