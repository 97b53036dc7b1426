"""Options of every command at random: exit code 0 only with a right result, else words of ours."""

import json
import random
import shutil
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from faults_judging import Enough, Tally, expect_answers, many
from job_cases import NOISE, SMALL, make_data

from freia_kd import StudentSpec, distill
from freia_kd.cli.main import COMMANDS, main
from freia_kd.compression import Tucker, load_classifier
from freia_kd.report.storage import read_report
from freia_kd.synthesizers import SYNTHESIZERS
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions
from freia_kd.teachers import Classifier, build_net, save_classifier
from freia_kd.training import Rehearsal, TrainingLoop

CALLS = many(60)  # of each command
STEPS = 3  # of a loop that a test lets run
TEXTS = [
    "", " ", "-", "--", "0", "-1", "1", "nan", "inf", "1e400", "x", "é状\u202e", "a" * 300, "a:b",
    "a:b:c", "os:system", "../x", "[", "{}", "None", "True", "1,2", ",", "+", "leaves+leaves", "=",
    "a=b", "student.steps=0", "student.batch_size=1e9", "student.learning_rate=nan", "uniform.x=1",
    "student.steps=2", "student.mixup=-1", "1,8,8", "10", "0.5", "0.3", "\udcff", "a\nb", "%s", "*",
    *SYNTHESIZERS.builtin,
]  # fmt: skip
NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    str(2**31),
    str(2**63),
    str(-(2**70)),
    "1.5",
    "",
    "x",
    "\u0661",
]
REALS = ["0", "-1", "1", "0.5", "nan", "inf", "-inf", "1e-300", "1e300", "", "x", "0,5"]
# Not typed: what shows tracebacks, asks the network, or starts other processes.
LEFT_OUT = ("debug", "download", "workers", "help")
SHORT = ["--preset", "quick", "--set-size", "16", "--synthesizer", "uniform"]
STUDENT = ["--layers", "layers.0", "--ranks", "0.25"]
STEP = ["--set", "student.steps=2"]
MAY_NOT_END = ("reproduce table1", "reproduce figure3", "toy")  # in a few steps
CALL = {
    "distill": ["--teacher", "T", *SHORT, *STEP, *STUDENT, "--out", "made"],
    "extract": ["--teacher", "T", *SHORT, "--out", "made"],
    "compare": ["--teacher", "T", *SHORT[:4], "--synthesizers", "uniform,spectral", *STEP, *STUDENT,
                "--seeds", "1", "--workers", "1", "--out", "made"],
    "reproduce table1": ["--data", "mnist", "--data-root", "P/nothing", "--out", "made"],
    "reproduce figure3": ["--data", "P/data.npz", "--teacher", "T", "--out", "made"],
    "train-teacher": ["P/data.npz", "--arch", "mlp", "--epochs", "1", "--out", "made.pt"],
    "sample": ["P/run", "--count", "1", "--out", "made.npz"],
    "compress": ["--teacher", "T", *STUDENT, "--out", "made.pt"],
    "export": ["P/run", "--to", "torch", "--out", "made.pt"],
    "evaluate": ["T", "--eval-data", "P/data.npz"],
    "toy": ["--data", "moons", "--steps", "2", "--out", "made"],
    "runs": ["P"],
    "inspect": ["T"],
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Files and folders that options may name, sound ones among them."""
    folder = tmp_path_factory.mktemp("places")
    torch.manual_seed(0)
    net = build_net("mlp", SMALL)
    net.layers[-1].weight.data *= 20
    save_classifier(folder / "teacher.pt", Classifier(net, SMALL, "mlp"))
    student = StudentSpec((Tucker(layers={"layers.0": 0.25}),), "small")
    options = {**NOISE, "synthesizer": BDNF(BDNFOptions(steps=2, batch_size=4))}
    distill(folder / "teacher.pt", out=folder / "run", students=[student], **options)
    data = make_data()
    np.savez(folder / "data.npz", x=data.inputs.numpy(), y=data.labels.numpy())
    np.savez(folder / "other.npz", x=np.zeros((4, 3, 5, 5), np.uint8), y=np.arange(4))
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.yaml").write_text("layers: [1, {a: b}]\nseed: x\n")
    (folder / "set.yaml").write_text("seed: 3\n")
    (folder / "bytes.npz").write_bytes(bytes(range(256)))
    (folder / "nothing").mkdir()
    return folder


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    """Loops that go on end the command: what was to be known is known then."""
    walk = TrainingLoop.__iter__

    def few(self):
        for count, step in enumerate(walk(self)):
            if count >= STEPS and not isinstance(self.checkpoints, Rehearsal):
                raise Enough
            yield step

    monkeypatch.setattr(TrainingLoop, "__iter__", few)


def found(name):
    """A command by its words."""
    command, context = main, click.Context(main)
    for word in name.split():
        command = command.get_command(context, word)
    return command


def value_of(parameter, places, chance):
    """A value that somebody may type for an option, sensible or not."""
    paths = [str(p) for p in places.iterdir()] + ["/dev/null", "nowhere/x.pt", "made.pt", "made"]
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return chance.choice([*kind.choices, *chance.sample(TEXTS, 2)])
    if isinstance(kind, (click.types.IntParamType,)):
        return chance.choice(NUMBERS)
    if isinstance(kind, (click.types.FloatParamType,)):
        return chance.choice(REALS)
    if isinstance(kind, click.Path):
        return chance.choice([*paths, *chance.sample(TEXTS, 3)])
    return chance.choice([*TEXTS, *paths])


def typed(command, places, chance):
    """One to three options of a command with values."""
    options = [p for p in command.params if isinstance(p, click.Option) and p.name not in LEFT_OUT]
    words = []
    for option in chance.choices(options, k=chance.choice([1, 1, 2, 3])):
        words.append(chance.choice(option.opts))
        if not option.is_flag:
            words.append(value_of(option, places, chance))
    return words


def expect_right(folder, printed, extra):
    """Raises unless what a command has made can be read."""
    if "--json" in extra:
        json.loads(printed)
    logs = {Path(file).name for name, file in pairwise(extra) if name == "--log-file"}
    for path in [p for p in folder.rglob("*") if p.is_file() and p.name not in logs]:
        if path.suffix in (".pt", ".safetensors") and path.parent.name != "checkpoints":
            expect_answers(load_classifier(path))
        elif path.suffix == ".npz":
            arrays = np.load(path)
            assert len(arrays["x"]) == len(arrays["y"])
            assert np.isfinite(arrays["x"]).all()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name == "report.json":
            read_report(path.parent)
        elif not path.name.startswith("."):
            assert path.stat().st_size or path.suffix not in (".png", ".html", ".onnx")


def test_no_command_is_forgotten():
    assert {name.split()[0] for name in CALL} == set(COMMANDS)


@pytest.mark.parametrize("name", CALL)
def test_options_at_random(name, places, tmp_path, monkeypatch):
    tally, chance, command = Tally(f"options of {name}"), random.Random(name), found(name)
    for number in range(CALLS):
        here = tmp_path / str(number)
        here.mkdir()
        monkeypatch.chdir(here)
        words = [w.replace("P", str(places), 1) if w[:1] == "P" else w for w in CALL[name]]
        words = [str(places / "teacher.pt") if w == "T" else w for w in words]
        extra = typed(command, places, chance) if number else []
        if number % 7 == 6 and not words[0].startswith("-"):
            words[0] = value_of(command.params[0], places, chance)
        before = {
            p: p.read_bytes() for p in places.rglob("*") if p.is_file() and p.name != "empty.pt"
        }
        code = tally.judge_command(
            [*name.split(), *words, *extra],
            lambda printed, here=here, extra=extra: expect_right(here, printed, extra),
        )
        assert number or code == 0 or name in MAY_NOT_END, (code, tally.said, tally.short)
        asked = [p.name for p in here.rglob("*") if "--log-file" not in extra]
        if code == 2 and asked:
            tally.short.append(f"{name} {words} {extra}: refused, and yet it left {asked}")
        after = {
            p: p.read_bytes() for p in places.rglob("*") if p.is_file() and p.name != "empty.pt"
        }
        is_there = before.items() <= after.items()  # a folder among them may be written to
        if not is_there and "--force" not in extra:
            tally.short.append(f"{name} {words} {extra}: changed what it reads")
        if after != before:
            for path in set(after) - set(before):
                path.unlink()
            for path, content in before.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        shutil.rmtree(here, ignore_errors=True)
    tally.check(CALLS)
