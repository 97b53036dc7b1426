"""Exported classifiers: what each runtime makes of the file, and faults that must be caught."""

import copy
import errno
import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torchvision import models

import freia_kd
from freia_kd import runtimes
from freia_kd.compression import (
    Quantize,
    apply_plan,
    load_classifier,
    make_plan,
    student_plan,
)
from freia_kd.domain import DOMAINS, Domain
from freia_kd.errors import ExportError
from freia_kd.exporting import FORMATS, export_classifier, formats, int8
from freia_kd.teachers import Classifier, build_net, read_checkpoint
from pace import slow_but

SMALL = Domain((3, 16, 16), 5, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "small")
TABLE = Domain((6,), 4, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), (2.0,) * 6, "table")
LARGE = Domain((3, 64, 64), 10, (0.5,), (0.25,), "large")


def vgg11_bn():
    """VGG11-BN without the two layers that hold nine tenths of its 129 million weights."""
    with torch.device("meta"):
        net = models.vgg11_bn(num_classes=10)
        net.classifier[0], net.classifier[3] = nn.Linear(25088, 32), nn.Linear(32, 4096)
    net = net.to_empty(device="cpu")
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return net


LARGE_NETS = {
    "resnet18": lambda: models.resnet18(num_classes=10),
    "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=10, width_mult=0.5),
    "vgg11_bn": vgg11_bn,
}


def compressed(net, domain, arch, plan):
    steps = [{"method": "tucker", **plan.to_dict()}]
    return Classifier(apply_plan(net, plan), domain, arch), {"compression": steps}


def make(name):
    """A compressed classifier with random weights, and its metadata."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "lenet5":
            net = build_net(name, DOMAINS["mnist"])
            return compressed(net, DOMAINS["mnist"], name, student_plan(net, name, "2"))
        domain = {"resnet14": SMALL, "mlp": TABLE}.get(name, LARGE)
        net = LARGE_NETS[name]() if name in LARGE_NETS else build_net(name, domain)
        return compressed(net, domain, name, make_plan(net, ranks=0.5))


def pixels(domain, count=12):
    generator = torch.Generator().manual_seed(1)
    draw = torch.rand if domain.is_image else torch.randn
    return draw(count, *domain.shape, generator=generator)


def by_hand(classifier, x):
    """Logits without the package's own normalisation."""
    domain = classifier.domain
    view = (1, -1) + (1,) * (len(domain.shape) - 1)
    mean, std = (np.asarray(v, np.float32).reshape(view) for v in (domain.mean, domain.std))
    with torch.no_grad():
        return classifier.net.eval()(torch.from_numpy((x.numpy() - mean) / std)).numpy()


IS_OLD = "custom_translation_table" not in inspect.signature(torch.onnx.export).parameters
by_program = pytest.mark.skipif(
    IS_OLD, reason="before torch 2.6 ONNX goes by tracing, which sees no steps and no integers"
)


def run_alone(path, x):
    """Logits of a file in its own runtime, by none of the package's code but load_classifier."""
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(path).run(None, {"pixels": x.numpy()})[0]
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(x).detach().numpy()
    return load_classifier(path)(x).detach().numpy()


