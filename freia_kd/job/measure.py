"""What the teacher and the students of a run cost and how good they are: the report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import torch
from torch import Tensor

from ..compression import compare_costs
from ..compression.comparison import Comparison as CostComparison
from ..data.datasets import LabelledData
from ..data.synthetic import SyntheticSet
from ..errors import UsageError
from ..evaluation import agreement, commonest, predict, predict_with_teacher, share_equal
from ..files import atomic
from ..report import provenance
from ..report.schema import (
    Choice,
    ClassScores,
    Confusion,
    Difference,
    Expectation,
    MethodResult,
    Proportion,
    RealData,
    Report,
    Scores,
    StudentResult,
    SynthesizerResult,
    TeacherResult,
)
from ..students import Student, StudentSpec
from ..teachers import Classifier
from ..trust import examine, read_calibration
from .job import Job
from .student import compressed_paths, read_student, training_stages
from .synthesis import heldout_set, picture_name


def measure(job: Job) -> Report:
    """The report of a run whose students are all trained; only here are evaluation data read."""
    data = _read_evaluation(job)
    answers = None if data is None else predict(job.teacher, data)
    students = []
    with job.run.stage("measure"):
        with job.run.progress.stage("measure", len(job.specs)) as stage:
            trained = {spec.name: _trained(job, spec) for spec in job.specs}
            nets = [steps[-1].classifier.net for steps in trained.values()]
            own_layers = [spec.arch is None for spec in job.specs]
            costs = compare_costs(
                job.teacher.net, nets, job.teacher.domain.shape, by_layer=own_layers
            )
            for spec, own in zip(job.specs, costs, strict=True):
                made = trained[spec.name]
                students.append(_measure_student(job, spec, made, own, data, answers))
                stage.update(len(students), {})
        for suffix in (".pt", ".safetensors"):
            with atomic(job.run / f"student{suffix}") as temporary:
                shutil.copyfile(job.run / f"student-{job.specs[0].name}{suffix}", temporary)
    config = job.config
    return Report(
        teacher=TeacherResult(
            path=config.teacher,
            arch=config.arch,
            sha256=config.teacher_sha256,
            domain=config.domain,
            accuracy=None if data is None else _share(answers, data.labels),
        ),
        students=students,
        synthesizers=synthesizer_results(job),
        real_data=RealData(
            samples=config.samples,
            samples_count=0 if job.samples is None else len(job.samples),
            samples_sha256=config.samples_sha256,
            evaluation=None if data is None else data.name,
            evaluation_count=0 if data is None else len(data),
        ),
        seconds=dict(job.run.record.seconds),
        provenance=provenance.record(config.to_dict(), job.device, config.seed),
        minutes=config.minutes,
        choice=_choice(job),
    )


def _read_evaluation(job: Job) -> LabelledData | None:
    if job.evaluation is None:
        return None
    try:
        return job.evaluation.load(job.teacher.domain, "test")
    except UsageError as error:
        raise UsageError(
            f"{error} The students are trained and kept in {job.run.folder}; to measure them on "
            "other data, give those with --resume."
        ) from error


def _choice(job: Job) -> Choice | None:
    """How the synthesizers were chosen, by the run's record."""
    from pydantic import TypeAdapter

    found = job.run.record.choice
    return None if found is None else TypeAdapter(Choice).validate_python(found)


def _trained(job: Job, spec: StudentSpec) -> list[Student]:
    """A student after the training that followed each of its methods."""
    return [read_student(job, spec, paths[-1]) for paths in training_stages(job, spec).values()]


