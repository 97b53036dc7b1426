"""The paper's figures 3 and 4: what a flow paints from a teacher, without data and with ten images.

    python benchmarks/figures.py 3 --data mnist --data-root FOLDER
    python benchmarks/figures.py 3 --data fashion-mnist --data-root FOLDER
    python benchmarks/figures.py 4 --data mnist --data-root FOLDER

`--as-published` has the paper's white base and no prior: that is what looks like its figure 3.
`svhn` and `cifar10` are drawn alike (teacher ResNet14), from torchvision's files in FOLDER.

Figure 3: three flows of one teacher at z = 0, as in the paper, and random draws of the first.
Figure 4: bidirectional training (eq. 9) with one real image a class, for several gamma, each from
the same weights and random numbers, with gamma = 0 (no image) for comparison. The flows are those
of `freiakd extract`. Training images train the teacher, and ten of them are the samples; test
images only measure the teacher.

The teacher is trained first, as by `freiakd train-teacher`. Pictures go to `--out` as
`figure3-mnist.png`; figure 4's numbers are printed. With `--work FOLDER` teacher and flows are kept
there, and what is finished is not trained again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from freia_kd.api import train_teacher
from freia_kd.compression import load_teacher
from freia_kd.data.datasets import LabelledData, load_dataset
from freia_kd.files import atomic
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions
from freia_kd.training import Checkpoints
from freia_kd.training.checkpoints import read_metrics
from freia_kd.training.progress import PlainProgress

LENET5 = ("mnist", "fashion-mnist", "digits")  # the others have ResNet14
MEASURED = 100  # images a class for the numbers
LARGEST = 60_000  # bytes of a picture, which has fewer colours if need be
COPY = 0.01  # mean squared distance of a pixel below which an image copies a sample


def get_teacher(arguments):
    path = arguments.work / f"{arguments.data}.pt"
    if not path.exists():
        arch = "lenet5" if arguments.data in LENET5 else "resnet14"
        trained = train_teacher(
            arguments.data, path, arch=arch, data_root=arguments.data_root,
            epochs=arguments.epochs, progress=PlainProgress(interval=60),
        )  # fmt: skip
        print(f"teacher: {100 * trained.accuracy.value:.2f} % of the test images")
    return load_teacher(path)


def train_flow(arguments, teacher, seed, samples=None, gamma=0.0):
    """A flow as `freiakd extract` trains it, but with options of its own."""
    options = replace(BDNFOptions(), flow=arguments.flow, gamma=gamma)
    if arguments.as_published:
        options = replace(options, base="gaussian", prior=False)
    if arguments.steps:
        options = replace(options, steps=arguments.steps)
    record = {"samples": arguments.sample_seed, "seed": seed, **options.to_dict()}
    digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()[:8]
    name = f"{arguments.data}-{options.base}-{options.steps}-{seed}-{gamma:g}-{digest}"
    folder = arguments.work / name
    flow = BDNF(options)
    checkpoints = Checkpoints(folder, "bdnf", PlainProgress(interval=60))
    flow.fit(teacher, samples, checkpoints, torch.Generator().manual_seed(seed))
    last = {k: round(v, 2) for k, v in read_metrics(folder)[-1].items() if k != "stage"}
    print(name, last, flush=True)
    return flow


def sample(flow, domain, temperature, seed):
    """One image of each class, `(classes, C, H, W)`; z is 0 at temperature 0."""
    c = torch.arange(domain.classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if temperature == 0:
            return flow.flow.decode(torch.zeros(len(c), *domain.shape), c)[0]
        return flow.flow.sample(c, temperature, generator)


def random_rows(flow, domain, count):
    return [("temperature 1", sample(flow, domain, 1.0, 10 + i)) for i in range(count)]


def figure3(arguments, teacher):
    flows = [train_flow(arguments, teacher, seed) for seed in range(3)]
    rows = [
        (f"z = 0, flow {i + 1}", sample(flow, teacher.domain, 0, 0)) for i, flow in enumerate(flows)
    ]
    rows.append(("temperature 0.3", sample(flows[0], teacher.domain, 0.3, 1)))
    return [("", rows + random_rows(flows[0], teacher.domain, 4))]


def figure4(arguments, teacher):
    domain = teacher.domain
    samples = pick_samples(arguments, domain)
    panels = [("", [("the ten samples", samples.take(torch.arange(len(samples)))[0])])]
    lines = [
        "| gamma | recognised | distance to the sample | nearest to its own | copies | variety |",
        "|---|---|---|---|---|---|",
    ]
    for gamma in (*arguments.gammas, 0.0):
        flow = train_flow(arguments, teacher, 0, samples if gamma else None, gamma)
        lines.append(f"| {gamma:g} | " + " | ".join(measure(flow, teacher, samples)) + " |")
        rows = [("z = 0", sample(flow, domain, 0, 0)), *random_rows(flow, domain, 2)]
        panels.append((f"gamma = {gamma:g}" if gamma else "no sample", rows))
    print("\n".join(lines))
    return panels


def pick_samples(arguments, domain):
    """One random training image of each class."""
    data = load_dataset(arguments.data, domain, "train", arguments.data_root)
    generator = torch.Generator().manual_seed(arguments.sample_seed)
    rows = torch.randperm(len(data), generator=generator)
    first = [int(rows[data.labels[rows] == c][0]) for c in range(domain.classes)]
    return LabelledData(data.inputs[first], data.labels[first], "one image a class")


def measure(flow, teacher, samples):
    """What images of temperature 1 have in common with the samples.

    The share that the teacher gives the class of; the mean squared distance of a pixel to the
    class's sample; the share that is nearer to it than to the other samples (chance: 10 %); the
    share that copies it, within `COPY`; and the mean squared distance of a pixel between images of
    one class.
    """
    classes = teacher.domain.classes
    c = torch.arange(classes).repeat_interleave(MEASURED)
    x, _ = flow.sample(len(c), c, torch.Generator().manual_seed(5))
    with torch.no_grad():
        right = (teacher(x).argmax(1) == c).float().mean().item()
    real, _ = samples.take(torch.arange(classes))
    distance = (x.unsqueeze(1) - real.unsqueeze(0)).square().flatten(2).mean(2)
    own = distance.gather(1, c[:, None])
    copies = (own < COPY).float().mean().item()
    nearest = (distance.argmin(1) == c).float().mean().item()
    # The mean over distinct pairs is twice the unbiased variance.
    variety = 2 * x.view(classes, MEASURED, -1).var(1).mean().item()
    percent = [f"{100 * share:.0f} %" for share in (right, nearest, copies)]
    return percent[0], f"{own.mean():.3f}", *percent[1:], f"{variety:.3f}"


def plot(path, panels):
    """Writes a PNG: below each panel's title a row of images, one a class, for each label."""
    cell, margin, title_height, scale = 66, 110, 22, 2
    count = sum(len(rows) for _, rows in panels)
    height = count * cell + title_height * sum(bool(title) for title, _ in panels)
    width = margin + cell * len(panels[0][1][0][1])
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    FigureCanvasAgg(figure)
    top = height
    for title, rows in panels:
        if title:
            top -= title_height
            figure.text(margin / width, (top + 6) / height, title, fontsize=9, weight="bold")
        for label, images in rows:
            top -= cell
            figure.text(5 / width, (top + 0.42 * cell) / height, label, fontsize=8)
            for column, image in enumerate(images.clamp(0, 1)):
                pixels = image.permute(1, 2, 0).repeat_interleave(scale, 0)
                pixels = pixels.repeat_interleave(scale, 1).expand(-1, -1, 3)
                figure.figimage(pixels.numpy(), margin + column * cell, top)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic(path) as temporary:
        for colours in (256, 64, 32, 16, 8):
            picture = Image.open(buffer).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
            picture.save(temporary, format="PNG", optimize=True)
            if temporary.stat().st_size < LARGEST:
                break


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", choices=["3", "4"])
    names = ["mnist", "fashion-mnist", "svhn", "cifar10", "digits"]
    parser.add_argument("--data", choices=names, default="mnist")
    parser.add_argument("--data-root")
    parser.add_argument("--work", type=Path, help="a folder that keeps the teacher and the flows")
    parser.add_argument("--epochs", type=int, default=8, help="of the teacher")
    parser.add_argument("--flow", default="nice")
    parser.add_argument("--steps", type=int, help="of a flow; by default those of the preset")
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.1, 0.03, 0.01, 0.001])
    parser.add_argument("--sample-seed", type=int, default=0, help="chooses the ten images")
    parser.add_argument(
        "--as-published", action="store_true", help="white base and no prior, as in the paper"
    )
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments.work = arguments.work or Path(folder)
        teacher = get_teacher(arguments)
        panels = (figure3 if arguments.figure == "3" else figure4)(arguments, teacher)
    published = "-as-published" if arguments.as_published else ""
    path = Path(arguments.out) / f"figure{arguments.figure}-{arguments.data}{published}.png"
    plot(path, panels)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
