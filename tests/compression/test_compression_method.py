"""Methods one after the other, saved, rebuilt and loaded; files that lie are refused."""

import json
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

from freia_kd.compression import (
    Compressed,
    Compression,
    Prune,
    Quantize,
    Tucker,
    get_compression,
    load_classifier,
    load_teacher,
    method_of,
    original_state,
    rebuild,
)
from freia_kd.compression.modules import copied
from freia_kd.domain import Domain
from freia_kd.errors import CheckpointError, UsageError
from freia_kd.teachers import Classifier, loading, save_classifier
from freia_kd.teachers.lenet5 import LeNet5
from freia_kd.teachers.mlp import MLP
from freia_kd.teachers.resnet14 import ResNet14

IMAGES, TABLE = Domain((1, 32, 32), 10, (0.3,), (0.3,)), Domain((20,), 3)
ALL = {"tucker": Tucker(layers={"all": 0.5}), "prune": Prune(0.6), "quantize": Quantize()}
CASES = {
    "lenet5": (LeNet5, IMAGES),
    "resnet14": (lambda: ResNet14(1, 10), IMAGES),
    "mlp": (lambda: MLP(20, 3, (48, 40)), TABLE),
}
CHAINS = [["tucker"], ["prune"], ["quantize"], ["prune", "tucker"], ["prune", "quantize"], [*ALL]]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def apply_all(net, x, methods):
    steps = []
    for method in methods:
        made = method.apply(net, x)
        net, steps = made.net, [*steps, made.step]
    return net, steps


def made(arch, chain):
    make, domain = CASES[arch]
    net, x = make().eval(), torch.randn(16, *domain.shape)
    student, steps = apply_all(net, x, [ALL[name] for name in chain])
    return net, Classifier(student, domain, arch).eval(), steps


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("arch", "chain"),
    [*(("lenet5", c) for c in CHAINS), ("resnet14", [*ALL]), ("mlp", ["prune"]), ("mlp", [*ALL])],
)
def test_chains_save_and_load_bit_for_bit(tmp_path, arch, chain, suffix):
    _, student, steps = made(arch, chain)
    assert [step["method"] for step in steps] == chain
    assert json.loads(json.dumps(steps)) == steps
    path = tmp_path / f"student{suffix}"
    save_classifier(path, student, {"compression": steps})
    loaded, x = load_classifier(path), torch.rand(5, *student.domain.shape)
    assert torch.equal(loaded(x), student(x))
    again = tmp_path / f"again{suffix}"
    save_classifier(again, loaded, {"compression": steps})
    assert again.read_bytes() == path.read_bytes()


def test_the_whole_chain_is_smaller_and_leaves_the_teacher_alone(tmp_path):
    net, x = LeNet5().eval(), torch.randn(16, 1, 32, 32)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    sizes, student, steps = [], net, []
    for name, method in ALL.items():
        made = method.apply(student, x)
        student, steps = made.net, [*steps, made.step]
        path = tmp_path / f"{name}.safetensors"
        save_classifier(path, Classifier(student, IMAGES, "lenet5"), {"compression": steps})
        sizes.append(path.stat().st_size)
    assert sizes[0] > sizes[1] > 2 * sizes[2]
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert type(net.conv1) is nn.Conv2d


def test_rebuilding_does_not_touch_the_net_it_starts_from():
    _net, student, steps = made("lenet5", [*ALL])
    fresh = LeNet5()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    rebuilt = rebuild(fresh, steps)
    torch.testing.assert_close(dict(fresh.state_dict()), before, rtol=0, atol=0)
    rebuilt.load_state_dict(student.net.state_dict())
    x = torch.rand(3, 1, 32, 32)
    assert torch.equal(rebuilt.eval()(x), student.net(x))


def test_steps_in_the_wrong_order_are_refused():
    net, _, steps = made("lenet5", [*ALL])
    with pytest.raises(ValueError, match=r"'conv1.0' cannot be quantised"):
        rebuild(net, steps[::-1])
    with pytest.raises(ValueError, match="prune before you quantise"):
        apply_all(net, torch.randn(4, 1, 32, 32), [Quantize(), Prune()])


LAWS = {**ALL, "student": Tucker(student="1"), "target": Tucker(target="params", goal=0.6)}


