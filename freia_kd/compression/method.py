"""What compresses a net: one class a method, with its options, found by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..config import Config

Step = dict[str, Any]  # plain JSON types, with the method's name under "method"


@dataclass(frozen=True)
class Compressed:
    """A smaller copy of a net, and how it was made.

    Arguments:
        net: The copy.
        step: What :meth:`Compression.rebuild` needs, as plain JSON types, with the method's name
            under `"method"` and the layers left alone under `"skipped"`, a list of `{"name",
            "reason"}`.
        search: What a search for a target found, for reports; `None` where nothing was searched.
    """

    net: nn.Module
    step: Step
    search: dict[str, Any] | None = None


@dataclass(frozen=True)
class Compression(Config, ABC):
    """One way to make a net smaller: a frozen dataclass whose fields are its options.

    A method of another package names its class under the entry-point group
    `freia_kd.compressions`; `module:Class` does without installing.
    """

    name: ClassVar[str]
    is_last: ClassVar[bool] = False  # nothing can be done to what comes out of it

    @property
    def needs_teacher(self) -> bool:
        """Whether it must be the first, since it searches in the teacher itself."""
        return False

    @property
    def label(self) -> str:
        """What a student made so is called, in file names too."""
        return self.name

    def check(self, net: nn.Module, arch: str, shape: Sequence[int], noise: Tensor) -> nn.Module:
        """A copy of the net as it will be, as far as that can be told before any work.

        Arguments:
            net: The net, which is not modified.
            arch: The name of its architecture.
            shape: The shape of one input.
            noise: A few random inputs `(N, *shape)`.

        Raises:
            UsageError: If the net cannot be compressed so, or a library is missing.
        """
        return self.apply(net, noise, arch).net

    @abstractmethod
    def apply(self, net: nn.Module, inputs: Tensor, arch: str = "") -> Compressed:
        """A smaller copy of a net.

        Arguments:
            net: The net, which is not modified.
            inputs: The calibration set: what the net takes (normalised), with shape `(N, *shape)`.
            arch: The name of its architecture, for methods that know some.

        Raises:
            UsageError: If the net cannot be compressed so, or a library is missing.
        """

    @classmethod
    @abstractmethod
    def rebuild(cls, net: nn.Module, step: Mapping[str, Any]) -> nn.Module:
        """A copy of a net with the layers that a step has made, but other values.

        Raises:
            ValueError: If the step is malformed or does not fit the net.
        """

    @classmethod
    def original_state(
        cls, state: Mapping[str, Tensor], step: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """A compressed net's state with the shapes from before, by which some nets are built."""
        return dict(state)

    @classmethod
    @abstractmethod
    def describe(cls, step: Mapping[str, Any]) -> str:
        """What a step did, in a few words for a table, such as `"3 layers at lower ranks"`."""
