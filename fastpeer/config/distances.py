"""Distances between images: how they are written, in which norm they are measured, and what makes sense."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Literal

from tyro.constructors import PrimitiveConstructorSpec

from fastpeer.errors import UserError, shown

Norm = Literal["linf", "l2"]

LARGEST_SIZE = 4096
"""Side in pixels of the largest images."""
_WEAK_L2 = 0.1


def parse_fraction(value: object) -> float:
    """Read a number or a fraction: 0.03, "0.03" or "8/255" (exact to the last bit of a double)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"must be a number or a fraction such as 8/255, got {shown(value)}")
    try:
        # A Fraction would write out 1e999999999 to its last digit.
        number = float(Fraction(value)) if isinstance(value, str) and "/" in value else float(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        number = math.nan
    if not math.isfinite(number) and not isinstance(value, float):
        raise ValueError(f"must be a number or a fraction such as 8/255, got {shown(value)}")
    return number


def format_fraction(value: float) -> str:
    """Write a multiple of 1/255 as such, any other number as Python does; `parse_fraction` reads it back."""
    numerator = round(value * 255) if 0 < value <= 1 else 0
    return f"{numerator}/255" if numerator and numerator / 255 == value else repr(value)


def parse_radii(text: str) -> tuple[float, ...]:
    """Read increasing radii such as "0,2,4,8,16/255"; the denominator behind the last holds for all.

    Raises:
        ValueError: they are no numbers, fewer than two, or do not increase; begins with "must be".
    """
    *others, last = (part.strip() for part in text.split(","))
    _, slash, denominator = last.partition("/")
    shared = slash + denominator if not any("/" in part for part in others) else ""
    radii = (*(parse_fraction(part + shared) for part in others), parse_fraction(last))
    if len(radii) < 2 or list(radii) != sorted(set(radii)):
        raise ValueError(f"must be two or more increasing radii, such as 0,2,4,8,16/255, got {shown(text)}")
    return radii


PixelDistance = Annotated[
    float,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="N/255",
        # Read with all other values, so that an error names the flag.
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [format_fraction(value)],
    ),
]
"""A distance between images whose pixels lie in [0, 1]; may be written as 8/255."""


def check_distances(norm: Norm, **distances: float) -> None:
    """Raise ValueError unless distances, by the names of their settings, fit between two images.

    How far images lie apart in L2 depends on their size, which `check_fits` knows.
    """
    most = 1.0 if norm == "linf" else _diagonal(LARGEST_SIZE, LARGEST_SIZE)
    usual = "such as 8/255" if norm == "linf" else "such as 0.5 or 128/255 for norm l2"
    for name, value in distances.items():
        if not 0 <= value <= most:
            raise ValueError(
                f"{name} must be from 0 to {most:.0f}, {usual}, got {value:g}: pixels lie in [0, 1]"
            )


def check_fits(norm: Norm, epsilon: float, size: tuple[int, int], name: str) -> None:
    """Make sure that a ball is smaller than the space of the images.

    Args:
        norm: of the ball.
        epsilon: its radius.
        size: height and width of the images in pixels.
        name: what the error calls the radius.

    Raises:
        UserError: a black and a white image lie less than the radius apart.
    """
    most = _diagonal(*size)
    if norm == "l2" and epsilon > most:
        raise UserError(
            f"{name} must be at most {most:.1f} for norm l2, the distance of a black from a white image of "
            f"{size[0]} x {size[1]} pixels, got {epsilon:g}: is it in 255ths, as in 128/255?"
        )


def doubts(norm: Norm, epsilon: float, step_size: float, steps: int) -> Iterator[str]:
    """Yield a line for each setting of PGD that looks like one of the other norm; 0 steps: there is none."""
    if norm == "linf" and epsilon >= 0.5:
        yield f"norm linf with epsilon {epsilon:g} turns any image grey: is norm l2 meant?"
    if norm == "l2" and 0 < epsilon < _WEAK_L2:
        yield (
            f"norm l2 with epsilon {format_fraction(epsilon)} is nearly no attack: usual is 128/255 or 0.5 "
            "for images of 32 x 32 pixels, and more for larger ones"
        )
    elif norm == "l2" and 0 < steps * step_size < epsilon:
        yield (
            f"norm l2 with step size {format_fraction(step_size)}: {steps} steps lead at most "
            f"{steps * step_size:.2g} far, epsilon is {epsilon:g}; a usual step size is 2.5 epsilon / steps"
        )


def _diagonal(height: int, width: int) -> float:
    return math.sqrt(3 * height * width)
