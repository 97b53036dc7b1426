"""Recipes: what a student is to be, before its teacher is looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .batchnorm import BatchNorm
from .budget import Budget, Target, check_goal, expect_reachable, search_plan
from .methods import METHODS, Step
from .plans import Plan, Ranks, make_plan, student_plan
from .surgery import apply_plan, require_finite, require_sound, restructure

NOISE = 16  # random inputs on which a recipe is tried before any work


@dataclass(frozen=True)
class Recipe:
    """Which layers of a teacher become smaller, how far, and by which methods.

    Tucker decomposition takes one of a paper's student, rules, or a target; other methods alone
    take none of them. Methods are `"tucker"` (low ranks), `"prune"` (fewer channels) and
    `"quantize"` (eight-bit integers), which comes last.

    Arguments:
        name: The student's name, in file names too; by default the paper's, `"custom"` for rules,
            one such as `"macs-0.5"` for a target, or the methods'.
        student: The papers' student, `"1"` to `"3"`.
        rules: Patterns of layer names and their ranks, for :func:`make_plan`.
        target: What a budget bounds, for :func:`search_plan`.
        goal: The bound: a share of the teacher's cost, or a drop in percentage points.
        methods: What is done to the net, in this order, each followed by distillation.
        prune_share: The share of the multiply-accumulates that pruning leaves.
        bn: What becomes of batch normalisation, see :func:`prepare_batchnorm`; by default what
            the students' options say.

    Raises:
        UsageError: If the fields do not fit together.

    Example:
        >>> Recipe(target="macs", goal=0.5).name
        'macs-0.5'
        >>> Recipe.from_dict(Recipe(rules={"all": 0.25}).to_dict()).rules
        {'all': 0.25}
    """

    name: str = ""
    student: str | None = None
    rules: Mapping[str, Ranks] | None = None
    target: Target | None = None
    goal: float | None = None
    methods: tuple[str, ...] = ("tucker",)
    prune_share: float = 0.5
    bn: BatchNorm | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(self.methods))
        self._check_methods()
        self._check_choice()
        if self.bn not in (None, *get_args(BatchNorm)):
            raise UsageError(
                f"Expected batch normalisation {', '.join(get_args(BatchNorm))}; got {self.bn!r}."
            )
        object.__setattr__(self, "name", self.name or self._default_name())
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise UsageError(
                "Expected a student's name of letters, digits, '.', '+' and '-'; got "
                f"{self.name!r}."
            )

    def _check_methods(self) -> None:
        unknown = [m for m in self.methods if m not in METHODS]
        if unknown or not self.methods:
            raise UsageError(
                f"Expected methods of {', '.join(METHODS)}; got {', '.join(unknown) or 'none'}."
            )
        twice = sorted({m for m in self.methods if self.methods.count(m) > 1})
        if twice:
            raise UsageError(f"Each method can be used once; got {', '.join(twice)} twice.")
        if "quantize" in self.methods[:-1]:
            raise UsageError(f"Quantisation comes last; got the methods {', '.join(self.methods)}.")
        if not 0 < self.prune_share < 1:
            raise UsageError(
                f"Expected a share between 0 and 1 that pruning leaves; got {self.prune_share}."
            )

    def _check_choice(self) -> None:
        choices = {"student": self.student, "rules": self.rules, "target": self.target}
        given = [name for name, value in choices.items() if value is not None]
        if "tucker" in self.methods and len(given) != 1:
            raise UsageError(
                f"Expected one of a paper's student, rules and a target; got "
                f"{' and '.join(given) or 'none'}."
            )
        if "tucker" not in self.methods and given:
            raise UsageError(
                f"Expected no {' and '.join(given)} without the method tucker; got the methods "
                f"{', '.join(self.methods)}."
            )
        if (self.target is None) != (self.goal is None):
            raise UsageError("Expected a target together with its goal.")
        if self.target is not None and self.goal is not None:
            with as_usage():
                check_goal(self.target, self.goal)
            if self.methods[0] != "tucker":
                raise UsageError(
                    "A target is searched for in the teacher itself, so that tucker must be the "
                    f"first method; got {', '.join(self.methods)}."
                )
        if self.student not in (None, "1", "2", "3"):
            raise UsageError(
                f"Expected student 1, 2 or 3; got {self.student!r}. For others give layer patterns."
            )

    def _default_name(self) -> str:
        if "tucker" not in self.methods:
            return "-".join(self.methods)
        return self.student or ("custom" if self.rules else f"{self.target}-{self.goal:g}")

    def check(self, net: nn.Module, arch: str, shape: Sequence[int]) -> None:
        """Raises unless a net can be compressed so, as far as that can be told without inputs.

        Methods after the first are tried on noise.

        Arguments:
            net: The teacher's net, which is not modified.
            arch: The name of its architecture.
            shape: The shape of one input.

        Raises:
            UsageError: If it cannot be, or a library is missing.
            ValueError: If the net is not sound.
        """
        require_finite(net)
        noise = torch.randn(NOISE, *shape, generator=torch.Generator().manual_seed(0))
        with torch.random.fork_rng():
            for method in self.methods:
                if method == "tucker":
                    plan = self.plan(net, arch, shape)
                    net = net if plan is None else restructure(net, plan)
                else:
                    net = self._compress(method, net, noise, importance="magnitude")[0]

    def apply(
        self, method: str, net: nn.Module, arch: str, inputs: Tensor
    ) -> tuple[nn.Module, Step]:
        """A smaller copy of a net by one of the methods, and the step for :func:`rebuild`.

        Arguments:
            method: The method.
            net: The net, which is not modified.
            arch: The name of its architecture.
            inputs: What the net eats, with shape `(N, *shape)`.

        Raises:
            UsageError: If the net cannot be compressed so, or a library is missing.
        """
        if method != "tucker":
            return self._compress(method, net, inputs)
        plan = self.plan(net, arch, inputs.shape[1:]) or self.search(net, inputs).plan
        return apply_plan(net, plan), {"method": "tucker", **plan.to_dict()}

    def _compress(
        self, method: str, net: nn.Module, inputs: Tensor, **options: Any
    ) -> tuple[nn.Module, Step]:
        pruning = {"share": self.prune_share, **options}
        with as_usage():
            return METHODS[method].apply(net, inputs, **(pruning if method == "prune" else {}))

    def plan(self, net: nn.Module, arch: str, shape: Sequence[int]) -> Plan | None:
        """The plan of the layers, or `None` where it is to be searched for.

        Arguments:
            net: The teacher's net, which is not modified.
            arch: The name of its architecture.
            shape: The shape of one input.

        Raises:
            UsageError: If a pattern matches no layer, ranks do not fit, no layer would gain, or
                no plan can meet the target whatever the inputs.
            ValueError: If the net is not sound (:func:`require_sound`).
        """
        require_sound(net)
        with as_usage():
            if self.target is not None and self.goal is not None:
                expect_reachable(net, shape, self.target, self.goal)
                return None
            if self.student is not None:
                return student_plan(net, arch, self.student, shape)
            plan = make_plan(net, self.rules or {}, shape=shape)
        if not plan.layers:
            reasons = "; ".join(f"{s.name}: {s.reason}" for s in plan.skipped)
            raise UsageError(
                f"No layer would gain at these ranks ({reasons or 'all are kept'}). Give smaller "
                "ones."
            )
        return plan

    def search(self, net: nn.Module, inputs: Tensor) -> Budget:
        """The plan that meets the target on given inputs, by :func:`search_plan`.

        Raises:
            UsageError: If no plan meets the target; the message says the best found.
        """
        assert self.target is not None
        assert self.goal is not None
        with as_usage():
            return search_plan(net, inputs, self.target, self.goal)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        fields = asdict(self)
        rules = None if self.rules is None else {k: _plain(v) for k, v in self.rules.items()}
        return {**fields, "rules": rules, "methods": list(self.methods)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """The inverse of :meth:`to_dict`.

        Raises:
            UsageError: If a field is unknown or makes no sense.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise UsageError(f"Not a student's recipe: {dict(fields)!r} ({error}).") from error


