"""Students as files of other runtimes: torch, safetensors, ONNX, torch.export."""

from .formats import FORMATS
from .student import export
from .verify import Exported, export_classifier

__all__ = ["FORMATS", "Exported", "export", "export_classifier"]
