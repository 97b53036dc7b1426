"""The stages of the main job one by one, each from files to files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compression import (
    Recipe,
    apply_plan,
    as_recipes,
    compare_costs,
    count_parameters,
    match_batchnorm,
    plot_sensitivity,
)
from .data.datasets import LabelledData, load_dataset, measure_domain, resize_images
from .data.synthetic import SyntheticSet, quantise
from .distillation import predict
from .domain import DOMAINS, Domain
from .errors import CheckpointError, UsageError
from .files import atomic
from .job import JUDGING, draw_noise
from .pipeline import choose_device
from .runs.pictures import draw_figure, draw_grid
from .runs.progress import Progress
from .runs.run import Run, read_run
from .synthesizers import get_synthesizer
from .synthesizers.contract import Synthesizer
from .teachers import (
    Classifier,
    Teacher,
    build_net,
    load_classifier,
    load_teacher,
    read_checkpoint,
    save_classifier,
    train_classifier,
)

PathLike = str | os.PathLike[str]
SIDE = 32  # of images that are resized, as in KegNet and BDNF
EPOCHS, TABLE_STEPS = 8, 1_000  # of a teacher, unless asked otherwise


def train_teacher(
    data: PathLike,
    out: PathLike,
    *,
    arch: str | None = None,
    data_root: PathLike | None = None,
    download: bool = False,
    resize: bool = False,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains a classifier on labelled data, and measures it on the test split afterwards.

    Arguments:
        data: A named set, a folder of images or an npz file.
        out: Where the checkpoint goes; it holds the architecture and the domain as well.
        arch: The architecture, by name or `package.module:Class`; if `None`, `"lenet5"` for
            images and `"mlp"` for vectors.
        data_root: Where torchvision keeps its data sets.
        download: Whether torchvision may download them.
        resize: Whether to resize images of a folder or file to 32 x 32.
        epochs: Passes over the data; if `None`, 8 for images, and for vectors as many as make
            1,000 steps, since tables are small.
        batch_size: Inputs in a step.
        learning_rate: Adam's, falling to 0 as a cosine.
        seed: The seed of weights and of the order of the data.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        progress: What to show meanwhile.

    Returns:
        `arch`, `parameters`, `accuracy`, `count` and whether there was a test split.

    Raises:
        UsageError: If there is no such data or architecture, or they do not fit.
        TrainingError: If the loss is not finite.
    """
    source, place = os.fspath(data), choose_device(device)

    def load(split: str, domain: Domain | None) -> LabelledData:
        fitting = domain is not None
        return load_dataset(source, domain, split, data_root, download, resize and fitting)  # type: ignore[arg-type]

    train = load("train", DOMAINS.get(source))
    if resize and train.inputs.ndim == 4:
        train = LabelledData(resize_images(train.inputs, (SIDE, SIDE)), train.labels, train.name)
    domain = DOMAINS.get(source) or measure_domain(train, Path(source).stem)
    arch = arch or ("lenet5" if domain.is_image else "mlp")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_net(arch, domain)
    generator = torch.Generator().manual_seed(seed)
    per_epoch = max(1, len(train) // batch_size)
    if epochs is None:
        epochs = EPOCHS if domain.is_image else -(-TABLE_STEPS // per_epoch)
    steps = epochs * per_epoch
    with (progress or Progress()).stage(f"train {arch} on {train.name}", steps) as stage:

        def show(values: dict[str, float]) -> None:
            stage.update(int(values["step"]), {k: values[k] for k in ("epoch", "loss")})

        train_classifier(
            net, train, domain, epochs, batch_size, learning_rate, generator, show, place
        )
    classifier = Classifier(net, domain, arch).eval()
    save_classifier(out, classifier)
    test = load("test", domain)
    separate = test.labels.shape != train.labels.shape or not torch.equal(test.inputs, train.inputs)
    return {
        "file": os.fspath(out),
        "arch": arch,
        "domain": domain.to_dict(),
        "parameters": count_parameters(net),
        "accuracy": _accuracy(classifier, test),
        "count": len(test),
        "has_test_split": separate,
    }


def compress(
    teacher: PathLike,
    out: PathLike,
    *,
    student: str | Recipe = "1",
    arch: str | None = None,
    domain: Domain | None = None,
    synthetic: PathLike | None = None,
    plot: PathLike | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compresses a teacher without any training, and writes the student.

    Batch normalisation is matched to the compressed net
    (:func:`~freia_kd.compression.match_batchnorm`), on the inputs that are there.

    Arguments:
        teacher: The teacher's checkpoint.
        out: The student's file.
        student: One of the papers' students, or a recipe.
        arch: The architecture, if the file does not tell.
        domain: The input domain, if the file does not tell.
        synthetic: A run's folder, or a synthetic set's, whose inputs are used for what needs some:
            a target, pruning, quantisation and batch normalisation; without it, 1/f noise is.
        plot: Where a picture of the layers' sensitivity goes, if a target is searched for.
        seed: The seed of the choice of those inputs.

    Raises:
        CheckpointError: If the teacher's file or the synthetic set is not sound.
        UsageError: If the student cannot be made of this teacher.
    """
    loaded = load_teacher(teacher, arch, domain)
    (recipe,) = as_recipes([student])
    if plot is not None and recipe.target is None:
        raise UsageError("Only the search for a target measures sensitivity; leave --plot away.")
    recipe.check(loaded.net, loaded.arch, loaded.domain.shape)
    inputs, source = _judging_inputs(loaded, synthetic, seed)
    inputs = loaded.domain.normalize(inputs)
    net, steps, budget = loaded.net, list[dict[str, Any]](), None
    for method in recipe.methods:
        origin = net
        if method == "tucker" and recipe.target is not None:
            budget = recipe.search(net, inputs)
            net = apply_plan(net, budget.plan)
            steps.append({"method": "tucker", **budget.plan.to_dict()})
        else:
            net, step = recipe.apply(method, net, loaded.arch, inputs)
            steps.append(step)
        match_batchnorm(net, origin, inputs)
    if plot is not None and budget is not None:
        draw_figure(plot, plot_sensitivity(budget.sensitivity))
    save_classifier(out, Classifier(net, loaded.domain, loaded.arch), {"compression": steps})
    costs = compare_costs(loaded.net, net, loaded.domain.shape)
    found = None if budget is None else {**budget.to_dict(), "inputs": source}
    return {
        "file": os.fspath(out),
        "steps": steps,
        "parameters": costs.after.parameters,
        "teacher_parameters": costs.before.parameters,
        "macs": costs.after.macs,
        "teacher_macs": costs.before.macs,
        "budget": found and {k: v for k, v in found.items() if k != "plan"},
        "costs": json.loads(json.dumps(costs.to_dict())),  # whose keys are all text
    }


def _judging_inputs(teacher: Teacher, folder: PathLike | None, seed: int) -> tuple[Tensor, str]:
    """Inputs of a synthetic set, or noise, and what they are."""
    generator = torch.Generator().manual_seed(seed)
    if folder is None:
        return draw_noise(
            teacher, JUDGING, generator
        ), "noise: give a run's --synthetic to do better"
    path = Path(folder)
    path = path if (path / "manifest.json").exists() else path / "synthetic" / "train"
    data = SyntheticSet(path)
    if data.shape != teacher.domain.shape:
        raise UsageError(
            f"Expected synthetic inputs with shape {teacher.domain.shape}; got {data.shape} in "
            f"{path}."
        )
    rows = torch.randperm(len(data), generator=generator)[:JUDGING]
    return data.batch(rows)[0], f"synthetic inputs of {folder}"


def draw_samples(
    folder: PathLike,
    out: PathLike,
    *,
    count: int = 10,
    labels: Sequence[int] = (),
    seed: int = 0,
    synthesizer: str | None = None,
    flow: str | None = None,
) -> int:
    """Draws `count` images of each label from what a run has learned, into a .png or .npz file.

    Arguments:
        folder: The run's folder.
        out: The file; `.npz` holds `x` (uint8 images, or vectors) and `y`.
        count: Images of each label.
        labels: The classes; all of them if empty.
        seed: The seed of the random numbers.
        synthesizer: Which of the run's synthesizers, by default the first; it must be given if it
            is code of its own (`package.module:Class`).
        flow: The flow of BDNF, if it is code of its own (`package.module:function`).

    Returns:
        The number of images.

    Raises:
        CheckpointError: If the folder holds no run with a trained synthesizer.
        UsageError: If a label or the kind of file does not exist.
    """
    suffix = Path(out).suffix
    run = Run.open(folder)
    domain = Domain.from_dict(run.record["options"]["domain"])
    if suffix not in (".png", ".npz") or (suffix == ".png" and not domain.is_image):
        raise UsageError(f"Expected a .npz file, or .png for images; got {out}.")
    chosen = list(labels) or list(range(domain.classes))
    if not 0 <= min(chosen) <= max(chosen) < domain.classes:
        raise UsageError(f"Expected labels from 0 to {domain.classes - 1}; got {chosen}.")
    source = _restore(run, domain, synthesizer, flow)
    wanted = torch.tensor(chosen).repeat_interleave(count)
    generator = torch.Generator().manual_seed(seed)
    x, y = source.sample(len(wanted), wanted, generator)
    if suffix == ".png":
        draw_grid(out, x, len(chosen))
    else:
        with atomic(out) as temporary:
            np.savez(temporary, x=quantise(x).numpy(), y=y.numpy())
    return len(x)


def _restore(run: Run, domain: Domain, name: str | None, flow: str | None) -> Synthesizer:
    """One of a run's synthesizers, as its folder has it; code that only a file names is not run."""
    options = run.record["options"]
    names = options["synthesizer"].split("+")
    if name is not None and name not in names:
        raise UsageError(f"Expected a synthesizer of this run, {', '.join(names)}; got {name!r}.")
    if ":" in names[0] and name is None:
        raise UsageError(
            f"This run's synthesizer is code of its own; pass --synthesizer {names[0]}."
        )
    kind = get_synthesizer(name or names[0])
    settings = options["synthesizers"][kind.name]
    recorded = settings.get("flow", "")
    if ":" in recorded and flow != recorded:
        raise UsageError(f"This run's flow is code of its own; pass --flow {recorded}.")
    source = kind(kind.Options(**settings)) if kind.Options else kind()
    if kind.needs_student:  # and so learned with each of them; the first one's will do
        stages = [s for s in run.record["done"] if s.startswith(f"{kind.name}-")]
        source.stage = next(iter(stages), kind.name)
    source.restore(domain, run)
    return source


def evaluate(
    path: PathLike,
    eval_data: PathLike,
    *,
    data_root: PathLike | None = None,
    download: bool = False,
    resize: bool = False,
    arch: str | None = None,
    domain: Domain | None = None,
) -> list[dict[str, Any]]:
    """The accuracy of a checkpoint, or of every student in a run's folder, on real data.

    Raises:
        CheckpointError: If a file is not sound, or a folder has no students.
        UsageError: If there is no such data, or it does not fit.
    """
    files = sorted(Path(path).glob("student-*.pt")) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise CheckpointError(f"There are no students in {path}.")
    results = []
    for file in files:
        classifier = load_classifier(file, arch, domain)
        data = load_dataset(eval_data, classifier.domain, "test", data_root, download, resize)
        results.append(
            {
                "file": os.fspath(file),
                "accuracy": _accuracy(classifier, data),
                "count": len(data),
                "data": data.name,
            }
        )
    return results


def inspect(path: PathLike) -> dict[str, Any]:
    """What a checkpoint or a run's folder holds; nothing in it is run.

    Raises:
        CheckpointError: If it is neither.
    """
    path = Path(path)
    if path.is_dir():
        record = read_run(path)
        return {
            "kind": "run",
            "files": sorted(p.name for p in path.iterdir() if not p.name.startswith(".")),
            **record,
        }
    checkpoint = read_checkpoint(path)
    return {
        "kind": "checkpoint",
        "arch": checkpoint.own.get("arch", "not recorded"),
        "domain": checkpoint.own.get("domain", "not recorded"),
        "compression": checkpoint.own.get("compression", []),
        "parameters": sum(v.numel() for v in checkpoint.state.values()),
        "tensors": {name: list(value.shape) for name, value in checkpoint.state.items()},
    }


def _accuracy(classifier: Classifier, data: LabelledData) -> float:
    return (predict(classifier, data) == data.labels).double().mean().item()
