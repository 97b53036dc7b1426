"""What reports say, from reports by hand."""

import re
from dataclasses import replace

import pytest
from report_cases import (
    EVIL,
    SEARCH,
    TEACHER,
    comparison,
    costs,
    report,
    row,
    scores,
    student,
    table1,
    unmeasured,
)

from freia_kd.report.comparison import comparison_document, comparison_table, method_rows
from freia_kd.report.comparison import remarks as comparison_remarks
from freia_kd.report.comparison import verdict as comparison_verdict
from freia_kd.report.document import Code, Table
from freia_kd.report.run import files, main_table, remarks, run_document, verdict
from freia_kd.report.schema import (
    ClassScores,
    Confusion,
    Difference,
    Expectation,
    Proportion,
    RealData,
    Spread,
    TrialResult,
)
from freia_kd.report.student import compression_sections, cost_table, student_sections
from freia_kd.report.table1 import part_table, table1_document


def said(finished):
    return " ".join(remarks(finished))


LESS = "4.0x smaller, 0.3 points less accurate (between -1.9 and +1.3)"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, f"{LESS}, no measured speed-up."),
        ({"costs": costs(0.5)}, f"{LESS}, 2.0x faster (1.8 to 2.2)."),
        (
            {"costs": costs(2.0), "change": None},
            "4.0x smaller, an accuracy of 97.6 % (96.5 to 98.4), 2.0x slower (1.8 to 2.2).",
        ),
        (
            {"costs": costs(0.5, "low rank, int8"), "change": Difference(0.0, -0.01, 0.01)},
            "4.0x smaller, as accurate (between -1.0 and +1.0), speed not measured.",
        ),
    ],
)
def test_the_verdict_of_a_run(changes, sentence):
    finished = report(student(**changes))
    assert verdict(finished, finished.students[0]) == sentence
    assert run_document(finished).verdict == [sentence]


def test_without_real_data_the_verdict_is_about_agreement():
    found = run_document(unmeasured()).verdict[0]
    assert "its teacher's answer on 97.0 % (95.2 to 98.2) of held-out synthetic inputs" in found


def expected(**changes):
    fields = {"value": 0.95, "low": 0.931, "high": 0.976, "level": 0.9, "is_beyond": False}
    evidence = {"families": ["dead leaves", "photographs"]}
    return Expectation(**{**fields, "basis": "Calibrated on few.", "evidence": evidence, **changes})


def test_the_agreement_to_be_expected_on_real_data_is_said():
    one = student(accuracy=None, expected=expected())
    said = "expected agreement on real data 93 to 98 %"
    assert said in run_document(unmeasured(one)).verdict[0]
    (remark,) = [r for r in remarks(unmeasured(one)) if "expected agreement" in r]
    assert remark.endswith(
        "93 to 98 %, by its answers to dead leaves and photographs. Calibrated on few."
    )
    measured = report(student(expected=expected()))
    assert said not in run_document(measured).verdict[0]  # it is known
    assert any("93 to 98 %" in remark for remark in remarks(measured))
    beyond = student(accuracy=None, expected=expected(is_beyond=True))
    assert any("unlike those, so that it says little" in r for r in remarks(unmeasured(beyond)))


def test_a_student_that_distillation_did_not_help_says_so():
    assert not any("as it was before" in r for r in remarks(report()))
    assert any("as it was before" in r for r in remarks(report(student(gained=False))))


def test_a_new_net_has_no_layers_beside_its_teachers():
    bought = replace(costs(), layers=())
    new = student(spec={"arch": "my.nets:Small"}, steps=[], methods=[], costs=bought)
    titles = [section.title for section in student_sections(new)]
    assert "Student 1: layers" not in titles
    assert "Student 1: layers" in [section.title for section in student_sections(student())]
    rows = main_table(report(new)).rows
    assert rows[1][0] == "student 1, untrained"
    assert 'arch="my.nets:Small"' in files(report(new))[1].text


