"""The example of density estimation runs, and its classifier is better than chance."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "density.py")


@pytest.mark.slow
def test_digits_are_modelled_drawn_and_classified(tmp_path):
    picture = tmp_path / "density.png"
    command = [sys.executable, EXAMPLE, "--steps", "30", "--width", "8", "--test-images", "100"]
    done = subprocess.run(
        [*command, "--out", str(picture)], capture_output=True, text=True, check=True
    )
    found = re.search(r"test: ([\d.]+) bits per dimension, .* ([\d.]+)% right", done.stdout)
    assert found, done.stdout
    assert float(found[1]) < 8  # less than uniform noise
    assert float(found[2]) > 20  # chance is 10
    assert picture.stat().st_size > 1000