def _measure_student(
    job: Job,
    spec: StudentSpec,
    trained: Sequence[Student],
    costs: CostComparison,
    data: LabelledData | None,
    answers: Tensor | None,
) -> StudentResult:
    heldout = heldout_set(job.run.folder, spec.name)
    before = read_student(job, spec, compressed_paths(job, spec)[-1])
    after = trained[-1].classifier
    said = None if data is None else predict(after, data)
    did = [] if spec.arch is None else [f"a new net, {spec.arch}"]
    steps = trained[-1].steps
    did += [method.describe(step) for method, step in zip(spec.methods, steps, strict=True)]
    methods = [
        MethodResult(name=part, did=words, agreement=_agreement(student.classifier, heldout))
        for part, words, student in zip(spec.parts, did, trained, strict=True)
    ]
    change, classes = None, job.teacher.domain.classes
    ours, theirs = predict_with_teacher(after, heldout, "odd")  # which have chosen nothing
    if data is not None and answers is not None and said is not None:
        change = Difference.of(answers.eq(data.labels).tolist(), said.eq(data.labels).tolist())
        per_class = by_class(said, answers, classes, data.labels)
        confusion = Confusion(data="evaluation", counts=_counts(said, answers, classes))
    else:
        per_class = by_class(ours, theirs, classes)
        confusion = Confusion(data="held-out", counts=_counts(ours, theirs, classes))
    return StudentResult(
        name=spec.name,
        files=[path.name for path in job.student_files(spec.name)],
        spec=spec.to_dict(),
        steps=steps,
        searches=before.searches,
        methods=methods,
        compressed=_scores(before.classifier, heldout, data, answers),
        distilled=_scores(after, heldout, data, answers, said),
        costs=costs,
        gained=_differ(before.classifier, after),
        expected=_expect(job, spec, after),
        change=change,
        per_class=per_class,
        confusion=confusion,
        commonest=commonest(theirs),
    )


def _expect(job: Job, spec: StudentSpec, student: Classifier) -> Expectation | None:
    if not job.judges:
        return None
    evidence = examine(student, job.judges, job.families, is_new=spec.arch is not None)
    return read_calibration().expect(evidence)


def _differ(untrained: Classifier, trained: Classifier) -> bool:
    before, after = untrained.net.state_dict(), trained.net.state_dict()
    same = [k in before and torch.equal(v, before[k]) for k, v in after.items()]
    return not all(same)


def by_class(
    said: Tensor, answers: Tensor | None, classes: int, labels: Tensor | None = None
) -> list[ClassScores]:
    """The scores of each class: accuracy by label, agreement by what the teacher says.

    Arguments:
        said: The classes that the student names, with shape `(N,)`.
        answers: Those that the teacher names, if it is there.
        classes: The number of classes.
        labels: The true ones, where they are known.
    """

    def share(expected: Tensor | None, label: int) -> Proportion | None:
        if expected is None:
            return None
        rows = expected == label
        return _share(said[rows], expected[rows]) if rows.any() else None

    return [
        ClassScores(label=k, accuracy=share(labels, k), agreement=share(answers, k))
        for k in range(classes)
    ]


def _counts(said: Tensor, answers: Tensor, classes: int) -> list[list[int]]:
    """How often the student names which class where its teacher names which."""
    pairs = answers * classes + said
    return pairs.bincount(minlength=classes**2).view(classes, classes).tolist()


def _scores(
    classifier: Classifier,
    heldout: SyntheticSet,
    data: LabelledData | None,
    answers: Tensor | None,
    said: Tensor | None = None,
) -> Scores:
    if data is None or answers is None:
        return Scores(agreement=_agreement(classifier, heldout))
    said = predict(classifier, data) if said is None else said
    return Scores(
        agreement=_agreement(classifier, heldout),
        accuracy=_share(said, data.labels),
        real_agreement=_share(said, answers),
    )


def _agreement(classifier: Classifier, heldout: SyntheticSet) -> Proportion:
    """On inputs of odd index, which have chosen nothing."""
    return Proportion.of(agreement(classifier, heldout, half="odd"), len(heldout) // 2)


def _share(ours: Tensor | None, theirs: Tensor) -> Proportion | None:
    return None if ours is None else Proportion.of(share_equal(ours, theirs), len(theirs))


def synthesizer_results(job: Job) -> list[SynthesizerResult]:
    """What the inputs of each synthesizer were like, by the run's record."""
    results = []
    for synthesizer in job.synthesizers:
        name = synthesizer.name
        entries = {
            stage: entry
            for stage, entry in job.run.record.diagnostics.items()
            if stage == name or stage.startswith(f"{name}-")
        }
        distinct = [e["distinct"] for e in entries.values() if e["distinct"] is not None]
        chosen = [e["chosen"] for e in entries.values() if e.get("chosen")]
        picture = picture_name(name)
        results.append(
            SynthesizerResult(
                name=name,
                options=job.config.synthesizers[name],
                distinct=max(distinct, default=None),
                diagnostics={s: e["measured"] for s, e in entries.items() if e["measured"]},
                warnings=[w for e in entries.values() for w in e["warnings"]],
                reliable=all(e.get("reliable", True) for e in entries.values()),
                chosen=chosen[0] if chosen else None,
                real_images=getattr(synthesizer, "real_images", None),
                picture=picture if (job.run / picture).exists() else None,
            )
        )
    return results
