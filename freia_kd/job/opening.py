"""How a run begins, and how it goes on: everything is checked before any work."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..compression import load_teacher
from ..compression.batchnorm import batchnorm_layers
from ..compression.cost import count_macs
from ..config import Device, DistillationOptions, Precision, Preset, collect_faults, get_preset
from ..data.datasets import LabelledData
from ..data.sources import PathLike, RealData, Source
from ..device import choose_device, free_memory, memory_limit
from ..domain import Domain
from ..errors import UsageError
from ..runs import Run, RunRecord
from ..students import StudentSpec, as_specs
from ..synthesizers import (
    SYNTHESIZERS,
    build_synthesizers,
    default_synthesizer,
    expect_supported,
    get_synthesizer,
)
from ..synthesizers.answers import check_answers
from ..synthesizers.contract import Synthesizer
from ..teachers import Teacher, is_published
from ..training import Checkpoints, Progress
from .job import Job, JobConfig
from .planning import too_large

IN_MEMORY = "in memory"  # in place of a teacher's file
Synthesizers = str | Synthesizer | Sequence[str | Synthesizer]


def open_job(
    teacher: PathLike | Teacher,
    *,
    students: Sequence[str | StudentSpec] = ("1",),
    synthesizer: Synthesizers | None = None,
    training: DistillationOptions | None = None,
    preset: str | Preset = "standard",
    set_size: int | None = None,
    on_the_fly: bool = False,
    precision: Precision | None = None,
    samples: Source | None = None,
    resize: bool = False,
    evaluation: RealData | None = None,
    arch: str | None = None,
    domain: Domain | None = None,
    seed: int = 0,
    device: Device = "auto",
    out: PathLike | None = None,
    asked: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Job:
    """A new run; arguments and errors as of :func:`freia_kd.distill`."""
    with collect_faults() as collected:
        with collected:
            chosen_device = choose_device(device)
        with collected:
            sizes = get_preset(preset)
        with collected:
            specs = as_specs(students)
    if evaluation is not None:
        evaluation.check()
    path = IN_MEMORY if isinstance(teacher, Teacher) else os.fspath(teacher)
    if not isinstance(teacher, Teacher):
        teacher = load_teacher(teacher, arch, domain)
    if evaluation is not None:
        evaluation.check(teacher.domain)
    chosen = synthesizer or default_synthesizer(
        teacher.domain.is_image, any(True for _ in batchnorm_layers(teacher)), samples is not None
    )
    synthesizers = build_synthesizers(chosen, sizes.name)
    few = _load_samples(samples, resize, teacher, synthesizers)
    check_answers(teacher, progress)
    training, macs = training or sizes.training, count_macs(teacher, teacher.domain.shape)
    config = JobConfig(
        teacher=path,
        teacher_sha256=fingerprint(teacher.state_dict()),
        arch=teacher.arch,
        domain=teacher.domain.to_dict(),
        samples=None if few is None else few.name,
        samples_sha256=fingerprint_of(few),
        preset=sizes.name,
        synthesizer="+".join(_paths(chosen)),
        synthesizers={s.name: _options(s) for s in synthesizers},
        flow_sha256=_flow_hash(synthesizers),
        training=training.changed(steps=training.count(macs)),
        bn=sizes.bn,
        set_size=sizes.count(macs) if set_size is None else set_size,
        heldout_size=sizes.heldout_size,
        on_the_fly=on_the_fly,
        precision=precision,
        seed=seed,
        device=chosen_device.type,
    )
    specs = [spec.changed(bn=spec.bn or sizes.bn) for spec in specs]
    _check_specs(specs, teacher)
    folder = Path(out) if out is not None else new_folder(path)
    run = Run.create(folder, "distill", config.to_dict(), progress, asked)
    return Job(teacher.to(chosen_device), run, config, specs, synthesizers, few, evaluation)


def reopen_job(
    folder: PathLike,
    *,
    students: Sequence[str | StudentSpec] = (),
    evaluation: RealData | None = None,
    teacher: PathLike | Teacher | None = None,
    synthesizer: Synthesizers | None = None,
    training: DistillationOptions | None = None,
    preset: str | Preset | None = None,
    set_size: int | None = None,
    on_the_fly: bool | None = None,
    precision: Precision | None = None,
    samples: Source | None = None,
    resize: bool = False,
    arch: str | None = None,
    domain: Domain | None = None,
    seed: int | None = None,
    device: Device | None = None,
    methods: Sequence[str] = (),
    progress: Progress | None = None,
) -> Job:
    """A run that has begun; arguments and errors as of :func:`freia_kd.resume`."""
    run = Run.open(folder, "distill", progress)
    record = run.record
    old = JobConfig.from_dict(
        {**record.config, "training": DistillationOptions(**record.config["training"])}
    )
    if evaluation is not None:
        evaluation.check()
    loaded = _load_again(old, teacher, arch, domain)
    if evaluation is not None:
        evaluation.check(loaded.domain)
    chosen, synthesizers = _synthesizers_again(old, synthesizer, folder)
    samples = _sample_path(old) if samples is None else samples
    if training is None:
        _expect_trusted("loss", old.training.divergence)
    few = _load_samples(samples, True, loaded, synthesizers)
    sizes = None if preset is None else get_preset(preset)
    macs = count_macs(loaded, loaded.domain.shape)
    if isinstance(preset, Preset):  # one by name says nothing of what was chosen beside it
        set_size = preset.count(macs) if set_size is None else set_size
        training = training or preset.training
    training = training or old.training
    config = old.changed(
        teacher_sha256=fingerprint(loaded.state_dict()),
        arch=loaded.arch,
        domain=loaded.domain.to_dict(),
        samples_sha256=fingerprint_of(few),
        preset=old.preset if sizes is None else sizes.name,
        synthesizer=chosen,
        synthesizers={s.name: _options(s) for s in synthesizers},
        flow_sha256=_flow_hash(synthesizers),
        training=training.changed(steps=training.count(macs)),
        bn=preset.bn if isinstance(preset, Preset) else old.bn,
        set_size=old.set_size if set_size is None else set_size,
        heldout_size=preset.heldout_size if isinstance(preset, Preset) else old.heldout_size,
        on_the_fly=old.on_the_fly if on_the_fly is None else on_the_fly,
        precision=precision or old.precision,
        seed=old.seed if seed is None else seed,
        device=old.device if device is None else choose_device(device).type,
    )
    run.expect_config(config.to_dict())
    asked = as_specs(students)
    trusted = [*methods, *(path for spec in asked for path in spec.code)]
    for fields in record.students.values():
        named = [("student-arch", fields.get("arch") or "")]
        named += [("method", method["method"]) for method in fields["methods"]]
        for option, path in named:
            if path not in trusted:
                _expect_trusted(option, path)
    archs = {fields.get("arch") for fields in record.students.values()}  # which are no methods
    known = dict[str, StudentSpec]()
    for name, fields in record.students.items():
        own = archs - {fields.get("arch")}
        known[name] = StudentSpec.from_dict(fields, [p for p in trusted if p not in own])
    specs = dict(known)
    for spec in asked:
        spec = spec.changed(bn=spec.bn or old.bn)
        if known.get(spec.name, spec) != spec:
            raise UsageError(
                f"The run in {folder} has another student {spec.name!r} "
                f"({known[spec.name].to_dict()}); give the new one another name."
            )
        specs[spec.name] = spec
    added = [spec for name, spec in specs.items() if name not in known]
    _check_specs(added, loaded)
    specs = specs or {spec.name: spec.changed(bn=old.bn) for spec in as_specs(["1"])}
    remembered = record.evaluation
    if evaluation is None and remembered is not None and remembered["source"] is not None:
        if not Path(remembered["source"]).exists():
            _expect_trusted("eval-data", remembered["source"])
        evaluation = RealData(**remembered)
    loaded = loaded.to(torch.device(old.device))
    job = Job(loaded, run, config, list(specs.values()), synthesizers, few, evaluation)
    if not job.is_finished:
        job.expect_evaluation()
    return job


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """The SHA-256 of named tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of(data: LabelledData | None) -> str | None:
    """The SHA-256 of inputs and labels, if there are any."""
    return None if data is None else fingerprint({"x": data.inputs, "y": data.labels})


