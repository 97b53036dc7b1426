"""Files that are damaged or not what they should be: a sound result, or one line of ours."""

import copy
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from faults_judging import Tally, expect_answers, many
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from job_cases import NOISE, make_teacher, students_in

from freia_kd import StudentSpec, api, distill, resume
from freia_kd.compression import Prune, Quantize, Tucker, load_teacher
from freia_kd.domain import Domain
from freia_kd.report.storage import read_report
from freia_kd.runs.listing import list_runs
from freia_kd.teachers import Classifier, Teacher, build_net, read_checkpoint, save_classifier
from freia_kd.training.checkpoints import read_metrics

FOREIGN = st.sampled_from(["", ".", "../x", "conv1", "weight", "状態", "a.b:C", "__class__", "0"])
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=8),
        FOREIGN,
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FOREIGN, inner, max_size=3),
    max_leaves=6,
)
DTYPES = [torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64]
BYTES = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(
        st.just("flip"),
        st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=8),
    ),
    st.tuples(
        st.just("head"), st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=8)
    ),
    st.tuples(st.just("insert"), st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=40))),
)
CONTENT = st.tuples(
    st.sampled_from(["drop", "rename", "shape", "dtype", "value", "scalar", "own", "other"]),
    st.integers(0, 30),
    st.integers(0, 5),
    JSON,
)


def fuzz(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def spoil_bytes(content, change):
    """A file's bytes, some of which are others, or not there."""
    kind, how = change
    content = bytearray(content)
    if kind == "cut":
        return bytes(content[: int(how * len(content))])
    if kind == "insert":
        place = int(how[0] * len(content))
        return bytes(content[:place] + how[1] + content[place:])
    for place, byte in how if content else ():
        index = int(place * (len(content) - 1)) if kind == "flip" else min(place, len(content) - 1)
        content[index] ^= byte
    return bytes(content)


def spoil_json(value, path, new):
    """A JSON value of which one part is another; the part is found by numbers."""
    value = copy.deepcopy(value)
    holder, key, here = None, None, value
    for number in path:
        if not isinstance(here, (dict, list)) or not here:
            break
        keys = sorted(here) if isinstance(here, dict) else range(len(here))
        holder, key = here, list(keys)[number % len(here)]
        here = here[key]
    if holder is None:
        return new
    holder[key] = new
    return value


def spoil_content(state, own, change):
    """The weights and metadata of a checkpoint, one of them wrong."""
    kind, number, choice, new = change
    state, name = dict(state), sorted(state)[number % len(state)]
    value = state[name]
    if kind == "drop":
        del state[name]
    elif kind == "rename":
        state[f"foreign.{name}" if choice % 2 else name.upper()] = state.pop(name)
    elif kind == "shape":
        value = torch.atleast_1d(value)
        shapes = [
            value[None],
            value[:0],
            value.flatten(),
            torch.empty(0),
            value[:1],
            value[..., 1:],
        ]
        state[name] = shapes[choice].contiguous()
    elif kind == "dtype":
        state[name] = value.to(DTYPES[choice])
    elif kind == "value":
        numbers = [torch.nan, torch.inf, -torch.inf, 3e38, 1e-45, 0.0]
        state[name] = torch.full_like(value.float(), numbers[choice])
    elif kind == "scalar":
        state[name] = torch.tensor(float(number))
    elif kind == "own":
        own = spoil_json(own, [number % 7, choice, number], new)
    else:
        state["foreign"] = torch.ones(3)
    return state, own


def write(path, state, own):
    if path.suffix == ".safetensors":
        text = json.dumps(own)
        safetensors.torch.save_file(state, path, {"freia_kd": text})
    else:
        torch.save({"model_state": state, "freia_kd": own}, path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Sound teachers and students, in both kinds of files."""
    folder = tmp_path_factory.mktemp("sound")
    image, vector = Domain((1, 32, 32), 10, (0.3,), (0.3,), "small"), Domain((6,), 3)
    torch.manual_seed(0)
    save_classifier(folder / "a.safetensors", Classifier(build_net("mlp", vector), vector, "mlp"))
    lenet = Teacher(build_net("lenet5", image), image, "lenet5")
    save_classifier(folder / "b.pt", lenet)
    for name, methods in (
        ("tucker.pt", (Tucker(student="1"),)),
        ("tucker.safetensors", (Tucker(student="1"),)),
        ("prune.pt", (Prune(),)),
        ("quantize.safetensors", (Quantize(),)),
    ):
        api.compress(lenet, folder / name, student=StudentSpec(methods))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("kind", ["bytes", "content"])
def test_spoiled_checkpoints(kind, sources, tmp_path):
    tally = Tally(f"checkpoints, {kind}")
    contents = [(path, path.read_bytes(), read_checkpoint(path)) for path in sources]

    @fuzz(many(300))
    @given(st.sampled_from(range(len(contents))), BYTES if kind == "bytes" else CONTENT)
    def spoil(index, change):
        source, content, checkpoint = contents[index]
        path = tmp_path / f"spoiled{source.suffix}"
        if kind == "bytes":
            path.write_bytes(spoil_bytes(content, change))
        else:
            write(path, *spoil_content(checkpoint.state, checkpoint.own, change))
        what = f"{source.name} {change}"

        def read():
            expect_answers(load_teacher(path))

        tally.judge(what, read)

    spoil()
    tally.check(many(300))


def test_spoiled_runs(tmp_path):
    """Any file of a finished run, which is then resumed, read, listed and exported."""
    folder = tmp_path / "sound"
    teacher = make_teacher()
    students = ["1", StudentSpec((Tucker(layers={"5": 0.3}),), "mine")]
    distill(teacher, students=students, out=folder, **NOISE)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    tally = Tally("runs")
    change = st.one_of(
        BYTES, st.tuples(st.just("json"), st.tuples(st.lists(st.integers(0, 40), max_size=5), JSON))
    )

    @fuzz(many(100))
    @given(st.sampled_from(files), change, st.sampled_from(["resume", "read", "more", "repair"]))
    def spoil(name, change, act):
        run = tmp_path / "spoiled"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(folder, run)
        content = (run / name).read_bytes()
        if change[0] != "json":
            (run / name).write_bytes(spoil_bytes(content, change))
        elif name.suffix == ".json":
            text = json.dumps(spoil_json(json.loads(content), *change[1]))
            (run / name).write_text(text)
        elif name.suffix == ".npy":
            array = [np.zeros(3), np.full((48, 4), np.nan), np.array("x"), np.zeros((0, 1, 8, 8))]
            np.save(run / name, array[len(change[1][0]) % 4])
        what = f"{act} with {name} {change}"

        def read():
            list_runs(run)
            if act == "read":
                read_report(run)
                api.inspect(run)
                read_metrics(run)
            elif act == "more":
                spec = StudentSpec((Quantize(),), "more")
                resume(run, teacher=teacher, students=[spec])
            else:
                resume(run, teacher=teacher, repair=act == "repair")
            made_of_others = name.name == "run.json" or name.name.startswith("student-")
            assert made_of_others or students_in(folder).items() <= students_in(run).items()

        tally.judge(what, read)

    spoil()
    tally.check(many(100))
