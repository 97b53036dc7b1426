"""Which method is best by label-free evidence, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..report.schema import Ranking, Spread
from ..training import Progress
from .trials import Trial

RESAMPLES = 1000
SAME = 1e-9  # between agreements that differ by rounding only
MIN_SEEDS, MIN_JUDGES = 3, 4  # with fewer, the bootstrap overstates how sure it is


class Verdict(NamedTuple):
    """One student judged by the inputs of one other method.

    Arguments:
        method: The method that the student learned by.
        judge: The family of the method whose held-out inputs judge it.
        block: The seed and the student, within which methods are compared.
        agreement: The share of inputs on which student and teacher agree.
    """

    method: str
    judge: str
    block: tuple[int, str]
    agreement: float


class Ranked(NamedTuple):
    """The methods from the best to the worst, by agreement on inputs of independent methods.

    Arguments:
        scores: Each method's agreement, adjusted for which judges it had, and its standard
            deviation over the bootstrap; none of one seed.
        ranking: Which one is the best, as far as that can be told.
    """

    scores: dict[str, Spread]
    ranking: Ranking


def judge_trials(trials: Sequence[Trial], progress: Progress) -> Iterator[Verdict]:
    """What the held-out inputs of each family say about the students of all others.

    Methods of mixed families judge nobody, and the methods of one family are one judge, their
    mean.

    Arguments:
        trials: The trials that have run.
        progress: What to show meanwhile.
    """
    candidates = [trial for trial in trials if trial.method.kind != "reference"]
    with progress.stage("judge each method by the others", len(candidates)) as stage:
        for done, trial in enumerate(candidates, 1):
            judges: dict[str, list[Trial]] = {}
            for other in candidates:
                family, *mixed = other.method.families or {""}
                judges_it = family and not mixed and family not in trial.method.families
                if judges_it and other.seed == trial.seed:
                    judges.setdefault(family, []).append(other)
            said = trial.judge([other for members in judges.values() for other in members])
            for family, members in judges.items():
                for spec in trial.students:
                    shares = [said[other.method.name][spec.name] for other in members]
                    block = (trial.seed, spec.name)
                    yield Verdict(trial.method.name, family, block, sum(shares) / len(shares))
            stage.update(done, {})


def rank_methods(verdicts: Sequence[Verdict], seed: int = 0) -> Ranked | None:
    r"""Ranks methods by what judges that are independent of them say.

    A method is never judged by its own family's inputs, so methods have different judges, some
    easier than others. So the agreements are fitted by

    .. math:: a_{mjb} = s_m + u_{jb}

    with the score :math:`s_m` of method m and the ease :math:`u_{jb}` of judge j in block b (a
    seed and a student), by least squares. The fit is repeated on resamples of seeds and judges with
    replacement; how often the same method wins is the certainty. With few of them it is too sure:
    among equal methods, the best seemed so in 95 % of resamples in 1 of 40 simulations of 6
    methods, 5 judges and 3 seeds, but in 14 of 40 of 2 methods and 2 judges. One seed says nothing
    of how seeds differ, so with one there is neither a spread nor a winner.

    Arguments:
        verdicts: The agreements, one for each method, judge and block.
        seed: The seed of the resamples.

    Returns:
        The scores and the ranking, or `None` if nothing was judged.

    Example:
        >>> rows = [Verdict(m, j, (s, "1"), a) for s in (0, 1) for m, j, a in
        ...         [("x", "p", 0.9), ("y", "p", 0.7), ("x", "q", 0.8), ("y", "q", 0.6)]]
        >>> rank_methods(rows).ranking.winner
        'x'
    """
    if not verdicts:
        return None
    methods = list(dict.fromkeys(v.method for v in verdicts))
    design = _Design(verdicts, methods)
    values = design.fit(np.ones(len(verdicts)))
    order = np.argsort(-values, kind="stable")
    names = [methods[i] for i in order]
    seeds, judges = len(design.seeds), len(design.judges)
    level = [m for m, value in zip(methods, values, strict=True) if values.max() - value < SAME]
    if len(level) > 1:
        scores = {methods[i]: Spread(float(values[i]), None, seeds) for i in order}
        return Ranked(scores, _level_ranking(level, seeds, judges))
    if seeds == 1:
        scores = {methods[i]: Spread(float(values[i]), None, 1) for i in order}
        return Ranked(scores, _ranking(names, None, seeds, judges))
    generator = np.random.default_rng(seed)
    resampled = np.array([design.fit(design.resample(generator)) for _ in range(RESAMPLES)])
    spread = np.nanstd(resampled, axis=0)
    scores = {methods[i]: Spread(float(values[i]), float(spread[i]), seeds) for i in order}
    filled = np.where(np.isnan(resampled), -np.inf, resampled)
    certainty = float((filled.argmax(1) == order[0]).mean())
    return Ranked(scores, _ranking(names, certainty, seeds, judges))


def _level_ranking(names: Sequence[str], seeds: int, judges: int) -> Ranking:
    *first, last = names
    return Ranking(
        winner=None,
        rival=None,
        certainty=None,
        seeds=seeds,
        judges=judges,
        sentence=(
            f"By label-free evidence {', '.join(first)} and {last} are level, and no other is "
            "better, so no winner is named."
        ),
    )


def _ranking(names: Sequence[str], certainty: float | None, seeds: int, judges: int) -> Ranking:
    rival = names[1] if len(names) > 1 else None
    return Ranking(
        winner=None if certainty is None else names[0],
        rival=rival,
        certainty=certainty,
        seeds=seeds,
        judges=judges,
        sentence=describe(names[0], rival, certainty, seeds, judges),
    )


def describe(best: str, rival: str | None, certainty: float | None, seeds: int, judges: int) -> str:
    """A ranking in words; arguments as of :class:`~freia_kd.report.schema.Ranking`."""
    if rival is None:
        return f"Only {best} was judged, so there is nothing to choose from."
    if certainty is None:
        return (
            f"By label-free evidence {best} comes first and {rival} second, but one seed cannot "
            f"tell which is better, so no winner is named; compare {MIN_SEEDS} seeds or more."
        )
    said = (
        f"in {certainty:.0%} of bootstrap resamples over {seeds} seeds and {judges} families of "
        "judges"
    )
    if certainty < 0.75:
        return (
            f"By label-free evidence {best} leads, but not surely: it is the best {said}; {rival} "
            "comes next."
        )
    enough = seeds >= MIN_SEEDS and judges >= MIN_JUDGES
    sure = "clearly" if certainty >= 0.95 and enough else "probably"
    few = "" if enough else " So few seeds or judges overstate how sure it is."
    return f"By label-free evidence {best} is {sure} the best: {said}; {rival} comes next.{few}"


class _Design:
    """The least-squares problem: a column for each method, then one for each judge in a block."""

    def __init__(self, verdicts: Sequence[Verdict], methods: Sequence[str]) -> None:
        eases = list(dict.fromkeys((v.judge, v.block) for v in verdicts))
        columns = {name: i for i, name in enumerate([*methods, *eases])}
        self.methods = len(methods)
        self.matrix = np.zeros((len(verdicts), len(columns)))
        for row, v in enumerate(verdicts):
            self.matrix[row, columns[v.method]] = self.matrix[row, columns[v.judge, v.block]] = 1
        self.agreements = np.array([v.agreement for v in verdicts])
        self.seeds, self.seed_of = np.unique([v.block[0] for v in verdicts], return_inverse=True)
        self.judges, self.judge_of = np.unique([v.judge for v in verdicts], return_inverse=True)

    def resample(self, generator: np.random.Generator) -> np.ndarray:
        """How often each verdict comes when seeds and judges are drawn with replacement.

        Where trials failed, a resample may hold no verdict at all; it is taken again.
        """
        while True:
            seeds, judges = (
                np.bincount(generator.integers(n, size=n), minlength=n)
                for n in (len(self.seeds), len(self.judges))
            )
            weights = seeds[self.seed_of] * judges[self.judge_of]
            if weights.any():
                return weights.astype(float)

    def fit(self, weights: np.ndarray) -> np.ndarray:
        """The scores of the methods, centred on the mean agreement; NaN for those not seen."""
        weighted = self.matrix * weights[:, None]
        effects = np.linalg.lstsq(
            weighted.T @ self.matrix, weighted.T @ self.agreements, rcond=None
        )[0][: self.methods]
        seen = weighted.sum(0)[: self.methods] > 0
        if not seen.any():
            return np.full(self.methods, np.nan)
        mean = np.average(self.agreements, weights=weights)
        return np.where(seen, effects - effects[seen].mean() + mean, np.nan)
