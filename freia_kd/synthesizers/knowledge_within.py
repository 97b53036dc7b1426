"""The schemes of The Knowledge Within: Gaussian, inception, batch-norm statistics, and two of them.

Experimental: the paper's text was not at hand. Its abstract and readers' published notes confirm
the schemes, the class logit that the inception scheme raises, and the divergence of the batch-norm
statistics with its direction (:func:`gaussian_divergence`). Not confirmed, and so ours: weights and
numbers of steps, the smoothness prior, the jitter, how layers are averaged, and the mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from scipy import optimize, stats
from torch import Tensor

from .. import ranks
from ..config import NonNegative, Positive
from ..data.datasets import LabelledData
from ..domain import Domain
from ..objectives.batchnorm import BatchStatistics, LayerStatistics
from ..objectives.contract import Terms
from ..teachers.classifier import Classifier, Teacher
from ..training import Checkpoints
from .contract import TEACHER_BATCH_SIZE
from .inversion import QUICK, STANDARD, Inversion, InversionOptions, Loss, unit
from .noise import Noise

Target = Literal["probability", "logit"]
EPSILON = 1e-5  # what batch normalisation adds to a variance


@dataclass(frozen=True)
class KnowledgeWithinOptions(InversionOptions):
    """The hyper-parameters of the schemes that optimise images; the paper's are not known to us.

    Arguments:
        statistics: The weight of the batch-norm statistics.
        target: What the inception scheme raises for the wanted class: its log-`"probability"`, or
            its `"logit"`, which grows without end and in the teacher's own units.
        inception: The weight of that.
        smoothness: The weight of the smoothness prior, which the inception scheme has.
        blur: The standard deviation of that prior's Gaussian kernel, in pixels.

    Raises:
        ConfigError: If a value makes no sense.
    """

    title: ClassVar[str] = "kw"
    statistics: NonNegative = 5.0
    target: Target = "probability"
    inception: NonNegative = 1.0
    smoothness: NonNegative = 1.0
    blur: Positive = 1.0


class KWGaussian(Noise):
    """The Gaussian scheme: pixels of the training data's mean and standard deviation, by channel.

    Experimental, as the module says. Pixels are independent, and labelled by the teacher; nothing
    is optimised. A
    Gaussian clipped to [0, 1] loses the statistics that it has, so it is the one that has the
    domain's *after* clipping, if there is one (which noise `normal` leaves out). Vectors are not
    clipped.

    References:
        | The Knowledge Within: Methods for Data-Free Model Compression (Haroush et al., 2020)
        | https://arxiv.org/abs/1912.01274
    """

    name = "kw-gaussian"
    family = "pixel noise"

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        checkpoints: Checkpoints | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        super().fit(teacher, samples, checkpoints, generator, student)
        self.mean, self.std = self._moments(teacher.domain)

    def _moments(self, domain: Domain) -> tuple[Tensor, Tensor]:
        channels = max(len(domain.mean), len(domain.std))
        pairs = zip(_spread(domain.mean, channels), _spread(domain.std, channels), strict=True)
        chosen = [clipped_gaussian(m, s) if domain.is_image else (m, s) for m, s in pairs]
        view = (-1,) + (1,) * (len(domain.shape) - 1)
        mean, std = torch.tensor(chosen, device=self.device).T
        return mean.view(view), std.view(view)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        shape = self.teacher.domain.shape
        x = self.mean + self.std * torch.randn(n, *shape, generator=generator, device=self.device)
        return x.clamp(0, 1) if self.teacher.domain.is_image else x


class KnowledgeWithin(Inversion):
    """Images by optimisation, the base class of the other schemes, all of them experimental.

    Those are optimised as :class:`~freia_kd.synthesizers.inversion.Inversion` says: from Gaussian
    noise, by Adam, jittered and clipped to pixels in [0, 1].

    References:
        | The Knowledge Within: Methods for Data-Free Model Compression (Haroush et al., 2020)
        | https://arxiv.org/abs/1912.01274
    """

    Options = KnowledgeWithinOptions
    presets: ClassVar = {"quick": QUICK, "standard": STANDARD}
    terms: ClassVar[tuple[str, ...]]  # of which the loss consists

    def loss(self, teacher: Teacher, student: Classifier | None) -> Loss:
        options, statistics = self.options, BatchStatistics()

        def loss(x: Tensor, y: Tensor) -> Terms:
            own = ranks.share(len(x))
            with statistics.observe(teacher.net) as records:
                logits = teacher.net(x[own])
            scaled = x / unit(teacher.domain)
            terms: dict[str, Tensor] = {}
            if "statistics" in self.terms:
                terms["statistics"] = options.statistics * gaussian_divergence(records)
            if "inception" in self.terms:
                scores = logits if options.target == "logit" else F.log_softmax(logits, 1)
                terms["inception"] = -options.inception * scores.gather(1, y[own, None]).mean()
                terms["smoothness"] = options.smoothness * roughness(scaled, options.blur)
            return Terms(**terms)

        return loss


class KWInception(KnowledgeWithin):
    r"""The inception scheme: images of a wanted class, and smooth.

    .. math:: -\langle \log p_T(y|x) \rangle + w\,\langle (x - G * x)^2 \rangle

    with a Gaussian kernel G. A departure: readers' notes on the paper speak of the class
    logit (`target="logit"`), which has the teacher's units and no end.
    """

    name = "kw-inception"
    terms = ("inception",)


class KWStatistics(KnowledgeWithin):
    r"""The batch-norm statistics scheme: images of the training data's feature statistics.

    .. math:: \Bigl\langle \mathrm{KL}\bigl(\mathcal{N}(\hat\mu, \hat\sigma^2) \,\|\,
              \mathcal{N}(\mu, \sigma^2)\bigr) \Bigr\rangle

    over all channels of a layer and then over layers, see :func:`gaussian_divergence`. No class is
    asked for: the teacher labels the images.
    """

    name = "kw-bns"
    needs_batchnorm = True
    terms = ("statistics",)
    min_probability = 0.0  # of classes that were never asked for

    @torch.no_grad()
    def label(self, teacher: Teacher, images: Tensor, labels: Tensor) -> Tensor:
        """The teacher's own answers."""
        return torch.cat([teacher(part).argmax(1) for part in images.split(TEACHER_BATCH_SIZE)])