def _load_samples(
    samples: Source | None, resize: bool, teacher: Teacher, synthesizers: list[Synthesizer]
) -> LabelledData | None:
    few = None
    if samples is not None:
        source = RealData(samples, resize=resize)
        source.check()
        few = source.load(teacher.domain, "train")
    expect_supported(synthesizers, teacher, few)
    for synthesizer in synthesizers:
        free = free_memory(torch.device("cpu"))
        try:
            with memory_limit(free):
                synthesizer.check(teacher)
        except MemoryError:
            remedies = ["choose a smaller --flow", "another --synthesizer"]
            raise too_large(synthesizer.name, free, remedies) from None
    return few


def _check_specs(specs: list[StudentSpec], teacher: Teacher) -> None:
    for spec in specs:
        spec.check(teacher)


def _paths(chosen: Synthesizers) -> list[str]:
    """What finds the synthesizers again: their names, or `module:Class` paths."""
    given = [chosen] if isinstance(chosen, (str, Synthesizer)) else chosen
    parts = [p for g in given for p in (g.split("+") if isinstance(g, str) else [g])]
    return [part if isinstance(part, str) else _path_of(type(part)) for part in parts]


def _path_of(kind: type[Synthesizer]) -> str:
    is_known = kind.name in SYNTHESIZERS and get_synthesizer(kind.name) is kind
    return kind.name if is_known else f"{kind.__module__}:{kind.__qualname__}"


