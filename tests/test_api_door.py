"""What `import freia_kd` shows, and that it loads nothing slow."""

import inspect
import subprocess
import sys

import pytest

import freia_kd
from freia_kd.comparing.main import open_comparison
from freia_kd.job.opening import open_job
from freia_kd.job.teaching import open_training

VERBS = [
    "train_teacher",
    "distill",
    "resume",
    "compress",
    "evaluate",
    "export",
    "compare",
    "load_student",
]
HEAVY = ("torch", "pydantic", "numpy", "click", "rich", "matplotlib", "sklearn")


def python(code):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_importing_the_package_loads_nothing_slow():
    assert python(f"import sys, freia_kd; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_the_door_shows_the_verbs_and_their_types_and_leaks_nothing():
    shown = python("import freia_kd; print(*dir(freia_kd))").split()
    assert sorted(freia_kd.__all__) == shown
    assert set(VERBS) < set(shown)
    others = set(shown) - set(VERBS) - {"__version__"}
    assert all(name[0].isupper() for name in others)  # types


@pytest.mark.parametrize("name", [n for n in freia_kd.__all__ if n != "__version__"])
def test_every_name_is_there_and_of_the_package(name):
    found = getattr(freia_kd, name)
    assert callable(found)
    assert found.__module__.startswith("freia_kd")


@pytest.mark.slow
def test_verbs_stay_verbs_once_everything_is_imported():
    code = (
        "import freia_kd, pkgutil, importlib\n"
        "for m in pkgutil.iter_modules(freia_kd.__path__):\n"
        "    if m.name != '__main__': importlib.import_module(f'freia_kd.{m.name}')\n"
        f"print(*(type(getattr(freia_kd, n)).__name__ for n in {VERBS}))"
    )
    assert set(python(code).split()) == {"function"}  # no module of the same name hides them


@pytest.mark.parametrize(
    ("verb", "opening"),
    [
        (freia_kd.distill, open_job),
        (freia_kd.compare, open_comparison),
        (freia_kd.train_teacher, open_training),
    ],
)
def test_a_verb_and_what_opens_its_work_have_the_same_defaults(verb, opening):
    outside, inside = (inspect.signature(f).parameters for f in (verb, opening))
    shared = outside.keys() & inside.keys()
    assert len(shared) > 10
    assert {n: outside[n].default for n in shared} == {n: inside[n].default for n in shared}


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        freia_kd.distil  # noqa: B018
