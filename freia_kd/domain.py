"""The input domain of a classifier: shape, classes and normalisation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LEAST_STD = 0.0035  # of pixels in [0, 1]; nets that take 0 to 255 have 1 / 255 = 0.0039


@dataclass(frozen=True)
class Domain:
    r"""What a classifier takes: the shape of one input, its classes, how pixels are normalised.

    Images live in pixel space :math:`[0, 1]`; the classifier sees
    :math:`(x - \mathrm{mean}) / \mathrm{std}` per channel. Vectors (the 2-D toy, tables) are
    unbounded; their mean and std have one entry per feature, or one for all of them.

    Arguments:
        shape: The shape of one input, `(C, H, W)` for images or `(D,)` for vectors.
        classes: The number of classes, at least 2.
        mean: Per-channel means in pixel space, or one for all.
        std: Per-channel standard deviations in pixel space, or one for all.
        name: A name for reports.

    Raises:
        ValueError: If a shape, a count or a statistic makes no sense.

    Example:
        >>> Domain((1, 32, 32), 10, mean=(0.1307,), std=(0.3081,)).is_image
        True
    """

    shape: tuple[int, ...]
    classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    name: str = "custom"

    def __post_init__(self) -> None:
        for field, cast in (("shape", int), ("mean", float), ("std", float)):
            object.__setattr__(self, field, tuple(cast(v) for v in getattr(self, field)))
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise ValueError(
                f"Expected an input shape (C, H, W) or (D,) of positive sizes; got {self.shape}."
            )
        if self.classes < 2:
            raise ValueError(f"Expected at least 2 classes; got {self.classes}.")
        for field in ("mean", "std"):
            values = getattr(self, field)
            if len(values) not in (1, self.shape[0]):
                number = "1 entry" if self.shape[0] == 1 else f"1 or {self.shape[0]} entries"
                raise ValueError(f"Expected {field} with {number}; got {values}.")
        if not all(0 < s < math.inf for s in self.std):
            raise ValueError(f"Expected a positive std; got {self.std}.")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"Expected finite means; got {self.mean}.")
        if self.is_image:
            self._expect_pixels()

    def _expect_pixels(self) -> None:
        """Raises unless pixels in [0, 1] can have the mean and std (or the std is 1, for none)."""
        if min(self.mean) >= 0 and max(self.mean) <= 1 and all(map(_is_std, self.std)):
            return
        message = (
            "Expected means between 0 and 1 and stds from 0.0035 to 0.5 (or 1, for none), of "
            f"pixels in [0, 1]; got mean {_listed(self.mean)} and std {_listed(self.std)}."
        )
        if max(self.std) < LEAST_STD:
            mean = self.mean if max(self.mean) > LEAST_STD else tuple(255 * m for m in self.mean)
            raise ValueError(
                f"{message} Those seem to be divided by 255 once too often; times 255 they are "
                f"mean {_listed(mean)} and std {_listed(tuple(255 * s for s in self.std))}."
            )
        scaled = [
            tuple(v / 255 for v in values) if max(values) > 1 else values
            for values in (self.mean, self.std)
        ]
        fits = min(scaled[0]) >= 0 and max(scaled[0]) <= 1 and all(map(_is_std, scaled[1]))
        if fits and min(scaled[1]) ** 2 < max(m * (1 - m) for m in scaled[0]):
            message += (
                " Those seem to be of pixels from 0 to 255; divided by 255 they are "
                f"mean {_listed(scaled[0])} and std {_listed(scaled[1])}."
            )
        raise ValueError(message)

    @property
    def is_image(self) -> bool:
        """Whether inputs are images in [0, 1]; vectors are unbounded."""
        return len(self.shape) == 3

    @property
    def float_bytes(self) -> int:
        """The bytes of one input in float32.

        Example:
            >>> Domain((1, 32, 32), 10).float_bytes
            4096
        """
        return 4 * math.prod(self.shape)

    @property
    def is_measured(self) -> bool:
        """Whether mean and std can be those of images; not so, say, where pixels are 0 to 255.

        No pixels in [0, 1] have a mean of 0 and a std of 1; only black and white ones have a mean
        and a std of 0.5. Vectors may have any.

        Example:
            >>> Domain((1, 8, 8), 2, (0.3,), (0.2,)).is_measured, Domain((1, 8, 8), 2).is_measured
            (True, False)
        """
        if not self.is_image:
            return True
        channels = self.shape[0]
        means, stds = (v * channels if len(v) == 1 else v for v in (self.mean, self.std))
        return all(s**2 < 0.99 * m * (1 - m) for m, s in zip(means, stds, strict=True))

    def normalize(self, x: Tensor) -> Tensor:
        """Maps pixels in [0, 1] with shape `(B, *shape)` to what the classifier takes.

        Raises:
            ValueError: If `x` does not have the shape of this domain.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"Expected inputs with shape (B, {', '.join(map(str, self.shape))}); "
                f"got {tuple(x.shape)}."
            )
        mean, std = self._statistics(x)
        return (x - mean) / std

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`."""
        mean, std = self._statistics(x)
        return x * std + mean

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        view = (-1,) + (1,) * (len(self.shape) - 1)
        both = (x.new_tensor(v, device="cpu").view(view) for v in (self.mean, self.std))
        mean, std = (v.to(x.device, non_blocking=True) for v in both)  # never waits for a GPU
        return mean, std

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Domain:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If a field is missing, unknown or malformed.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"Not a domain: {fields!r} ({error}).") from error


def _is_std(value: float) -> bool:
    """Whether it can be the std of pixels in [0, 1], give or take rounding, or is 1."""
    return LEAST_STD <= value <= 0.51 or value == 1


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


# Inputs are 32 x 32, as in KegNet and BDNF (28 x 28 sets and the 8 x 8 digits are resized).
DOMAINS: dict[str, Domain] = {
    d.name: d
    for d in (
        Domain((1, 32, 32), 10, (0.1307,), (0.3081,), "mnist"),
        Domain((1, 32, 32), 10, (0.2856,), (0.3385,), "fashion-mnist"),
        Domain((3, 32, 32), 10, (0.4378, 0.4439, 0.4729), (0.1980, 0.2011, 0.1971), "svhn"),
        Domain((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "cifar10"),
        Domain((1, 32, 32), 10, (0.3057,), (0.3235,), "digits"),
    )
}
