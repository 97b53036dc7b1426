"""KegNet's own code, for LeNet5 on MNIST and its student 3.

    cd CHECKOUT/src && python kegnet.py --teacher FILE --data-root DATA --minutes 20

Calls its trainings of generators (five, as its README says; fewer where the minutes end before)
and of the student. What its code does besides, and a user would not need, is not counted: looks at
its own inputs and at real images. Its early stop by 5,000 real training images stays, with a look
at every tenth pass.
"""

from __future__ import annotations

import contextlib

from clock import Clock, TimeIsUp

GENERATORS = 5
SHARE = 0.75  # of the minutes, for generators
LOOK_EVERY = 10  # passes of the student
PASSES = {"generator": 200, "student": 400}

clock = Clock(__doc__.splitlines()[0])

import torch  # noqa: E402
from kegnet.classifier import train as students  # noqa: E402  the checkout's
from kegnet.generator import loss, train  # noqa: E402
from kegnet.utils import data, utils  # noqa: E402


def loaders(self, batch_size):
    """Its loaders, of images in memory."""
    real, test = clock.normalised("train"), clock.normalised("test")
    return data._to_image_loaders(real, real, test, batch_size)


class Pace:
    """How far each stage is, and what the whole would take."""

    def __init__(self):
        self.generators = 0.0
        self.made = None  # minutes at the end of the generators
        self.looks = 0

    @property
    def passes(self):
        return (self.looks - 1) // 3

    def whole(self):
        inputs = GENERATORS / len(made)  # the student's set has as many of each generator
        student = (clock.minutes - self.made) / self.passes * PASSES["student"] * inputs
        return self.made / self.generators * GENERATORS + student


pace, made, found = Pace(), [], {}
update, evaluate = train.update, students.eval_classifier


def counted_update(networks, *arguments):
    if clock.is_up(SHARE):
        if not made:
            made.append("out/cut.pth.tar")
            utils.save_checkpoints(networks[0], made[-1])
        raise TimeIsUp
    result = update(networks, *arguments)
    pace.generators += 1 / PASSES["generator"]
    return result


def look(net, loader, loss_func):
    """In place of its three looks before and after each pass: synthetic, real and test images."""
    kind = ("synthetic", "real", "test")[pace.looks % 3]
    pace.looks += 1
    due = pace.passes % LOOK_EVERY == 0
    if kind == "real" and due:
        with clock.uncounted():
            found[kind] = evaluate(net, loader, loss_func)
    if kind == "test" and pace.passes and (due or clock.is_up()):
        clock.look(net, pace.whole())
        if clock.is_up():
            raise TimeIsUp
    return found.get(kind, (0.0, 0.0))


# Its weight is 0 for MNIST, and its code computes it all the same, 67 million numbers a step.
loss.DiversityLoss.forward = lambda self, noises, layer: torch.zeros(())
data.MNIST.to_loaders = loaders
train.update, students.eval_classifier = counted_update, look

clock.save_teacher("out/teacher.pth.tar", "model_state")
clock.go()
with contextlib.suppress(TimeIsUp):
    for index in range(GENERATORS):
        folder = f"out/generator-{index}"
        made.append(train.main("mnist", "out/teacher.pth.tar", folder, index))
pace.made = clock.minutes
print(f"{pace.generators:.2f} of {GENERATORS} generators in {pace.made:.2f} minutes", flush=True)
with contextlib.suppress(TimeIsUp):
    students.main(
        "mnist", "kegnet", "out/student", load="out/teacher.pth.tar", generators=made, option=3
    )
print(f"{pace.passes} of {PASSES['student']} passes of the student")
