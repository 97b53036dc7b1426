"""DFAD's own code (Data-Free-Adversarial-Distillation), for LeNet5 on MNIST.

    cd CHECKOUT && python dfad.py --teacher FILE --data-root DATA --minutes 20

Runs its script, with student `bdnf-3` of our teacher in place of its half LeNet5 of random
weights. Its 40 rounds of 50 iterations are told as 400 of 5, so that there are more looks.
"""

from __future__ import annotations

import contextlib
import sys

from clock import Clock, TimeIsUp

ROUNDS, EACH = 400, 5

clock = Clock(__doc__.splitlines()[0])

import DFAD_mnist as script  # noqa: E402  the checkout's

from freia_kd.students import as_specs, build, calibration_set  # noqa: E402

rounds = 0


def look(given, student, *others):
    """In place of its look at the test images after each round."""
    global rounds
    rounds += 1
    clock.look(student, clock.minutes / rounds * ROUNDS)
    if clock.is_up():
        raise TimeIsUp
    return 0.0


script.test = look
script.get_dataloader = lambda given: (None, None)
script.network.lenet.LeNet5Half = lambda: (
    build(clock.teacher, *as_specs(["bdnf-3"]), calibration_set(clock.teacher)).classifier.net
)
clock.save_teacher("checkpoint/teacher/mnist-lenet5.pt")
sys.argv[1:] = ["--epochs", str(ROUNDS), "--epoch_itrs", str(EACH)]
clock.go()
with contextlib.suppress(TimeIsUp):
    script.main()
print(f"{rounds * EACH} of {ROUNDS * EACH} iterations", file=sys.__stdout__)
