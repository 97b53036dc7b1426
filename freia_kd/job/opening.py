"""How a run begins, and how it goes on: everything is checked before any work."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..compression import load_teacher
from ..compression.batchnorm import batchnorm_layers
from ..compression.cost import count_macs
from ..config import Device, DistillationOptions, Precision, Preset, collect_faults, get_preset
from ..data.datasets import LabelledData
from ..data.sources import PathLike, RealData, Source
from ..device import choose_device, choose_precision, free_memory, memory_limit, place
from ..domain import Domain
from ..errors import CheckpointError, UsageError
from ..runs import Run, RunRecord
from ..students import StudentSpec, as_specs
from ..synthesizers import (
    AUTO,
    SYNTHESIZERS,
    build_synthesizers,
    default_synthesizer,
    expect_supported,
    get_synthesizer,
)
from ..synthesizers.answers import check_answers
from ..synthesizers.contract import Synthesizer
from ..synthesizers.samples import Samples
from ..teachers import Teacher, is_published
from ..training import Checkpoints, Progress
from .budget import Budget
from .choosing import (
    SHARE,
    STAGE,
    choose_synthesizer,
    expect_no_student,
    joined,
    name_of,
    plan_trials,
)
from .job import Job, JobConfig, fingerprint, options_of
from .planning import too_large
from .threads import settle_threads

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
    minutes: float | None = None,
    out: PathLike | None = None,
    asked: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    is_plan: bool = False,
) -> Job:
    """A new run; arguments and errors as of :func:`freia_kd.distill`.

    With `is_plan` nothing is tried where synthesizers are to be chosen (`"auto"`): the job has the
    default ones, and the trials are ahead of it.
    """
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
    chosen = synthesizer or default_for(teacher, samples is not None)
    partners = _partners(chosen, samples)
    if partners is not None:
        names = default_for(teacher, has_samples=False).split("+")
        chosen = joined([n for n in names if n not in map(name_of, partners)], partners)
    synthesizers = build_synthesizers(chosen, sizes.name)
    expect_no_student(partners or (), synthesizers)
    few = _load_samples(samples, resize, teacher, synthesizers)
    if few is not None:
        _expect_use(synthesizers)
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
        synthesizers={s.name: options_of(s) for s in synthesizers},
        flow_sha256=_flow_hash(synthesizers),
        training=training.sized(macs, sizes.share_of(macs)),
        bn=sizes.bn,
        set_size=sizes.count(macs) if set_size is None else set_size,
        heldout_size=sizes.heldout_size,
        on_the_fly=on_the_fly,
        precision=choose_precision(precision, chosen_device),
        seed=seed,
        device=chosen_device.type,
        minutes=minutes,
    )
    specs = [spec.changed(bn=spec.bn or sizes.bn) for spec in specs]
    _check_specs(specs, teacher)
    folder = Path(out) if out is not None else new_folder(path)
    run = Run.create(folder, "distill", config.to_dict(), progress, asked)
    job = Job(place(teacher, chosen_device), run, config, specs, synthesizers, few, evaluation)
    settle_threads(run, job.teacher, config.batch_size)
    budget = None if minutes is None else Budget(minutes, has_size=set_size is not None)
    if partners is None:
        return job if budget is None else budget.fit(job)
    if budget is not None:
        budget.fit(job)  # which refuses a time that is too short even without any trial
    return _after_trials(job, partners, budget, is_plan)


def _after_trials(
    job: Job, partners: Sequence[str | Synthesizer], budget: Budget | None, is_plan: bool
) -> Job:
    """The job with the synthesizers that short runs have chosen, in the time that is left."""
    own = copy.deepcopy(list(partners))
    trials = plan_trials(job, own, None if budget is None else SHARE * 60 * budget.minutes)
    spent = trials.seconds
    if is_plan:
        job = replace(job, ahead=trials.stages)
    else:
        choice = choose_synthesizer(trials)
        job.run.progress.note(choice.sentence)
        parts = trials.mixtures[choice.synthesizer]
        synthesizers = build_synthesizers(parts, job.config.preset)
        config = job.config.changed(
            synthesizer="+".join(_paths(parts)),
            synthesizers={s.name: options_of(s) for s in synthesizers},
        )
        job, spent = job.changed(config, synthesizers), choice.seconds
        job.run.record.choice = json.loads(json.dumps(asdict(choice)))
        job.run.record.seconds[STAGE] = choice.seconds
    return job if budget is None else replace(budget, spent=spent).fit(job, is_strict=False)


def _partners(chosen: Synthesizers, samples: Source | None) -> list[str | Synthesizer] | None:
    """What is to be part of every mixture that is tried; `None` where nothing is to be chosen."""
    parts = _parts(chosen)
    if AUTO not in parts:
        return None
    partners = [part for part in parts if part != AUTO]
    joins = samples is not None and not any(name_of(p) == Samples.name for p in partners)
    return [Samples.name, *partners] if joins else partners


def default_for(teacher: Teacher, has_samples: bool) -> str:
    """What makes the inputs for a teacher where nothing else is asked for."""
    has_statistics = any(True for _ in batchnorm_layers(teacher))
    return default_synthesizer(teacher.domain.is_image, has_statistics, has_samples)


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
    minutes: float | None = None,
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
    if synthesizer is not None and AUTO in _parts(synthesizer) and record.choice is not None:
        synthesizer = None  # what was chosen then
    chosen, synthesizers = _synthesizers_again(old, synthesizer, folder)
    samples = _sample_path(old) if samples is None else samples
    if training is None:
        _expect_trusted("loss", old.training.divergence)
    few = _load_samples(samples, True, loaded, synthesizers)
    sizes = get_preset(preset or old.preset)
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
        preset=sizes.name,
        synthesizer=chosen,
        synthesizers={s.name: options_of(s) for s in synthesizers},
        flow_sha256=_flow_hash(synthesizers),
        training=training.sized(macs, sizes.share_of(macs)),
        bn=preset.bn if isinstance(preset, Preset) else old.bn,
        set_size=old.set_size if set_size is None else set_size,
        heldout_size=preset.heldout_size if isinstance(preset, Preset) else old.heldout_size,
        on_the_fly=old.on_the_fly if on_the_fly is None else on_the_fly,
        precision=choose_precision(
            precision or old.precision or "float32", torch.device(old.device)
        ),
        seed=old.seed if seed is None else seed,
        device=old.device if device is None else choose_device(device).type,
        minutes=old.minutes if minutes is None else minutes,
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
    loaded = place(loaded, torch.device(old.device))
    job = Job(loaded, run, config, list(specs.values()), synthesizers, few, evaluation)
    if not job.is_finished:
        job.expect_evaluation()
    settle_threads(run, loaded, config.batch_size)
    return job


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


def _expect_use(synthesizers: Sequence[Synthesizer]) -> None:
    """Raises if real samples would take no part; what code of the user's own does is not known.

    Raises:
        UsageError: If so.
    """
    names = "+".join(s.name for s in synthesizers)
    own = any(":" in _path_of(type(s)) for s in synthesizers)
    if not own and not any(s.needs_samples or s.takes_samples for s in synthesizers):
        raise UsageError(
            f"Nothing would learn from the samples, since {names} does not: join them to it "
            f"(--synthesizer {Samples.name}+{names}), or leave --samples out."
        )


def _check_specs(specs: list[StudentSpec], teacher: Teacher) -> None:
    for spec in specs:
        spec.check(teacher)


def _paths(chosen: Synthesizers) -> list[str]:
    """What finds the synthesizers again: their names, or `module:Class` paths."""
    return [part if isinstance(part, str) else _path_of(type(part)) for part in _parts(chosen)]


def _parts(chosen: Synthesizers) -> list[str | Synthesizer]:
    given = [chosen] if isinstance(chosen, (str, Synthesizer)) else chosen
    return [p for g in given for p in (g.split("+") if isinstance(g, str) else [g])]


def _path_of(kind: type[Synthesizer]) -> str:
    is_known = kind.name in SYNTHESIZERS and get_synthesizer(kind.name) is kind
    return kind.name if is_known else f"{kind.__module__}:{kind.__qualname__}"


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
    if teacher is None and not Path(old.teacher).exists():
        raise CheckpointError(
            f"The teacher of this run, {old.teacher}, is not there; pass it again, as --teacher "
            "(teacher=)."
        )
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
        name: Which synthesizer, by default the first that can do without the teacher; needed if it
            is code of the user's own.
        flow: The flow of BDNF, if it is code of the user's own.

    Raises:
        CheckpointError: If the folder has nothing of the kind.
        UsageError: If the run has no such synthesizer, or it is code that was not named.
    """
    names = record.config["synthesizer"].split("+")
    if name is not None and name not in names:
        raise UsageError(f"Expected a synthesizer of this run, {', '.join(names)}; got {name!r}.")
    if name is None:
        name = _first_kept(names)
        _expect_trusted("synthesizer", name)
    kind = get_synthesizer(name)
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


def _first_kept(names: Sequence[str]) -> str:
    """The first synthesizer that keeps what samples without its teacher; else the first."""
    own = (n for n in names if ":" in n or get_synthesizer(n).restore is not Synthesizer.restore)
    return next(own, names[0])