class KWMixture(KnowledgeWithin):
    """Batch-norm statistics and inception in one optimisation, the sum of both losses.

    It asks for a class, where the statistics alone do not.
    """

    name = "kw-mixture"
    needs_batchnorm = True
    terms = ("statistics", "inception")


def gaussian_divergence(records: Sequence[LayerStatistics]) -> Tensor:
    r"""How far feature statistics are from the remembered ones, as Gaussians, in nats.

    .. math:: \mathrm{KL}\bigl(\mathcal{N}(\hat\mu, \hat\sigma^2) \,\|\, \mathcal{N}(\mu, \sigma^2)
              \bigr) = \frac{1}{2} \log \frac{\sigma^2}{\hat\sigma^2} - \frac{1}{2}
              + \frac{\hat\sigma^2 + (\hat\mu - \mu)^2}{2 \sigma^2}

    for each channel, with the running statistics under a hat; the mean over channels, then over
    layers. Both variances gain the 1e-5 of batch normalisation, since dead channels have none.

    Arguments:
        records: What :meth:`~freia_kd.objectives.batchnorm.BatchStatistics.observe` recorded.
    """
    layers = []
    for record in records:
        ours, theirs = record.variance + EPSILON, record.running_variance + EPSILON
        shift = (record.running_mean - record.mean).square()
        layers.append((((theirs + shift) / ours - 1 + (ours / theirs).log()) / 2).mean())
    return torch.stack(layers).mean()


def roughness(x: Tensor, std: float) -> Tensor:
    r"""The mean squared difference of images and their blurred copies, :math:`(x - G * x)^2`.

    Arguments:
        x: Images with shape `(B, C, H, W)`.
        std: The standard deviation of the Gaussian kernel G in pixels; edges are replicated.
    """
    reach = max(1, round(3 * std))
    steps = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.softmax(-0.5 * (steps / std).square(), 0)
    channels = x.shape[1]
    blurred = F.pad(x, (reach,) * 4, mode="replicate")
    for view in ((1, 1, -1, 1), (1, 1, 1, -1)):
        weight = kernel.view(view).expand(channels, *kernel.view(view).shape[1:])
        blurred = F.conv2d(blurred, weight, groups=channels)
    return (x - blurred).square().mean()


def clipped_gaussian(mean: float, std: float) -> tuple[float, float]:
    """The Gaussian that has a mean and a standard deviation after clipping to [0, 1].

    Gives the arguments themselves where there is no such Gaussian.

    Example:
        >>> m, s = clipped_gaussian(0.5, 0.1)  # hardly clipped
        >>> round(m, 3), round(s, 3)
        (0.5, 0.1)
    """
    if not std**2 < mean * (1 - mean):
        return mean, std

    def faults(unknown: Any) -> list[float]:
        m, s = unknown[0], std * 2.0 ** unknown[1]
        have_mean, have_square = clipped_moments(m, s)
        return [have_mean - mean, (have_square - have_mean**2) - std**2]

    found = optimize.root(faults, [mean, 0.0])
    return (float(found.x[0]), std * 2.0 ** float(found.x[1])) if found.success else (mean, std)


def clipped_moments(mean: float, std: float) -> tuple[float, float]:
    """The first two moments of a Gaussian clipped to [0, 1]."""
    a, b = -mean / std, (1 - mean) / std
    inside, above = stats.norm.cdf(b) - stats.norm.cdf(a), stats.norm.sf(b)
    low, high = stats.norm.pdf(a), stats.norm.pdf(b)
    first = mean * inside + std * (low - high)
    second = (mean**2 + std**2) * inside + std * (mean * low - (1 + mean) * high)
    return float(first + above), float(second + above)


def _spread(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    return values * count if len(values) == 1 else values
