"""KegNet: conditional generators that a teacher and a decoder of their noise train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ranks
from ..config import Config, Count, Natural, NonNegative, Positive, Size
from ..data.datasets import LabelledData
from ..domain import Domain
from ..errors import CheckpointError
from ..objectives.contract import Terms
from ..teachers.classifier import Classifier, Teacher, remedies
from ..training import Checkpoints, Stateful, TrainingLoop, own_generator
from .contract import Synthesizer, sample_labels
from .generators import (
    DenseGenerator,
    Generator,
    ImageGenerator,
    as_distribution,
    as_inputs,
    build_seeded,
    perceptron,
)


@dataclass(frozen=True)
class KegNetOptions(Config):
    """The hyper-parameters of KegNet: where it chooses by data set, those for MNIST but for `beta`.

    Arguments:
        generators: How many generators are trained, one after the other (the paper's five).
        latents: The length of the noise.
        alpha: The weight of the decoder's error.
        beta: The weight of the diversity, as for SVHN; the authors' code has 0 for MNIST and
            tables, and 10 for Fashion-MNIST.
        decoder_layers: The decoder's hidden layers, 120 wide; 4 for Fashion-MNIST and SVHN, and 3
            for tables.
        steps: Training steps of each generator (the paper's 200 x 100).
        batch_size: Noises in a step.
        learning_rate: Adam's; 1e-2 for Fashion-MNIST and SVHN, and 1e-4 for tables.
    """

    title: ClassVar[str] = "kegnet"
    generators: Count = 5
    latents: Count = 10
    alpha: NonNegative = 1.0
    beta: NonNegative = 1.0
    decoder_layers: Natural = 2
    steps: Count = 20_000
    batch_size: Size = 256
    learning_rate: Positive = 1e-3


def diversity(z: Tensor, u: Tensor) -> Tensor:
    r"""How alike the inputs of unlike noises are, from 0 to 1, to be minimised.

    .. math:: \exp\Big( -\frac{1}{B^2} \sum_{ij} d_z(z_i, z_j)\, d_u(u_i, u_j) \Big)

    where :math:`d_z` is the mean squared and :math:`d_u` the mean absolute difference, over all
    pairs of the batch that processes share.

    Arguments:
        z: Noises with shape `(B, latents)`.
        u: Their inputs, normalised, with shape `(B, *shape)`.

    Returns:
        A scalar.
    """
    flat = u.flatten(1)
    apart = torch.cdist(flat, ranks.whole(flat), p=1) / flat.shape[1]
    noise = (z[:, None] - ranks.whole(z)[None]).square().mean(2)
    return torch.exp(-ranks.mean_over((noise * apart).mean()))


class KegNet(Synthesizer):
    r"""Generators :math:`x = G(z, y)` of labels that the teacher reads and noise that is decoded.

    A generator and a decoder D minimise together, over noise :math:`z \sim \mathcal{N}(0, 1)` and
    classes `y` drawn uniformly,

    .. math:: \mathrm{KL}(y \,\|\, T(x)) + \alpha \,\mathrm{MSE}(D(x), z)
              + \beta \,\mathrm{diversity}(z, x)

    in nats, with :func:`diversity`. Images come from transposed convolutions, vectors from linear
    layers; both are standardised, images each by itself and vectors over the batch, to mean 0 and
    variance 1 in the teacher's normalised units. Each input comes from one of the generators,
    chosen at random.

    Departures: the paper hands these units to the teacher as they are, where pixels lie beyond
    what images hold; here they are clamped to [0, 1], for the teacher, the decoder and the
    diversity, with a gradient that passes the clamp (:func:`as_inputs`). The teacher is in eval
    mode; the authors' code leaves it in training mode while generators learn, where batch
    normalisation takes the statistics of the generated batch. One `beta`, `learning_rate` and
    decoder serve all data, where the paper chose them by data set. The paper hands the same noises
    and labels to all generators.

    References:
        | Knowledge Extraction with No Observable Data (Yoo, Cho, Kim and Kang, 2019)
        | https://papers.nips.cc/paper/8538-knowledge-extraction-with-no-observable-data
    """

    name = "kegnet"
    varying: ClassVar = {"beta": 2}
    is_shared = True
    Options = KegNetOptions
    presets: ClassVar = {
        "quick": {"generators": 2, "steps": 300, "batch_size": 64},
        "standard": {"steps": 500, "batch_size": 64},
    }
    nets: list[Generator]
    domain: Domain

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        checkpoints: Checkpoints | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        """Trains the generators; samples and student are not used."""
        device = next(teacher.parameters()).device
        generator = own_generator(generator, device)
        self.domain = teacher.domain
        self.nets = [
            self._train(teacher, number, checkpoints, generator)
            for number in range(1, self.options.generators + 1)
        ]

    def _train(
        self,
        teacher: Teacher,
        number: int,
        checkpoints: Checkpoints | None,
        generator: torch.Generator,
    ) -> Generator:
        options = self.options
        net = build_seeded(lambda: self._build(teacher.domain), generator)
        decoder = build_seeded(lambda: self._build_decoder(teacher.domain), generator)
        optimizer = torch.optim.Adam(
            [*net.parameters(), *decoder.parameters()], options.learning_rate
        )
        parts: dict[str, Stateful] = {"generator": net, "decoder": decoder, "optimizer": optimizer}
        title = f"train generator {number} of {options.generators}"
        own = checkpoints and checkpoints.part(number)
        steps, result = options.steps, ["generator"]
        advice = remedies(f"{self.name}.learning_rate", teacher)
        loop = TrainingLoop(title, steps, parts, generator, optimizer, own, result, advice)
        for _ in loop:
            terms = self._losses(net, decoder, teacher, generator)
            if loop.accept(terms.total, terms.items()):
                loop.backward(terms.total)
                optimizer.step()
        return net.eval()

    def _losses(
        self, net: Generator, decoder: nn.Module, teacher: Teacher, generator: torch.Generator
    ) -> Terms:
        options, domain = self.options, teacher.domain
        c = sample_labels(options.batch_size, domain.classes, None, generator)
        z = torch.randn(len(c), options.latents, generator=generator, device=c.device)
        c, z = c[ranks.share(len(c))], z[ranks.share(len(c))]
        x = as_inputs(net(z, c), domain)
        y, u = as_distribution(c, domain.classes), domain.normalize(x)
        terms = {
            "label": F.kl_div(teacher(x).log_softmax(1), y, reduction="batchmean"),
            "noise": options.alpha * F.mse_loss(decoder(u.flatten(1)), z),
        }
        if options.beta:
            terms["diversity"] = options.beta * diversity(z, u)
        return Terms(**terms)

    def _build(self, domain: Domain) -> Generator:
        latents, classes = self.options.latents, domain.classes
        if domain.is_image:
            return ImageGenerator(latents, domain.shape, classes)
        return DenseGenerator(latents, domain.shape[0], classes)

    def _build_decoder(self, domain: Domain) -> nn.Module:
        hidden = [120] * self.options.decoder_layers
        return perceptron([math.prod(domain.shape), *hidden, self.options.latents])

    def restore(self, domain: Domain, checkpoints: Checkpoints) -> None:
        """Takes the trained generators from a run's folder.

        Raises:
            CheckpointError: If one is missing, not trained to its end, or of another shape.
        """
        self.nets, self.domain = [], domain
        for number in range(1, self.options.generators + 1):
            state = checkpoints.part(number).load()
            if state is None or state["step"] < state["steps"]:
                raise CheckpointError(
                    f"The run in {checkpoints.folder} has no trained generator {number} of "
                    f"{self.options.generators} yet."
                )
            net = build_seeded(lambda: self._build(domain), torch.Generator().manual_seed(0))
            try:
                net.load_state_dict(state["parts"]["generator"])
            except RuntimeError as error:
                raise CheckpointError(
                    f"The run in {checkpoints.folder} has another generator: {error}"
                ) from error
            self.nets.append(net.eval())

    @torch.no_grad()
    def sample(
        self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        device = next(self.nets[0].parameters()).device
        labels = sample_labels(n, self.domain.classes, labels, generator)
        where = generator.device if generator else None
        which = torch.randint(len(self.nets), (n,), generator=generator, device=where).to(device)
        z = torch.randn(n, self.options.latents, generator=generator, device=where).to(device)
        c = labels.to(device)
        x = torch.empty(n, *self.domain.shape, device=device)
        for index, net in enumerate(self.nets):
            for rows in torch.nonzero(which == index).flatten().split(256):
                x[rows] = as_inputs(net(z[rows], c[rows]), self.domain)
        return x, labels