def as_recipes(students: Iterable[str | Recipe]) -> list[Recipe]:
    """Recipes from papers' students by number and recipes, each name once.

    Raises:
        UsageError: If there is no such student, or two recipes have the same name.
    """
    recipes: dict[str, Recipe] = {}
    for student in students:
        recipe = student if isinstance(student, Recipe) else Recipe(student=str(student))
        if recipes.setdefault(recipe.name, recipe) != recipe:
            raise UsageError(f"Two different students are named {recipe.name!r}; name one of them.")
    return list(recipes.values())


def parse_ranks(text: str) -> Ranks:
    """Ranks from text: `evbmf`, a ratio such as `0.25`, a number, or two with a comma between.

    Raises:
        UsageError: If the text is none of these.

    Example:
        >>> parse_ranks("0.25"), parse_ranks("8"), parse_ranks("5,8")
        (0.25, 8, (5, 8))
    """
    if text == "evbmf":
        return "evbmf"
    try:
        if "." in text:
            ratio = float(text)
            if 0 < ratio < 1:
                return ratio
        else:
            numbers = tuple(int(part) for part in text.split(","))
            if len(numbers) <= 2 and min(numbers) >= 1:
                return numbers if len(numbers) == 2 else numbers[0]
    except ValueError:
        pass
    raise UsageError(
        f"Expected ranks evbmf, a ratio between 0 and 1, a number, or IN,OUT; got {text!r}."
    )


def _plain(ranks: Ranks) -> Any:
    return ranks if isinstance(ranks, (str, int, float)) else list(ranks)


@contextmanager
def as_usage() -> Iterator[None]:
    """Turns errors of what was asked for into a UsageError."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
