"""The paper's figures 3 and 4: what a flow paints from a teacher, without data and with samples."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compression import load_teacher
from ..data.datasets import LabelledData, load_dataset, measure_domain
from ..data.sources import PathLike
from ..device import free_memory
from ..domain import DOMAINS, Domain
from ..errors import TrainingError
from ..files import atomic
from ..job.planning import PlannedStage, fits_memory, told, too_large
from ..runs.lock import locked
from ..synthesizers.bdnf import BDNF, PUBLISHED, BDNFOptions
from ..synthesizers.contract import Synthesizer
from ..teachers import Teacher, save_classifier, train_new
from ..training import Checkpoints, Progress, Rehearsal
from .opening import one_of_each
from .planning import plan_teachers, stand_in

Row = tuple[str, Tensor]  # a label, and one image of each class with shape (classes, C, H, W)
Panel = tuple[str, list[Row]]

GAMMAS = (0.1, 0.01, 0.001)  # the paper's
MEASURED = 100  # images a class for the numbers of figure 4
COPY = 0.01  # mean squared distance of a pixel below which an image copies a sample
HEADER = ("gamma", "recognised", "distance to sample", "nearest its own", "copies", "variety")
CELL, MARGIN, TITLE = 72, 150, 26  # pixels of an image with its gap, of labels, and of a title
MAX_BYTES = 120_000  # of a picture, which has fewer colours if need be


@dataclass(frozen=True)
class Painted:
    """A figure that has been made.

    Arguments:
        picture: The PNG.
        teacher: The teacher's file.
        header: What the numbers are.
        rows: The numbers as text; none for figure 3.
    """

    picture: str
    teacher: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Kind:
    """One of the flows of a figure.

    Arguments:
        number: Which one of those that differ in their random numbers alone.
        samples: The real images that it sees, if any.
        gamma: Their weight.
    """

    number: int = 0
    samples: LabelledData | None = None
    gamma: float = 0.0


@dataclass(frozen=True)
class Studio:
    """What the flows of a figure have in common.

    Arguments:
        teacher: The teacher.
        name: The name of the data.
        folder: Where flows are kept.
        options: Those of a flow; `gamma` is the figure's.
        seed: The seed of all random numbers.
        progress: What to show meanwhile.
    """

    teacher: Teacher
    name: str
    folder: Path
    options: BDNFOptions
    seed: int
    progress: Progress

    def train(self, kind: Kind) -> BDNF:
        """A flow, from the folder if it has been trained."""
        return self._fit(kind, self._checkpoints(kind))

    def plan(self, kinds: Sequence[Kind]) -> list[PlannedStage]:
        """What is left of some flows, of which one takes a few real steps.

        Raises:
            UsageError: If memory cannot hold it.
        """
        device, found = torch.device("cpu"), Rehearsal()
        left = sum(1 - self._share_done(kind) for kind in kinds)
        if not left:
            return []
        free = free_memory(device)
        with torch.random.fork_rng(devices=[]), suppress(TrainingError):  # which it will raise
            if not fits_memory(device, free, partial(self._fit, kinds[0], found)):
                raise too_large("flows", free, ["train them elsewhere"])
        steps, seconds = round(left * found.steps), left * found.seconds
        return [PlannedStage("flows", steps, seconds if found.steps else None)]

    def _fit(self, kind: Kind, checkpoints: Checkpoints) -> BDNF:
        flow = BDNF(self.options.changed(gamma=kind.gamma))
        generator = torch.Generator().manual_seed(self.seed + kind.number)
        flow.fit(self.teacher, kind.samples, checkpoints, generator)
        return flow

    def _checkpoints(self, kind: Kind) -> Checkpoints:
        options = self.options.changed(gamma=kind.gamma)
        record = {"seed": self.seed, "number": kind.number, "samples": kind.samples is not None}
        text = json.dumps({**record, **options.to_dict()})
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return Checkpoints(self.folder / f"{self.name}-{digest}", "bdnf", self.progress)

    def _share_done(self, kind: Kind) -> float:
        saved = self._checkpoints(kind).load()
        return 0.0 if saved is None else saved["step"] / max(saved["steps"], 1)


def figure3(data: PathLike, **options: Any) -> Painted:
    """Paints three flows of one teacher at z = 0, as in the paper, and what the first one draws.

    Arguments:
        data: The data: a name, a folder or an npz file. The teacher learns from its training
            images, unless one is given; the flows see none.
        options: As of :func:`figure4`, without `gammas`.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), figure 3
    """

    def choose(train: LabelledData) -> list[Kind]:
        return [Kind(number) for number in range(3)]

    return _figure("figure3", data, choose, _paint_flows, **options)


def figure4(data: PathLike, *, gammas: Sequence[float] = (), **options: Any) -> Painted:
    """Paints flows that have seen one image of each class (eq. 9), for several weights of these.

    All start from the same weights and random numbers; the last has seen no image.

    Arguments:
        data: As of :func:`figure3`; one training image of each class is a sample.
        gammas: The weights; by default the paper's.
        options: What :func:`figure3` takes too: `teacher`, a file, or `None` to train one of
            `epochs`; `steps` of each flow, if not the default; `as_published` for a white base and
            no prior over images; `data_root` and `download` for torchvision; `seed`; `out`, the
            folder of it all; `progress`.

    Raises:
        UsageError: If there are no such data.
        TrainingError: If a loss stays non-finite.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), figure 4
    """
    chosen = tuple(gammas) or GAMMAS

    def choose(train: LabelledData) -> list[Kind]:
        samples = one_of_each(train, options.get("seed", 0))
        return [*(Kind(0, samples, gamma) for gamma in chosen), Kind()]

    return _figure("figure4", data, choose, _paint_gammas, **options)


FIGURES: dict[str, Callable[..., Painted]] = {"figure3": figure3, "figure4": figure4}
Choose = Callable[[LabelledData], list[Kind]]
Paint = Callable[[Studio, Sequence[Kind]], tuple[list[Panel], list[tuple[str, ...]]]]


def picture_path(out: PathLike, figure: str, data: PathLike, as_published: bool) -> Path:
    """Where a figure goes."""
    published = "-as-published" if as_published else ""
    return Path(out) / f"{figure}-{Path(os.fspath(data)).stem}{published}.png"


def _figure(
    figure: str,
    data: PathLike,
    choose: Choose,
    paint: Paint,
    *,
    out: PathLike,
    teacher: PathLike | None = None,
    epochs: int = 8,
    steps: int | None = None,
    as_published: bool = False,
    seed: int = 0,
    data_root: PathLike | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Painted:
    progress, folder = progress or Progress(), Path(out)
    name = Path(os.fspath(data)).stem
    known = DOMAINS.get(os.fspath(data))
    train = load_dataset(data, known, "train", data_root, download)
    domain = known or measure_domain(train, name)
    path = Path(teacher) if teacher else folder / f"teacher-{name}-{epochs}-{seed}.pt"
    changes: dict[str, Any] = dict(PUBLISHED) if as_published else {}
    if steps is not None:
        changes["steps"] = steps
    options = BDNFOptions().changed(**changes)
    picture = picture_path(out, figure, data, as_published)
    with locked(folder):
        progress.note(f"Run: {folder}")
        kinds, flows = choose(train), folder / "flows"
        stages, arch = list[PlannedStage](), _arch(domain)
        has_teacher = teacher is not None or path.exists()
        net = load_teacher(path, domain=domain) if has_teacher else stand_in(arch, domain)
        if not has_teacher:
            stages.append(plan_teachers("teacher", 1, arch, train, domain, epochs))
        studio = Studio(net, name, flows, options, seed, progress)
        stages += studio.plan(kinds)
        if stages:
            about = ", ".join(f"{s.name} {told(s.seconds)}" for s in stages)
            progress.note(f"Plan: {len(kinds)} flows of {options.steps:,} steps; left are {about}.")
        if not has_teacher:
            made = train_new(arch, train, domain, epochs, seed=seed, progress=progress)
            save_classifier(path, made)
            studio = replace(studio, teacher=load_teacher(path, domain=domain))
        panels, rows = paint(studio, kinds)
        whose = "as published (white base, no prior)" if as_published else "today's default"
        plot(picture, f"{name}, {net.arch}: {whose}, flows of {options.steps:,} steps", panels)
    return Painted(str(picture), str(path), HEADER if rows else (), tuple(rows))


def _arch(domain: Domain) -> str:
    return "lenet5" if domain.shape[0] == 1 else "resnet14"


def _paint_flows(
    studio: Studio, kinds: Sequence[Kind]
) -> tuple[list[Panel], list[tuple[str, ...]]]:
    flows = [studio.train(kind) for kind in kinds]
    domain = studio.teacher.domain
    rows = [
        (f"z = 0, flow {number}", draw(flow, domain, 0, 0)) for number, flow in enumerate(flows, 1)
    ]
    rows.append(("flow 1, z / 3", draw(flows[0], domain, 1 / 3, 1)))
    rows += [("flow 1, random z", draw(flows[0], domain, 1.0, 10 + i)) for i in range(2)]
    return [("", rows)], []


def _paint_gammas(
    studio: Studio, kinds: Sequence[Kind]
) -> tuple[list[Panel], list[tuple[str, ...]]]:
    domain = studio.teacher.domain
    samples = kinds[0].samples
    assert samples is not None
    panels: list[Panel] = [
        ("", [("the samples", samples.take(torch.arange(len(samples)))[0])]),
    ]
    numbers = []
    for kind in kinds:
        flow = studio.train(kind)
        numbers.append((f"{kind.gamma:g}", *measure(flow, studio.teacher, samples)))
        rows = [
            ("z = 0", draw(flow, domain, 0, 0)),
            ("random z", draw(flow, domain, 1.0, 10)),
        ]
        panels.append((f"gamma = {kind.gamma:g}" if kind.samples else "no sample", rows))
    return panels, numbers


def draw(flow: BDNF, domain: Domain, temperature: float, seed: int) -> Tensor:
    """One image of each class, `(classes, C, H, W)`; z is 0 at temperature 0."""
    c = torch.arange(domain.classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if temperature == 0:
            return flow.flow.decode(torch.zeros(len(c), *domain.shape), c)[0]
        return flow.flow.sample(c, temperature, generator)


def measure(synthesizer: Synthesizer, teacher: Teacher, samples: LabelledData) -> tuple[str, ...]:
    """What images have in common with the samples.

    The share that the teacher gives the class of; the mean squared distance of a pixel to the
    class's sample; the share that is nearer to it than to the other samples; the share that copies
    it, within `COPY`; and the mean squared distance of a pixel between images of one class.

    Arguments:
        synthesizer: What makes the images.
        teacher: The teacher.
        samples: One image of each class, in order.
    """
    classes = teacher.domain.classes
    c = torch.arange(classes).repeat_interleave(MEASURED)
    x, _ = synthesizer.sample(len(c), c, torch.Generator().manual_seed(5))
    with torch.no_grad():
        right = (teacher(x).argmax(1) == c).float().mean().item()
    real, _ = samples.take(torch.arange(classes))
    distance = torch.stack([(x - image).square().flatten(1).mean(1) for image in real], 1)
    own = distance.gather(1, c[:, None])
    copies = (own < COPY).float().mean().item()
    nearest = (distance.argmin(1) == c).float().mean().item()
    # The mean over distinct pairs is twice the unbiased variance.
    variety = 2 * x.view(classes, MEASURED, -1).var(1).mean().item()
    percent = [f"{100 * share:.0f} %" for share in (right, nearest, copies)]
    return percent[0], f"{own.mean():.3f}", *percent[1:], f"{variety:.3f}"


def plot(path: Path, heading: str, panels: Sequence[Panel]) -> None:
    """Writes a PNG: below each panel's title a labelled row of images, one a class, for each row.

    Columns are numbered by class; the heading is above all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    columns = len(panels[0][1][0][1])
    count = sum(len(rows) for _, rows in panels)
    height = 2 * TITLE + count * CELL + TITLE * sum(bool(title) for title, _ in panels)
    width = MARGIN + CELL * columns
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    FigureCanvasAgg(figure)
    top = height - TITLE
    figure.text(8 / width, (top + 7) / height, heading, fontsize=11, weight="bold")
    top -= TITLE
    for column in range(columns):
        x = MARGIN + (column + 0.5) * CELL - 4
        figure.text(x / width, (top + 7) / height, str(column), fontsize=10, ha="center")
    figure.text(8 / width, (top + 7) / height, "class", fontsize=10)
    for title, rows in panels:
        if title:
            top -= TITLE
            figure.text(8 / width, (top + 7) / height, title, fontsize=11, weight="bold")
        for label, images in rows:
            top -= CELL
            figure.text(8 / width, (top + 0.42 * CELL) / height, label, fontsize=10)
            for column, image in enumerate(images.clamp(0, 1)):
                scale = max(1, (CELL - 2) // image.shape[-1])
                pixels = image.permute(1, 2, 0).repeat_interleave(scale, 0)
                pixels = pixels.repeat_interleave(scale, 1).expand(-1, -1, 3)
                figure.figimage(pixels.numpy(), MARGIN + column * CELL, top)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic(path) as temporary:
        for colours in (256, 64, 32, 16, 8):
            picture = Image.open(buffer).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
            picture.save(temporary, format="PNG", optimize=True)
            if temporary.stat().st_size < MAX_BYTES:
                break
