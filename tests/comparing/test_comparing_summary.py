"""The rows of a comparison, from made-up trials."""

import pytest

from freia_kd.comparing.methods import BASELINE, REFERENCE, Method
from freia_kd.comparing.summary import collect_results, summarise
from freia_kd.comparing.trials import Trial, TrialOptions
from freia_kd.report.schema import Proportion, Spread, TrialResult
from freia_kd.students import as_specs
from freia_kd.synthesizers.noise import Uniform
from freia_kd.training import Progress

NONE, REAL = BASELINE.name, REFERENCE.name
SECONDS = {NONE: 1.0, "first": 10.0, "second": 30.0, REAL: 50.0}
IMAGES = {NONE: 0, "first": 64, "second": 100, REAL: 50}

# By method, of seeds 0, 1 and 2. With the last seed there is nothing to recover.
ACCURACIES = {
    NONE: (0.2, 0.4, 0.9),
    "first": (0.5, 0.7, 0.95),
    "second": (0.4, None, 0.1),  # its second trial failed
    REAL: (0.8, 0.8, 0.905),
}
METHODS = [BASELINE, *(Method(name, (Uniform(),)) for name in ("first", "second")), REFERENCE]


class Ended(Trial):
    """A trial that has run."""

    @property
    def result(self):
        name = self.method.name
        return TrialResult(
            method=name,
            seed=self.seed,
            agreement={"2": Proportion.of(0.5 + 0.1 * self.seed, 100)},
            accuracy={},
            stages={"train": SECONDS[name], "other": float(self.seed)},
            images=IMAGES[name],
            warnings=[f"warned by {name}"],
        )

    def measure(self, data):
        return {"2": Proportion.of(ACCURACIES[self.method.name][self.seed], 1000)}


@pytest.fixture
def rows(tmp_path):
    students, options = tuple(as_specs(["2"])), TrialOptions("teacher.pt")
    trials = [
        Ended(method, seed, students, tmp_path / "trials" / f"{method.name}-{seed}", options)
        for method in METHODS
        for seed, known in enumerate(ACCURACIES[method.name])
        if known is not None
    ]
    (tmp_path / "trials/first-0").mkdir(parents=True)
    (tmp_path / "trials/first-0/inputs-uniform.png").touch()
    scores = {"first": Spread(0.9, 0.01, 3), NONE: Spread(0.8, 0.01, 3)}
    scores["second"] = Spread(0.7, 0.01, 3)
    return summarise(trials, collect_results(trials, object(), Progress()), scores)


def test_rows_go_from_the_best_to_the_reference(rows):
    assert [row.method for row in rows] == ["first", NONE, "second", REAL]
    independent = {row.method: row.independent for row in rows}
    assert independent[NONE] == Spread(0.8, 0.01, 3)
    assert independent[REAL] is None
    assert [row.kind for row in rows] == ["method", "baseline", "method", "reference"]


def test_values_are_means_over_the_seeds_that_there_are(rows):
    first, _, second, _ = rows
    assert [first.seeds, second.seeds] == [3, 2]
    assert second.accuracy["2"].mean == pytest.approx(0.25)
    assert second.accuracy["2"].std == pytest.approx(0.3 / 2**0.5)
    own = first.own["2"]
    assert (own.mean, own.std) == (pytest.approx(0.6), pytest.approx(0.1))
    assert first.seconds.mean == pytest.approx(11)
    assert second.images == 100
    assert first.warnings == ["warned by first"]
    assert (first.picture, second.picture) == ("trials/first-0/inputs-uniform.png", None)


def test_recovery_is_by_seed_and_only_where_there_is_something_to_recover(rows):
    first, baseline, second, reference = (row.recovery["2"] for row in rows)
    assert first.mean == pytest.approx((0.3 / 0.6 + 0.3 / 0.4) / 2)
    assert second == Spread(pytest.approx(0.2 / 0.6), None, 1)
    assert baseline is None
    assert reference is None
