"""The range of pixels that a normalisation is for; importing this module does not import PyTorch."""

from collections.abc import Sequence

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and std of an input's normalisation, one number each or three."""


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