def test_several_students_have_a_verdict_each():
    finished = report(student(), student("3", costs=costs(0.5)))
    assert [v.split(":")[0] for v in run_document(finished).verdict] == ["Student 1", "Student 3"]


def test_three_lines_load_the_student():
    code = next(b for b in files(report()) if isinstance(b, Code))
    assert len(code.text.splitlines()) == 3
    assert 'load_student("student-1.safetensors")' in code.text
    assert "(N, 1, 28, 28), pixels in [0, 1]" in code.text
    compile(code.text, "report", "exec")
    own = report()
    own = replace(own, teacher=replace(own.teacher, arch="package:Net", domain={"shape": [5]}))
    code = next(b for b in files(own) if isinstance(b, Code))
    assert 'arch="package:Net"' in code.text
    assert "pixels" not in code.text


def cells(table):
    return [dict(zip(table.header, cells, strict=True)) for cells in table.rows]


def test_the_main_table():
    table = main_table(report())
    teacher, compressed, distilled = cells(table)
    assert teacher["accuracy"] == "97.9 % (96.8 to 98.6)"
    assert compressed[""] == "student 1, compressed only"
    assert compressed["accuracy"].startswith("77.6 %")
    assert distilled["agreement, held-out synthetic"].startswith("97.0 %")
    assert distilled["file"] == "62 kB (1/4.0)"
    assert distilled["latency, batch 1"] == "1 ms, no measurable difference"
    assert table.strong == {2}
    unseen = main_table(unmeasured())
    assert not {"accuracy", "agreement, real data"} & set(unseen.header)
    assert {len(cells) for cells in unseen.rows} == {len(unseen.header)}


def test_costs_have_units():
    found = {cells[0]: cells[1:] for cells in cost_table(costs(0.5)).rows}
    assert found["file"] == ["248 kB", "62 kB", "25 %"]
    assert found["peak memory, batch 64"] == ["9 MB", "8 MB", "89 %"]
    assert found["latency, batch 1"] == [
        "1 ms (0.9 to 1.1)",
        "0.5 ms (0.45 to 0.55)",
        "2.0x faster (1.8 to 2.2)",
    ]


def test_what_a_synthesizer_chose_is_said_beside_its_inputs():
    (section,) = [s for s in run_document(report()).sections if s.title == "Synthetic inputs"]
    assert f"Of the flows, {EVIL}." in section.blocks


def test_remarks_say_which_real_data_were_used():
    assert "none of the teacher's data" in said(report())
    assert "digits (1,000 inputs), read after the last weight" in said(report())
    assert "photos: It crops two photographs" in said(report())
    assert "640 different inputs" in said(report())
    few = report(real_data=RealData(samples="few", samples_count=10))
    assert "10 real inputs, from few" in said(few)
    assert "with 10 real inputs" in run_document(few).title
    one = report(real_data=RealData(samples="few", samples_count=1))
    assert "1 real input, from few" in said(one)
    assert "all the evidence there is" in said(unmeasured())


def test_tables_are_said_to_have_no_prediction():
    table = replace(TEACHER, accuracy=None, domain={**TEACHER.domain, "shape": [3]})
    measured, unknown = student(expected=None), student(accuracy=None, expected=None)
    assert "nothing predicts its agreement" in said(report(unknown, teacher=table))
    assert "nothing predicts" not in said(report(measured, teacher=table))
    assert "nothing predicts" not in said(unmeasured(unknown))


def test_worse_is_said_of_a_fall_alone_and_surely_where_intervals_are_apart():
    def told(before, after):
        ends = [Proportion(value, 1000, low, high) for value, low, high in (before, after)]
        first, last = (replace(scores(0.9, 0.9), accuracy=share) for share in ends)
        return said(report(student(compressed=first, distilled=last)))

    before = (0.90, 0.85, 0.95)
    assert "made it worse" not in told(before, before)
    assert "though by less than so few" in told(before, (0.80, 0.75, 0.86))  # 0.85 is in both
    assert "(80.0 % after 90.0 %)" in told(before, (0.80, 0.75, 0.84))


