"""Inputs that do not show the classes asked for: nobody learns from them."""

import re

import pytest
import torch
from job_cases import TINY, make_data, students_in

from freia_kd import distill, resume
from freia_kd.data.synthetic import SyntheticSet
from freia_kd.domain import Domain
from freia_kd.errors import TrainingError
from freia_kd.job.synthesis import weakness
from freia_kd.objectives.monitors import Diagnostics
from freia_kd.report.render import markdown
from freia_kd.report.run import run_document
from freia_kd.synthesizers import SYNTHESIZERS, get_synthesizer
from freia_kd.synthesizers.knowledge_within import KnowledgeWithinOptions, KWInception
from freia_kd.teachers import Teacher, build_net

SHORT = KnowledgeWithinOptions(images=20, batch_size=20, steps=1, learning_rate=1e-3)
SAID = re.compile(r"kw-inception: .*mean probability of 0\.\d{3} \(expected 0\.90 or more\)")
LOW = {"students": ["1"], "preset": TINY, "device": "cpu"}


def make_lenet():
    """A teacher of which the papers' students can be made."""
    domain = Domain((1, 32, 32), 4, (0.3,), (0.3,), "small")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Teacher(build_net("lenet5", domain), domain, "lenet5")


def test_alone_they_stop_the_run(tmp_path):
    """Seen to fail: the students learned from them all the same."""
    taught = make_lenet()
    with pytest.raises(TrainingError, match=SAID):
        distill(taught, synthesizer=KWInception(SHORT), out=tmp_path / "run", **LOW)
    with pytest.raises(TrainingError, match=r"--set kw-inception\.min_probability=0"):
        resume(tmp_path / "run", teacher=taught)
    assert not (tmp_path / "run/student.pt").exists()
    told = KWInception(SHORT.changed(min_probability=0.0))
    found = distill(taught, synthesizer=told, out=tmp_path / "told", **LOW).report
    assert found.synthesizers[0].reliable


@pytest.mark.slow
@pytest.mark.parametrize("on_the_fly", [False, True])
def test_beside_others_they_are_left_out(tmp_path, on_the_fly):
    taught = make_lenet()
    given = [KWInception(SHORT), "spectral"]
    options = {**LOW, "on_the_fly": on_the_fly}
    run = distill(taught, synthesizer=given, out=tmp_path / "run", **options)
    alone = distill(taught, synthesizer="spectral", out=tmp_path / "alone", **options)
    assert students_in(tmp_path / "run") == students_in(tmp_path / "alone")
    assert len(SyntheticSet(tmp_path / "run/synthetic/heldout")) == TINY.heldout_size
    poor, good = run.report.synthesizers
    assert (poor.reliable, good.reliable, alone.report.synthesizers[0].reliable) == (0, 1, 1)
    assert SAID.search(markdown(run_document(run.report), run.folder))
    again = resume(tmp_path / "run", teacher=taught, eval_data=make_data(taught.domain))
    assert not again.report.synthesizers[0].reliable


def test_only_methods_that_ask_for_a_class_must_reach_it():
    asking = {"deepinversion", "adaptive-deepinversion", "kw-inception", "kw-mixture"}
    found = {n for n in SYNTHESIZERS.builtin if n != "proxy" and build(n).min_probability > 0}
    assert found == asking
    assert build("kw-mixture", {"min_probability": 0.5}).min_probability == 0.5


def test_what_is_said_is_below_what_was_expected():
    """Seen to fail: "0.90 (expected 0.90 or more)"."""
    nearly = Diagnostics(0.8999, 1.0, (0.5, 0.5), (1.0, 1.0), True)
    assert "of 0.899 (expected 0.90 or more)" in weakness(build("deepinversion"), nearly)


def build(name, options=None):
    return get_synthesizer(name).build("quick", options)
