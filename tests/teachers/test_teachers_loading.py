"""Checkpoints: what loads, what is refused, and that nothing in a file runs."""

import argparse
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from freia_kd.compression import load_classifier, load_teacher
from freia_kd.domain import DOMAINS, Domain
from freia_kd.errors import CheckpointError, UsageError
from freia_kd.teachers import (
    Classifier,
    Teacher,
    build_net,
    read_checkpoint,
    recognise_arch,
    save_classifier,
)
from freia_kd.teachers.lenet5 import LeNet5

MNIST = DOMAINS["mnist"]
CUSTOM = "own_net_for_loading_test:Net"


@pytest.fixture
def net():
    torch.manual_seed(0)
    return LeNet5(1, 10)


@pytest.fixture
def custom_arch(tmp_path, monkeypatch):
    """A net of the user's own, whose module leaves a trace when it is imported."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_net_for_loading_test.py").write_text(
        "import pathlib\n"
        "from torch import nn\n"
        "pathlib.Path(__file__).with_name('imported').touch()\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(4, 3))\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(os.sys.modules, "own_net_for_loading_test", raising=False)
    return folder / "imported"


# --- What loads ---

WRAPPERS = {
    "bare": lambda state: state,
    "model_state": lambda state: {"model_state": state},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "data-parallel": lambda state: {f"module.{k}": v for k, v in state.items()},
    "compiled": lambda state: {"model_state": {f"_orig_mod.{k}": v for k, v in state.items()}},
    "compiled-in-ddp": lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
    "ddp-in-compiled": lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_torch_files_load(tmp_path, net, wrapper, suffix):
    path = tmp_path / f"teacher{suffix}"
    torch.save(WRAPPERS[wrapper](net.state_dict()), path)
    teacher = load_teacher(path, domain=MNIST)
    x = torch.rand(3, 1, 32, 32)
    assert isinstance(teacher, Teacher)
    assert teacher.arch == "lenet5"
    assert torch.equal(teacher(x), net(MNIST.normalize(x)))


def test_files_of_torch_before_1_6_load(tmp_path, net):
    path = tmp_path / "mnist.pth.tar"
    torch.save({"model_state": net.state_dict()}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_teacher(path, domain=MNIST).net.fc2.bias, net.fc2.bias)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["teacher.safetensors", "teacher.bin"])
def test_safetensors_of_others_load(tmp_path, net, name, prefix):
    path = tmp_path / name
    state = {prefix + k: v for k, v in net.state_dict().items()}
    safetensors.torch.save_file(state, path, {"format": "pt"})
    assert torch.equal(load_teacher(path, domain=MNIST).net.fc2.bias, net.fc2.bias)


def test_resnet14_of_others_loads_with_its_running_statistics(tmp_path):
    torch.manual_seed(0)
    net = build_net("resnet14", DOMAINS["svhn"])
    net(torch.randn(8, 3, 32, 32))  # moves the statistics
    torch.save({"model_state": net.state_dict()}, tmp_path / "svhn.pth.tar")
    teacher = load_teacher(tmp_path / "svhn.pth.tar", domain=DOMAINS["svhn"])
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(teacher(x), net.eval()(DOMAINS["svhn"].normalize(x)))


def test_any_module_loads_by_its_path(tmp_path, custom_arch):
    state = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).state_dict()
    torch.save(state, tmp_path / "own.pt")
    domain = Domain((1, 2, 2), 3)
    classifier = load_classifier(tmp_path / "own.pt", arch=CUSTOM, domain=domain)
    assert torch.equal(classifier.net[1].weight, state["1.weight"])
    assert classifier.arch == CUSTOM


def test_a_child_named_module_is_kept_in_own_files(tmp_path, monkeypatch):
    (tmp_path / "own_wrapped_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.module = nn.Linear(2, 3)\n"
        "    def forward(self, x):\n"
        "        return self.module(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arch, domain = "own_wrapped_net:Net", Domain((2,), 3)
    save_classifier(tmp_path / "a.pt", Classifier(build_net(arch, domain), domain, arch))
    assert list(read_checkpoint(tmp_path / "a.pt").state) == ["module.weight", "module.bias"]
    load_classifier(tmp_path / "a.pt", arch=arch)


# --- Own files ---


@pytest.mark.parametrize("name", ["lenet5.pt", "lenet5.pth.tar", "lenet5.safetensors"])
def test_saving_and_loading_keeps_everything(tmp_path, net, name):
    classifier = Classifier(net, MNIST, "lenet5").eval()
    save_classifier(tmp_path / name, classifier, {"note": {"accuracy": 0.5}})
    loaded = load_classifier(tmp_path / name)
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(loaded(x), classifier(x))
    assert (loaded.domain, loaded.arch, loaded.training) == (MNIST, "lenet5", False)
    assert read_checkpoint(tmp_path / name).own == {
        "arch": "lenet5",
        "domain": MNIST.to_dict(),
        "note": {"accuracy": 0.5},
    }


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_equal_classifiers_give_equal_bytes(tmp_path, net, suffix):
    classifier = Classifier(net, MNIST, "lenet5")
    first, second = tmp_path / f"first{suffix}", tmp_path / "b" / f"second{suffix}"
    save_classifier(first, classifier)
    save_classifier(second, classifier)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tied_weights_are_saved(tmp_path, suffix):
    net = build_net("mlp", Domain((64,), 64))
    net.layers[1].weight = net.layers[0].weight
    save_classifier(tmp_path / f"a{suffix}", Classifier(net, Domain((64,), 64), "mlp"))
    state = load_classifier(tmp_path / f"a{suffix}").net.state_dict()
    assert torch.equal(state["layers.1.weight"], net.layers[0].weight)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, net, suffix, monkeypatch):
    path = tmp_path / f"a{suffix}"
    save_classifier(path, Classifier(net, MNIST, "lenet5"))
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_classifier(path, Classifier(net, MNIST, "lenet5"))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_metadata_that_are_not_plain_are_refused_before_writing(tmp_path, net):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_classifier(tmp_path / "a.pt", Classifier(net, MNIST, "lenet5"), {"x": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["student.pt", "student.safetensors"])
@pytest.mark.parametrize("student", ["1", "2", "3"])
def test_compressed_students_load_without_the_teacher(tmp_path, net, name, student):
    from freia_kd.compression import apply_plan, student_plan

    plan = student_plan(net, "lenet5", student)
    compressed = apply_plan(net, plan).eval()
    classifier = Classifier(compressed, MNIST, "lenet5")
    save_classifier(
        tmp_path / name, classifier, {"compression": [{"method": "tucker", **plan.to_dict()}]}
    )
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(load_classifier(tmp_path / name)(x), classifier(x))


def test_compressed_mlp_of_other_widths_loads(tmp_path):
    from freia_kd.compression import apply_plan, make_plan
    from freia_kd.teachers.mlp import MLP

    torch.manual_seed(0)
    net, domain = MLP(32, 3, (48, 40)), Domain((32,), 3)
    plan = make_plan(net, ["layers.0", "layers.1"], ranks=4)
    classifier = Classifier(apply_plan(net, plan), domain, "mlp")
    save_classifier(
        tmp_path / "a.pt", classifier, {"compression": [{"method": "tucker", **plan.to_dict()}]}
    )
    x = torch.rand(2, 32)
    assert torch.equal(load_classifier(tmp_path / "a.pt")(x), classifier(x))


def own_file(path, net, **changes):
    own = {"arch": "lenet5", "domain": MNIST.to_dict(), **changes}
    torch.save({"model_state": net.state_dict(), "freia_kd": own}, path)
    return path


LAYERS = {"conv9": {"method": "tucker2", "ranks": [1, 1]}}


@pytest.mark.parametrize(
    "steps", [3, {}, [3], [{}], [{"method": "tucker"}], [{"method": "tucker", "layers": LAYERS}]]
)
def test_a_malformed_compression_is_refused(tmp_path, net, steps):
    path = own_file(tmp_path / "a.pt", net, compression=steps)
    with pytest.raises(CheckpointError, match=r"a\.pt records a compression that does not fit"):
        load_classifier(path)


@pytest.mark.parametrize("domain", [3, {"shape": [1, 32, 32]}, {"shape": [0], "classes": 10}, {}])
def test_a_malformed_domain_is_refused(tmp_path, net, domain):
    path = own_file(tmp_path / "a.pt", net, domain=domain)
    with pytest.raises(CheckpointError, match=r"a\.pt records no valid domain"):
        load_classifier(path)


def test_code_that_a_file_names_is_not_imported_unless_the_user_names_it(tmp_path, custom_arch):
    domain = Domain((1, 2, 2), 3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    save_classifier(tmp_path / "a.pt", Classifier(net, domain, CUSTOM))
    with pytest.raises(UsageError, match=f"pass --arch {CUSTOM}"):
        load_classifier(tmp_path / "a.pt")
    assert not custom_arch.exists()
    load_classifier(tmp_path / "a.pt", arch=CUSTOM)
    assert custom_arch.exists()


# --- Files that are no checkpoints ---


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def hostile_torch_file(path, payload):
    torch.save({"model_state": payload}, path)


def hostile_legacy_torch_file(path, payload):
    torch.save({"model_state": payload}, path, _use_new_zipfile_serialization=False)


def hostile_pickle(protocol):
    def write(path, payload):
        path.write_bytes(pickle.dumps(payload, protocol=protocol))

    return write


HOSTILE = {
    "zip": hostile_torch_file,
    "legacy": hostile_legacy_torch_file,
    **{f"pickle{protocol}": hostile_pickle(protocol) for protocol in range(6)},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_and_does_not_run(tmp_path, kind):
    trace, path = tmp_path / "trace", tmp_path / "teacher.pt"
    HOSTILE[kind](path, Payload(trace))
    named = rf"{os.system.__module__}\.system"
    with pytest.raises(
        CheckpointError, match=f"wants to run code.*it names {named}.*nothing was run.*state_dict"
    ) as caught:
        load_teacher(path, domain=MNIST)
    assert not trace.exists()
    assert "\n" not in str(caught.value)


def test_the_hostile_payload_would_have_run(tmp_path):
    """The test above means something only if loading without care runs the payload."""
    trace, path = tmp_path / "trace", tmp_path / "teacher.pt"
    hostile_torch_file(path, Payload(trace))
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_whole_pickled_module_is_refused(tmp_path, net):
    torch.save(net, tmp_path / "teacher.pt")
    with pytest.raises(
        CheckpointError, match=r"it names freia_kd\.teachers\.lenet5\.LeNet5.*nothing was run"
    ) as caught:
        load_teacher(tmp_path / "teacher.pt", domain=MNIST)
    convert(caught.value)
    converted = load_teacher(tmp_path / "teacher-weights.pt", domain=MNIST)
    assert equal(converted.net.state_dict(), net.state_dict())


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: {"model": net},
        lambda net: {"epoch": 3, "opt": {"state": {0: torch.ones(2)}, "lr": 0.1}, "model": net},
        lambda net: {"args": argparse.Namespace(arch="model", out=Path("runs")), "model": net},
        lambda net: {"name": "x", "model": nn.Sequential(net)[0], "last": torch.ones(3)},
    ],
)
def test_a_module_in_a_dict_is_named_with_its_key(tmp_path, net, wrap, old, protocol):
    options = {"_use_new_zipfile_serialization": not old, "pickle_protocol": protocol}
    torch.save(wrap(net), tmp_path / "teacher.pt", **options)
    with pytest.raises(CheckpointError, match=r"weights_only=False\)\['model'\]") as caught:
        load_teacher(tmp_path / "teacher.pt", domain=MNIST)
    convert(caught.value)
    converted = load_teacher(tmp_path / "teacher-weights.pt", domain=MNIST)
    assert equal(converted.net.state_dict(), net.state_dict())


def convert(error):
    """Runs the two lines that an error ends with."""
    first, second = str(error).splitlines()[1:]
    exec(f"{first.strip()}\n{second.strip()}", {"torch": torch, "numpy": np})


def script(path, net):
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 1, 32, 32)), path)


def program(path, net):
    torch.export.save(torch.export.export(net, (torch.zeros(2, 1, 32, 32),)), path)


def arrays(path, net):
    np.savez(path, **{k: v.numpy() for k, v in net.state_dict().items()})


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("net.pt", script, "is a TorchScript program"),
        ("net.pt2", program, r"is a program of torch\.export"),
        ("net.npz", arrays, r"is a file \.npz"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch
def test_other_files_are_named_with_the_two_lines_that_convert_them(
    tmp_path, net, name, write, said
):
    write(tmp_path / name, net.eval())
    with pytest.raises(CheckpointError, match=said) as caught:
        load_teacher(tmp_path / name, domain=MNIST)
    convert(caught.value)
    converted = load_teacher(tmp_path / "net-weights.pt", domain=MNIST)
    assert equal(converted.net.state_dict(), net.state_dict())


def test_a_module_with_something_that_acts_is_not_called_a_module(tmp_path, net):
    torch.save({"model": net, "epoch": Payload(tmp_path / "trace")}, tmp_path / "teacher.pt")
    with pytest.raises(CheckpointError, match="wants to run code") as caught:
        load_teacher(tmp_path / "teacher.pt", domain=MNIST)
    assert "weights_only" not in str(caught.value)  # no advice to load it


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# --- As trainers write them ---


@pytest.mark.parametrize(
    "meta",
    [
        {"args": argparse.Namespace(lr=0.1, opt="sgd")},
        {"hyper_parameters": {"out": Path("runs"), "best": np.float64(0.9), "n": np.int64(3)}},
        {"pytorch-lightning_version": "2.4", "callbacks": {}, "loops": {}, "epoch": 3},
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_trainers_files_load_with_what_they_hold_beside(tmp_path, net, meta, prefix):
    state = {f"{prefix}{k}": v for k, v in net.state_dict().items()}
    torch.save({"state_dict": state, **meta}, tmp_path / "last.ckpt")
    loaded = load_teacher(tmp_path / "last.ckpt", domain=MNIST)
    assert equal(loaded.net.state_dict(), net.state_dict())
    assert set(read_checkpoint(tmp_path / "last.ckpt").meta) == set(meta)


def test_what_a_trainer_has_beside_the_net_is_left_out(tmp_path, net, custom_arch):
    wrapped = {f"net.{k}": v for k, v in nn.Linear(4, 3).state_dict().items()}
    torch.save({"state_dict": {**wrapped, "loss.weight": torch.ones(3)}}, tmp_path / "last.ckpt")
    state = {f"model.{k}": v for k, v in net.state_dict().items()}
    torch.save({**state, "loss.weight": torch.ones(3)}, tmp_path / "lenet.ckpt")
    assert load_teacher(tmp_path / "lenet.ckpt", domain=MNIST).arch == "lenet5"
    both = {**state, **{f"ema.{k}": v for k, v in net.state_dict().items()}}
    torch.save(both, tmp_path / "two.ckpt")
    with pytest.raises(UsageError, match=r"several nets that fit, under model\., ema\."):
        load_teacher(tmp_path / "two.ckpt", domain=MNIST)


def test_one_missing_key_and_nothing_is_stripped(tmp_path, net):
    state = {f"model.{k}": v for k, v in net.state_dict().items()}
    del state["model.conv1.bias"]
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"another net than lenet5 \(missing: conv1\.weight"):
        load_teacher(tmp_path / "last.ckpt", "lenet5", MNIST)


# --- Constructors, and weights by name ---


class Widths(nn.Module):
    def __init__(self, width, num_classes=7):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(4, width), nn.Linear(width, num_classes)
        )

    def forward(self, x):
        return self.layers(x)


def test_a_constructor_gets_its_arguments_and_the_classes(tmp_path):
    domain, arch = Domain((1, 2, 2), 3), f"{__name__}:Widths(width=5)"
    net = Widths(5, 3)
    torch.save({f"model.{k}": v for k, v in net.state_dict().items()}, tmp_path / "last.ckpt")
    loaded = load_teacher(tmp_path / "last.ckpt", arch, domain)
    assert equal(loaded.net.state_dict(), net.state_dict())
    save_classifier(tmp_path / "own.pt", Classifier(net, domain, arch))
    with pytest.raises(UsageError, match=r"pass --arch .*Widths\(width=5\)"):
        load_teacher(tmp_path / "own.pt")
    assert load_teacher(tmp_path / "own.pt", arch).arch == arch
    with pytest.raises(UsageError, match=r"missing.*'width'.*--arch-arg NAME=VALUE"):
        load_teacher(tmp_path / "last.ckpt", f"{__name__}:Widths", domain)


def test_torchvisions_nets_get_the_number_of_classes(tmp_path):
    net = torchvision.models.squeezenet1_1(num_classes=4)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    domain = Domain((3, 32, 32), 4)
    loaded = load_teacher(tmp_path / "net.pt", "torchvision.models:squeezenet1_1", domain)
    assert loaded(torch.rand(2, 3, 32, 32)).shape == (2, 4)


WEIGHTS = "torchvision.models:SqueezeNet1_1_Weights.IMAGENET1K_V1"


def test_weights_of_torchvision_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    net = torchvision.models.squeezenet1_1()
    url = torchvision.models.get_weight(WEIGHTS.partition(":")[2]).url
    (tmp_path / "checkpoints").mkdir()
    torch.save(net.state_dict(), tmp_path / "checkpoints" / Path(url).name)
    teacher = load_teacher(WEIGHTS)
    assert equal(teacher.net.state_dict(), net.state_dict())
    assert teacher.arch == "torchvision.models:squeezenet1_1"
    assert (teacher.domain.shape, teacher.domain.classes) == ((3, 224, 224), 1000)
    assert teacher.domain.mean == (0.485, 0.456, 0.406)


def test_weights_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*arguments, **options):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(CheckpointError, match=r"fetch https://.*squeezenet1_1.* and put") as caught:
        load_teacher(WEIGHTS)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="did you mean 'IMAGENET1K_V1'"):
        load_teacher("SqueezeNet1_1_Weights.IMAGENET1K_V2")
    with pytest.raises(UsageError, match="Unknown weights of torchvision 'SqueezNet1_1_Weights'"):
        load_teacher("SqueezNet1_1_Weights.IMAGENET1K_V1")


def truncated(path, net):
    torch.save(net.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-2000])


def truncated_legacy(path, net):
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-2000])


def truncated_safetensors(path, net):
    safetensors.torch.save_file(net.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-2000])


def other_zip(path, net):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def image(path, net):
    from PIL import Image

    Image.new("L", (8, 8)).save(path, format="png")


BROKEN = {
    "missing": (lambda path, net: None, "There is no file"),
    "folder": (lambda path, net: path.mkdir(), "is a folder"),
    "empty": (lambda path, net: path.touch(), "is empty"),
    "truncated": (truncated, "is truncated"),
    "truncated-legacy": (truncated_legacy, "not a checkpoint, or a damaged one"),
    "truncated-safetensors": (truncated_safetensors, "not a whole safetensors file"),
    "header-only": (
        lambda path, net: path.write_bytes(struct.pack("<Q", 10**9) + b"{"),
        "not a whole safetensors file",
    ),
    "text": (
        lambda path, net: path.write_text("classes: 10\n" * 9),
        "not a checkpoint, or a damaged one .it begins with b'classes:'",
    ),
    "byte": (lambda path, net: path.write_text("."), "not a checkpoint"),
    "json": (lambda path, net: path.write_text(json.dumps({"a": 1})), "not a checkpoint"),
    "image": (image, "not a checkpoint"),
    "zip": (other_zip, "not a checkpoint"),
    "number": (lambda path, net: torch.save(3, path), "holds no weights.*object of type int"),
    "tensor": (
        lambda path, net: torch.save(torch.zeros(2), path),
        "holds no weights.*object of type Tensor",
    ),
    "no-tensors": (
        lambda path, net: torch.save({"epoch": 3, "best": 0.5}, path),
        "holds no weights.*a dict with the keys 'epoch', 'best'",
    ),
    "empty-dict": (lambda path, net: torch.save({}, path), r"holds no weights.*\(none\)"),
    "empty-state": (
        lambda path, net: torch.save({"model_state": {}}, path),
        "holds no weights.*'model_state'",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_in_one_line(tmp_path, net, kind):
    write, message = BROKEN[kind]
    path = tmp_path / "teacher.pt"
    write(path, net)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_teacher(path, domain=MNIST)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch advises to switch it off
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("garbage", [b"\x80\x02garbage", b"PK\x03\x04garbage", b"\x00" * 64])
def test_garbage_behind_a_known_beginning_is_refused(tmp_path, garbage):
    path = tmp_path / "teacher.pt"
    path.write_bytes(garbage)
    with pytest.raises(CheckpointError, match=r"not a checkpoint|is truncated"):
        read_checkpoint(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_an_unreadable_file_is_refused(tmp_path, net):
    path = tmp_path / "teacher.pt"
    torch.save(net.state_dict(), path)
    path.chmod(0)
    with pytest.raises(CheckpointError, match=r"Cannot read.*Permission denied"):
        read_checkpoint(path)


# --- Checkpoints of another net or domain ---


def save(tmp_path, state):
    path = tmp_path / "teacher.pt"
    torch.save(state, path)
    return path


def test_an_unknown_architecture_names_the_known_ones_and_the_flag(tmp_path):
    path = save(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).state_dict())
    with pytest.raises(
        UsageError, match=r"lenet5, resnet14, mlp\).*--arch NAME\|package"
    ) as caught:
        load_teacher(path, domain=MNIST)
    assert "1.weight" in str(caught.value)


@pytest.mark.parametrize("value", [torch.zeros(()), torch.zeros(3), torch.zeros(2, 2)])
def test_odd_shapes_under_known_keys_are_no_known_architecture(value):
    state = dict.fromkeys(["conv1.weight", "fc2.weight", "linear.weight"], value)
    state |= {"layers.0.weight": value, "layers.0.bias": value}
    with pytest.raises(UsageError, match="not one of the known ones"):
        recognise_arch(state)


@pytest.mark.parametrize("arch", ["lenet5", "resnet14", "mlp"])
def test_the_weights_of_another_net_are_refused(tmp_path, arch):
    path = save(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).state_dict())
    listed = r"missing: \w.* and \d+ more; unexpected: 1\.weight, 1\.bias"
    with pytest.raises(CheckpointError, match=rf"another net than {arch} \({listed}\)"):
        load_teacher(path, arch=arch, domain=MNIST)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int8])
def test_weights_that_are_no_real_numbers_are_not_made_some(tmp_path, net, kind):
    state = {k: v.to(kind) if k == "fc1.weight" else v for k, v in net.state_dict().items()}
    said = rf"no real numbers: fc1\.weight \({str(kind).removeprefix('torch.')}\)\)"
    with pytest.raises(CheckpointError, match=said):
        load_teacher(save(tmp_path, state), arch="lenet5", domain=MNIST)


def test_mismatched_shapes_are_listed(tmp_path, net):
    state = net.state_dict() | {"fc1.weight": torch.zeros(80, 120)}
    with pytest.raises(
        CheckpointError, match=r"wrong shape: fc1\.weight \(80, 120\) for \(84, 120\)"
    ):
        load_teacher(save(tmp_path, state), arch="lenet5", domain=MNIST)


def test_an_unknown_domain_is_never_guessed(tmp_path, net):
    with pytest.raises(
        UsageError,
        match=r"domain of .*teacher\.pt is unknown.*--domain mnist\|fashion-mnist\|svhn\|cifar10\|"
        "digits, or --input-shape, --mean, --std and --classes",
    ):
        load_teacher(save(tmp_path, net.state_dict()))


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (DOMAINS["svhn"], r"for 1 channels \(the domain 'svhn' has 3\)"),
        (Domain((1, 32, 32), 7), r"for 10 classes \(the domain 'custom' has 7\)"),
        (Domain((3, 32, 32), 7), "for 1 channels .* and 10 classes"),
    ],
)
def test_a_domain_that_contradicts_the_weights_is_refused(tmp_path, net, domain, message):
    with pytest.raises(UsageError, match=message):
        load_teacher(save(tmp_path, net.state_dict()), domain=domain)


def test_a_domain_that_contradicts_the_recorded_one_is_refused(tmp_path, net):
    path = own_file(tmp_path / "a.pt", net)
    assert load_classifier(path, domain=MNIST).domain == MNIST
    with pytest.raises(UsageError, match=r"made for the domain .*0\.1307.*got .*0\.2856"):
        load_classifier(path, domain=DOMAINS["fashion-mnist"])


def test_another_number_of_classes_of_an_own_net_is_refused(tmp_path, custom_arch):
    path = save(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).state_dict())
    with pytest.raises(CheckpointError, match=r"shape \(2, 5\) for 2 inputs.*got \(2, 3\)"):
        load_teacher(path, arch=CUSTOM, domain=Domain((1, 2, 2), 5))
    with pytest.raises(CheckpointError, match=r"rejects them \(RuntimeError"):
        load_teacher(path, arch=CUSTOM, domain=Domain((1, 3, 3), 3))


def test_nan_weights_are_refused_by_name(tmp_path, net):
    with torch.no_grad():
        net.conv2.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"teacher\.pt: .*'conv2\.weight' holds NaN"):
        load_teacher(save(tmp_path, net.state_dict()), domain=MNIST)
