"""The paper's own code, Knowlede-Extraction-Flow, folder teacher_student_experiment.

    cd CHECKOUT && python paper.py --teacher FILE --data-root DATA --minutes 20

Runs its three scripts, without data (`KEFLOW`) and for student 3. If the minutes do not do for
its 30 passes of the flow, the flow is cut at three quarters of them, and its student learns from
that flow for the rest.
"""

from __future__ import annotations

import contextlib
import math
import runpy
import sys
from pathlib import Path

from clock import Clock, TimeIsUp

SHARE = 0.75  # of the minutes, for the flow
LOOK_EVERY = 5  # passes of the student

clock = Clock(__doc__.splitlines()[0])

import config  # noqa: E402  the checkout's
import data_handler  # noqa: E402
import trainer  # noqa: E402
from KEflow.trainer import ExtractorTrainer  # noqa: E402

config.DISTRIBUTION, config.compress_type = "KEFLOW", 3
data_handler.prepare_data = lambda root, kind: (None, clock.normalised("test"))
for folder in ("ckpts/generator", "ckpts/student", "pseudo_data", "log"):
    Path(folder).mkdir(parents=True, exist_ok=True)
for name in ("classifier_digit_lenet5_.pt", "classifier_digit_lenet5.pt"):
    clock.save_teacher(f"ckpts/teacher/{name}", "model_state")


class Pace:
    """How far each stage is, and what the whole would take."""

    def __init__(self):
        self.steps, self.all_steps = 0, config.flow_epochs * math.ceil(20_000 / config.flow_bs)
        self.flow = self.made = None  # minutes at the end of the flow, and of making inputs
        self.passes = 0

    def whole(self):
        student = (clock.minutes - self.made) / self.passes * config.stud_epochs
        return self.flow / self.steps * self.all_steps + (self.made - self.flow) + student


pace = Pace()
step = ExtractorTrainer.train_step


def counted_step(self, *arguments):
    if clock.is_up(SHARE):
        self.save("ckpts/generator/keflow_digit.pt")
        raise TimeIsUp
    step(self, *arguments)
    pace.steps += 1


def look(self, epoch):
    """In place of its look at the test images after each pass."""
    if pace.made is None:  # the one before any training
        pace.made = clock.minutes
        return
    pace.passes += 1
    if pace.passes % LOOK_EVERY == 0 or clock.is_up():
        clock.look(self.model, pace.whole())
    if clock.is_up():
        raise TimeIsUp


ExtractorTrainer.train_step = counted_step
trainer.Trainer.validate = look
clock.go()
with contextlib.suppress(TimeIsUp):
    runpy.run_path("train_keflow.py", run_name="__main__")
pace.flow = clock.minutes
print(f"{pace.steps} of {pace.all_steps} steps of the flow in {pace.flow:.2f} minutes")
runpy.run_path("generate_data.py", run_name="__main__")
with contextlib.suppress(TimeIsUp):
    runpy.run_path("train_student.py", run_name="__main__")
print(f"{pace.passes} of {config.stud_epochs} passes of the student", file=sys.__stdout__)