def _options(synthesizer: Synthesizer) -> dict[str, Any]:
    return {} if synthesizer.options is None else synthesizer.options.to_dict()


def _flow_hash(synthesizers: list[Synthesizer]) -> str | None:
    """The hash of a flow's YAML file, since a run cannot go on with another."""
    flows = [Path(getattr(s.options, "flow", "")) for s in synthesizers]
    files = [path.read_bytes() for path in flows if path.is_file()]
    return hashlib.sha256(b"".join(files)).hexdigest() if files else None


def new_folder(teacher: PathLike) -> Path:
    """The folder of a run that was given none, named by the teacher's file or its weights."""
    path = os.fspath(teacher)
    stem = path.rpartition(":")[2] if is_published(path) else Path(path).stem
    stem = "teacher" if path == IN_MEMORY else stem
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return folder


def _load_again(
    old: JobConfig, teacher: PathLike | Teacher | None, arch: str | None, domain: Domain | None
) -> Teacher:
    if isinstance(teacher, Teacher):
        return teacher
    if teacher is None and old.teacher == IN_MEMORY:
        raise UsageError("The teacher of this run was in memory; pass it again, as teacher=.")
    if is_published(teacher or old.teacher):
        return load_teacher(teacher or old.teacher, arch, domain)
    if arch is None:
        _expect_trusted("arch", old.arch)
    recorded = Domain.from_dict(old.domain)
    return load_teacher(teacher or old.teacher, arch or old.arch, domain or recorded)


def _sample_path(old: JobConfig) -> str | None:
    if old.samples is not None and not Path(old.samples).exists():
        raise UsageError(
            f"The samples of this run, {old.samples}, are not there; pass them again, as samples=."
        )
    return old.samples


def _synthesizers_again(
    old: JobConfig, given: Synthesizers | None, folder: PathLike
) -> tuple[str, list[Synthesizer]]:
    """The synthesizers of a run by its record; code that only a file names is not imported."""
    if given is not None and not isinstance(given, str):
        return "+".join(_paths(given)), build_synthesizers(given, old.preset)
    names = old.synthesizer if given is None else given
    if names != old.synthesizer:
        raise UsageError(
            f"The run in {folder} has other options (synthesizer was {old.synthesizer!r}, is "
            f"{names!r}); leave them out to go on with it, or choose another --out."
        )
    if given is None:
        _expect_trusted("synthesizer", old.synthesizer)
    synthesizers = list[Synthesizer]()
    for kind, options in zip(
        map(get_synthesizer, names.split("+")), old.synthesizers.values(), strict=True
    ):
        _expect_trusted("flow", options.get("flow", ""))
        synthesizers.append(kind(kind.Options.from_dict(options)) if kind.Options else kind())
    return names, synthesizers


def _expect_trusted(option: str, value: str) -> None:
    if ":" in value:  # importing what a file names would run it
        raise UsageError(
            f"This run used code of its own, --{option} {value}; if you trust that code, pass the "
            "option again."
        )


def restore_synthesizer(
    folder: Path, record: RunRecord, name: str | None, flow: str | None
) -> Synthesizer:
    """One of a run's synthesizers as its folder has it, without the teacher.

    Arguments:
        folder: The run's folder.
        record: Its record.
        name: Which synthesizer, by default the first; needed if it is code of the user's own.
        flow: The flow of BDNF, if it is code of the user's own.

    Raises:
        CheckpointError: If the folder has nothing of the kind.
        UsageError: If the run has no such synthesizer, or it is code that was not named.
    """
    names = record.config["synthesizer"].split("+")
    if name is not None and name not in names:
        raise UsageError(f"Expected a synthesizer of this run, {', '.join(names)}; got {name!r}.")
    if name is None:
        _expect_trusted("synthesizer", names[0])
    kind = get_synthesizer(name or names[0])
    options = record.config["synthesizers"][kind.name]
    if flow != options.get("flow"):
        _expect_trusted("flow", options.get("flow", ""))
    source = kind(kind.Options.from_dict(options)) if kind.Options else kind()
    # One that learns from a student has learned from each; what the first one led to will do.
    own = (s for s in record.done if kind.needs_student and s.startswith(f"{kind.name}-"))
    source.restore(
        Domain.from_dict(record.config["domain"]), Checkpoints(folder, next(own, kind.name))
    )
    return source
