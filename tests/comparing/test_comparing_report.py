"""The comparison's table, from made-up cells."""

import re

import pytest

from freia_kd.compare.cells import NONE, REFERENCE, Cell
from freia_kd.compare.evidence import Ranking
from freia_kd.compare.report import remarks, summarise, table

SECONDS = {NONE: 1.0, "first": 10.0, "second": 30.0, REFERENCE: 50.0}
IMAGES = {NONE: 64, "first": 64, "second": 100, REFERENCE: 50}

# By method, of seeds 0, 1 and 2. With the last seed there is nothing to recover.
ACCURACIES = {
    NONE: (0.2, 0.4, 0.9),
    "first": (0.5, 0.7, 0.95),
    "second": (0.4, None, 0.1),  # its second cell failed
    REFERENCE: (0.8, 0.8, 0.905),
}


class Ended(Cell):
    """A cell that has run."""

    @property
    def result(self):
        return {
            "students": {name: {"agreement": 0.5 + 0.1 * self.seed} for name in self.students},
            "seconds": SECONDS[self.method] + self.seed,
            "images": IMAGES[self.method],
            "warnings": [f"warned by {self.method}"],
        }


@pytest.fixture
def data(tmp_path):
    values = {
        (m, seed, "2"): v
        for m, seen in ACCURACIES.items()
        for seed, v in enumerate(seen)
        if v is not None
    }
    cells = [Ended(method, seed, ("2",), tmp_path) for method, seed, _ in values]
    scores = {"first": 0.9, NONE: 0.8, "second": 0.7}
    ranking = Ranking(scores, dict.fromkeys(scores, 0.01), 0.9, NONE, 3, 2)
    rows = summarise(cells, ranking, values)
    return {
        "rows": rows,
        "ranking": ranking.to_dict(),
        "evaluation": "real (9 test images)",
        "failed": {"second, seed 1": "it broke"},
        "refused": {"samples": "needs real samples"},
        "conditions": {"reference": "real (20)"},
    }


def test_rows_go_from_the_best_to_the_reference(data):
    assert [row["method"] for row in data["rows"]] == ["first", NONE, "second", REFERENCE]
    independent = {row["method"]: row["independent"] for row in data["rows"]}
    assert independent[NONE] == {"mean": 0.8, "std": 0.01}
    assert independent[REFERENCE] is None


def test_values_are_means_over_the_seeds_that_there_are(data):
    rows = {row["method"]: row for row in data["rows"]}
    assert [rows[m]["seeds"] for m in ("first", "second")] == [3, 2]
    assert rows["second"]["accuracy"]["2"]["mean"] == pytest.approx(0.25)
    assert rows["second"]["accuracy"]["2"]["std"] == pytest.approx(0.3 / 2**0.5)
    assert rows["first"]["own"]["2"] == {"mean": pytest.approx(0.6), "std": pytest.approx(0.1)}
    assert rows["first"]["seconds"]["mean"] == pytest.approx(11)
    assert rows["second"]["images"] == 100
    assert rows["first"]["warnings"] == ["warned by first"]


def test_recovery_is_by_seed_and_only_where_there_is_something_to_recover(data):
    rows = {row["method"]: row["recovery"]["2"] for row in data["rows"]}
    assert rows["first"]["mean"] == pytest.approx((0.3 / 0.6 + 0.3 / 0.4) / 2)
    assert rows["second"] == {"mean": pytest.approx(0.2 / 0.6), "std": 0.0}
    assert rows[NONE] is None
    assert rows[REFERENCE] is None


def test_each_column_says_what_its_title_says(data):
    header, *rows = table(data)
    first = dict(zip(header, rows[0], strict=True))
    assert first == {
        "method": "first",
        "agreement,\nindependent": "90.0 ± 1.0",
        "accuracy,\nstudent 2": "71.7 ± 22.5",
        "recovery,\nstudent 2": "62.5 ± 17.7",
        "own agreement,\nstudent 2": "60.0 ± 10.0",
        "seconds": "11",
        "images": "64",
    }
    baseline = dict(zip(header, rows[1], strict=True))
    assert (baseline["seconds"], baseline["images"], baseline["recovery,\nstudent 2"]) == (
        "",
        "",
        "",
    )


def test_remarks(data):
    said = " ".join(remarks(data))
    for text in ("first is probably", "real (9 test images)", "second, seed 1: it broke"):
        assert text in said
    assert "Left out: samples needs real samples" in said
    assert "(on real (20) - compressed), where that is 5 points or more" in said
    assert "No method helped" not in said
    data["ranking"]["winner"] = NONE
    assert re.search("No method helped: leave the students as compressed", " ".join(remarks(data)))
    assert "no winner is named" in remarks({**data, "ranking": None})[0]
