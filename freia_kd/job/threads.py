"""How many threads a run computes with: what is fastest when it begins, and the same ever after."""

from __future__ import annotations

import copy
import os

import torch

from ..compression.cost import count_macs
from ..device import fastest_threads
from ..runs import Run
from ..teachers import Classifier

MACS = 2e9  # multiply-accumulates of the step that is timed, at the most: about 0.1 s of one core
PASSES = 3  # forward passes that forward and backward take together, by their arithmetic


def settle_threads(run: Run, classifier: Classifier, batch_size: int) -> None:
    """Lets torch compute with the threads of the run's record or, in a new one, the fastest.

    Sums that are split among other threads are rounded otherwise, so a run that is resumed has the
    number that it began with. `OMP_NUM_THREADS` overrules both.

    Arguments:
        run: The run.
        classifier: What it trains is about as large as this, which is not modified.
        batch_size: The inputs of a step; fewer are timed where a step is long.
    """
    is_free = "OMP_NUM_THREADS" not in os.environ
    if is_free and run.record.threads is not None:
        torch.set_num_threads(run.record.threads)
        return
    device, known = next(classifier.parameters()).device, torch.get_num_threads()
    if is_free and known > 1 and device.type == "cpu":
        torch.set_num_threads(fastest_threads(_Step(classifier, batch_size)))
        if torch.get_num_threads() < known:
            run.progress.note(
                f"Computing with {torch.get_num_threads()} of {known} threads, with which a step "
                "is faster here and now; OMP_NUM_THREADS would say otherwise."
            )
    run.record.threads = torch.get_num_threads()


class _Step:
    """A step of training without what follows from it."""

    def __init__(self, classifier: Classifier, batch_size: int) -> None:
        self.net = copy.deepcopy(classifier.net).eval().requires_grad_(True)
        shape = classifier.domain.shape
        rows = min(batch_size, MACS / (PASSES * max(count_macs(self.net, shape), 1)))
        self.x = torch.zeros(max(1, int(rows)), *shape)
        self()  # which warms up

    def __call__(self) -> None:
        self.net(self.x).square().mean().backward()
