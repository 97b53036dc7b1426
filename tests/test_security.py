"""Nothing in a file is executed, leaves its folder, or becomes markup: small fuzz tests of each."""

import json
import shutil
import sys
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freia_kd import resume
from freia_kd.compression import read_rules
from freia_kd.domain import Domain
from freia_kd.errors import CheckpointError, UsageError
from freia_kd.flows.recipe import read_flow
from freia_kd.report.document import Code, Document, Figure, Remarks, Section, Table
from freia_kd.report.render import html, markdown
from freia_kd.students import StudentSpec
from freia_kd.teachers import read_checkpoint
from freia_kd.teachers.build import parse_arch
from freia_kd.training import Checkpoints

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


# --- Checkpoints ---


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Sound checkpoints, whose bytes are then changed."""
    folder = tmp_path_factory.mktemp("sound")
    state = torch.nn.Linear(2, 3).state_dict()
    torch.save({"state_dict": state, "epoch": 3}, folder / "a.pt")
    torch.save(state, folder / "b.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, folder / "c.safetensors", {"freia_kd": "{}"})
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@FUZZ
@given(
    number=st.integers(0, 2),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    end=st.floats(0, 1),
)
def test_changed_checkpoints_load_or_are_refused(files, tmp_path, number, changes, end):
    content = bytearray(files[number])
    for place, byte in changes:
        content[int(place * (len(content) - 1))] = byte
    path = tmp_path / "teacher.pt"
    path.write_bytes(content[: int(end * len(content))] if end < 0.5 else content)
    with suppress(CheckpointError):
        assert read_checkpoint(path).state


class Trace:
    """Says that it was called, if it ever is."""

    calls = 0

    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def trace(*arguments):
    Trace.calls += 1


CALLABLES = [trace, exec, eval, print, __import__, sys.setrecursionlimit, open]


@FUZZ
@given(
    function=st.sampled_from(CALLABLES),
    argument=st.text(max_size=9),
    key=st.sampled_from(["state_dict", "model", "epoch", "args"]),
    legacy=st.booleans(),
)
def test_calls_in_checkpoints_are_refused(tmp_path, function, argument, key, legacy):
    content = {"state_dict": {"weight": torch.zeros(2)}, key: Trace(function, (argument,))}
    path = tmp_path / "teacher.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="wants to run code") as caught:
        read_checkpoint(path)
    assert "weights_only" not in str(caught.value)
    assert Trace.calls == 0


def test_a_call_would_have_been_seen(tmp_path):
    torch.save({"epoch": Trace(trace, ())}, tmp_path / "teacher.pt")
    torch.load(tmp_path / "teacher.pt", weights_only=False)
    assert Trace.calls == 1
    Trace.calls = 0


@FUZZ
@given(st.text(max_size=40))
def test_arguments_of_architectures_are_values(text):
    try:
        path, arguments = parse_arch(f"module:Class({text})")
    except UsageError:
        return
    assert path == "module:Class"
    assert all(name.isidentifier() for name in arguments)


@pytest.mark.parametrize("value", ["__import__('os')", "open('x')", "[].__class__", "x", "f()"])
def test_expressions_are_no_values(value):
    with pytest.raises(UsageError, match="plain values"):
        parse_arch(f"module:Class(width={value})")


# --- YAML ---

YAML = [
    "!!python/object/apply:os.system ['touch here']",
    "conv1: !!python/name:os.system",
    "a: &a [*a, *a]",
    "a: 2001-99-99",
    "[" * 3_000,
    "? {a: b}\n: c",
]


@pytest.mark.slow
@FUZZ
@given(st.one_of(st.sampled_from(YAML), st.text(max_size=60)))
def test_yaml_is_data(tmp_path, text):
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    for read in (read_rules, lambda path: read_flow(path, Domain((2,), 3))):
        with suppress(ValueError):
            read(path)
    assert not (Path.cwd() / "here").exists()


def test_code_that_only_a_flows_file_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "named_by_a_file.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "flow.yaml"
    path.write_text("layers: [{module: {path: 'named_by_a_file:Block'}}]")
    with pytest.raises(UsageError, match="not imported"):
        read_flow(path, Domain((2,), 3))


# --- Paths ---

PART = st.sampled_from(["..", ".", "/", "a", "\\", "secret"])


@FUZZ
@given(st.lists(PART, min_size=1, max_size=5))
def test_names_in_records_lead_to_no_other_folder(tmp_path, parts):
    name = "/".join(parts)
    folder = tmp_path / "run"
    try:
        found = Checkpoints(folder, name).path
    except (CheckpointError, ValueError):
        found = folder
    assert found.resolve().is_relative_to(folder.resolve())
    try:
        spec = StudentSpec.from_dict({"methods": [{"method": "tucker"}], "name": name})
    except UsageError:
        return
    assert (folder / f"student-{spec.name}.pt").resolve().parent == folder.resolve()


@pytest.mark.parametrize("path", ["../secret.png", "{absolute}", "link.png", "a/../../secret.png"])
def test_no_page_shows_a_file_of_another_folder(tmp_path, path):
    folder = tmp_path / "run"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "own.png").write_bytes(b"own")
    path = path.format(absolute=tmp_path / "secret.png")
    figures = [Figure(path, "theirs", ""), Figure("own.png", "ours", "")]
    page = html(Document("", [], [Section("", figures)]), folder)
    assert "ours" in page
    assert "theirs" not in page


# --- Markup ---


class Tags(HTMLParser):
    """The tags of a page, with the names of their attributes."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, tuple(name for name, _ in attributes)))

    def handle_data(self, data):
        self.text.append(data)


def document(name):
    table = Table([name, "b"], [[name, name]])
    blocks = [name, Remarks([name]), table, Code(name, name), Figure("own.png", name, name)]
    return Document(name, [name], [Section(name, blocks)])


NAMES = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=y>',
    "'",
    "{{ 7 * 7 }}",
    "</title>",
    "&lt;",
]


@FUZZ
@given(
    st.one_of(st.sampled_from(NAMES), st.text(alphabet="<>&\"'`{}%/=a \n", min_size=1, max_size=20))
)
def test_names_are_no_markup(tmp_path, name):
    name = f"x{name}x"
    (tmp_path / "own.png").write_bytes(b"own")
    page = Tags(html(document(name), tmp_path))
    assert page.found == Tags(html(document("plain"), tmp_path)).found
    assert name in "".join(page.text)
    lines = markdown(document(name), tmp_path).splitlines()
    outside = [line for line in lines if not line.startswith(("`", "x"))]
    assert not [line for line in outside if "<script" in line.replace("\\<", "")]


# --- Records ---


def test_code_that_only_a_record_names_is_not_imported(tmp_path, finished, teacher, monkeypatch):
    (tmp_path / "named_by_a_record.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    record = json.loads((folder / "run.json").read_text())
    source = {"source": "named_by_a_record:data", "root": None, "download": False, "resize": False}
    done = [stage for stage in record["done"] if stage not in ("measure", "report")]
    record |= {"evaluation": source, "done": done}
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"--eval-data named_by_a_record:data; if you trust"):
        resume(folder, teacher=teacher)
    assert "named_by_a_record" not in sys.modules
    with pytest.raises(SystemExit, match="imported"):  # once it is typed
        resume(folder, teacher=teacher, eval_data="named_by_a_record:data")
