"""Methods one after the other, saved, rebuilt and loaded; files that lie are refused."""

import json

import pytest
import torch
from torch import nn

from freia_kd.compression.methods import METHODS, apply_methods, original_state, rebuild
from freia_kd.domain import Domain
from freia_kd.errors import CheckpointError
from freia_kd.teachers import Classifier, load_classifier, save_classifier
from freia_kd.teachers.lenet5 import LeNet5
from freia_kd.teachers.mlp import MLP
from freia_kd.teachers.resnet14 import ResNet14

IMAGES, TABLE = Domain((1, 32, 32), 10, (0.3,), (0.3,)), Domain((20,), 3)
ALL = {"tucker": {"ranks": 0.5}, "prune": {"share": 0.6}, "quantize": {}}
CASES = {
    "lenet5": (LeNet5, IMAGES),
    "resnet14": (lambda: ResNet14(1, 10), IMAGES),
    "mlp": (lambda: MLP(20, 3, (48, 40)), TABLE),
}
CHAINS = [["tucker"], ["prune"], ["quantize"], ["prune", "tucker"], ["prune", "quantize"], [*ALL]]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def made(arch, chain):
    make, domain = CASES[arch]
    net, x = make().eval(), torch.randn(16, *domain.shape)
    student, steps = apply_methods(net, x, {name: ALL[name] for name in chain})
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
    for name, options in ALL.items():
        student, step = METHODS[name].apply(student, x, **options)
        steps.append(step)
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
        apply_methods(net, torch.randn(4, 1, 32, 32), {"quantize": {}, "prune": {}})


def test_unknown_methods_and_low_ranks_that_gain_nothing_are_refused():
    net, x = LeNet5(), torch.randn(4, 1, 32, 32)
    with pytest.raises(ValueError, match="methods tucker, prune, quantize; got 'zip'"):
        apply_methods(net, x, {"zip": {}})
    with pytest.raises(ValueError, match="found none"):
        METHODS["tucker"].apply(net, x, ranks=0.99)


def step_with(steps, index, **changes):
    return [{**s, **changes} if i == index else s for i, s in enumerate(steps)]


LIES = {
    "no list": lambda s: {"method": "prune"},
    "text": lambda s: "prune",
    "no method": lambda s: [{}],
    "code": lambda s: [{"method": "os:system", "layers": ["true"]}],
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
    with pytest.raises(CheckpointError, match="lost less than"):
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
