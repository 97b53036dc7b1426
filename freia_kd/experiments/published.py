"""What the paper's Table 1 says, and the settings of each of its data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Family = Literal["paper", "kegnet"]
STUDENTS: dict[str, tuple[str, ...]] = {
    "paper": ("bdnf-1", "bdnf-2", "bdnf-3"),
    "kegnet": ("kegnet-1", "kegnet-2", "kegnet-3"),
}

TUCKER, TRAINED = "Tucker (T)", "T+training data"  # by which recovery is defined

# The paper's rows after that of the compressed students, what makes the inputs of each, and whether
# that sees the ten samples.
PAPER_ROWS: dict[str, tuple[str, bool]] = {
    "T+Uniform": ("uniform", False),
    "T+Normal": ("normal", False),
    "T+KegNet": ("kegnet", False),
    "T+BDNF": ("bdnf", False),
    "T+Sample": ("samples", True),
    "T+BDNF(Sample)": ("bdnf", True),
}


@dataclass(frozen=True)
class Setting:
    """A data set of the table with its teacher.

    Arguments:
        arch: The teacher's architecture.
        epochs: How long it is trained, by preset.
        kegnet: The options of KegNet that its authors' code has for this set and no other.
        published: The paper's accuracies in %, by approach, of students 1 to 3; a text where the
            paper only gives a bound.
    """

    arch: str
    epochs: Mapping[str, int]
    kegnet: Mapping[str, float]
    published: Mapping[str, tuple[float | str, float, float]]


TABLE1 = {
    "mnist": Setting(
        "lenet5",
        {"quick": 5, "paper": 20},
        {"beta": 0.0},
        {
            "original": (98.9, 98.9, 98.9),
            "Tucker (T)": (24.3, 28.0, 16.2),
            "T+Uniform": (64.9, 56.4, 53.4),
            "T+Normal": (62.6, 57.5, 49.8),
            "T+KegNet": (76.5, 76.2, 61.6),
            "T+BDNF": (86.1, 83.6, 74.3),
            "T+Sample": (68.73, 67.8, 41.8),
            "T+BDNF(Sample)": (89.1, 82.4, 79.5),
        },
    ),
    "svhn": Setting(
        "resnet14",
        {"quick": 3, "paper": 30},
        {"beta": 1.0, "learning_rate": 1e-2, "decoder_layers": 4},
        {
            "original": (93.2, 93.2, 93.2),
            "Tucker (T)": (13.1, 26.9, 19.8),
            "T+Uniform": (69.5, 73.8, 46.8),
            "T+Normal": (70.57, 63.8, 22.9),
            "T+KegNet": (51.0, 65.1, 30.3),
            "T+BDNF": (72.1, 78.0, 66.5),
            "T+Sample": (60.7, 46.5, 28.1),
            "T+BDNF(Sample)": (82.8, 79.8, 72.3),
        },
    ),
    "fashion-mnist": Setting(
        "resnet14",
        {"quick": 3, "paper": 30},
        {"beta": 10.0, "learning_rate": 1e-2, "decoder_layers": 4},
        {
            "original": (91.2, 91.2, 91.2),
            "Tucker (T)": (71.5, 62.5, 43.1),
            "T+Uniform": ("<71.5", 78.5, 50.4),
            "T+Normal": (79.1, 72.3, 58.1),
            "T+KegNet": ("<71.5", 73.7, 59.6),
            "T+BDNF": (81.1, 79.0, 62.9),
            "T+Sample": ("<71.5", 68.1, 55.2),
            "T+BDNF(Sample)": (82.8, 81.0, 62.9),
        },
    ),
}
