"""Checkpoints that let a training be stopped before a step, as Ctrl-C does."""

from freia_kd.training import Checkpoints


class Stopping(Checkpoints):
    """Keeps the state of every step, and raises `KeyboardInterrupt` before one.

    Arguments:
        folder: The run's folder.
        stage: The name of the stage.
        at: The stage and the step to stop before, if any.
        seen: Gets the steps of all stages that were begun.
    """

    def __init__(self, folder, stage, at=None, seen=None):
        super().__init__(folder, stage, every=0)
        self.at, self.seen = at, [] if seen is None else seen

    def part(self, name):
        return Stopping(self.folder, f"{self.stage}-{name}", self.at, self.seen)

    def is_enough(self, step, steps):
        if (self.stage, step) == self.at or len(self.seen) == self.at:
            raise KeyboardInterrupt
        self.seen.append(step)
        return False
