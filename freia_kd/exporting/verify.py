"""Classifiers written to files, each compared with the classifier before it counts."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..compression import measure_latencies
from ..compression.method import Trusted
from ..errors import ExportError
from ..files import atomic
from ..modes import evaluating
from ..runtimes import first_line
from ..teachers import Classifier
from .formats import FORMATS, Answer, Format
from .int8 import is_quantised

PathLike = str | os.PathLike[str]

TOLERANCE = 1e-4  # of the largest logit: single precision through a deep net loses less
TIE = 1e-5  # of the largest logit: two logits nearer than this may change places
# The same two where a runtime divides to round to eight bits and torch multiplies: a value between
# two integers may fall to either side, and all layers after it see that.
INT8_TOLERANCE = 0.03
SINGLES = 8  # inputs that are compared one by one as well


@dataclass(frozen=True)
class Exported:
    """A file that was written, read back in its own runtime, and found to agree.

    Arguments:
        file: The file.
        format: A name of `FORMATS`.
        runtime: What read it back and ran it.
        bytes: Its size.
        inputs: How many inputs the logits were compared on, in one batch; the first few of them
            also one by one.
        max_difference: The largest absolute difference of a logit.
        tolerance: What that may be at most.
        same_top1: The share of inputs that get the same class.
        latency_ms: The median time of one input in that runtime, in milliseconds.
        eager_latency_ms: The same of the classifier in torch, measured in turn with it.
        compared_on: What the inputs were.
    """

    file: str
    format: str
    runtime: str
    bytes: int
    inputs: int
    max_difference: float
    tolerance: float
    same_top1: float
    latency_ms: float
    eager_latency_ms: float
    compared_on: str = "the inputs given"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)


def export_classifier(
    classifier: Classifier,
    path: PathLike,
    format: str,
    inputs: Tensor,
    meta: dict[str, Any] | None = None,
    seconds: float = 0.2,
    trusted: Trusted = (),
) -> Exported:
    r"""Writes a classifier for another runtime, and compares what that makes of the file.

    The exported net takes pixels with shape `(B, *domain.shape)`, named `pixels`, with any number
    `B` of inputs, and gives `logits`. The file is read back in a fresh session of its runtime. It
    stays only if, on all inputs :math:`x`,

    .. math:: |f_\mathrm{file}(x) - f(x)| \le 10^{-4} \max |f|

    and the class is the same wherever the two logits are further apart than
    :math:`10^{-5} \max |f|`. Otherwise what was at `path` before stays there. In ONNX, both
    bounds are :math:`0.03 \max |f|` for a net with quantised layers
    (:class:`~freia_kd.compression.Quantize`), which it holds as int8 with QuantizeLinear
    and DequantizeLinear.

    Arguments:
        classifier: The classifier, on the CPU; put back into the mode it was in.
        path: The file, replaced as a whole.
        format: A name of `FORMATS`: `"torch"` and `"safetensors"`, which
            :func:`freia_kd.load_student` reads; `"onnx"`; or `"torch-export"`, an
            `ExportedProgram`.
        inputs: Pixels to compare on, with shape `(N, *domain.shape)`, at least 2.
        meta: Metadata of JSON types; a compressed net needs its `{"compression": ...}` in the
            first two formats. Architecture and domain are added.
        seconds: About how long to measure the latency.
        trusted: Methods of compression of the user's own, see
            :func:`~freia_kd.compression.load_classifier`.

    Raises:
        ExportError: If the net cannot be exported with a batch of any size, or the file does not
            agree with it.
        ImportError: If a library is missing; the message names the extra.
        OSError: If the file cannot be written.
        ValueError: If there is no such format, or the inputs do not fit.

    References:
        | ONNX: Open Neural Network Exchange, operator set 18

    Example:
        >>> import tempfile
        >>> from freia_kd.domain import Domain
        >>> from freia_kd.teachers.mlp import MLP
        >>> classifier = Classifier(MLP(2, 3), Domain((2,), 3), "mlp")
        >>> file = Path(tempfile.mkdtemp()) / "mlp.safetensors"
        >>> export_classifier(classifier, file, "safetensors", torch.randn(16, 2)).same_top1
        1.0
    """
    if format not in FORMATS:
        raise ValueError(f"Expected one of the formats {', '.join(FORMATS)}; got {format!r}.")
    if len(inputs) < 2:
        raise ValueError(f"Expected 2 inputs or more to compare on; got {len(inputs)}.")
    kind = FORMATS[format]
    kind.require()
    own = {**(meta or {}), "arch": classifier.arch, "domain": classifier.domain.to_dict()}
    with evaluating(classifier), atomic(path) as temporary:
        kind.write(classifier, temporary, own)
        answer = _reload(kind, temporary, classifier.arch, trusted)
        limits = TOLERANCE, TIE
        if is_quantised(classifier) and not kind.rounds_alike:
            limits = INT8_TOLERANCE, INT8_TOLERANCE
        difference, tolerance, same = _compare(classifier, answer, inputs, kind.runtime, limits)
        ours, theirs = measure_latencies(
            [_Net(answer), classifier], classifier.domain.shape, seconds=seconds
        )
        size = temporary.stat().st_size
    return Exported(
        os.fspath(path), format, kind.runtime, size, len(inputs), difference, tolerance, same,
        ours.median, theirs.median,
    )  # fmt: skip


def _reload(kind: Format, path: Path, arch: str, trusted: Trusted) -> Answer:
    try:
        return kind.load(path, arch, trusted)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ExportError(f"{kind.runtime} does not take the file: {first_line(error)}") from error


def _compare(
    classifier: Classifier,
    answer: Answer,
    inputs: Tensor,
    runtime: str,
    limits: tuple[float, float],
) -> tuple[float, float, float]:
    """The largest difference, what it may be, and the share of inputs with the same class."""
    batches = [*inputs[:SINGLES].split(1), inputs]
    expected = torch.cat([classifier(x) for x in batches])
    got = torch.cat([_run(answer, x, runtime) for x in batches])
    if got.shape != expected.shape:
        raise ExportError(
            f"Expected logits of shape {tuple(expected.shape)}; {runtime} gives {tuple(got.shape)}."
        )
    tolerance, tie = (limit * expected.abs().max().item() for limit in limits)
    difference = (got - expected).abs().max().item()
    if not difference <= tolerance:  # also where it is NaN
        raise ExportError(
            f"The file's logits differ from the student's by up to {difference:.3g} in {runtime}; "
            f"expected {tolerance:.3g} at most. It was not kept."
        )
    chosen = got.argmax(1, keepdim=True)
    margin = expected.amax(1) - expected.gather(1, chosen)[:, 0]
    if (margin > tie).any():
        raise ExportError(
            f"The file gives other classes than the student to {int((margin > tie).sum())} "
            f"of {len(expected)} inputs in {runtime}, beyond ties. It was not kept."
        )
    same = (chosen[:, 0] == expected.argmax(1))[-len(inputs) :]
    return difference, tolerance, same.double().mean().item()


def _run(answer: Answer, x: Tensor, runtime: str) -> Tensor:
    try:
        return answer(x)
    except MemoryError:
        raise
    except Exception as error:
        raise ExportError(
            f"{runtime} does not run the file on a batch of {len(x)}: {first_line(error)}"
        ) from error


class _Net(nn.Module):
    """A function as a net, for :func:`measure_latencies`."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = [answer]  # not a submodule: exported graphs have no eval mode to change

    def forward(self, x: Tensor) -> Tensor:
        return self.answer[0](x)
