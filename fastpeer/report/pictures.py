"""Images for the page: PNGs within it, enlarged without smoothing."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fastpeer.report.measurements import Arrays

SIDE = 96
"""Pixels that an image is enlarged to at least."""


@dataclass(frozen=True)
class Picture:
    """A test image under attack.

    Attributes:
        label, clean, attacked: names of its class, and of those predicted before and after the attack.
        images: what is shown, with the data address of its picture.
    """

    label: str
    clean: str
    attacked: str
    images: list[tuple[str, str]]


def pictures(arrays: Arrays) -> Iterator[Picture]:
    """Yield the shown images: clean, adversarial, the change enlarged, and the semantic gradients."""
    names = arrays["classes"]
    pairs = zip(arrays["shown_clean"], arrays["shown_attacked"], strict=True)
    for number, (clean, attacked) in enumerate(pairs):
        change = attacked - clean
        shown = [("clean", _address(clean)), ("adversarial", _address(attacked))]
        shown.append((f"change, ×{_enlargement(change):.0f}", _address(0.5 + change * _enlargement(change))))
        shown += [
            (f"gradient, {name}", _address(arrays[f"gradient_{name}"][number]))
            for name in ("student", "peer")
            if f"gradient_{name}" in arrays
        ]
        label, seen, fooled = (str(names[arrays[key][number]]) for key in ("labels", "clean", "attacked"))
        yield Picture(label, seen, fooled, shown)


def _enlargement(change: np.ndarray) -> float:
    """Return the whole number that a change in [-1, 1] can be multiplied by to fill [-0.5, 0.5]."""
    return max(1.0, float(np.floor(0.5 / max(float(np.abs(change).max()), 1e-6) + 1e-3)))


def _address(image: np.ndarray) -> str:
    """Return the data address of an image (3, H, W) or (H, W) in [0, 1]."""
    if image.ndim == 3:
        image = np.moveaxis(image, 0, 2)
    pixels = Image.fromarray((255 * np.nan_to_num(image).clip(0, 1)).round().astype(np.uint8))
    factor = max(1, -(-SIDE // max(pixels.size)))
    larger = pixels.resize((pixels.width * factor, pixels.height * factor), Image.Resampling.NEAREST)
    content = io.BytesIO()
    larger.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
