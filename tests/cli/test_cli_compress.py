"""Students by layers, by file, by target and by methods, from the commands."""

import json
import sys

import pytest
import torch
from cli_calls import call, fails

import freia_kd
from freia_kd.compression import count_macs, count_parameters
from freia_kd.domain import Domain
from freia_kd.teachers import Classifier, build_net, save_classifier


def ranks(result):
    (step,) = result["steps"]
    return {n: tuple(p["ranks"]) for n, p in step["layers"].items()}


def test_layers_and_ranks(compress, tmp_path):
    result = json.loads(call(*compress, "--layers", "conv[23]", "--ranks", 0.25, "--json").stdout)
    assert ranks(result) == {"conv2": (2, 4), "conv3": (4, 30)}
    student = freia_kd.load_student(tmp_path / "small.pt")
    costs = result["costs"]
    assert count_parameters(student) == costs["after"]["parameters"] < costs["before"]["parameters"]
    assert count_macs(student.net, (1, 32, 32)) == costs["after"]["macs"]
    result = json.loads(
        call(*compress, "--layers", "conv3", "--ranks", "5,8", "--json", "--force").stdout
    )
    assert ranks(result) == {"conv3": (5, 8)}


def test_layers_left_alone_are_shown_with_the_reason(compress):
    shown = call(*compress, "--layers", "conv3", "--layers", "fc2", "--ranks", 9).stdout
    assert "9 x 9" in shown
    assert "ranks 9 need 846 weights, not 840" in shown


