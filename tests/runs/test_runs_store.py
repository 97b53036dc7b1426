"""A run's record: typed, versioned, and refused in one line where it is not sound."""

import json

import pytest

from freia_kd import resume
from freia_kd.errors import CheckpointError, UsageError
from freia_kd.files import PART
from freia_kd.runs import Run
from freia_kd.runs.store import RECORD, VERSION, read_record

CONFIG = {"seed": 0, "domain": {"shape": (1, 8, 8)}, "training": {"steps": 4, "ema": 0.0}}


@pytest.fixture
def run(tmp_path):
    """A run of which one stage is done."""
    run = Run.create(tmp_path / "run", "distill", CONFIG)
    with run.stage("first"):
        (run / "file").write_text("kept")
    return run


def test_what_is_written_is_read_back(run):
    record = read_record(run.folder)
    assert record == run.record
    assert record.config["domain"]["shape"] == [1, 8, 8]
    assert (record.kind, record.done, record.version) == ("distill", ["first"], VERSION)
    assert Run.open(run.folder, "distill").done("first")
    assert not Run.open(run.folder).done("second")


def test_nothing_is_written_before_the_first_stage(tmp_path):
    Run.create(tmp_path / "run", "distill", CONFIG)
    assert not (tmp_path / "run").exists()


def test_seconds_add_up_over_interruptions(run):
    for error in (KeyboardInterrupt, None):
        run.record.seconds["second"] = run.record.seconds.get("second", 0.0) + 5
        if error is None:
            with run.stage("second"):
                pass
            continue
        with pytest.raises(error), run.stage("second"):
            raise error
        assert not run.done("second")
    assert 10 <= read_record(run.folder).seconds["second"] < 11
    assert read_record(run.folder).done == ["first", "second"]


def fail_in_the_first_stage(run, work):
    with run.stage("first"):
        work()
        raise UsageError("cannot be")


def test_a_first_stage_that_fails_leaves_nothing(tmp_path):
    run = Run.create(tmp_path / "run", "distill", CONFIG)
    with pytest.raises(UsageError, match="cannot be"):
        fail_in_the_first_stage(run, lambda: read_record(run.folder))
    assert not (tmp_path / "run").exists()


def test_a_stage_that_fails_after_it_has_kept_something_leaves_it(tmp_path):
    run = Run.create(tmp_path / "run", "distill", CONFIG)
    with pytest.raises(UsageError, match="cannot be"):
        fail_in_the_first_stage(run, lambda: run.checkpoints("first").save({"step": 1}))
    assert read_record(run.folder).done == []
    with pytest.raises(UsageError, match="already holds a run"):
        Run.create(tmp_path / "run", "distill", CONFIG)


def test_a_run_that_was_killed_before_it_kept_anything_blocks_nothing(tmp_path):
    run = Run.create(tmp_path / "run", "distill", CONFIG)
    run.write()
    (tmp_path / "run/.left.tmp").write_text("of a file that was being written")
    Run.create(tmp_path / "run", "distill", {**CONFIG, "seed": 1})


def test_options_that_differ_are_named_with_both_values(run):
    run.expect_config(CONFIG)
    other = {**CONFIG, "seed": 3, "training": {"steps": 5, "ema": 0.0}, "new": None, "late": 1}
    with pytest.raises(UsageError) as error:
        run.expect_config(other)
    message = str(error.value)
    for part in ("seed was 0, is 3", "training.steps was 4, is 5", "late was None, is 1"):
        assert part in message
    assert "ema" not in message
    assert "new was" not in message
    assert "leave them out" in message


def write(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / RECORD).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not the record of a run"),
        ('{"kind": "dist', "is not the record of a run"),
        ("[]", "this version cannot go on with"),
        ("3", "this version cannot go on with"),
        (json.dumps({"version": VERSION}), r"record of a run \(kind: Field required\)"),
        (
            json.dumps({"version": VERSION, "kind": "distill", "config": {}, "done": 7}),
            r"record of a run \(done: .*list",
        ),
        (
            json.dumps({"package": "0.1.0", "kind": "distill", "config": {}, "done": []}),
            r"freia_kd 0\.1\.0, whose record \(version 1\) this version cannot go on with",
        ),
        (
            json.dumps({"version": 99, "package": "9.0"}),
            r"freia_kd 9\.0, whose record \(version 99",
        ),
    ],
)
def test_a_record_that_is_not_sound_is_refused_in_one_line(tmp_path, text, message):
    folder = write(tmp_path / "run", text)
    for read in (read_record, resume):
        with pytest.raises(CheckpointError, match=message) as error:
            read(folder)
        assert "\n" not in str(error.value)


def test_a_record_of_another_kind_is_refused(tmp_path):
    run = Run.create(tmp_path / "run", "compare", {})
    run.write()
    with pytest.raises(CheckpointError, match="was made by compare, not by distill"):
        resume(tmp_path / "run")


def test_what_a_killed_process_wrote_in_part_blocks_nothing_and_goes(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / f"{PART}run-x.json").write_text("{")
    run = Run.create(folder, "distill", {})
    with run.stage("first"):
        run.checkpoints("first").save({"step": 1})
    again = Run.open(folder)
    parts = [again / f"{PART}run-x.json", again / f"checkpoints/{PART}first-x.safetensors"]
    parts.append(again / f"synthetic/train/{PART}shard-x.npy")
    mine = again / "synthetic/train/.hidden"
    for path in (*parts, mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{")
    with again.locked():
        assert not any(path.exists() for path in parts)
    assert mine.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("x")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        Run.create(tmp_path / "other", "distill", {})


@pytest.mark.parametrize("name", ["file", "file/run", "file/a/run"])
def test_a_file_is_no_folder_for_a_run(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"Expected a folder for the run, .*/file is a file"):
        Run.create(tmp_path / name, "distill", CONFIG)


def test_a_folder_that_lost_its_record_says_where_its_options_are(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no run\.json\.$"):
        read_record(tmp_path)
    (tmp_path / "run.yaml").write_text("seed: 1\n")
    with pytest.raises(
        CheckpointError, match=r"no run\.json; --config .*run\.yaml has the options"
    ):
        read_record(tmp_path)
