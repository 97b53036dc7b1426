"""How Table 1's rows are made: the paper's text, its published code, and a small share of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..config import Config, Count, NonNegative, Positive

Size = Literal["quick", "code", "paper"]


@dataclass(frozen=True)
class Recipe(Config):
    r"""The settings of the rows that the paper has.

    The defaults are those of the paper's text, and where it gives none those of its code: the
    flow's width, its batches and steps (30 passes over 20,000 latents), the 6,400 inputs that are
    made once, and how long students learn. The volume has the squash to pixels, as eq. (1) asks and
    as the code does; eq. (6), which leaves it out, has no largest value.

    Two things are not the code's: samples are training images as they are, where the code's script
    takes them from the test images and stretches each to [0, 1]; and every step of a flow has a
    whole batch, where the last of the code's passes has 32 latents.

    Arguments:
        width: The width of the flow's couplings (:class:`~.keflow.KeFlow`).
        latent_std: The standard deviation of z, when the flow learns and when it samples.
        stretch: Whether the teacher's net takes :math:`a (x - 1/2)`, a drawn from [1, 2] once a
            batch, in place of normalised pixels, and so do students. A flow that learns from
            samples then shows the teacher its pixels x as they are, and still makes its inputs so.
        floor: The number f in :math:`\log(p + f)` of eq. (5), where there are no samples.
        alpha: The weight of the volume.
        beta: The weight of the batch statistics, eq. (7).
        means: The weight of means in eq. (7), where variances have 1.
        first: The weight of the first layer in eq. (7).
        gamma: The weight of the samples' likelihood, eq. (9); all of them are in every step.
        rate: Adam's constant learning rate for the flow.
        weight_decay: Adam's, as a penalty on the flow's squared weights.
        clip: The bound of the gradient's norm.
        steps: Training steps of the flow.
        batch_size: Latents in a step.
        kegnet_steps: Training steps of KegNet's generator.
        kegnet_batch: Noises in such a step.
        uniform: Uniform noise is drawn from minus to plus this, in the units of the teacher's net.
        raw_samples: Whether T+Sample shows students pixels that are not normalised.
        set_size: How many inputs are made, once.
        student_rate: Adam's constant learning rate for students.
        student_batch: Inputs in a student's step.
        epochs: Passes over the inputs, always in the same order.
        check_every: Passes between looks at the test images.
    """

    title: ClassVar[str] = "recipe"
    width: Count = 1500
    latent_std: Positive = 1.0
    stretch: bool = False
    floor: NonNegative = 0.0
    alpha: NonNegative = 1e-2
    beta: NonNegative = 1.0
    means: NonNegative = 1.0
    first: NonNegative = 1.0
    gamma: NonNegative = 1e-2
    rate: Positive = 1e-4
    weight_decay: NonNegative = 0.0
    clip: Positive = 1.0
    steps: Count = 9_390
    batch_size: Count = 64
    kegnet_steps: Count = 20_000
    kegnet_batch: Count = 256
    uniform: Positive = 1.0
    raw_samples: bool = False
    set_size: Count = 6_400
    student_rate: Positive = 1e-5
    student_batch: Count = 128
    epochs: Count = 200
    check_every: Count = 1


# What the published code has for all data sets where the text has something else, or nothing.
CODE: dict[str, Any] = {
    "latent_std": 0.5,
    "stretch": True,
    "floor": 0.01,
    "beta": 2.0,
    "means": 2.0,
    "first": 2.0,
    "weight_decay": 1e-3,
    "uniform": 0.5,
    "raw_samples": True,
    "student_rate": 1e-4,
}
# And for one.
CODE_BY_DATA: dict[str, dict[str, Any]] = {
    "mnist": {"alpha": 5e-3, "gamma": 1e-3, "rate": 5e-5},
    "fashion-mnist": {"alpha": 2e-2, "gamma": 1e-2},
    "svhn": {"alpha": 4e-2, "gamma": 1e-3},
}
# What fits two cores: the code's recipe with a narrow flow and about a twentieth of the work.
QUICK: dict[str, Any] = {
    "width": 400,
    "rate": 2e-4,
    "steps": 500,
    "kegnet_steps": 500,
    "kegnet_batch": 64,
    "set_size": 3_200,
    "student_rate": 2e-4,
    "epochs": 30,
    "check_every": 5,
}


def get_recipe(size: Size, data: str) -> Recipe:
    """The settings of a preset for one data set.

    Arguments:
        size: `"paper"` for the text's, `"code"` for the published code's, `"quick"` for a share.
        data: The data set.

    Example:
        >>> get_recipe("paper", "mnist").alpha, get_recipe("code", "mnist").alpha
        (0.01, 0.005)
    """
    if size == "paper":
        return Recipe()
    recipe = Recipe(**{**CODE, **CODE_BY_DATA[data]})
    return recipe.changed(**QUICK) if size == "quick" else recipe
