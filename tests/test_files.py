import os
import stat

import pytest

from freia_kd.files import atomic, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail_halfway():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_has_the_permissions_that_files_have_here(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "text")
        (tmp_path / "b.txt").write_text("text")
        modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert modes == {0o666 & ~umask}
    finally:
        assert os.umask(before) == umask  # which writing has left as it was


def test_a_file_takes_its_place_only_when_the_disk_has_it(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    fsync, seen = os.fsync, []

    def sync(handle):
        seen.append((path.read_text(), [p.read_text() for p in tmp_path.glob(".part-*")]))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", sync)
    write_text(path, "new")
    assert seen == [("old", ["new"])]
    assert path.read_text() == "new"
