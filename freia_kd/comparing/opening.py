"""How a comparison begins, and how it goes on: everything is checked before any work."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ..compression import count_macs, load_teacher
from ..config import (
    MOST_SEEDS,
    Config,
    Count,
    Device,
    DistillationOptions,
    Preset,
    PresetName,
    Size,
    collect_faults,
    get_preset,
)
from ..data.datasets import LabelledData
from ..data.sources import PathLike, RealData, Source
from ..device import choose_device
from ..domain import Domain
from ..errors import UsageError
from ..job.job import fingerprint
from ..job.opening import fingerprint_of
from ..runs import Run
from ..students import StudentSpec, as_specs
from ..synthesizers.answers import check_answers
from ..synthesizers.contract import Synthesizer
from ..teachers import Teacher, is_published
from ..training import Progress
from .methods import BASELINE, REFERENCE, Method, Methods, build_methods, choose_methods
from .runner import worker_faults
from .trials import Trial, TrialOptions


@dataclass(frozen=True)
class ComparisonConfig(Config):
    """The resolved options of a comparison; one that is resumed may only add methods and seeds.

    Arguments:
        teacher: The teacher's file, or `"in memory"`.
        teacher_sha256: The hash of its weights.
        arch: Its architecture.
        domain: Its input domain, as plain JSON types.
        students: What each student is to be, by name.
        methods: The options of each method's synthesizers, by name.
        seeds: How many seeds.
        samples: The real samples, by name and number.
        samples_sha256: Their hash.
        reference: The training data of the reference, by name and number.
        reference_sha256: Their hash.
        preset: The name of the preset.
        training: How the students are trained.
        set_size: How many synthetic inputs the students learn from.
        heldout_size: How many more choose the weights and measure agreement.
        device: Where to compute, as torch names it.
    """

    title: ClassVar[str] = "compare"
    teacher: str
    teacher_sha256: str
    arch: str
    domain: dict[str, Any]
    students: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    seeds: Count
    samples: str | None
    samples_sha256: str | None
    reference: str | None
    reference_sha256: str | None
    preset: PresetName
    training: DistillationOptions
    set_size: Count
    heldout_size: Size
    device: str


@dataclass(frozen=True)
class Opened:
    """A comparison with all that it needs in memory.

    Arguments:
        teacher: The teacher.
        run: The comparison's folder.
        config: Its options.
        trials: What there is to run, seed by seed, so that an early end leaves whole seeds.
        refused: Why methods were left out, by name.
        samples: A few real inputs, if any.
        evaluation: Real data to measure accuracy on, read after the last weight is fixed.
    """

    teacher: Teacher
    run: Run
    config: ComparisonConfig
    trials: list[Trial]
    refused: dict[str, str]
    samples: LabelledData | None
    evaluation: RealData | None


def open_comparison(
    teacher: PathLike | Teacher,
    *,
    synthesizers: Methods = "all",
    students: Sequence[str | StudentSpec] = ("1",),
    seeds: int = 3,
    samples: Source | None = None,
    evaluation: RealData | None = None,
    reference: bool = False,
    preset: PresetName | Preset = "quick",
    training: DistillationOptions | None = None,
    set_size: int | None = None,
    arch: str | None = None,
    domain: Domain | None = None,
    device: Device = "auto",
    workers: int | None = None,
    executor: Executor | None = None,
    out: PathLike = "runs/compare",
    resume: bool = False,
    progress: Progress | None = None,
) -> Opened:
    """A comparison, new or resumed; arguments and errors as of :func:`freia_kd.compare`."""
    run = Run.open(out, "compare", progress) if resume else None
    if run is not None and evaluation is None:
        evaluation = _remembered(run)
    with collect_faults(_faults(seeds, students, reference, evaluation)) as collected:
        collected.faults += worker_faults(workers, executor)
        with collected:
            sizes = get_preset(preset)
            methods = build_methods(synthesizers, sizes.name)
        with collected:
            specs = as_specs(students)
    chosen = choose_device(device)
    if evaluation is not None:
        evaluation.check()
    taught = teacher if isinstance(teacher, Teacher) else load_teacher(teacher, arch, domain)
    specs = [spec.changed(bn=spec.bn or sizes.bn) for spec in specs]
    for spec in specs:
        spec.check(taught)
    if evaluation is not None:
        evaluation.check(taught.domain)
    check_answers(taught, progress)
    few = None if samples is None else _load_samples(samples, taught.domain)
    methods, refused = choose_methods(methods, taught, few)
    real = evaluation.load(taught.domain, "train") if reference and evaluation else None
    # Whatever runs a trial may have another working directory.
    given = teacher
    if not isinstance(teacher, Teacher) and not is_published(teacher):
        given = Path(teacher).absolute()
    macs, recipe = count_macs(taught, taught.domain.shape), training or sizes.training
    recipe = recipe.sized(macs, sizes.share_of(macs))
    config = ComparisonConfig(
        teacher="in memory" if isinstance(teacher, Teacher) else os.fspath(teacher),
        teacher_sha256=fingerprint(taught.state_dict()),
        arch=taught.arch,
        domain=taught.domain.to_dict(),
        students={spec.name: spec.to_dict() for spec in specs},
        methods={m.name: {s.name: _options(s) for s in m.synthesizers} for m in methods},
        seeds=seeds,
        samples=_title(few),
        samples_sha256=fingerprint_of(few),
        reference=_title(real),
        reference_sha256=fingerprint_of(real),
        preset=sizes.name,
        training=recipe,
        set_size=set_size or sizes.count(macs),
        heldout_size=sizes.heldout_size,
        device=chosen.type,
    )
    if run is None:
        run = Run.create(out, "compare", config.to_dict(), progress)
    else:
        _add_work(run, config)
    run.record.evaluation = None if evaluation is None else evaluation.source_fields
    options = TrialOptions(given, few, sizes, recipe, set_size, arch, domain, device)
    trials = list(_trials(run.folder, [BASELINE, *methods], specs, seeds, options))
    if real is not None:
        options = replace(options, samples=real)
        trials += _trials(run.folder, [REFERENCE], specs, seeds, options)
    return Opened(taught, run, config, trials, refused, few, evaluation)


def _faults(
    seeds: int, students: Sequence[object], reference: bool, evaluation: RealData | None
) -> Iterator[str]:
    if not 1 <= seeds <= MOST_SEEDS:
        yield f"seeds: expected 1 to {MOST_SEEDS:,}; got {seeds:,}."
    if not students:
        yield "students: expected at least one; got none."
    if reference and evaluation is None:
        yield "A reference on real training data needs evaluation data as well."


def _remembered(run: Run) -> RealData | None:
    """The evaluation data of a comparison, without which it would lose its accuracies."""
    source = run.record.evaluation
    if source is not None and source["source"] is None:
        raise UsageError(
            "The evaluation data of this comparison were in memory; pass them again, as eval_data=."
        )
    if source is not None and ":" in source["source"] and not Path(source["source"]).exists():
        raise UsageError(  # importing what a file names would run it
            f"This comparison used data that are code of its own, --eval-data {source['source']}; "
            "if you trust that code, pass the option again."
        )
    return None if source is None else RealData(**source)


def _load_samples(samples: Source, domain: Domain) -> LabelledData:
    source = RealData(samples, resize=True)
    source.check()
    return source.load(domain, "train")


def _title(data: LabelledData | None) -> str | None:
    return None if data is None else f"{data.name} ({len(data)})"


def _options(synthesizer: Synthesizer) -> dict[str, Any]:
    return {} if synthesizer.options is None else synthesizer.options.to_dict()


def _add_work(run: Run, config: ComparisonConfig) -> None:
    """Takes new methods and seeds into a comparison's record.

    Raises:
        UsageError: If anything else differs from it.
    """
    old = run.record.config
    methods, teacher_file = (
        config.methods,
        old.get("teacher"),
    )  # a file may have moved: its hash counts
    known = {name: methods.get(name, options) for name, options in old["methods"].items()}
    same = {**config.to_dict(), "teacher": teacher_file, "methods": known, "seeds": old["seeds"]}
    run.expect_config(same)
    more = {"methods": {**known, **methods}, "seeds": max(old["seeds"], config.seeds)}
    run.record.config = {**old, **more}


def _trials(
    folder: Path,
    methods: Sequence[Method],
    specs: Sequence[StudentSpec],
    seeds: int,
    options: TrialOptions,
) -> Iterator[Trial]:
    for seed in range(seeds):
        for method in methods:
            stem = re.sub(r"[^A-Za-z0-9+-]+", "-", method.name).strip("-")
            trial_folder = folder.absolute() / "trials" / f"{stem}-{seed}"
            yield Trial(method, seed, tuple(specs), trial_folder, options)
