"""A normalisation, and the range of pixels that it is for; importing this module does not import PyTorch."""

import math
from collections.abc import Sequence

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and std of an input's normalisation, one number each or three."""


def check_normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raise ValueError unless mean and std are both left out, or are one number or three, std positive."""
    lengths = {len(mean), len(std)}
    if len(lengths) > 1 or not lengths <= {0, 1, 3}:
        found = {"mean": list(mean), "std": list(std)}
        given, other = found if mean else reversed(found)
        raise ValueError(
            f"{given} must hold 1 or 3 numbers and {other} as many, got {found[given]} and {found[other]}"
        )
    if not all(math.isfinite(value) for value in mean):
        raise ValueError(f"mean must be finite, got {list(mean)}")
    if not all(0 < value < math.inf for value in std):
        raise ValueError(f"std must be above 0 and finite, got {list(std)}")


def check_pixel_range(mean: Sequence[float], std: Sequence[float]) -> None:
    """Check that a normalisation is for pixels in [0, 1]: their mean cannot be above 1.

    Raises:
        ValueError: it can; the message has the numbers that are likely meant.
    """
    if max(mean, default=0) > 1:
        likely = format_normalization(for_unit_pixels(mean, std))
        raise ValueError(
            f"mean must be at most 1, as pixels lie in [0, 1], got {format_numbers(mean)}: if that is for"
            f" pixels from 0 to 255, it is {likely}"
        )


def for_unit_pixels(mean: Sequence[float], std: Sequence[float]) -> Normalization:
    """Return the normalisation of pixels in [0, 1] that does what `mean` does to pixels from 0 to 255.

    A std of at most 1 is returned as it is: it was meant for [0, 1] already.
    """
    divisor = 255 if max(std, default=0) > 1 else 1
    return tuple(round(value / 255, 4) for value in mean), tuple(round(value / divisor, 4) for value in std)


def format_numbers(numbers: Sequence[float]) -> str:
    """Write numbers as they are written behind a flag."""
    return " ".join(f"{number:g}" for number in numbers)


def format_normalization(normalization: Normalization) -> str:
    """Name the numbers of a normalisation, for a message."""
    return f"mean {format_numbers(normalization[0])} and std {format_numbers(normalization[1])}"
