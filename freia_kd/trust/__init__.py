"""How far a student agrees with its teacher on real data: predicted without any of it."""

from .calibration import Calibration, Case, calibrate, read_calibration
from .contest import can_judge, hold_contest
from .evidence import Evidence, Judge, examine, make_judges

__all__ = [
    "Calibration",
    "Case",
    "Evidence",
    "Judge",
    "calibrate",
    "can_judge",
    "examine",
    "hold_contest",
    "make_judges",
    "read_calibration",
]