def test_a_student_that_distillation_made_worse_is_named():
    worse = student(compressed=scores(0.9, 0.9), distilled=scores(0.8, 0.95))
    assert "Student 1: distillation made it worse" in said(report(worse))
    assert "80.0 % after 90.0 %)" in said(report(worse))
    assert "worse" not in said(report())
    near = student(compressed=scores(0.9, 0.9, 50), distilled=scores(0.88, 0.95, 50))
    assert "by less than so few inputs can show" in said(report(near))


def test_that_is_seen_without_real_data_too():
    worse = student(compressed=scores(None, 0.9), distilled=scores(None, 0.85), change=None)
    assert "worse than compression alone on held-out" in said(unmeasured(worse))
    assert "--samples" in said(unmeasured(worse))
    with_samples = report(worse, real_data=RealData(samples="few", samples_count=10))
    assert "--samples" not in said(with_samples)


def test_one_sided_answers_are_no_success():
    sure = student(distilled=scores(None, 1.0), change=None, commonest=0.6)
    assert "its teacher's answer on 100.0 %" in verdict(unmeasured(sure), sure)
    dead = replace(sure, commonest=0.991)
    assert "no evidence of how good it is" in verdict(unmeasured(dead), dead)
    assert "100.0 %" not in verdict(unmeasured(dead), dead)
    assert "same answer to 99.1 % of the held-out" in said(unmeasured(dead))
    assert "--mean and --std" in said(unmeasured(dead))
    assert "same answer" not in said(unmeasured(sure))
    stays = "is as it was before distillation, which no inputs surely show to have made it better"
    assert stays in said(unmeasured(replace(dead, gained=False)))
    assert stays not in said(unmeasured(replace(sure, gained=False)))


def test_nothing_is_expected_of_agreement_that_shows_nothing():
    """Seen to fail: "no evidence of how good it is, expected agreement on real data 93 to 98 %"."""
    sure = student(distilled=scores(None, 1.0), change=None, commonest=0.6, expected=expected())
    assert "expected agreement on real data 93 to 98 %" in verdict(unmeasured(sure), sure)
    assert "Calibrated on few." in said(unmeasured(sure))
    dead = replace(sure, commonest=0.991)
    assert "expected" not in verdict(unmeasured(dead), dead)
    assert "Calibrated on few." not in said(unmeasured(dead))


def test_an_expectation_beyond_the_calibration_says_so_in_the_verdict():
    beyond = student(distilled=scores(None, 1.0), change=None, expected=expected(is_beyond=True))
    assert "93 to 98 % (of little weight: no such" in verdict(unmeasured(beyond), beyond)


def test_a_student_of_the_same_size_is_not_called_smaller():
    """Seen to fail: "1.0x smaller"."""
    same = costs()
    same = replace(same, after=replace(same.after, bytes=same.before.bytes - 9))
    assert verdict(report(), student(costs=same)).startswith("as large, ")


def test_classes_are_shown_without_real_data_too():
    shares = [ClassScores(label=k, agreement=Proportion.of(0.8, 60)) for k in range(3)]
    counted = Confusion(data="held-out", counts=[[50, 3, 0], [1, 48, 0], [0, 7, 41]])
    blocks = student_sections(student(per_class=shares, confusion=counted))[1].blocks
    assert blocks[0].header == ("class", "agreement with the teacher")
    assert blocks[0].rows[2][0] == "2"
    assert "on held-out synthetic inputs" in blocks[1]


def test_the_lines_that_load_a_student_can_lead_to_its_folder():
    """Seen to fail: in a terminal they named a file of another folder."""
    there = [block for block in files(report(), "runs/a") if isinstance(block, Code)]
    assert 'load_student("runs/a/student-1.safetensors")' in there[0].text
    assert 'load_student("student-1.safetensors")' in files(report())[1].text


