"""How many images a network still classifies right, clean and under attack."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from fastpeer.attack.pgd import evaluating, one_hot, pgd, uniform_start
from fastpeer.data.counter import generator
from fastpeer.data.stream import Batch

MakeExamples = Callable[[Callable[[Tensor], Tensor], Batch, int], Tensor]
"""Makes adversarial images of a batch for a network; the number is the batch's."""


def label_pgd(
    epsilon: float, step_size: float, steps: int, classes: int, seed: int, purpose: str = "evaluation"
) -> MakeExamples:
    """Return PGD on the cross-entropy with the labels, from a uniform unclamped start in the ball.

    Each `purpose` has random starts of its own: an epoch is not judged by those it was selected on.
    """

    def attack(network: Callable[[Tensor], Tensor], batch: Batch, number: int) -> Tensor:
        noise = generator(batch.images.device, seed, f"{purpose} start", number)
        start = uniform_start(batch.images, epsilon, noise)
        target = one_hot(batch.labels, classes, batch.images.dtype)
        return pgd(network, batch.images, target, start, epsilon=epsilon, step_size=step_size, steps=steps)

    return attack


def fgsm(epsilon: float, classes: int) -> MakeExamples:
    """Return the fast gradient sign method: one step of ε from the image itself."""

    def attack(network: Callable[[Tensor], Tensor], batch: Batch, number: int) -> Tensor:
        target = one_hot(batch.labels, classes, batch.images.dtype)
        return pgd(network, batch.images, target, batch.images, epsilon=epsilon, step_size=epsilon, steps=1)

    return attack


def clean(network: Callable[[Tensor], Tensor], batch: Batch, number: int) -> Tensor:
    """No attack: the images as they are."""
    return batch.images


@torch.no_grad()
def correct_predictions(
    networks: Mapping[str, nn.Module], attacked: str, batches: Iterable[Batch], attack: MakeExamples
) -> dict[str, Tensor]:
    """Classify the images that `attack` makes against one network, by all of them, in eval mode.

    Args:
        networks: by name.
        attacked: name of the network that the examples are aimed at.
        batches: images and labels.
        attack: makes the images that are classified.

    Returns:
        For each network, bool (N,) on the CPU: which images it classifies right.
    """
    hits: dict[str, list[Tensor]] = {name: [] for name in networks}
    with evaluating(*networks.values()):
        for number, batch in enumerate(batches):
            images = attack(networks[attacked], batch, number)
            for name, network in networks.items():
                hits[name].append((network(images).argmax(1) == batch.labels).cpu())
    return {name: torch.cat(parts) for name, parts in hits.items()}
