"""What is compared: synthesizers, alone or together, with or without real samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..config import collect_faults
from ..data.datasets import LabelledData
from ..errors import UsageError, unknown
from ..synthesizers import (
    IMAGE_DEFAULT,
    STATISTICS_DEFAULT,
    SYNTHESIZERS,
    build_synthesizers,
    get_synthesizer,
)
from ..synthesizers.contract import Synthesizer, families_of
from ..synthesizers.samples import Samples, SamplesOptions
from ..teachers import Teacher

ALL = "all"
SAMPLES = "(samples)"  # after a method's name: it sees the few real samples


@dataclass(frozen=True)
class Method:
    """What the students of a trial learn from.

    Arguments:
        name: Its name in reports.
        synthesizers: What makes the inputs, each an equal share; none for the baseline.
        sees_samples: Whether it is given the real samples.
        kind: Whether it is a method, the students as compressed (`"baseline"`), or students that
            see the training data (`"reference"`).
        is_named: Whether it was asked for by name, so that it must work with the teacher.
    """

    name: str
    synthesizers: tuple[Synthesizer, ...] = ()
    sees_samples: bool = False
    kind: Literal["method", "baseline", "reference"] = "method"
    is_named: bool = True

    @property
    def families(self) -> set[str]:
        """The families of its synthesizers; samples are one of their own."""
        found = families_of(self.synthesizers)
        return found | {Samples.name} if self.sees_samples else found

    def unsupported_reason(
        self, teacher: Teacher, samples: LabelledData | None = None
    ) -> str | None:
        """Why it cannot work with a teacher and these real samples, or `None` if it can."""
        if self.sees_samples and samples is None:
            return "needs real samples, and none are given"
        reasons = [s.unsupported_reason(teacher, samples) for s in self.synthesizers]
        return next((reason for reason in reasons if reason is not None), None)


BASELINE = Method("compression only", kind="baseline")
_TRAINING = Samples(SamplesOptions(augment="never"))
REFERENCE = Method("real training data", (_TRAINING,), sees_samples=True, kind="reference")

Methods = str | Synthesizer | Method | Sequence[str | Synthesizer | Method]


def build_methods(
    given: Methods, preset: str = "standard", options: Mapping[str, Any] | None = None
) -> list[Method]:
    """The methods to compare.

    Arguments:
        given: Names, also several with commas between them; `+` joins synthesizers that share the
            inputs, `(samples)` after a name gives it the real samples, and `"all"` stands for all
            known ones. A synthesizer stands for its name, wherever that occurs: with
            `("all", BDNF(mine))` all methods of BDNF have these options.
        preset: The preset whose options those given by name take.
        options: Options of theirs that differ, such as `{"bdnf.steps": 500}`; a name without a dot
            goes to every synthesizer that has such an option.

    Raises:
        ConfigError: If no method has an option, values make no sense, or two methods have the same
            name; all faults are named.
        UsageError: If there is no such synthesizer.

    Example:
        >>> [method.name for method in build_methods("spectral, bdnf+uniform")]
        ['spectral', 'bdnf+uniform']
    """
    entries = [given] if isinstance(given, (str, Synthesizer, Method)) else list(given)
    objects = {e.name: e for e in entries if isinstance(e, Synthesizer)}
    made = {e.name: e for e in entries if isinstance(e, Method)}
    names: dict[str, bool] = {}
    for entry in entries:
        for name in entry.split(",") if isinstance(entry, str) else [entry.name]:
            is_all = name.strip() == ALL
            names |= dict.fromkeys(_known(), False) | names if is_all else {name.strip(): True}
    count = sum(not isinstance(entry, str) for entry in entries)
    twice = ["Two methods have the same name; compare them one after the other."]
    known, used = set[str](), set[str]()
    methods = []
    with collect_faults(twice if count > len(objects | made) else ()) as collected:
        for name, is_named in names.items():
            if name in made:
                methods.append(made[name])
                continue
            parts = [objects.get(part, part) for part in name.removesuffix(SAMPLES).split("+")]
            own = _own_options([p for p in parts if isinstance(p, str)], options or {})
            used |= set(own)
            kinds = [get_synthesizer(p) if isinstance(p, str) else p for p in parts]
            known |= {f"{kind.name}.{option}" for kind in kinds for option in kind.known_options()}
            with collected:
                found = build_synthesizers(parts, preset, own)
                sees = name.endswith(SAMPLES) or any(s.needs_samples for s in found)
                methods.append(Method(name, tuple(found), sees, is_named=is_named))
        for key in set(options or {}) - used:
            collected.faults.append(unknown(key, sorted(known), "option of the methods compared"))
    return methods


def _known() -> list[str]:
    can = [n for n in SYNTHESIZERS if get_synthesizer(n).takes_samples]
    return [STATISTICS_DEFAULT, IMAGE_DEFAULT, *SYNTHESIZERS, *(f"{name}{SAMPLES}" for name in can)]


def _own_options(titles: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that synthesizers of a method have."""
    keys: set[str] = set()
    for title in titles:
        kind = get_synthesizer(title)
        keys |= {f"{before}{o}" for o in kind.known_options() for before in ("", f"{kind.name}.")}
    return {key: value for key, value in options.items() if key in keys}


def choose_methods(
    methods: Sequence[Method], teacher: Teacher, samples: LabelledData | None = None
) -> tuple[list[Method], dict[str, str]]:
    """The methods that can work with a teacher, and of `all` those left out, with the reason.

    Raises:
        UsageError: If a method that was named cannot; all of them are.
    """
    reasons = {m.name: m.unsupported_reason(teacher, samples) for m in methods}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    faults = [f"{m.name} {refused[m.name]}" for m in methods if m.is_named and m.name in refused]
    if faults:
        able = [m.name for m in build_methods(ALL) if not m.unsupported_reason(teacher, samples)]
        raise UsageError(
            f"{'; '.join(faults)}. Those that can work with this teacher: {', '.join(able)}."
        )
    if samples is None:
        refused = {name: why for name, why in refused.items() if not name.endswith(SAMPLES)}
    return [method for method in methods if reasons[method.name] is None], refused
