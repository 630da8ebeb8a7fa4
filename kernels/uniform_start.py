"""The uniform noise that an attack starts from, drawn from a counter."""

import torch
from torch import Tensor

from fastpeer.kernels.start import noisy


def uniform_start(images: Tensor, epsilon: float, key: Tensor, *, clamp: bool = False) -> Tensor:
    """Return x + U(−ε, ε), as Madry et al. (ICLR 2018) start, and ARD, IAD and CAT after them.

    The noise of an element is a function of `key` and its place (b, c, h, w) alone: neither the memory
    format nor the size of the batch changes it. It takes 2²⁴ values for float32 and 2⁵³ for float64,
    evenly spaced by ε·2⁻²³ and ε·2⁻⁵², symmetric about 0 and at most (1 − 2⁻²⁴)·ε and (1 − 2⁻⁵³)·ε large.

    Args:
        images: (B, C, H, W), any floating dtype; half precisions are computed in float32.
        epsilon: half the width of the interval that the noise comes from.
        key: int64 (), on the device of `images`; another one gives other noise.
        clamp: whether to clamp the result to [0, 1], as Rice et al. (ICML 2020) and CAT do.

    Returns:
        (B, C, H, W), of the dtype and in the memory format of `images`.
    """
    return noisy(images, key, lambda bits, dtype: epsilon * _uniform(bits, dtype), clamp)


def _uniform(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Make a number in (−1, 1) of the upper of 64 random bits."""
    digits = 53 if dtype == torch.float64 else 24
    # A signed odd number of as many digits as the dtype holds: exact, never 0, and as often below as above.
    return ((bits >> (63 - digits)) | 1).to(dtype) * 2.0**-digits
