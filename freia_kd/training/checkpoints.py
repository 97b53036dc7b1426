"""Where a stage of a run keeps its states and metrics."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import write_text
from ..ranks import is_first
from .progress import Progress
from .state import load_state, save_state

METRICS = "metrics.jsonl"
SAVE_EVERY = 15.0


class Checkpoints:
    """The states and metrics of one stage, in a run's folder, and what a person sees of it.

    States are `checkpoints/STAGE.safetensors`, metrics lines of `metrics.jsonl` with the name of
    the stage. Of processes that share a job all read them, and the first one writes.

    Arguments:
        folder: The run's folder.
        stage: The name of the stage.
        progress: What to show while it runs.
        every: How many seconds a loop lets pass between states that are quick to write; by
            default 15. None pass where it is 0: there is a state of every step.

    Raises:
        CheckpointError: If the stage's name leads to another folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        stage: str,
        progress: Progress | None = None,
        every: float | None = None,
    ) -> None:
        if Path(stage).name != stage:  # of a record that a stranger may have written
            raise CheckpointError(f"Expected a stage's name without folders; got {stage!r}.")
        self.folder, self.stage = Path(folder), stage
        self.progress = progress or Progress()
        self.every = SAVE_EVERY if every is None else every

    def part(self, name: object) -> Checkpoints:
        """A stage of its own within this one, called `STAGE-NAME`."""
        return Checkpoints(self.folder, f"{self.stage}-{name}", self.progress, self.every)

    @property
    def path(self) -> Path:
        """Where the state is."""
        return self.folder / "checkpoints" / f"{self.stage}.safetensors"

    def save(self, state: dict[str, Any]) -> None:
        """Keeps a nested state of tensors and plain values, atomically."""
        if is_first():
            save_state(self.path, state)

    def load(self) -> dict[str, Any] | None:
        """The kept state, or `None`.

        Raises:
            CheckpointError: If the file is damaged.
        """
        return load_state(self.path) if self.path.exists() else None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Appends a line to the metrics."""
        if not is_first():
            return
        line = json.dumps({"stage": self.stage, "step": step, **values})
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def is_enough(self, step: int, steps: int) -> bool:
        """Whether a loop is to end before its last step; never, save in a rehearsal."""
        del step, steps
        return False

    def forget_after(self, step: int) -> None:
        """Drops the metrics of this stage after a step, which a resumed stage will write again."""
        if not is_first() or not (self.folder / METRICS).exists():
            return
        kept = [
            m for m in read_metrics(self.folder) if m["stage"] != self.stage or m["step"] <= step
        ]
        write_text(self.folder / METRICS, "".join(json.dumps(m) + "\n" for m in kept))


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics (a kill may cut the last, and a disk spoil any)."""
    path = Path(folder) / METRICS
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and _is_whole(**values):
            lines.append(values)
    return lines


def _is_whole(stage: object = None, step: object = None, **values: object) -> bool:
    numbers = all(isinstance(value, (int, float)) for value in values.values())
    return isinstance(stage, str) and isinstance(step, int) and numbers
