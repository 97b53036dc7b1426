"""A synthesizer of your own, in a file of your own: random pen strokes. In this folder,

    freiakd compare --teacher ../lenet5.pt --synthesizers all,custom_synthesizer:Strokes

picks it up (`make demo` leaves that teacher); also from PYTHONPATH, or by a name from your package:

    [project.entry-points."freia_kd.synthesizers"]
    strokes = "custom_synthesizer:Strokes"
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from freia_kd.config import Config, Count, Positive
from freia_kd.synthesizers.contract import Synthesizer, sample_labels


@dataclass(frozen=True)
class StrokesOptions(Config):
    strokes: Count = 2  # in an image
    width: Positive = 0.05  # of the pen, as a share of the image
    tries: Count = 8  # images drawn for each that is kept


class Strokes(Synthesizer):
    """White curves on black; of several images that is kept which looks most like its label."""

    name = "strokes"
    Options = StrokesOptions
    needs_images = True

    def fit(self, teacher, samples=None, checkpoints=None, generator=None, student=None):
        self.teacher = teacher  # there is nothing to train

    def draw(self, n, generator=None):
        """`n` images of quadratic Bézier curves, drawn by a pen with a Gaussian tip."""
        shape, device = self.teacher.domain.shape, next(self.teacher.parameters()).device
        corners = torch.rand(n, self.options.strokes, 3, 2, generator=generator, device=device)
        t = torch.linspace(0, 1, 16, device=device)
        curves = torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])
        points = torch.einsum("nsci,ct->inst", 0.1 + 0.8 * corners, curves).flatten(2)
        ink = []
        for at, size in zip(points, shape[1:], strict=True):
            pixels = torch.linspace(0, 1, size, device=device)
            ink.append((-(((pixels - at[..., None]) / self.options.width) ** 2) / 2).exp())
        return (ink[0].mT @ ink[1]).clamp(max=1)[:, None].expand(n, *shape)

    @torch.no_grad()
    def sample(self, n, labels=None, generator=None):
        classes, tries = self.teacher.domain.classes, self.options.tries
        labels = sample_labels(n, classes, labels, generator)
        soft, kept = F.one_hot(labels, classes) if labels.ndim == 1 else labels, []
        for c in soft.to(next(self.teacher.parameters()).device).split(256):
            x = self.draw(len(c) * tries, generator)
            scores = (self.teacher(x).log_softmax(1).unflatten(0, (-1, tries)) * c[:, None]).sum(2)
            kept.append(x.unflatten(0, (-1, tries))[range(len(c)), scores.argmax(1)])
        return torch.cat(kept), labels
