"""The ranking by independent judges, against rankings that are known."""

import numpy as np
import pytest

from freia_kd.compare.evidence import Verdict, _Design, rank_methods

QUALITY = {"good": 0.9, "fair": 0.8, "poor": 0.6}
EASE = {"easy": 0.08, "hard": -0.2, "middling": 0.0, "fourth": 0.05}


def verdicts(noise=0.0, seeds=3, hidden=()):
    generator = np.random.default_rng(0)
    return [
        Verdict(m, j, (s, "1"), q + e + noise * generator.standard_normal())
        for s in range(seeds)
        for m, q in QUALITY.items()
        for j, e in EASE.items()
        if (m, j) not in hidden
    ]


def test_scores_are_additive_and_centred_on_the_mean():
    rows = verdicts()
    ranking = rank_methods(rows)
    assert list(ranking.scores) == ["good", "fair", "poor"]
    mean = np.mean([v.agreement for v in rows])
    for name, quality in QUALITY.items():
        expected = mean + quality - np.mean(list(QUALITY.values()))
        assert ranking.scores[name] == pytest.approx(expected)
    assert ranking.certainty == 1
    assert ranking.rival == "fair"
    assert "clearly" in ranking.sentence()


def test_a_method_without_an_easy_judge_is_not_put_at_a_disadvantage():
    hidden = {("good", "easy"), ("good", "middling"), ("good", "fourth"), ("poor", "hard")}
    rows = verdicts(hidden=hidden)
    means = {m: np.mean([v.agreement for v in rows if v.method == m]) for m in QUALITY}
    assert means["good"] < means["fair"]  # which a plain mean would say
    ranking = rank_methods(rows)
    assert list(ranking.scores) == ["good", "fair", "poor"]
    assert ranking.scores["good"] - ranking.scores["poor"] == pytest.approx(0.3)


def test_noise_makes_it_unsure():
    ranking = rank_methods(verdicts(noise=0.5))
    assert 0.2 < ranking.certainty < 0.95
    assert min(ranking.spread.values()) > 0.02
    assert rank_methods(verdicts(noise=0.5)) == ranking


def test_among_equal_methods_a_clear_winner_is_rare():
    generator = np.random.default_rng(1)
    sure = 0
    for _ in range(12):
        rows = [
            Verdict(m, j, (s, "1"), 0.8 + 0.01 * generator.standard_normal())
            for s in range(3)
            for m in "abcde"
            for j in "vwxyz"
        ]
        sure += "clearly" in rank_methods(rows).sentence()
    assert sure <= 3


def test_few_judges_are_never_clear():
    rows = [v for v in verdicts() if v.judge == "easy"]
    assert rank_methods(rows).certainty == 1
    assert "probably" in rank_methods(rows).sentence()
    assert "overstate" in rank_methods(rows).sentence()


def test_weights_are_repetitions():
    design = _Design(verdicts(noise=0.1), list(QUALITY))
    generator = np.random.default_rng(2)
    weights = design.resample(generator)
    while not 0 < (weights == 0).mean() < 1:
        weights = design.resample(generator)
    rows = [v for v, w in zip(verdicts(noise=0.1), weights, strict=True) for _ in range(int(w))]
    again = _Design(rows, list(QUALITY))
    assert again.fit(np.ones(len(rows))) == pytest.approx(design.fit(weights))


def test_nothing_judged_is_no_ranking():
    assert rank_methods([]) is None
    alone = rank_methods([Verdict("a", "x", (0, "1"), 0.5)])
    assert alone.rival is None
    assert "nothing to choose" in alone.sentence()
