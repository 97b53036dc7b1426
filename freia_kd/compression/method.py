"""What compresses a net: one class a method, with its options, found by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..config import Config
from ..errors import UsageError, unknown
from ..registry import COMPRESSIONS
from ..training import Progress

_shown: ContextVar[Progress | None] = ContextVar("freia_kd.compression.shown", default=None)


@contextmanager
def showing(progress: Progress | None) -> Iterator[None]:
    """Shows how far methods are that take long, within the block."""
    token = _shown.set(progress)
    try:
        yield
    finally:
        _shown.reset(token)


def shown() -> Progress:
    """Where a method may show how far it is."""
    return _shown.get() or Progress()


Step = dict[str, Any]  # plain JSON types, with the method's name under "method"


@dataclass(frozen=True)
class Compressed:
    """A smaller copy of a net, and how it was made.

    Arguments:
        net: The copy.
        step: What :meth:`Compression.rebuild` needs, as plain JSON types, with the method's name
            under `"method"` and under `"skipped"` the layers left alone, each with the reason.
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

    name: ClassVar[str]  # by default its path, module:Class; an entry point has the same name
    is_last: ClassVar[bool] = False  # nothing can be done to what comes out of it
    skipped_verb: ClassVar[str] = "was left alone"  # in reports, of a layer and before the reason

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "name" not in vars(cls):
            cls.name = f"{cls.__module__}:{cls.__qualname__}"
        cls.title = cls.name.rpartition(":")[2].lower()

    @property
    def needs_teacher(self) -> bool:
        """Whether it must be the first, since it searches in the teacher itself."""
        return False

    @property
    def label(self) -> str:
        """What a student made so is called, in file names too."""
        return self.title

    def check(self, net: nn.Module, noise: Tensor, arch: str = "") -> nn.Module:
        """A copy of the net as it will be, as far as that can be told before any work.

        Arguments:
            net: The net, which is not modified.
            noise: A few random inputs `(N, *shape)`.
            arch: The name of its architecture.

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

        Steps are read from files: whatever they say must be checked before it costs memory.

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


Trusted = Iterable[str | type[Compression]]


def get_compression(name: str) -> type[Compression]:
    """The class of a method by its name, or by its path `module:Class`, which is imported.

    Raises:
        UsageError: If there is none, or it is no method of compression.

    Example:
        >>> get_compression("prune")(keep_ratio=0.6)
        Prune(keep_ratio=0.6, importance='magnitude', keep=(), seed=0)
    """
    found = COMPRESSIONS[name]
    if not isinstance(found, type) or not issubclass(found, Compression):
        raise UsageError(f"Expected a subclass of Compression at {name!r}; got {found!r}.")
    if ":" not in name and found.name != name:
        raise UsageError(
            f"An installed package offers a method of compression as {name!r}, but its class calls "
            f"itself {found.name!r}; both names must be the same."
        )
    return found


def method_of(step: object, trusted: Trusted = ()) -> type[Compression]:
    """The class of the method that made a step.

    Code that only a file names is not imported: a method is found if it is built in, if an
    installed package offers it, or if it is among the trusted ones.

    Arguments:
        step: The step.
        trusted: Classes, or paths `module:Class`, that the user has named.

    Raises:
        UsageError: If the method is code of its own that is not trusted.
        ValueError: If it is not a step, or there is no such method here.
    """
    name = step.get("method") if isinstance(step, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(f"Expected a step with the name of its method; got {_short(step)}.")
    own = [get_compression(m) if isinstance(m, str) else m for m in trusted]
    found = {method.name: method for method in own}.get(name)
    if found is None and ":" in name:
        raise UsageError(
            f"It was compressed by {_short(name)}, which is code of its own; if you trust that "
            "code, name it among the trusted methods."
        )
    if found is None and name not in COMPRESSIONS:
        raise ValueError(unknown(name, COMPRESSIONS, "method of compression"))
    return found or get_compression(name)


def rebuild(net: nn.Module, steps: Sequence[Mapping[str, Any]], trusted: Trusted = ()) -> nn.Module:
    """A copy of a net with the layers that steps of compression have made, but other values.

    Arguments:
        net: A net of the uncompressed architecture, with any weights. It is not modified.
        steps: What the methods gave, in order.
        trusted: Methods of the user's own, see :func:`method_of`.

    Raises:
        UsageError: If a method is code of its own that is not trusted.
        ValueError: If a step is malformed or does not fit the net.
    """
    for method, step in _methods(steps, trusted):
        net = method.rebuild(net, step)
    return net


def original_state(
    state: Mapping[str, Tensor], steps: Sequence[Mapping[str, Any]], trusted: Trusted = ()
) -> dict[str, Tensor]:
    """The state of a compressed net with the shapes from before; errors as of :func:`rebuild`."""
    for method, step in reversed(_methods(steps, trusted)):
        state = method.original_state(state, step)
    return dict(state)


def _methods(steps: object, trusted: Trusted) -> list[tuple[type[Compression], Mapping[str, Any]]]:
    if not isinstance(steps, (list, tuple)):
        raise ValueError(f"Expected a list of steps; got {_short(steps)}.")
    trusted, methods = list(trusted), dict[type[Compression], Mapping[str, Any]]()
    for step in steps:
        method = method_of(step, trusted)
        if method in methods:  # low ranks may double the weights, each time
            raise ValueError(f"Expected each method once; got {method.name} twice.")
        methods[method] = step
    return list(methods.items())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


@contextmanager
def as_usage() -> Iterator[None]:
    """Turns errors of what was asked for into a :class:`UsageError`."""
    try:
        yield
    except UsageError:
        raise
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
