"""Faults of options: all of them together, each as it was typed, before any work."""

import json

import numpy as np
import pytest
from cli_calls import FLOW, call, fails, faults

from freia_kd.errors import UsageError
from freia_kd.files import TRIAL


def test_all_faults_are_reported_together(distill, tmp_path):
    lines = faults(
        *distill, *FLOW, "--device", "gpu", "--gamma", 0.1, "--set", "bdnf.steps=-1",
        "--loss", "revers-kl",
        "--set", "student.stepz=1", "--keep-ratio", 0.3, "--student", 1, "--ranks", 8,
        "--mean", "0.5",
    )  # fmt: skip
    for said in (
        "--device: expected one of auto, cpu, cuda; got 'gpu'.",
        "--gamma is of real samples; pass --samples as well.",
        "--set bdnf.steps: expected at least 1; got -1.",
        "did you mean 'reverse-kl'?",
        "did you mean 'student.steps'?",
        "--keep-ratio is an option of --method prune, which is not given.",
        "Pass only one of --student and --ranks",
        "A domain that is spelled out also needs --input-shape, --std, --classes.",
    ):
        assert sum(said in line for line in lines) == 1, (said, lines)
    assert len(lines) == 8
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resize"], "--resize is of real samples"),
        (["--loss", "js", "--set", "student.divergence=l1"], "both choose the loss"),
        (["--on-the-fly", "--set-size", 8], "pass one of them"),
        (["--data-root", "."], "--data-root is of --eval-data"),
        (["--flow", "glow"], "--flow is of bdnf"),
        (["--set", "prune.keep_ratio=0.3"], "is of --method prune, which is not given"),
        (["--set", "steps"], "expected NAME.OPTION=VALUE"),
        (["--set", "boat=1"], "Unknown option 'boat'"),
        (["--set-size", 0], "--set-size: 0 is not in the range"),
        (["--set", "--"], "--set: expected NAME.OPTION=VALUE; got '--'."),
        (["--layers"], "Option '--layers' requires an argument."),
        (["--eval-data"], "Option '--eval-data' requires an argument."),
        (["--preset", "mini"], "--preset: expected one of quick, standard, best, paper"),
    ],
)
def test_options_without_effect_or_sense_are_refused(distill, tmp_path, options, said):
    assert said in fails(*distill, *options)
    assert not (tmp_path / "run").exists()


def test_what_differs_from_a_run_is_named_with_both_values(distill, tmp_path):
    call(*distill, "--set", "student.mixup=0.5")
    again = ["distill", "--resume", "--out", tmp_path / "run"]
    line = fails(*again, "--set", "student.steps=9", "--set", "uniform.tries=3", "--set-size", 32)
    for said in ("training.steps was 6, is 9", "tries was 10, is 3", "set_size was 64, is 32"):
        assert said in line
    assert "mixup" not in line  # options that were not typed are the run's, not the preset's
    assert "bdnf" in fails(*again, "--synthesizer", "bdnf")
    call(*again, "--preset", "quick", "--set", "student.mixup=0.5")


def test_a_loss_of_ones_own_is_trusted_only_if_it_is_typed(distill, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_losses.py").write_text("from freia_kd.objectives.divergences import l1\n")
    call(*distill, "--loss", "my_losses:l1")
    again = ["distill", "--resume", "--out", tmp_path / "run", "--student", 3]
    assert "--loss my_losses:l1; if you trust that code" in fails(*again)
    call(*again, "--loss", "my_losses:l1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["compress", "--teacher", "T"],
        ["train-teacher", "digits", "--epochs", 1],
        ["sample", "RUN"],
    ],
)
def test_files_are_not_overwritten_unasked(arguments, teacher_file, finished, tmp_path):
    out = tmp_path / ("x.npz" if arguments[0] == "sample" else "x.pt")
    out.write_text("mine")
    places = {"T": teacher_file, "RUN": finished.folder}
    arguments = [places.get(a, a) for a in arguments]
    assert f"{out} exists; pass --force to replace it" in fails(*arguments, "--out", out)
    assert "expected a file" in fails(*arguments, "--out", tmp_path / "x.doc")
    assert out.read_text() == "mine"
    call(*arguments, "--out", out, "--force")
    assert out.read_bytes() != b"mine"


