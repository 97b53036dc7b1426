"""What a type checker and an editor see of `import freia_kd`: real signatures, and nothing else."""

import subprocess
import sys

import pytest

GOOD = """
import torch
import freia_kd
from freia_kd import BDNF, BDNFOptions, DistillationOptions, Prune, StudentSpec, Tucker

result = freia_kd.distill(
    "lenet5.pt",
    students=["1", StudentSpec((Tucker(target="macs", goal=0.5), Prune(keep_ratio=0.7)))],
    synthesizer=[BDNF(BDNFOptions(steps=500)), "spectral"],
    training=DistillationOptions(steps=600),
    preset="quick",
    out="runs/mine",
)
agreement: float = result.report.students[0].distilled.agreement.value
logits: torch.Tensor = result.student()(torch.rand(1, 1, 32, 32))
again = freia_kd.resume(result.folder, students=["2"], seed=0)
bytes_saved: int = freia_kd.compress("lenet5.pt", "small.pt", student="2").costs.after.bytes
"""
BAD = {
    "misspelt option": ('freia_kd.distill("t.pt", set_sise=3)', "set_sise"),
    "wrong type": ('freia_kd.distill("t.pt", set_size="many")', "set_size"),
    "wrong choice": ('freia_kd.distill("t.pt", preset="mini")', "preset"),
    "missing attribute": ("freia_kd.distil", "distil"),
    "missing result": ('freia_kd.resume("run").accuracy', "accuracy"),
    "misspelt field": ("freia_kd.BDNFOptions(stpes=3)", "stpes"),
    "wrong field": ('freia_kd.DistillationOptions(steps="many")', "steps"),
    "misspelt method": ("freia_kd.Tucker(layer={})", "layer"),
}


@pytest.mark.slow
def test_a_type_checker_passes_what_is_right_and_finds_what_is_wrong(tmp_path):
    pytest.importorskip("mypy")
    bad = ["import freia_kd", *(code for code, _ in BAD.values())]
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text("\n".join(bad) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "good.py", "bad.py"]
    # What the package imports is not looked at: only what it says of itself.
    done = subprocess.run(
        [*command, "--follow-imports=silent", "--hide-error-context"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "good.py" not in done.stdout, done.stdout + done.stderr
    for line, (kind, (_, word)) in enumerate(BAD.items(), start=2):
        found = [text for text in done.stdout.splitlines() if text.startswith(f"bad.py:{line}:")]
        assert found, f"{kind} passes: {done.stdout}{done.stderr}"
        assert word in found[0], kind
