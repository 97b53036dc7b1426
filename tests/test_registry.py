import math
from importlib.metadata import EntryPoint

import pytest

from freia_kd import registry
from freia_kd.errors import UsageError
from freia_kd.registry import Registry, import_object

FLOWS = Registry("freia_kd.test", {"root": "math:sqrt"}, "function")


def test_builtin_names_paths_and_entry_points(monkeypatch):
    entry = EntryPoint("power", "math:pow", "freia_kd.test")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    assert FLOWS["root"] is math.sqrt
    assert FLOWS["math:floor"] is math.floor
    assert FLOWS["power"] is math.pow
    assert list(FLOWS) == ["root", "power"]


@pytest.mark.parametrize("value", ["nowhere_at_all:x", "math:nothing", "'math:pow'"])
def test_an_entry_point_that_cannot_be_loaded(monkeypatch, value):
    entry = EntryPoint("power", value, "freia_kd.test")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    with pytest.raises(UsageError, match=r"Cannot load the function 'power'.*package"):
        FLOWS["power"]


def test_a_lost_module_asks_for_its_folder():
    with pytest.raises(UsageError, match=r"nowhere_at_all.*Is its folder in PYTHONPATH\?$"):
        import_object("nowhere_at_all.inner:x")
    with pytest.raises(UsageError, match=r"math\.inner[^?]*$"):
        import_object("math.inner:x")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UsageError, match=r"Unknown function 'cube'; known ones are root"):
        FLOWS["cube"]


@pytest.mark.parametrize("path", ["nowhere_at_all:x", "math:nothing", "math", ":x", "math:"])
def test_bad_paths(path):
    with pytest.raises(UsageError):
        import_object(path)
