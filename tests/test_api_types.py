"""What a type checker says of users' scripts: the door is typed."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
ROOT = Path(__file__).parents[1]

GOOD = """
import freia_kd
from freia_kd import BDNF, BDNFOptions, Classifier, DistillationOptions, Spectral, StudentSpec
from freia_kd import Tucker

trained = freia_kd.train_teacher("digits", "lenet5.pt", epochs=3)
share: float = trained.accuracy.value
result = freia_kd.distill(
    "lenet5.pt",
    students=["1", StudentSpec((Tucker(layers={"conv3": 0.25}),), name="small")],
    synthesizer=[BDNF(BDNFOptions(steps=5)), Spectral()],
    training=DistillationOptions(steps=100, mixup=1.0),
    preset="quick",
)
more = freia_kd.resume(result.folder, students=["3"], eval_data="digits")
agreement: float = more.report.students[0].distilled.agreement.value
small = freia_kd.compress("lenet5.pt", "small.pt", student=StudentSpec((Tucker(student="2"),)))
parameters: int = small.costs.after.parameters
for row in freia_kd.evaluate("small.pt", "digits"):
    print(row.accuracy.low)
files = freia_kd.export(result.folder, ["onnx"])
compared = freia_kd.compare("lenet5.pt", synthesizers=[Spectral(), "uniform"], seeds=1)
print(compared.folder)
student: Classifier = freia_kd.load_student(result.folder)
"""

BAD = {
    "import freia_kd; freia_kd.distill('t.pt', sead=1)": 'Unexpected keyword argument "sead"',
    "import freia_kd; freia_kd.distill('t.pt', seed='one')": 'expected "int"',
    "import freia_kd; freia_kd.distill('t.pt', preset='mini')": "Literal['quick', 'standard'",
    "import freia_kd; freia_kd.distil('t.pt')": 'Module has no attribute "distil"',
    "import freia_kd; freia_kd.evaluate('s.pt', 'digits')[0].acuracy": 'no attribute "acuracy"',
    "import freia_kd; freia_kd.DistillationOptions(stepz=1)": 'keyword argument "stepz"',
    "import freia_kd; freia_kd.resume('run').report.student": '"Report" has no attribute "student"',
}


@pytest.mark.slow
def test_a_good_script_passes_and_faulty_ones_do_not(tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    for number, code in enumerate(BAD):
        (tmp_path / f"bad{number}.py").write_text(f"{code}\n")
    cache = ROOT / ".mypy_cache"
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", cache, "--follow-imports", "silent",
         "--ignore-missing-imports", *sorted(tmp_path.glob("*.py"))],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    lines = run.stdout.splitlines()
    assert not [line for line in lines if "good.py" in line], run.stdout
    for number, message in enumerate(BAD.values()):
        said = [line for line in lines if f"bad{number}.py" in line]
        assert any(message in line for line in said), (message, said)
