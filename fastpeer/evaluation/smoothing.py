"""Randomised smoothing's certificate (Cohen, Rosenfeld, Kolter, ICML 2019, arXiv 1902.02918).

The smoothed classifier g answers what the network most often answers under Gaussian noise. Where its answer
has a probability of at least p > 1/2, no change of an image that is shorter than σ·Φ⁻¹(p) in L2 changes it
(Theorem 1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, nn

ABSTAINS = -1
"""In place of a class."""


@dataclass(frozen=True)
class Smoothing:
    """How an image is certified.

    Attributes:
        sigma: standard deviation of the noise, for images in [0, 1].
        selection: noisy images that choose the class (n₀).
        samples: noisy images that the class's probability is estimated from (n).
        alpha: probability that a certificate is wrong.
        seed: of the noise.
        batch_size: noisy images classified at once.
    """

    sigma: float
    selection: int
    samples: int
    alpha: float
    seed: int
    batch_size: int

    @property
    def largest_radius(self) -> float:
        """The radius of an image whose noisy copies all get one class: n copies can certify no more."""
        return radius(self.samples, self.samples, self)


@dataclass(frozen=True)
class Certificate:
    """What is known of one image.

    Attributes:
        predicted: g's class, `ABSTAINS` where its probability may be 1/2 or less.
        radius: of the L2 ball in which g's class is the same, in the unit of pixels in [0, 1]; 0.0 where g
            abstains.
        guess: the class that was chosen first.
        count: noisy images, of n, of that class.
        non_finite: noisy images, of n₀ + n, with logits that are NaN or infinite; they are of no class.
    """

    predicted: int
    radius: float
    guess: int
    count: int
    non_finite: int


def lower_bound(count: int, samples: int, alpha: float) -> float:
    """Return the one-sided lower Clopper-Pearson bound, at confidence 1 − alpha, of a probability.

    Args:
        count: successes, of `samples` trials.
        samples: number of trials.
        alpha: probability that the bound is too high.
    """
    # Imported here: it takes a while. Not scipy.stats, which takes seconds.
    from scipy.special import betaincinv

    return float(betaincinv(count, samples - count + 1, alpha)) if count else 0.0


def radius(count: int, samples: int, smoothing: Smoothing) -> float:
    """Return the certified radius of a class with `count` of `samples` noisy images; 0.0: none."""
    probability = lower_bound(count, samples, smoothing.alpha)
    return smoothing.sigma * NormalDist().inv_cdf(probability) if probability > 0.5 else 0.0


def certify(network: nn.Module, image: Tensor, index: int, smoothing: Smoothing) -> Certificate:
    """Certify one image (their function CERTIFY).

    The noise is a function of seed and index alone, whatever the batch size.

    Args:
        network: maps images (B, 3, H, W) to logits (B, C); in eval mode, on the image's device.
        image: float32 (3, H, W) in [0, 1]; noisy images leave that range, as in the paper.
        index: of the image in its data set.
        smoothing: how.
    """
    noise = np.random.Generator(np.random.Philox(np.random.SeedSequence([smoothing.seed, index])))
    chosen = _counts(network, image, smoothing.selection, smoothing, noise)
    guess = int(chosen[:-1].argmax())
    counts = _counts(network, image, smoothing.samples, smoothing, noise)
    count, lost = int(counts[guess]), int(chosen[-1] + counts[-1])
    certified = radius(count, smoothing.samples, smoothing)
    return Certificate(guess if certified else ABSTAINS, certified, guess, count, lost)


@torch.no_grad()
def _counts(
    network: nn.Module, image: Tensor, samples: int, smoothing: Smoothing, noise: np.random.Generator
) -> np.ndarray:
    """Return how many noisy images (C + 1,) are of each class; last, how many of none."""
    found = [_classes(network, batch) for batch in _noisy(image, samples, smoothing, noise)]
    return torch.stack(found).sum(0).cpu().numpy()


def _classes(network: nn.Module, images: Tensor) -> Tensor:
    logits = network(images)
    count = logits.shape[1]
    classes = torch.where(logits.isfinite().all(1), logits.argmax(1), count)
    return torch.bincount(classes, minlength=count + 1)


def _noisy(image: Tensor, samples: int, smoothing: Smoothing, noise: np.random.Generator) -> Iterator[Tensor]:
    for first in range(0, samples, smoothing.batch_size):
        count = min(smoothing.batch_size, samples - first)
        drawn = torch.from_numpy(noise.standard_normal((count, *image.shape), np.float32))
        yield torch.add(image, drawn.to(image.device), alpha=smoothing.sigma)
