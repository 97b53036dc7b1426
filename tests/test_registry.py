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


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UsageError, match=r"Unknown function 'cube'; known ones are root"):
        FLOWS["cube"]


@pytest.mark.parametrize("path", ["nowhere_at_all:x", "math:nothing", "math", ":x", "math:"])
def test_bad_paths(path):
    with pytest.raises(UsageError):
        import_object(path)
