"""From a run's folder or a checkpoint to files of other runtimes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace as replaced
from pathlib import Path

import torch
from torch import Tensor

from ..compression import load_classifier
from ..compression.method import Trusted
from ..config import ExportFormat
from ..data.synthetic import SyntheticSet
from ..domain import Domain
from ..errors import CheckpointError, UsageError
from ..flows.bases import SpectralBase
from ..teachers import read_checkpoint
from ..version import __version__
from .formats import FORMATS
from .verify import Exported, export_classifier

PathLike = str | os.PathLike[str]
INPUTS = 64  # that each file is compared on


def export(
    path: PathLike,
    to: Sequence[ExportFormat],
    out: PathLike | None = None,
    *,
    student: str | None = None,
    arch: str | None = None,
    domain: Domain | None = None,
    seconds: float = 0.2,
    trusted: Trusted = (),
    replace: bool = True,
) -> list[Exported]:
    """Exports a student, and compares each file with it in the file's own runtime.

    The comparison reads the run's held-out synthetic set; without one it draws noise of the
    student's domain, spectral noise for images.

    Arguments:
        path: A run's folder, or a checkpoint.
        to: Names of :data:`freia_kd.exporting.FORMATS`.
        out: The file, or a folder if it is one or there are several formats; by default beside
            the student.
        student: The student of a run, `"1"` for `student-1.safetensors`; by default the one in
            `student.safetensors`.
        arch: `package.module:Class`, for students of such an architecture.
        domain: The input domain, for a checkpoint that does not record it.
        seconds: About how long to measure each latency.
        trusted: Methods of compression of the user's own, as classes or `module:Class`.
        replace: Whether files that exist may be replaced.

    Returns:
        What was measured of each file.

    Raises:
        CheckpointError: If there is no such student, or its file is not sound.
        UsageError: If the options do not fit together, or a library is missing.
        ExportError: If a file does not agree with the student; it is not kept.
        OSError: If a file cannot be written.
    """
    source = _find_student(Path(path), student)
    targets = _choose_targets(source, list(dict.fromkeys(to)), out)
    there = [str(target) for target in targets.values() if target.exists() and not replace]
    if there:
        raise UsageError(
            f"{' and '.join(there)} exist{'s' * (len(there) == 1)}; pass --force to replace "
            f"{'it' if len(there) == 1 else 'them'}, or choose another --out."
        )
    try:
        for name in targets:
            FORMATS[name].require()
    except ImportError as error:
        raise UsageError(str(error)) from error
    classifier = load_classifier(source, arch, domain, trusted)
    meta = {**read_checkpoint(source).own, "export": _provenance(source)}
    inputs, compared_on = _comparison_inputs(Path(path), classifier.domain)
    made = (
        export_classifier(classifier, target, name, inputs, meta, seconds, trusted)
        for name, target in targets.items()
    )
    return [replaced(result, compared_on=compared_on) for result in made]


def _find_student(path: Path, student: str | None) -> Path:
    if not path.is_dir():
        if student is not None:
            raise UsageError(f"--student chooses from a run's folder; {path} is not one.")
        return path
    if not (path / "run.json").exists():
        raise CheckpointError(f"Expected a run folder; {path} has no run.json.")
    found = path / ("student.safetensors" if student is None else f"student-{student}.safetensors")
    if found.exists():
        return found
    names = [p.stem.removeprefix("student-") for p in sorted(path.glob("student-*.safetensors"))]
    if not names:
        raise CheckpointError(
            f"The run in {path} has no trained students yet; "
            f"`freiakd distill --out {path} --resume` goes on with it."
        )
    wanted = "student.safetensors (the run is not finished)" if student is None else student
    raise UsageError(f"The run in {path} has no {wanted}; pass --student {'|'.join(names)}.")


def _choose_targets(
    source: Path, formats: list[ExportFormat], out: PathLike | None
) -> dict[ExportFormat, Path]:
    """The file of each format."""
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"Expected one of the formats {', '.join(FORMATS)}; got {name!r}.")
    known = [suffix for kind in FORMATS.values() for suffix in kind.suffixes]
    if out is None or Path(out).is_dir():
        folder = source.parent if out is None else Path(out)
    elif len(formats) == 1:
        suffixes = FORMATS[formats[0]].suffixes
        if Path(out).suffix not in suffixes:
            raise UsageError(
                f"Expected a file {' or '.join(suffixes)} for {formats[0]}; got {out}."
            )
        return _apart(source, {formats[0]: Path(out)})
    elif Path(out).exists() or Path(out).suffix in known:
        raise UsageError(f"Several formats need a folder to go to; got {out}.")
    else:
        folder = Path(out)
    return _apart(source, {f: folder / (source.stem + FORMATS[f].suffixes[0]) for f in formats})


def _apart(source: Path, targets: dict[ExportFormat, Path]) -> dict[ExportFormat, Path]:
    for name, target in targets.items():
        if target.exists() and source.exists() and target.samefile(source):
            raise UsageError(f"{source} is the student itself; pass --out for another {name} file.")
    return targets


def _provenance(source: Path) -> dict[str, str]:
    """Where a file comes from, without the folders of this machine."""
    return {
        "source": f"{source.absolute().parent.name}/{source.name}",
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "freia_kd": __version__,
    }


def _comparison_inputs(path: Path, domain: Domain) -> tuple[Tensor, str]:
    """Pixels to compare on, and what they are."""
    heldout = path / "synthetic" / "heldout"
    if heldout.is_dir():
        data = SyntheticSet(heldout)
        if len(data) > 1:
            inputs, _, _ = data.batch(torch.arange(min(INPUTS, len(data))))
            return inputs, "inputs of the held-out synthetic set"
    generator = torch.Generator().manual_seed(0)
    if not domain.is_image:
        noise = torch.randn(INPUTS, *domain.shape, generator=generator)
        return domain.denormalize(noise), "draws of normal noise"
    base = SpectralBase.for_domain(domain)
    return torch.sigmoid(base.sample(INPUTS, generator=generator)), "draws of spectral noise"