@pytest.mark.parametrize("case", LAWS)
def test_every_method_keeps_the_laws(case):
    method, net, x = LAWS[case], LeNet5().train(), torch.randn(8, *IMAGES.shape)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.get_rng_state()
    checked = method.check(net, x, "lenet5")
    first, again = (method.apply(net, x, "lenet5") for _ in "ab")
    assert torch.equal(torch.get_rng_state(), random)  # nor does it use random numbers of others
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert net.training
    torch.testing.assert_close(
        first.net.state_dict(), again.net.state_dict(), rtol=0, atol=0, equal_nan=True
    )
    assert json.loads(json.dumps(first.step)) == first.step == again.step
    assert first.step["method"] == method.name
    assert get_compression(method.name) is type(method) is method_of(first.step)
    assert (first.search is None) == (case != "target")
    assert method.describe(first.step)
    assert all(isinstance(reason, str) for reason in first.step["skipped"].values())
    assert type(method).from_dict(json.loads(json.dumps(method.to_dict()))) == method
    rebuilt = method.rebuild(net, first.step)
    rebuilt.load_state_dict(first.net.state_dict())
    assert torch.equal(rebuilt.eval()(x), first.net.eval()(x))
    if case != "target":  # whose layers are found by a search
        shapes = [{k: v.shape for k, v in n.state_dict().items()} for n in (checked, first.net)]
        assert case == "prune" or shapes[0] == shapes[1]


def test_steps_say_what_was_done_and_left():
    _, _, steps = made("lenet5", [*ALL])
    done = [method_of(step).describe(step) for step in steps]
    assert done[0] == "5 layers at lower ranks"
    assert done[1].startswith("MACs ")
    assert done[2].endswith(" layers of integers")
    verbs = [method_of(step).skipped_verb for step in steps]
    assert verbs == ["was left alone", "was not pruned", "was not quantised"]
    assert [method_of(step).is_last for step in steps] == [False, False, True]


def test_unknown_methods_and_low_ranks_that_gain_nothing_are_refused():
    with pytest.raises(ValueError, match="'zip'; known ones are tucker, prune, quantize"):
        rebuild(LeNet5(), [{"method": "zip"}])
    with pytest.raises(UsageError, match="'zip'; known ones are tucker, prune, quantize"):
        get_compression("zip")
    with pytest.raises(UsageError, match="No layer would gain at these ranks"):
        Tucker(layers={"all": 0.99}).apply(LeNet5(), torch.randn(4, 1, 32, 32))


def step_with(steps, index, **changes):
    return [{**s, **changes} if i == index else s for i, s in enumerate(steps)]


LIES = {
    "no list": lambda s: {"method": "prune"},
    "text": lambda s: "prune",
    "no method": lambda s: [{}],
    "a list for a name": lambda s: [{"method": ["prune"]}],
    "one method twice": lambda s: [*s, s[0]],
    "very many": lambda s: s * 1000,
    "another order": lambda s: s[::-1],
    "one left out": lambda s: s[1:],
    "large ranks": lambda s: step_with(
        s, 0, layers={"conv3": {"method": "tucker2", "ranks": [10**9, 10**9]}}
    ),
    "large shapes": lambda s: step_with(
        s, 1, shapes={n: [[10**6] * len(o), w] for n, (o, w) in s[1]["shapes"].items()}
    ),
    "negative shapes": lambda s: step_with(s, 1, shapes={"fc1.weight": [[84, 120], [-1, 120]]}),
    "shapes that clash": lambda s: step_with(s, 1, shapes={"fc1.weight": [[84, 120], [5, 120]]}),
    "other layers": lambda s: step_with(s, 2, layers=["conv1"]),
    "no layers": lambda s: step_with(s, 2, layers=None),
}


@pytest.mark.parametrize("lie", LIES)
def test_files_whose_steps_lie_are_refused(tmp_path, lie):
    _, student, steps = made("lenet5", [*ALL])
    path = tmp_path / "student.safetensors"
    save_classifier(path, student, {"compression": LIES[lie](steps)})
    with pytest.raises(CheckpointError, match=r"student\.safetensors"):
        load_classifier(path)


def test_widths_that_a_file_makes_up_are_refused(tmp_path):
    _, student, (step,) = made("mlp", ["prune"])
    width = 10**7
    step["shapes"]["layers.0.weight"][0][0] = step["shapes"]["layers.0.bias"][0][0] = width
    path = tmp_path / "student.pt"
    save_classifier(path, student, {"compression": [step]})
    with pytest.raises(CheckpointError, match="at least 1/100"):
        load_classifier(path)


