"""Low ranks: Tucker decomposition of convolutions, SVD of linear layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import SkipValidation
from torch import Tensor, nn

from ...config import PaperStudent, Runtime, Target
from ...runtimes import require_runtime
from ..method import Compressed, Compression, as_usage
from ..modules import listed, require_sound
from .papers import student_plan
from .plan import RANKS, Plan, Ranks, apply_plan, is_ranks, make_plan, restructure
from .search import expect_reachable, search_plan


@dataclass(frozen=True)
class Tucker(Compression):
    """Low ranks for some layers, chosen in one of three ways.

    Arguments:
        student: A paper's student, `"1"` to `"3"`, `"kegnet-1"` or `"bdnf-1"` and so on
            (:func:`~.papers.student_plan`).
        layers: Patterns of layer names and their ranks (:func:`~.plan.make_plan`).
        target: What a search bounds (:func:`~.search.search_plan`), together with
        goal: The bound: a share of the net's cost, or a drop in percentage points.
        runtime: Where the target latency is measured. Give the one in which the student will run:
            what is faster in one may be slower in another.

    Raises:
        ConfigError: If not exactly one of the three is given, or one makes no sense.

    Example:
        >>> net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> method = Tucker(layers={"all": 0.25})
        >>> made = method.apply(net, Tensor(4, 32).zero_())
        >>> made.step["layers"]["0"], method.describe(made.step)
        ({'method': 'svd', 'ranks': [8]}, '2 layers at lower ranks')
        >>> Tucker(target="macs", goal=0.5).label
        'macs-0.5'
    """

    name: ClassVar[str] = "tucker"
    student: PaperStudent | None = None
    layers: Mapping[str, SkipValidation[Ranks]] | None = None  # :meth:`faults` says more
    target: Target | None = None
    goal: float | None = None
    runtime: Runtime = "torch"

    def faults(self) -> Iterator[str]:
        choices = {"student": self.student, "layers": self.layers, "target": self.target}
        given = [name for name, value in choices.items() if value is not None]
        if len(given) != 1:
            yield (
                "tucker: expected one of a paper's student, layers and a target; got "
                f"{' and '.join(given) or 'none'}."
            )
        for pattern, ranks in (self.layers or {}).items():
            if not is_ranks(ranks):
                yield f"tucker.layers: expected {RANKS} for {pattern!r}; got {ranks!r}."
        if (self.target is None) != (self.goal is None):
            yield "tucker: expected a target together with its goal."
        if self.target != "latency" and self.runtime != "torch":
            yield f"tucker.runtime: {self.runtime} measures the target latency, which is not given."
        if self.target == "drop" and self.goal is not None and not 0 <= self.goal < 100:
            yield f"tucker.goal: expected a drop of 0 to 100 percentage points; got {self.goal}."
        elif self.target not in (None, "drop") and self.goal is not None and not 0 < self.goal < 1:
            yield (
                f"tucker.goal: expected a share between 0 and 1 of the net's {self.target}; got "
                f"{self.goal}."
            )

    @property
    def needs_teacher(self) -> bool:
        return self.target is not None

    @property
    def label(self) -> str:
        if self.target is not None:
            where = "" if self.runtime == "torch" else f"-{self.runtime}"
            return f"{self.target}-{self.goal:g}{where}"
        return self.student or "custom"

    @as_usage()
    def check(self, net: nn.Module, noise: Tensor, arch: str = "") -> nn.Module:
        require_runtime(self.runtime)
        if self.target is not None and self.goal is not None:
            expect_reachable(net, noise.shape[1:], self.target, self.goal)
            return net
        return restructure(net, self.plan(net, noise, arch))

    @as_usage()
    def apply(self, net: nn.Module, inputs: Tensor, arch: str = "") -> Compressed:
        if self.target is not None and self.goal is not None:
            budget = search_plan(net, inputs, self.target, self.goal, runtime=self.runtime)
            step = {"method": self.name, **budget.plan.to_dict()}
            return Compressed(budget.net, step, budget.to_dict())
        plan = self.plan(net, inputs, arch)
        return Compressed(apply_plan(net, plan), {"method": self.name, **plan.to_dict()}, None)

    def plan(self, net: nn.Module, inputs: Tensor, arch: str = "") -> Plan:
        """The plan of a paper's student or of given layers; arguments as of :meth:`apply`.

        Raises:
            ValueError: If the net is not sound, a pattern matches no layer, ranks do not fit, or
                no layer would gain.
        """
        require_sound(net)
        if self.student is not None:
            return student_plan(net, arch, self.student, inputs.shape[1:])
        plan = make_plan(net, self.layers or {}, shape=inputs.shape[1:])
        if not plan.layers:
            raise ValueError(
                f"No layer would gain at these ranks ({listed(plan.skipped) or 'all are kept'}). "
                "Give smaller ones."
            )
        return plan

    @classmethod
    def rebuild(cls, net: nn.Module, step: Mapping[str, Any]) -> nn.Module:
        return restructure(net, step)

    @classmethod
    def describe(cls, step: Mapping[str, Any]) -> str:
        count = len(step["layers"])
        return f"{count} layer{'s' if count != 1 else ''} at lower ranks"
