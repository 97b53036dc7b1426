"""What the drivers of peers share: the teacher, the clock, and looks at the test images.

A driver runs another's program, unchanged where that goes, in the folder of its checkout, and
prints lines `MINUTES ACCURACY WHOLE`: the processor's minutes so far, the accuracy in %, and the
minutes that the program's full length takes at its own pace. Imports, loading the teacher and
looking at test images are not counted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from freia_kd.compression import load_teacher
from freia_kd.data.datasets import load_dataset
from freia_kd.evaluation import accuracy
from freia_kd.teachers import Classifier


class TimeIsUp(Exception):
    """The peer has had its minutes."""


class Clock:
    """The minutes that a peer has had, and what its student is worth.

    Arguments:
        description: The first line of the driver's help.
    """

    def __init__(self, description):
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--teacher", required=True)
        parser.add_argument("--data-root", required=True)
        parser.add_argument("--minutes", type=float, required=True, help="of the processor")
        given = parser.parse_args()
        torch.set_num_threads(1)
        sys.argv[1:] = []
        sys.path.insert(0, os.getcwd())
        self.teacher = load_teacher(given.teacher)
        self.data = {
            split: load_dataset("mnist", self.teacher.domain, split, given.data_root)
            for split in ("train", "test")
        }
        self.limit = given.minutes
        self.go()

    def go(self):
        """Begins to count, once the peer's modules are imported."""
        self.start, self.uncounted_for = time.process_time(), 0.0

    @property
    def minutes(self):
        return (time.process_time() - self.start - self.uncounted_for) / 60

    @contextmanager
    def uncounted(self):
        """What happens within is no work of the peer's."""
        before = time.process_time()
        try:
            yield
        finally:
            self.uncounted_for += time.process_time() - before

    def is_up(self, share=1.0):
        """Whether a share of the minutes is used."""
        return self.minutes >= share * self.limit

    def look(self, net, whole):
        """Prints a line for a net that takes normalised inputs."""
        minutes = self.minutes
        with self.uncounted():
            right = accuracy(Classifier(net, self.teacher.domain, "peer"), self.data["test"])
            print(f"{minutes:.2f} {100 * right:.2f} {whole:.1f}", file=sys.__stdout__, flush=True)

    def normalised(self, split):
        """Pairs of a normalised image and its label, as the peers' own data sets give them."""
        with self.uncounted():
            batches = [*self.data[split].batches(500)]
            x = torch.cat([self.teacher.domain.normalize(x) for x, _ in batches])
            return torch.utils.data.TensorDataset(x, self.data[split].labels)

    def save_teacher(self, path, key=None):
        """Writes the teacher's weights where a peer looks for them, and under its key."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        state = self.teacher.net.state_dict()
        torch.save({key: state} if key else state, path)