def test_states_keep_their_tensors_where_nothing_was_pruned():
    _, student, steps = made("lenet5", ["tucker"])
    state = student.net.state_dict()
    assert original_state(state, steps).keys() == state.keys()
    assert all(torch.equal(original_state(state, steps)[k], v) for k, v in state.items())


def test_a_method_is_taken_once_even_where_it_would_fit_again():
    step = {"method": "tucker", "layers": {"fc1": {"method": "svd", "ranks": [84]}}}
    again = {"method": "tucker", "layers": {"fc1.0": {"method": "svd", "ranks": [84]}}}
    rebuild(rebuild(LeNet5(), [step]), [again])
    with pytest.raises(ValueError, match="each method once"):
        rebuild(LeNet5(), [step, again])


def test_old_files_that_list_what_was_skipped_still_load():
    step = {
        "method": "tucker",
        "layers": {"fc1": {"method": "svd", "ranks": [8]}},
        "skipped": [{"name": "conv1", "reason": "would not gain"}],
    }
    assert rebuild(LeNet5(), [step]).fc1[0].out_features == 8


def test_the_lower_floor_does_not_load_compressed_nets(tmp_path):
    _, student, steps = made("lenet5", ["tucker"])
    path = tmp_path / "student.pt"
    save_classifier(path, student, {"compression": steps})
    with pytest.raises(UsageError, match=r"student\.pt .*compressed.*load_student"):
        loading.load_classifier(path)
    assert not any(p.requires_grad for p in load_teacher(path).parameters())


@dataclass(frozen=True)
class Silence(Compression):
    """Sets a layer's bias to zero and drops it: a method of someone else."""

    layer: str = "fc1"

    def apply(self, net, inputs, arch=""):
        step = {"method": self.name, "layer": self.layer, "skipped": {}}
        student = self.rebuild(net, step)
        return Compressed(student, step)

    @classmethod
    def rebuild(cls, net, step):
        copy = copied(net)
        copy.get_submodule(step["layer"]).bias = None
        return copy

    @classmethod
    def describe(cls, step):
        return f"no bias in {step['layer']}"


PATH = f"{__name__}:Silence"


def silenced(tmp_path):
    student, steps = apply_all(LeNet5().eval(), torch.zeros(2, *IMAGES.shape), [Silence()])
    path = tmp_path / "student.safetensors"
    classifier = Classifier(student, IMAGES, "lenet5")
    save_classifier(path, classifier, {"compression": steps})
    return path, classifier


def test_a_method_of_ones_own_by_its_path(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    path, classifier = silenced(tmp_path)
    assert Silence.name == PATH
    assert Silence().label == "silence"
    assert get_compression(PATH) is Silence
    x = torch.rand(3, *IMAGES.shape)
    for trusted in ((PATH,), [Silence]):
        assert torch.equal(load_classifier(path, trusted=trusted)(x), classifier(x))


def test_code_that_only_a_file_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path, classifier = silenced(tmp_path)
    for name in ("trap:Method", "os:system", PATH):
        steps = [{"method": name, "layer": "fc1", "skipped": {}}]
        save_classifier(path, classifier, {"compression": steps})
        with pytest.raises(UsageError, match=rf"student.safetensors: .*'{name}', which is code of"):
            load_classifier(path)
    assert "trap" not in sys.modules


def test_a_method_of_an_installed_package_by_its_name(tmp_path, monkeypatch):
    def offer(name):
        entries = [EntryPoint(name, PATH, "freia_kd.compressions")]
        found = lambda group: entries if group == "freia_kd.compressions" else []  # noqa: E731
        monkeypatch.setattr("freia_kd.registry.entry_points", found)

    monkeypatch.setattr(Silence, "name", "silence")
    offer("silence")
    assert get_compression("silence") is Silence
    path, classifier = silenced(tmp_path)
    x = torch.rand(3, *IMAGES.shape)
    assert torch.equal(load_classifier(path)(x), classifier(x))
    offer("quiet")
    with pytest.raises(UsageError, match=r"as 'quiet', but its class calls itself 'silence'"):
        get_compression("quiet")
    with pytest.raises(CheckpointError, match=r"'silence'.*known ones are tucker.*quiet"):
        load_classifier(path)


@pytest.mark.parametrize("path", ["math:sqrt", "torch.nn:Linear", "json:JSONEncoder"])
def test_what_is_no_method_of_compression_is_refused(path):
    with pytest.raises(UsageError, match=f"subclass of Compression at '{path}'"):
        get_compression(path)
