"""Reports as files: what is written is valid, complete, and read back."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from report_cases import comparison, report, student, table1, unmeasured

from freia_kd.errors import CheckpointError
from freia_kd.report import plots, provenance
from freia_kd.report.schema import Comparison, Report, TableResult
from freia_kd.report.storage import (
    json_schema,
    read_report,
    read_result,
    to_json,
    write_comparison,
    write_report,
    write_table1,
)
from freia_kd.version import COMMAND

SCHEMA = Path(__file__).parents[2] / "docs/report-schema.json"
UPDATE = (
    "import json; from freia_kd.report.storage import json_schema; "
    "print(json.dumps(json_schema(), indent=1))"
)
METRICS = [
    {"stage": "bdnf", "step": 50, "loss": 1.0, "cls": 0.4},
    {"stage": "bdnf", "step": 100, "loss": -0.5, "cls": 0.2},
    {"stage": "student-1", "step": 50, "loss": 0.3},
]


@pytest.fixture
def folder(tmp_path):
    """A run's folder with metrics and pictures."""
    lines = "".join(json.dumps(line) + "\n" for line in METRICS)
    (tmp_path / "metrics.jsonl").write_text(lines)
    images = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    plots.write_png(tmp_path / "synthetic-bdnf.png", plots.plot_grid(images, range(10)))
    return tmp_path


def test_the_schema_published_is_that_of_the_code():
    published = json.loads(SCHEMA.read_text())
    assert published == json_schema(), f"run: python -c '{UPDATE}' > docs/report-schema.json"


@pytest.mark.parametrize(
    ("write", "kind", "result"),
    [
        (write_report, Report, report(student(), student("macs-0.5"))),
        (write_report, Report, unmeasured()),
        (write_comparison, Comparison, comparison()),
        (write_table1, TableResult, table1()),
    ],
)
def test_what_is_written_is_valid_and_read_back(write, kind, result, folder):
    write(folder, result)
    (name,) = (p.stem for p in folder.glob("*.html"))
    data = json.loads((folder / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.validate(data, json_schema())
    assert read_result(folder, kind) == result
    assert (folder / f"{name}.md").stat().st_size > 500
    assert (folder / f"{name}.html").stat().st_size < 1_000_000
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("change", [{"students": "none"}, {"version": "1"}, {"seconds": {"a": -1}}])
def test_the_schema_refuses_what_is_no_report(change):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads(to_json(report())), **change}, json_schema())


def test_a_run_has_its_pictures(folder):
    write_report(folder, report())
    names = {path.name for path in folder.glob("*.png")}
    assert names == {"synthetic-bdnf.png", "curves.png", "costs-1.png", "sensitivity-1.png"}
    page = (folder / "report.html").read_text()
    assert page.count("<img") == 4


@pytest.mark.parametrize("version", [0, 2, None])
def test_a_report_of_another_version_is_refused_in_one_line(version, tmp_path):
    data = json.loads(to_json(report()))
    (tmp_path / "report.json").write_text(json.dumps({**data, "version": version}))
    with pytest.raises(CheckpointError, match=r"Expected version 1 .*got") as error:
        read_report(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "is damaged: "),
        (lambda text: "[1]", "Expected version 1 "),
        (lambda text: text.replace('"value": 0.976', '"value": 97.6'), "damaged at students.0."),
        (lambda text: text.replace('"sha256"', '"md5"'), "at teacher.sha256: field required"),
        (lambda text: "\x80\x00", "is damaged"),
    ],
)
def test_a_damaged_report_is_named_in_one_line(damage, said, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(damage(to_json(report())), encoding="latin-1")
    with pytest.raises(CheckpointError) as error:
        read_report(tmp_path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_report_is_named_too(tmp_path):
    with pytest.raises(CheckpointError, match="there is none"):
        read_report(tmp_path)


def test_provenance_is_of_here_and_now():
    token = COMMAND.set("freiakd distill")
    made = provenance.record({"steps": 3}, torch.device("cpu"), 7)
    COMMAND.reset(token)
    assert (made.command, provenance.record({}, "cpu").command) == ("freiakd distill", None)
    assert (made.seed, made.device, made.config) == (7, "cpu", {"steps": 3})
    assert made.created.endswith("+00:00")
    assert {"freia_kd", "python", "torch"} <= set(made.versions)