def test_one_seed_has_no_bars():
    def caption(row):
        shown = comparison_document(replace(comparison(), rows=[row])).sections[1]
        return shown.blocks[0].caption

    row = comparison().rows[0]
    assert "bars" in caption(replace(row, independent=Spread(0.9, 0.1, 3)))
    assert "bars" not in caption(replace(row, independent=Spread(0.9, None, 1)))


def test_low_agreement_is_said():
    poor = student(distilled=scores(0.9, 0.5))
    assert "fewer than 80 %" in said(report(poor))


def test_advice_names_options_that_exist():
    from freia_kd.cli.distill import command

    known = {option for parameter in command.params for option in parameter.opts}
    poor = student(compressed=scores(None, 0.9), distilled=scores(None, 0.5), change=None)
    named = set(re.findall(r"--[a-z-]+", said(unmeasured(poor))))
    assert {"--preset", "--synthesizer", "--samples"} <= named <= known


def test_the_details_of_a_student():
    titles = [section.title for section in student_sections(student())]
    names = ("methods", "classes", "costs", "layers", "sensitivity")
    assert titles == [f"Student 1: {name}" for name in names]
    classes = student_sections(student())[1].blocks
    assert classes[-1].rows[0] == ["2", "1", "7", "14.6 %"]


def test_compression_alone_can_be_shown():
    sections = compression_sections(costs(), student().steps, [SEARCH])
    text = " ".join(s for sec in sections for b in sec.blocks for s in getattr(b, "sentences", ()))
    assert "fc2 was left alone (tucker): it is too small." in text
    assert "at most 50.0 % of the teacher's MACs; 47.0 % reached" in text
    sensitivity = next(b for b in sections[-1].blocks if isinstance(b, Table))
    assert sensitivity.rows[0] == ["conv2", "6 x 8", "80.0 %", "65.0 %", "55.0 %", ""]
    drop = {**SEARCH, "target": "drop", "goal": 2, "reached": 1.5}
    assert any("2 percentage points" in str(s) for s in compression_sections(costs(), [], [drop]))
    unknown = compression_sections(costs(), [], [{"of": "somebody's method"}, None])
    assert len(unknown) == 2


def test_a_target_latency_is_that_of_a_runtime():
    for runtime in ("torch", "onnxruntime"):
        search = {**SEARCH, "target": "latency", "runtime": runtime}
        remarks = str(compression_sections(student().costs, [], [search])[-1])
        assert f"50.0 % of the teacher's latency in {runtime}; 47.0 % reached" in remarks


def test_the_table_of_a_comparison():
    first, baseline, *_ = cells(comparison_table(comparison()))
    assert first == {
        "method": "first",
        "agreement, independent": "90.0 ± 1.0",
        "accuracy, student 2": "71.7 ± 1.0",
        "recovery, student 2": "62.5 ± 1.0",
        "own agreement, student 2": "90.0 ± 1.0",
        "seconds": "60",
        "inputs": "64",
    }
    assert (baseline["seconds"], baseline["inputs"]) == ("", "")
    assert comparison_table(comparison()).strong == {0}


def test_what_a_comparison_says():
    text = " ".join(comparison_remarks(comparison()))
    for part in ("digits (1,000 inputs)", "seed 1: it broke", "samples needs real samples"):
        assert part in text
    assert "(on real (20) - compressed), where that is 5 points or more" in text
    assert comparison_verdict(comparison()).endswith("probably the best.")
    assert "no winner is named" in comparison_verdict(comparison(ranking=None))
    none = replace(comparison().ranking, winner="compression only")
    assert "leave the students as compressed" in comparison_verdict(comparison(ranking=none))
    assert comparison_document(comparison()).verdict == [comparison_verdict(comparison())]


