"""Data-free knowledge distillation with bi-directional normalizing flows, on FrEIA and normflows.

Eight verbs and the types that they take and return. Importing the package loads neither torch nor
anything else that is slow: each is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .api import ComparisonResult as ComparisonResult
    from .api import CompressedStudent as CompressedStudent
    from .api import DistillationResult as DistillationResult
    from .api import Evaluation as Evaluation
    from .api import TrainedTeacher as TrainedTeacher
    from .api import compare as compare
    from .api import compress as compress
    from .api import distill as distill
    from .api import evaluate as evaluate
    from .api import export as export
    from .api import load_student as load_student
    from .api import resume as resume
    from .api import train_teacher as train_teacher
    from .compression import Prune as Prune
    from .compression import Quantize as Quantize
    from .compression import Tucker as Tucker
    from .config import DistillationOptions as DistillationOptions
    from .config import Preset as Preset
    from .data.datasets import LabelledData as LabelledData
    from .domain import Domain as Domain
    from .exporting import Exported as Exported
    from .report.schema import Comparison as Comparison
    from .report.schema import Report as Report
    from .students import StudentSpec as StudentSpec
    from .synthesizers.bdnf import BDNF as BDNF
    from .synthesizers.bdnf import BDNFOptions as BDNFOptions
    from .synthesizers.contract import Synthesizer as Synthesizer
    from .synthesizers.noise import Spectral as Spectral
    from .teachers import Classifier as Classifier
    from .teachers import Teacher as Teacher
    from .training import Progress as Progress

_PLACES = {
    "api": (
        "train_teacher distill resume compress evaluate export compare load_student "
        "DistillationResult CompressedStudent ComparisonResult Evaluation TrainedTeacher"
    ),
    "compression": "Tucker Prune Quantize",
    "config": "DistillationOptions Preset",
    "data.datasets": "LabelledData",
    "domain": "Domain",
    "exporting": "Exported",
    "report.schema": "Comparison Report",
    "students": "StudentSpec",
    "synthesizers.bdnf": "BDNF BDNFOptions",
    "synthesizers.contract": "Synthesizer",
    "synthesizers.noise": "Spectral",
    "teachers": "Classifier Teacher",
    "training": "Progress",
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names.split()}

__all__ = ["__version__", *_MODULE_OF]

if not TYPE_CHECKING:  # type checkers see the imports above, and nothing else

    def __getattr__(name):  # noqa: ANN001, ANN202
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)

    def __dir__():  # noqa: ANN202
        return sorted(__all__)
