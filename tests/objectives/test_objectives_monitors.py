import json
import re

import numpy as np
import pytest
import torch
from scipy.special import softmax
from tiny_flows import Sigmoid, TinyFlow, make_teacher

from freia_kd.objectives import Terms, diagnose, diagnose_flow, not_finite


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


C = torch.arange(60) % 3


def test_health_is_what_numpy_says():
    x, reference, logits = draw(60, 4), 2 * draw(90, 4, seed=1), draw(60, 3, seed=2)
    health = diagnose(logits, x, C, reference)
    p = softmax(logits.numpy(), 1)
    np.testing.assert_allclose(health.confidence, p[np.arange(60), C].mean())
    np.testing.assert_allclose(health.hit_rate, (p.argmax(1) == C.numpy()).mean())
    np.testing.assert_allclose(health.class_shares, np.bincount(p.argmax(1)) / 60, rtol=1e-6)
    np.testing.assert_allclose(health.balance, np.bincount(p.argmax(1)).min() / 20, rtol=1e-6)
    scale = np.sqrt(reference.numpy().var(0, ddof=1).mean())
    for k in range(3):
        deviation = np.sqrt(x.numpy()[k::3].var(0, ddof=1).mean())
        np.testing.assert_allclose(health.variety[k], deviation / scale)
    assert health.finite


def good():
    """Samples that are varied, balanced and recognised."""
    return {
        "logits": 5.0 * torch.nn.functional.one_hot(C, 3).double(),
        "x": draw(60, 4),
        "c": C,
        "reference": draw(60, 4, seed=1),
    }


def collapse_class_1(samples):
    samples["x"][1::3] = 0.001 * samples["x"][1::3]


def lose_class_2(samples):
    samples["logits"][2::3] = torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64)


def lose_confidence(samples):
    samples["logits"] *= -1


def break_samples(samples):
    samples["x"][3, 1] = torch.nan


def break_logits(samples):
    samples["logits"][3, 1] = torch.inf


@pytest.mark.parametrize(
    ("fault", "messages"),
    [
        (lambda samples: None, []),
        (collapse_class_1, ["samples of class 1 have collapsed.*: do variety"]),
        (lose_class_2, ["hardly ever sees class 2 .*: do classes"]),
        (lose_confidence, ["probability of 0.00 only: do confidence"]),
        (break_samples, ["not finite: do finite"]),
        (break_logits, ["not finite: do finite"]),
    ],
)
def test_warnings_name_the_fault_and_the_remedy(fault, messages):
    samples = good()
    fault(samples)
    health = diagnose(**samples)
    signs = "finite", "variety", "classes", "confidence"
    warnings = health.warnings({sign: f"do {sign}" for sign in signs})
    assert [w.partition(": ")[0] + "." for w in warnings] == health.warnings()
    if fault is lose_confidence:
        warnings = warnings[-1:]
    assert len(warnings) == len(messages)
    for warning, message in zip(warnings, messages, strict=True):
        assert re.search(message, warning)
    json.dumps(health.to_dict(), allow_nan=False)


def test_flow_is_examined_against_what_the_identity_gives():
    flow = TinyFlow((1, 2, 2), squash=Sigmoid()).double()
    teacher = make_teacher((1, 2, 2))
    health = diagnose_flow(flow, teacher, 30, torch.Generator().manual_seed(0))
    assert health == diagnose_flow(flow, teacher, 30, torch.Generator().manual_seed(0))
    assert all(0.1 < value < 2 for value in health.variety)
    with torch.no_grad():
        flow.scale -= 8
    collapsed = diagnose_flow(flow, teacher, 30, torch.Generator().manual_seed(0))
    assert "class 0, 1, 2 have collapsed" in collapsed.warnings()[0]


def test_class_with_one_sample_has_no_variety():
    health = diagnose(draw(4, 3), draw(4, 2), torch.tensor([0, 0, 0, 1]), draw(4, 2))
    assert health.variety[1:] == (None, None)


def test_misfits_are_refused():
    with pytest.raises(
        ValueError, match="for 4 samples and a reference of 2 or more; got 4, 3 and 4"
    ):
        diagnose(draw(4, 3), draw(4, 2), torch.tensor([0, 0, 0]), draw(4, 2))


def test_not_finite_names_terms():
    nan, inf = torch.tensor(float("nan")), torch.tensor(float("-inf"))
    assert not_finite(Terms(cls=nan, volume=torch.tensor(1.0), prior=inf)) == ["cls", "prior"]