def test_a_plan_file(compress, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("all: 0.25\nconv1: keep\nfc*: keep\nconv3: [5, 8]\n")
    result = json.loads(call(*compress, "--plan", file, "--json").stdout)
    assert ranks(result) == {"conv2": (2, 4), "conv3": (5, 8)}
    file.write_text("conv2: soup\n")
    assert "conv2: 'soup'" in fails(*compress, "--force", "--plan", file)


@pytest.mark.slow
def test_a_target_with_a_picture(compress, tmp_path):
    plot = tmp_path / "sensitivity.png"
    shown = call(*compress, "--target-params", 0.3, "--plot", plot).stdout
    assert "Target: at most 30.0 % of the teacher's parameters" in shown
    assert plot.read_bytes().startswith(b"\x89PNG")
    student = freia_kd.load_student(tmp_path / "small.pt")
    assert count_parameters(student) <= 0.3 * 61_706


def test_the_runtime_of_a_target_latency_is_said(compress, monkeypatch):
    def plan(net, inputs, target, goal, runtime):
        raise ValueError(f"{target} {goal} in {runtime}")

    monkeypatch.setattr("freia_kd.compression.tucker.search_plan", plan)
    options = [*compress, "--target-latency", 0.7]
    assert "latency 0.7 in torch" in call(*options, code=2).stderr
    assert "latency 0.7 in onnxruntime" in call(*options, "--runtime", "onnxruntime", code=2).stderr


def test_a_runtime_that_is_not_installed_is_refused_before_any_work(compress, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    options = ["--target-latency", 0.7, "--runtime", "onnxruntime"]
    assert "pip install 'freia_kd[onnx]'" in fails(*compress, *options)


def test_methods_of_compression_with_their_options(compress, tmp_path):
    methods = ["--method", "prune", "--method", "quantize", "--set", "quantize.observer=histogram"]
    result = json.loads(call(*compress, *methods, "--keep-ratio", 0.4, "--json").stdout)
    prune, quantize = result["steps"]
    assert prune["keep_ratio"] == 0.4
    assert quantize["observer"] == "histogram"
    assert "--method prune" in fails(*compress, "--force", "--set", "prune.keep_ratio=0.4")


OWN = """
from dataclasses import dataclass
from freia_kd.compression import Compressed, Compression
@dataclass(frozen=True)
class Halve(Compression):
    factor: float = 0.5
    def apply(self, net, inputs, arch=""):
        return Compressed(self.rebuild(net, {}), {"method": self.name, "factor": self.factor})
    @classmethod
    def rebuild(cls, net, step):
        import copy
        return copy.deepcopy(net)
    @classmethod
    def describe(cls, step):
        return "nothing"
"""


def test_a_method_of_ones_own_is_trusted_only_if_it_is_typed(distill, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_halves.py").write_text(OWN)
    own = ["--method", "my_halves:Halve", "--set", "halve.factor=0.25"]
    call(*distill, *own)
    again = ["distill", "--resume", "--out", tmp_path / "run"]
    assert "my_halves:Halve" in fails(*again)
    report = json.loads(call(*again, "--method", "my_halves:Halve", "--json").stdout)
    (student,) = report["students"]
    assert student["steps"] == [{"method": "my_halves:Halve", "factor": 0.25}]


NET = """
from torch import nn
class Tall(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(1024, num_classes))
"""


@pytest.mark.slow
def test_a_new_net_of_ones_own_is_trusted_only_if_it_is_typed(distill, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tall_nets.py").write_text(NET)
    own, quantize = ["--student-arch", "tall_nets:Tall"], ["--method", "quantize"]
    call(*distill, *own, *quantize)
    again = ["distill", "--resume", "--out", tmp_path / "run"]
    assert "--student-arch tall_nets:Tall" in fails(*again)
    report = json.loads(call(*again, *own, "--json").stdout)
    (student,) = report["students"]  # typing it again asks for no other student
    assert [method["name"] for method in student["methods"]] == ["new", "quantize"]
    more = json.loads(call(*again, *own, "--name", "plain", "--json").stdout)
    assert [s["name"] for s in more["students"]] == ["tall-quantize", "plain"]


def test_options_of_a_new_net(compress):
    small = json.loads(call(*compress, "--student-arch", "mlp", "--json").stdout)
    assert (small["steps"], small["costs"]["layers"]) == ([], [])
    said = fails(*compress, "--force", "--student-arch", "lenet5", "--student", 3)
    assert "--student chooses low ranks, which are of --method tucker; it is not given." in said
    assert "lenet6" in fails(*compress, "--force", "--student-arch", "lenet6")


def test_what_compress_writes_is_what_distill_calls_compressed(compress, distill, tmp_path):
    options = ["--layers", "conv3", "--ranks", "5,8", "--bn", "freeze", "--seed", 3]
    small = tmp_path / "small.safetensors"
    call(*compress, *options, "--out", small)
    call(*distill, *options)
    theirs = tmp_path / "run/compressed-custom.safetensors"
    assert small.read_bytes() == theirs.read_bytes()


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
    "no target": (["--runtime", "onnxruntime"], "--runtime is an option of --target-latency"),
    "no such runtime": (
        ["--target-latency", ".5", "--runtime", "tvm"],
        "torch, onnxruntime; got",
    ),
    "no share": (["--target-params", "3"], "share between 0 and 1"),
    "no ratio": (["--method", "prune", "--keep-ratio", "3"], "--keep-ratio: expected less than 1"),
    "no prune": (["--keep-ratio", "0.3"], "--keep-ratio is an option of --method prune"),
    "no tucker": (["--method", "prune", "--layers", "all"], "--layers chooses low ranks"),
    "no method": (["--method", "prun"], "did you mean 'prune'?"),
    "no own method": (["--method", "json:loads"], "Expected a subclass of Compression"),
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


@pytest.mark.slow
def test_distill_by_layers_by_target_and_again(distill, tmp_path):
    call(*distill, "--layers", "conv3", "--ranks", "5,8", "--bn", "freeze")
    run = tmp_path / "run"
    (student,) = json.loads((run / "report.json").read_text())["students"]
    assert ranks(student) == {"conv3": (5, 8)}
    assert student["spec"]["bn"] == "freeze"
    again = ["distill", "--out", run, "--resume"]
    assert "give the new one another name" in fails(*again, "--ranks", "0.5")
    shown = call(*again, "--target-macs", 0.5, "--name", "half").stdout
    assert "Target: at most 50.0 % of the teacher's MACs" in shown
    assert (run / "student-half.pt").exists()


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
