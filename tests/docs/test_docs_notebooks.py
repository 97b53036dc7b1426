"""The notebooks run, and have their pictures in place."""

import re
import resource
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SECONDS = 120  # on a free core


def read(path):
    return nbformat.read(path, as_version=4)


def test_there_are_three():
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_pictures_are_in_place(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(cell.execution_count for cell in cells)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert path.stat().st_size < 100_000
    # No folder of a machine but the temporary one, whose name every run invents.
    text = "".join(str(o.get("text", "")) for o in outputs)
    assert not re.search(r"/(?:home|root|work|Users)/", text)


def children_seconds():
    """The CPU time of processes that have ended, such as a notebook's kernel."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    client = pytest.importorskip("nbclient").NotebookClient
    before = children_seconds()
    notebook = read(path)
    where = {"metadata": {"path": str(tmp_path)}}
    client(notebook, timeout=4 * SECONDS, kernel_name="python3", resources=where).execute()
    assert children_seconds() - before < SECONDS