@pytest.mark.parametrize(
    "name", ["lenet5", "mlp", pytest.param("resnet14", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("format", FORMATS)
def test_files_give_the_logits(name, format, tmp_path):
    classifier, meta = make(name)
    path = tmp_path / f"student{FORMATS[format].suffixes[0]}"
    result = export_classifier(classifier, path, format, pixels(classifier.domain), meta, 0.0)
    assert result.same_top1 == 1.0
    assert result.max_difference <= result.tolerance
    assert result.bytes == path.stat().st_size
    for count in (1, 3, 17):
        x = pixels(classifier.domain, count)
        expected = by_hand(classifier, x)
        np.testing.assert_allclose(
            run_alone(path, x), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11_bn"])
def test_compressed_nets_of_torchvision(name, tmp_path):
    classifier, _ = make(name)
    for format in ("onnx", "torch-export"):
        path = tmp_path / f"student{FORMATS[format].suffixes[0]}"
        result = export_classifier(classifier, path, format, pixels(LARGE, 4), None, 0.0)
        assert result.same_top1 == 1.0
        x = pixels(LARGE, 3)
        expected = by_hand(classifier, x)
        assert np.abs(run_alone(path, x) - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("format", FORMATS)
def test_files_say_what_they_are(format, tmp_path):
    classifier, meta = make("mlp")
    meta["export"] = {"source": "run/student-1.safetensors"}
    path = tmp_path / f"student{FORMATS[format].suffixes[0]}"
    export_classifier(classifier, path, format, pixels(TABLE), meta, 0.0)
    if format == "onnx":
        model = onnx.load(path)
        (opset,) = model.opset_import
        assert opset.version == runtimes.OPSET
        properties = {p.key: p.value for p in model.metadata_props}
        assert properties["classes"] == "4"
        own = json.loads(properties["freia_kd"])
        shapes = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.output)
        }
        assert shapes == {"pixels": ["batch", 6], "logits": ["batch", 4]}
    elif format == "torch-export":
        files = {"freia_kd.json": ""}
        torch.export.load(path, extra_files=files)
        own = json.loads(files["freia_kd.json"])
    else:
        own = read_checkpoint(path).own
    assert own == {**meta, "arch": "mlp", "domain": TABLE.to_dict()}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_files_are_the_same_each_time_and_name_no_file_of_this_machine(format, tmp_path):
    if format == "torch-export" and IS_OLD:
        pytest.skip("torch 2.4 writes the time into these files")
    classifier, meta = make("mlp")
    paths = [tmp_path / f"{i}{FORMATS[format].suffixes[0]}" for i in "ab"]
    for path in paths:
        export_classifier(classifier, path, format, pixels(TABLE), meta, 0.0)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    for name in (freia_kd.__file__, torch.__file__, str(tmp_path)):
        assert str(Path(name).parent).encode() not in first


def test_the_classifier_is_left_as_it_was(tmp_path):
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
    classifier = Classifier(net, TABLE, "own").train()
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    export_classifier(classifier, tmp_path / "a.pt2", "torch-export", pixels(TABLE), None, 0.0)
    assert all(m.training for m in classifier.modules())
    assert all(p.requires_grad for p in classifier.parameters())
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())


def faulty(monkeypatch, format, **changes):
    monkeypatch.setitem(FORMATS, format, replace(FORMATS[format], **changes))


@pytest.mark.parametrize("format", FORMATS)
def test_one_changed_weight_is_caught_and_the_old_file_stays(format, tmp_path, monkeypatch):
    classifier, meta = make("mlp")
    write = FORMATS[format].write

    def damaged(classifier, path, own):
        other = copy.deepcopy(classifier)
        with torch.no_grad():
            last = [p for name, p in other.named_parameters() if name.endswith("bias")][-1]
            last[0] += 1e-3
        write(other, path, own)

    faulty(monkeypatch, format, write=damaged)
    path = tmp_path / f"student{FORMATS[format].suffixes[0]}"
    path.write_text("old")
    with pytest.raises(ExportError, match=r"by up to 0\.001"):
        export_classifier(classifier, path, format, pixels(TABLE), meta, 0.0)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "old"


def test_a_file_for_one_size_of_batch_is_caught(tmp_path, monkeypatch):
    classifier, meta = make("mlp")

    def fixed(classifier, path, own):
        program = torch.export.export(formats._Deployed(classifier), (pixels(TABLE, 1),))
        torch.export.save(program, path)

    faulty(monkeypatch, "torch-export", write=fixed)
    with pytest.raises(ExportError, match="does not run the file on a batch of 12"):
        export_classifier(classifier, tmp_path / "a.pt2", "torch-export", pixels(TABLE), meta)
    assert not list(tmp_path.iterdir())


class Constant(nn.Module):
    """The same logits for every input."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def export_altered(monkeypatch, tmp_path, logits, change):
    """Exports constant logits to a runtime that changes them."""
    classifier = Classifier(Constant(*logits), Domain((2,), len(logits)), "constant")
    answer = lambda x: change(classifier(x))  # noqa: E731
    faulty(monkeypatch, "torch", load=lambda *_: answer)
    return export_classifier(classifier, tmp_path / "a.pt", "torch", torch.zeros(4, 2), None, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y + torch.tensor([0.0, 8e-5, 0.0]), "other classes than the student to 8 of 8"),
        (lambda y: y + 2e-4, "differ"),
        (lambda y: y * float("nan"), "differ .* up to nan"),
        (lambda y: torch.where(torch.tensor(len(y) == 1), y, -y), "differ"),
        (lambda y: torch.where(torch.tensor(len(y) > 1), y, -y), "differ"),
        (lambda y: y[:, :2], r"Expected logits of shape \(8, 3\); torch gives \(8, 2\)"),
    ],
)
def test_runtimes_that_compute_something_else(change, message, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match=message):
        export_altered(monkeypatch, tmp_path, (1.0, 1 - 5e-5, 0.0), change)
    assert not list(tmp_path.iterdir())


def test_a_tie_may_break_either_way(tmp_path, monkeypatch):
    def change(y):
        return y + torch.tensor([0.0, 1e-6, 0.0])

    result = export_altered(monkeypatch, tmp_path, (1.0, 1.0, 0.0), change)
    assert result.same_top1 == 0.0
    assert result.max_difference == pytest.approx(1e-6, rel=0.1)
    assert (tmp_path / "a.pt").exists()


class Moody(nn.Module):
    """A net whose steps depend on its input, which no exporter can follow."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else -self.linear(x)


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=by_program), "torch-export"])
def test_nets_that_cannot_be_exported(format, tmp_path):
    classifier = Classifier(Moody(), TABLE, "moody")
    path = tmp_path / f"a{FORMATS[format].suffixes[0]}"
    with pytest.raises(ExportError, match=r"export moody .*any size"):
        export_classifier(classifier, path, format, pixels(TABLE))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_names_the_extra(library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    classifier, _ = make("mlp")
    with pytest.raises(ImportError, match=rf"{library},.*`pip install 'freia_kd\[onnx\]'"):
        export_classifier(classifier, tmp_path / "a.onnx", "onnx", pixels(TABLE))


def test_bad_arguments(tmp_path):
    classifier, meta = make("mlp")
    with pytest.raises(ValueError, match="one of the formats torch, safetensors, onnx"):
        export_classifier(classifier, tmp_path / "a.tflite", "tflite", pixels(TABLE))
    with pytest.raises(ValueError, match=r"2 inputs or more .*got 1"):
        export_classifier(classifier, tmp_path / "a.pt", "torch", pixels(TABLE, 1), meta)


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_a_full_disk_leaves_nothing(format, tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    classifier, _ = make("mlp")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        export_classifier(classifier, tmp_path / f"a{format}", format, pixels(TABLE))
    assert not list(tmp_path.iterdir())


def test_other_formats_of_one_student_agree(tmp_path):
    classifier, meta = make("lenet5")
    x = pixels(DOMAINS["mnist"])
    for format in ("torch", "safetensors"):
        export_classifier(classifier, tmp_path / f"a.{format}", format, x, meta, 0.0)
    states = [load_classifier(tmp_path / f"a.{f}").state_dict() for f in ("torch", "safetensors")]
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


@pytest.fixture
def quantised():
    """A convolutional and a linear layer of eight bits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_net("lenet5", DOMAINS["mnist"])
    x = pixels(DOMAINS["mnist"], 32)
    net = Quantize().apply(net, DOMAINS["mnist"].normalize(x)).net
    return Classifier(net.eval(), DOMAINS["mnist"], "lenet5"), x


@by_program
def test_quantised_layers_are_integers_in_onnx(quantised, tmp_path):
    classifier, x = quantised
    path = tmp_path / "int8.onnx"
    result = export_classifier(classifier, path, "onnx", x, None, 0.0)
    assert result.max_difference <= result.tolerance
    graph = onnx.load(path).graph
    nodes = [node.op_type for node in graph.node]
    assert nodes.count("QuantizeLinear") == 5  # the inputs of five layers
    assert nodes.count("DequantizeLinear") == 10  # and their weights
    weights = [i for i in graph.initializer if i.name.endswith("weight")]
    assert [w.data_type for w in weights] == [onnx.TensorProto.INT8] * 5
    floats = sum(4 * p.numel() for p in classifier.parameters())
    assert path.stat().st_size < 0.5 * floats
    with torch.no_grad():
        expected = classifier(x).numpy()
    error = np.abs(run_alone(path, x) - expected)
    assert error.mean() < 2e-3 * np.abs(expected).max()  # far less than the tolerance


def test_quantised_layers_are_exact_in_torch_export(quantised, tmp_path):
    classifier, x = quantised
    before = copy.deepcopy(classifier.state_dict())
    result = export_classifier(classifier, tmp_path / "a.pt2", "torch-export", x, None, 0.0)
    assert result.max_difference <= result.tolerance < 1e-3
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())


@by_program
@pytest.mark.parametrize("wrong", slow_but("zero point", ["weight scale", "zero point"]))
def test_a_wrong_scale_of_a_quantised_layer_is_caught(wrong, quantised, tmp_path, monkeypatch):
    classifier, x = quantised
    layer = int8._IntegerLayer

    def damaged(*arguments):
        made = layer(*arguments)
        if wrong == "weight scale":
            made.scale *= 1.1
        else:
            made.input_zero_point += 128
        return made

    monkeypatch.setattr(int8, "_IntegerLayer", damaged)
    with pytest.raises(ExportError, match="differ"):
        export_classifier(classifier, tmp_path / "a.onnx", "onnx", x, None, 0.0)
    assert not list(tmp_path.iterdir())
