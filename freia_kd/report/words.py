"""Numbers as people read them."""

from __future__ import annotations

from ..compression.cost import Latency, Speed
from .schema import Difference, Expectation, Proportion, Spread

SAME_SPEED = "no measurable difference"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in %, or nothing."""
    return "" if value is None else f"{100 * value:.{digits}f} %"


def proportion(share: Proportion | None) -> str:
    """A share with its 95 % interval, or nothing.

    Example:
        >>> proportion(Proportion(0.9, 100, 0.825, 0.944))
        '90.0 % (82.5 to 94.4)'
    """
    if share is None:
        return ""
    return f"{percent(share.value)} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def expectation(expected: Expectation) -> str:
    """The interval of an agreement that nobody has measured.

    Example:
        >>> expectation(Expectation(value=0.95, low=0.931, high=0.976, level=0.9,
        ...             is_beyond=False, basis="", evidence={}))
        '93 to 98 %'
    """
    return f"{100 * expected.low:.0f} to {100 * expected.high:.0f} %"


def spread(value: Spread | None) -> str:
    """A mean with its standard deviation in %, if there is one.

    Example:
        >>> spread(Spread(0.875, 0.0625, 3)), spread(Spread(0.875, None, 1))
        ('87.5 ± 6.2', '87.5')
    """
    if value is None:
        return ""
    return f"{100 * value.mean:.1f}" + ("" if value.std is None else f" ± {100 * value.std:.1f}")


def points(change: Difference) -> str:
    """A change of accuracy in words.

    Example:
        >>> points(Difference(-0.003, -0.019, 0.013))
        '0.3 points less accurate (between -1.9 and +1.3)'
    """
    size = f"{abs(100 * change.value):.1f} points"
    word = f"{size} {'less' if change.value < 0 else 'more'} accurate" if change.value else ""
    return f"{word or 'as accurate'} (between {100 * change.low:+.1f} and {100 * change.high:+.1f})"


def count(number: float) -> str:
    """A number of things.

    Example:
        >>> count(61_706), count(12_345_678), count(3.4e9)
        ('61,706', '12.3 million', '3.4 billion')
    """
    for unit, word in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.3g} {word}"
    return f"{number:,.0f}"


def size(number: float) -> str:
    """A number of bytes.

    Example:
        >>> size(900), size(248_000), size(12_345_678)
        ('900 B', '248 kB', '12.3 MB')
    """
    for unit, word in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g} {word}"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    """A time.

    Example:
        >>> duration(4.21), duration(125), duration(7_300)
        ('4.2 s', '2 min 5 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def milliseconds(latency: Latency) -> str:
    """A measured latency with the range from its 10th to its 90th percentile."""
    return f"{latency.median:.3g} ms ({latency.low:.3g} to {latency.high:.3g})"


def ratio(before: float, after: float) -> str:
    """A share that is left, in %; nothing of nothing."""
    return percent(after / before, 0) if before else ""


def speed(gain: Speed) -> str:
    """How much faster, where that can be told, with the 95 % interval.

    Example:
        >>> quick, slow = Speed(2.0, 1.9, 2.14, 99), Speed(0.5, 0.45, 0.55, 99)
        >>> speed(quick), speed(slow), speed(Speed(1.1, 0.98, 1.2, 99))
        ('2.0x faster (1.9 to 2.1)', '2.0x slower (1.8 to 2.2)', 'no measurable difference')
        >>> speed(Speed(1.08, 1.07, 1.09, 99)), speed(Speed(30.0, 28.0, 31.0, 99))
        ('1.08x faster (1.07 to 1.09)', '30x faster (28 to 31)')
    """
    if not gain.is_measurable:
        return SAME_SPEED
    is_faster = gain.low > 1
    ends = (gain.low, gain.high) if is_faster else (1 / gain.high, 1 / gain.low)
    middle = gain.ratio if is_faster else 1 / gain.ratio
    digits = 2 if middle < 1.2 else 1 if middle < 10 else 0
    low, high = (f"{end:.{digits}f}" for end in ends)
    return f"{middle:.{digits}f}x {'faster' if is_faster else 'slower'} ({low} to {high})"
