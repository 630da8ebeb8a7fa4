"""How many images a network still classifies right, clean and under attack."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from fastpeer.attack.pgd import evaluating, pgd, uniform_start
from fastpeer.attack.victim import Victim
from fastpeer.data.counter import generator
from fastpeer.data.stream import Batch
from fastpeer.kernels.choice import Kernels

MakeExamples = Callable[[Batch, int], Tensor]
"""Makes adversarial images of a batch; the number is the batch's."""


def label_pgd(
    victim: Victim,
    kernels: Kernels,
    epsilon: float,
    step_size: float,
    steps: int,
    seed: int,
    purpose: str = "evaluation",
) -> MakeExamples:
    """Return PGD on the cross-entropy with the labels, from a uniform unclamped start in the ball.

    Each `purpose` has random starts of its own: an epoch is not judged by those it was selected on.
    """

    def attack(batch: Batch, number: int) -> Tensor:
        noise = generator(batch.images.device, seed, f"{purpose} start", number)
        start = uniform_start(batch.images, epsilon, noise)
        return pgd(
            victim, batch.images, batch.labels, start,
            epsilon=epsilon, step_size=step_size, steps=steps, kernels=kernels,
        )  # fmt: skip

    return attack


def fgsm(victim: Victim, kernels: Kernels, epsilon: float) -> MakeExamples:
    """Return the fast gradient sign method: one step of ε from the image itself."""

    def attack(batch: Batch, number: int) -> Tensor:
        return pgd(
            victim, batch.images, batch.labels, batch.images,
            epsilon=epsilon, step_size=epsilon, steps=1, kernels=kernels,
        )  # fmt: skip

    return attack


def clean(batch: Batch, number: int) -> Tensor:
    """No attack: the images as they are."""
    return batch.images


@torch.no_grad()
def correct_predictions(
    networks: Mapping[str, nn.Module], batches: Iterable[Batch], attack: MakeExamples
) -> dict[str, Tensor]:
    """Classify the images that `attack` makes by some networks, in eval mode.

    Args:
        networks: by name; they classify as they are, however the attack runs one of them.
        batches: images and labels.
        attack: makes the images that are classified.

    Returns:
        For each network, bool (N,) on the CPU: which images it classifies right.
    """
    hits: dict[str, list[Tensor]] = {name: [] for name in networks}
    with evaluating(*networks.values()):
        for number, batch in enumerate(batches):
            images = attack(batch, number)
            for name, network in networks.items():
                hits[name].append((network(images).argmax(1) == batch.labels).cpu())
    return {name: torch.cat(parts) for name, parts in hits.items()}