def test_what_is_read_is_never_written(teacher_file, tmp_path):
    before = teacher_file.read_bytes()
    line = fails("compress", "--teacher", teacher_file, "--out", teacher_file, "--force")
    assert "is what is read; choose another file" in line
    assert teacher_file.read_bytes() == before
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 1, 8, 8), np.uint8), y=np.arange(4))
    data = tmp_path / "x.npz"
    assert "expected a file" in fails("train-teacher", data, "--out", data, "--force")


@pytest.mark.slow
def test_proxy_images_are_shown_beside_the_rest(teacher_file, tmp_path):
    np.savez(tmp_path / "any.npz", images=np.zeros((12, 20, 28, 3), dtype=np.uint8))
    words = ["distill", "--teacher", teacher_file, "--preset", "quick", "--set-size", 48]
    words += ["--set", "bdnf.steps=2", "--set", "bdnf.batch_size=4", "--set", "student.steps=2"]
    run = tmp_path / "run"
    result = call(*words, "--proxy", tmp_path / "any.npz", "--out", run, "--json")
    made = {s["name"]: s for s in json.loads(result.stdout)["synthesizers"]}
    assert set(made) == {"leaves", "figures", "bdnf", "proxy"}
    assert made["proxy"]["options"]["source"] == str(tmp_path / "any.npz")
    assert "proxy" in made["proxy"]["real_images"]
    refused = call("distill", "--resume", "--out", run, "--proxy", tmp_path, code=2)
    assert "proxy.source was" in refused.stderr


# --- Time and choice ---


def test_minutes_and_steps_say_the_same(teacher_file):
    line = fails("distill", "--teacher", teacher_file, "--minutes", 5, "--set", "bdnf.steps=9")
    assert "--minutes and --set bdnf.steps both say how long" in line


def test_an_interruption_of_trials_says_how_to_go_on(teacher_file, tmp_path, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("freia_kd.job.opening.plan_trials", stopped)
    command = ["distill", "--teacher", teacher_file, "--synthesizer", "auto", "--preset", "quick"]
    command += ["--out", tmp_path / "run"]
    assert "began; nothing was written." in call(*command, code=130).stderr
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{TRIAL}1.safetensors").touch()
    assert f"again, with --out {tmp_path / 'run'}." in call(*command, code=130).stderr


def test_auto_takes_methods_as_they_are(teacher_file):
    lines = faults(
        *("distill", "--teacher", teacher_file, "--synthesizer", "auto"),
        *("--set", "bdnf.alpha=0.1", "--flow", "glow"),
    )
    assert [line.split(" has no effect")[0].removeprefix("Error: ") for line in lines] == [
        f"--synthesizer auto chooses among methods as they are, so that {key}"
        for key in ("bdnf.alpha", "flow")
    ]


def test_auto_with_a_proxy_keeps_the_proxy(teacher_file, tmp_path, monkeypatch):
    from freia_kd import api

    seen = {}

    def stop(**given):
        seen.update(given)
        raise UsageError("Enough.")

    monkeypatch.setattr(api, "distill", stop)
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 1, 32, 32), dtype=np.uint8))
    arguments = ("--synthesizer", "auto", "--proxy", tmp_path / "x.npz", "--minutes", 3)
    call("distill", "--teacher", teacher_file, *arguments, code=2)
    auto, proxy = seen["synthesizer"]
    assert (auto, proxy.options.source) == ("auto", str(tmp_path / "x.npz"))
    assert seen["minutes"] == 3
