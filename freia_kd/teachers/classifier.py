"""A net together with its domain: logits for pixels, and a frozen copy of it as a teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ..config import Precision
from ..domain import Domain
from ..training.loop import Remedies


class Classifier(nn.Module):
    """Logits for pixels in [0, 1]: normalises as the domain says, then applies the net.

    Arguments:
        net: A net from normalised inputs with shape `(B, *domain.shape)` to logits with shape
            `(B, domain.classes)`.
        domain: The input domain of the net.
        arch: The name of the architecture, or its path `package.module:Class`.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> Classifier(net, Domain((1, 2, 2), 3), "custom")(torch.zeros(5, 1, 2, 2)).shape
        torch.Size([5, 3])
    """

    precision: Precision | None = None  # see `autocasting`

    def __init__(self, net: nn.Module, domain: Domain, arch: str) -> None:
        super().__init__()
        self.net = net
        self.domain = domain
        self.arch = arch
        self.is_new = False  # its weights are random: see `learning`

    def learning(self) -> Classifier:
        """Puts it into the mode in which students learn, and returns it.

        That is eval mode, dropout included, since a student is to match the function that its
        teacher is in eval mode. The batch normalisation of a new net is in training mode: it has
        no statistics yet that could stay as they are.
        """
        self.eval()
        for layer in self.modules() if self.is_new else ():
            if isinstance(layer, _BatchNorm):
                layer.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits with shape `(B, classes)` for pixels `x` with shape `(B, *domain.shape)`."""
        if self.precision is None:
            return self.net(self.domain.normalize(x))
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.net(self.domain.normalize(x)).float()


@contextmanager
def autocasting(classifier: Classifier, precision: Precision | None) -> Iterator[None]:
    """Lets a net compute in bfloat16 within the block, where torch finds that safe.

    Weights, their gradients and logits stay float32. bfloat16 has float32's range, so that losses
    need no scaling.

    Arguments:
        classifier: The net.
        precision: `"bf16"`, or else float32.
    """
    before = classifier.precision
    classifier.precision = "bf16" if precision == "bf16" else None
    try:
        yield
    finally:
        classifier.precision = before


def remedies(rate: str, net: nn.Module) -> Remedies:
    """What may help where a loss of a net's logits is not finite.

    Arguments:
        rate: The option of the learning rate, such as `bdnf.learning_rate`.
        net: The net.
    """
    others = ("compute in float32 (--amp float32)",) if getattr(net, "precision", None) else ()
    return Remedies(f"--set {rate}=", others)


class Teacher(Classifier):
    """A frozen classifier: a copy of the net that stays in eval mode and asks for no gradient.

    The caller's net is left as it was. Gradients flow to the input.

    Arguments:
        net: The trained net, which is copied.
        domain: The input domain of the net.
        arch: The name of the architecture, or its path `package.module:Class`.

    Raises:
        TypeError: If the net cannot be copied.
    """

    def __init__(self, net: nn.Module, domain: Domain, arch: str) -> None:
        super().__init__(_copy(net), domain, arch)
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode, whatever is asked for."""
        super().train(False)
        return self


def _copy(net: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(net)
    except Exception as error:
        raise TypeError(
            f"Expected a net that copy.deepcopy can copy; {type(net).__name__} cannot be: {error}"
        ) from error


def check_classifier(classifier: Classifier) -> None:
    """Tries a classifier on two inputs, and looks for weights that cannot be meant.

    Raises:
        ValueError: If weights are lazily initialised or not finite, if the net rejects inputs
            of the domain's shape, or if what it gives is not finite logits for every class.

    Example:
        >>> check_classifier(Classifier(nn.Linear(2, 3), Domain((2,), 3), "custom"))
    """
    check_weights(classifier.net)
    check_logits(classifier)


def check_weights(net: nn.Module) -> None:
    """Raises `ValueError` if a parameter or buffer is uninitialised or not finite."""
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        if is_lazy(value):
            raise ValueError(
                f"Expected a net with weights; {name!r} is lazily initialised and has none. "
                "Apply the net to one batch first."
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"Expected finite weights; {name!r} holds NaN or infinity.")


def check_logits(classifier: Classifier) -> None:
    """Raises `ValueError` if the net rejects its domain's inputs, or gives no proper logits."""
    domain = classifier.domain
    x = _probe(classifier)
    with _eval_mode(classifier), torch.no_grad():
        try:
            logits = classifier(x)
        except Exception as error:
            raise ValueError(
                f"Expected a net that takes inputs of shape {tuple(x.shape)}; {classifier.arch} "
                f"rejects them ({type(error).__name__}: {_first_line(error)})."
            ) from error
    if not isinstance(logits, Tensor):
        raise ValueError(f"Expected a tensor of logits; got {type(logits).__name__}.")
    if tuple(logits.shape) != (2, domain.classes):
        raise ValueError(
            f"Expected logits of shape (2, {domain.classes}) for 2 inputs and {domain.classes} "
            f"classes; got {tuple(logits.shape)}."
        )
    if not torch.isfinite(logits).all():
        raise ValueError("Expected finite logits; got NaN or infinity.")


def _probe(classifier: Classifier) -> Tensor:
    """Two ramps from 0 to 1, where the weights are."""
    shape = classifier.domain.shape
    weight = next((p for p in classifier.parameters() if p.is_floating_point()), torch.empty(0))
    ramp = torch.linspace(0, 1, math.prod(shape), device=weight.device, dtype=weight.dtype)
    return torch.stack([ramp, ramp.flip(0)]).view(2, *shape)


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode within the block; each submodule's own mode after it."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