def test_one_seed_shows_no_spread():
    alone = comparison(rows=[row("first", 0.9, seeds=1)], ranking=None)
    table = comparison_table(alone)
    assert not any("±" in cell for cells in table.rows for cell in cells)
    assert table.strong == frozenset()
    assert "of one seed" in " ".join(comparison_remarks(alone))


# By method, of seeds 0, 1 and 2. With the last seed there is nothing to recover.
ACCURACIES = {
    "none": (0.2, 0.4, 0.9),
    "first": (0.5, 0.7, 0.95),
    "second": (0.4, None, 0.1),  # its second trial failed
    "real": (0.8, 0.8, 0.905),
}
KINDS = {"none": "baseline", "real": "reference"}


@pytest.fixture
def rows():
    trials = [
        TrialResult(
            method=method,
            seed=seed,
            agreement={"2": Proportion.of(0.5 + 0.1 * seed, 10) if method != "none" else None},
            accuracy={"2": Proportion.of(value, 1_000)},
            stages={"fit": 9.0, "student-2": 1.0 + seed},
            images=64 + seed,
            warnings=[f"warned by {method}"],
        )
        for method, values in ACCURACIES.items()
        for seed, value in enumerate(values)
        if value is not None
    ]
    independent = {
        m: Spread(v, 0.01, 3) for m, v in (("second", 0.7), ("none", 0.8), ("first", 0.9))
    }
    return method_rows(trials, independent, KINDS, {"first": "first.png"})


def test_rows_go_from_the_best_to_the_reference(rows):
    assert [row.method for row in rows] == ["first", "none", "second", "real"]
    assert [row.kind for row in rows] == ["method", "baseline", "method", "reference"]
    assert [row.independent and row.independent.mean for row in rows] == [0.9, 0.8, 0.7, None]


def test_values_are_means_over_the_seeds_that_there_are(rows):
    first, none, second, _ = rows
    assert (first.seeds, second.seeds) == (3, 2)
    assert second.accuracy["2"].mean == pytest.approx(0.25)
    assert second.accuracy["2"].std == pytest.approx(0.3 / 2**0.5)
    assert first.own["2"] == Spread(pytest.approx(0.6), pytest.approx(0.1), 3)
    assert none.own["2"] is None
    assert first.seconds.mean == pytest.approx(11)
    assert (first.images, none.images) == (66, 0)
    assert first.warnings == ["warned by first"]
    assert (first.picture, second.picture) == ("first.png", None)


def test_recovery_is_by_seed_and_only_where_there_is_something_to_recover(rows):
    first, none, second, real = (row.recovery["2"] for row in rows)
    assert first.mean == pytest.approx((0.3 / 0.6 + 0.3 / 0.4) / 2)
    assert second == Spread(pytest.approx(0.2 / 0.6), None, 1)
    assert none is real is None


def test_table_1_beside_the_papers():
    part = table1().parts["mnist"]
    shown = {cells[0]: cells[1:] for cells in part_table(part).rows}
    here = "87.5 ± 6.2"
    best = "90.0 ± 1.0"
    assert shown["T+BDNF"] == ["1.0", here, best, "<2.0", here, best, "3.0", here, "", "45"]
    assert shown["T+Normal"] == ["", here, "", "", here, "", "", "failed", "", "30"]
    assert shown["original"][-1] == shown["Tucker (T)"][-1] == ""
    document = table1_document(table1())
    assert document.sections[0].title == "mnist, lenet5"
    sentences = document.sections[1].blocks[0].sentences
    assert any("over 3 seeds" in sentence for sentence in sentences)
    assert any("teachers trained from scratch" in sentence for sentence in sentences)
    assert any("a leak" in sentence for sentence in sentences)
    given = table1_document(table1(teacher="mine.pt", students="kegnet")).sections[1]
    assert "the students of KegNet; the teacher mine.pt" in given.blocks[0].sentences[0]
    assert f"Failed: mnist {EVIL}: no noise today" in sentences
