"""Students by layers, by file and by budget, from the commands."""

import json
from typing import get_args

import pytest
import torch
from click.testing import CliRunner

import freia_kd
from freia_kd.cli import students
from freia_kd.cli.main import main
from freia_kd.compression import count_macs, count_parameters
from freia_kd.compression.batchnorm import BatchNorm
from freia_kd.compression.budget import Target
from freia_kd.compression.methods import METHODS
from freia_kd.domain import Domain
from freia_kd.teachers import Classifier, build_net, save_classifier


def call(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def fails(*arguments, code=2):
    result = call(*arguments, code=code)
    assert "Traceback" not in result.output
    lines = [x for x in result.stderr.splitlines() if x and not x.startswith(("Usage:", "Try '"))]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def compress(teacher_file, tmp_path, tiny):
    return ["compress", "--teacher", teacher_file, "--out", tmp_path / "small.pt"]


@pytest.fixture
def distill(teacher_file, tmp_path, tiny):
    out = ["--preset", "quick", "--synthesizer", "uniform", "--device", "cpu"]
    return ["distill", "--teacher", teacher_file, "--out", tmp_path / "run", *out]


def test_names_in_help_are_the_librarys():
    assert tuple(METHODS) == students.METHOD_NAMES
    assert get_args(BatchNorm) == students.BATCHNORM_NAMES
    assert tuple(students.TARGETS.values()) == get_args(Target)


def ranks(result):
    (step,) = result["steps"]
    return {n: tuple(p["ranks"]) for n, p in step["layers"].items()}


def test_layers_and_ranks(compress, tmp_path):
    result = json.loads(call(*compress, "--layers", "conv[23]", "--ranks", 0.25, "--json").stdout)
    assert ranks(result) == {"conv2": (2, 4), "conv3": (4, 30)}
    student = freia_kd.load_student(tmp_path / "small.pt")
    assert count_parameters(student) == result["parameters"] < result["teacher_parameters"]
    assert count_macs(student.net, (1, 32, 32)) == result["macs"]
    result = json.loads(call(*compress, "--layers", "conv3", "--ranks", "5,8", "--json").stdout)
    assert ranks(result) == {"conv3": (5, 8)}


def test_layers_left_alone_are_shown_with_the_reason(compress):
    shown = call(*compress, "--layers", "conv3", "--layers", "fc2", "--ranks", 9).stdout
    assert "9 x 9" in shown
    assert "fc2 was left alone: would not gain: ranks 9 need 846 weights, not 840" in shown


def test_a_plan_file(compress, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("all: 0.25\nconv1: keep\nfc*: keep\nconv3: [5, 8]\n")
    result = json.loads(call(*compress, "--plan", file, "--json").stdout)
    assert ranks(result) == {"conv2": (2, 4), "conv3": (5, 8)}
    file.write_text("conv2: soup\n")
    assert "conv2: 'soup'" in fails(*compress, "--plan", file)


def test_a_budget_on_noise_with_a_picture(compress, tmp_path):
    plot = tmp_path / "sensitivity.png"
    shown = call(*compress, "--target-params", 0.3, "--plot", plot).stdout
    for expected in ("Budget: at most 30.0% of the teacher's parameters", "Judged on noise"):
        assert expected in shown
    assert plot.read_bytes().startswith(b"\x89PNG")
    student = freia_kd.load_student(tmp_path / "small.pt")
    assert count_parameters(student) <= 0.3 * 61_706
    assert "leave --plot away" in fails(*compress, "--student", 2, "--plot", plot)


def test_a_budget_on_the_synthetic_inputs_of_a_run(compress, finished):
    arguments = ["--max-drop", 20, "--synthetic", finished.folder, "--json"]
    budget = json.loads(call(*compress, *arguments).stdout)["budget"]
    assert str(finished.folder) in budget["inputs"]
    assert budget["reached"] <= 20
    assert budget["sensitivity"]


def test_synthetic_inputs_of_another_shape(compress, tmp_path):
    from freia_kd.data.synthetic import SyntheticWriter

    domain = freia_kd.Domain((3, 8, 8), 10)
    writer = SyntheticWriter(tmp_path / "set", domain)
    x = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    writer.append(x, torch.zeros(4, 10), torch.zeros(4, dtype=torch.int64))
    line = fails(*compress, "--target-macs", 0.5, "--synthetic", tmp_path / "set")
    assert "(1, 32, 32); got (3, 8, 8)" in line


USAGE = {
    "student and layers": (["--student", 1, "--layers", "all"], "--student and --layers"),
    "student and ranks": (["--student", 1, "--ranks", "8"], "--student and --ranks"),
    "plan and target": (["--plan", "PLAN", "--target-macs", ".5"], "--plan and --target-macs"),
    "two targets": (["--target-macs", ".5", "--max-drop", 1], "--target-macs and --max-drop"),
    "bad ranks": (["--ranks", "many"], "Expected ranks evbmf"),
    "bad pattern": (["--layers", "conv9"], "No layer matches 'conv9'; the net has conv1"),
    "large rank": (["--layers", "conv3", "--ranks", "300"], "at most 16, 120; got 300, 300"),
    "no gain": (["--layers", "fc2", "--ranks", "10"], "No layer would gain"),
    "out of reach": (["--target-params", "0.001"], "Cannot reach 0.1% of the parameters"),
    "no share": (["--target-params", "3"], "share between 0 and 1"),
}


@pytest.mark.parametrize("command", ["compress", "distill"])
@pytest.mark.parametrize("case", list(USAGE))
def test_usage_errors_come_before_any_work(command, case, request, tmp_path):
    arguments, message = USAGE[case]
    (tmp_path / "plan.yaml").write_text("all: 0.5\n")
    arguments = [tmp_path / "plan.yaml" if a == "PLAN" else a for a in arguments]
    assert message in fails(*request.getfixturevalue(command), *arguments)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "small.pt").exists()


def test_distill_by_layers_by_budget_and_again(distill, tmp_path):
    shown = call(*distill, "--layers", "conv3", "--ranks", "5,8", "--bn", "train").stdout
    assert "student custom" in shown
    run = tmp_path / "run"
    report = json.loads((run / "report.json").read_text())
    assert report["students"][0]["ranks"] == {"conv3": [5, 8]}
    assert report["students"][0]["recipe"]["bn"] == "train"
    again = ["distill", "--out", run, "--resume"]
    assert "student custom" in call(*again).stdout  # as the folder remembers
    assert "rules was {'conv3': [5, 8]}, is {'all': 0.5}" in fails(*again, "--ranks", "0.5")
    shown = call(*again, "--target-macs", 0.5).stdout
    assert "student macs-0.5" in shown
    assert "Budget: at most 50.0% of the teacher's MACs" in shown
    assert (run / "sensitivity.png").exists()
    assert (run / "student-macs-0.5.pt").exists()


def test_batch_normalisation_is_matched_from_the_first_compressed_layer_on(tmp_path):
    domain = Domain((1, 16, 16), 3)
    torch.manual_seed(0)
    teacher = Classifier(build_net("resnet14", domain), domain, "resnet14")
    save_classifier(tmp_path / "teacher.pt", teacher)
    out = tmp_path / "small.pt"
    call("compress", "--teacher", tmp_path / "teacher.pt", "--student", 2, "--out", out)
    before, after = teacher.net.state_dict(), freia_kd.load_student(out).net.state_dict()
    kept = {k for k, v in before.items() if "running" in k and torch.allclose(v, after[k])}
    moved = {k for k in before if "running" in k} - kept
    layers = ("layers3.0.bn2", "layers3.1.bn1", "layers3.1.bn2")  # compressed, or after such a one
    assert moved == {f"{name}.running_{x}" for name in layers for x in ("mean", "var")}
