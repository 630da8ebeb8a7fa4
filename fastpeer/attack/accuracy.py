"""How many images a network still classifies right, clean and under attack."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fastpeer.attack.pgd import evaluating, pgd, uniform_start
from fastpeer.attack.victim import Context, Victim
from fastpeer.data.counter import generator
from fastpeer.data.stream import Batch
from fastpeer.kernels.choice import Kernels


@dataclass(frozen=True)
class LabelAttack:
    """An attack on labelled images.

    Attributes:
        start: its first iterate (B, 3, H, W), of a batch and the batch's number.
        climb: its last one, of images (B, 3, H, W), labels int64 (B,) and the first one; a function of
            tensors that could be captured in a CUDA graph.
    """

    start: Callable[[Batch, int], Tensor]
    climb: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, batch: Batch, number: int) -> Tensor:
        """Return the adversarial images of a batch; the number is the batch's."""
        return self.climb(batch.images, batch.labels, self.start(batch, number))


def label_pgd(
    victim: Victim,
    kernels: Kernels,
    epsilon: float,
    step_size: float,
    steps: int,
    seed: int,
    purpose: str = "evaluation",
) -> LabelAttack:
    """Return PGD on the cross-entropy with the labels, from a uniform unclamped start in the ball.

    Each `purpose` has random starts of its own: an epoch is not judged by those it was selected on.
    """

    def start(batch: Batch, number: int) -> Tensor:
        noise = generator(batch.images.device, seed, f"{purpose} start", number)
        return uniform_start(batch.images, epsilon, noise)

    def climb(images: Tensor, labels: Tensor, first: Tensor) -> Tensor:
        return pgd(
            victim, images, labels, first, epsilon=epsilon, step_size=step_size, steps=steps, kernels=kernels
        )

    return LabelAttack(start, climb)


def fgsm(victim: Victim, kernels: Kernels, epsilon: float) -> LabelAttack:
    """Return the fast gradient sign method: one step of ε from the image itself."""

    def climb(images: Tensor, labels: Tensor, first: Tensor) -> Tensor:
        return pgd(
            victim, images, labels, first, epsilon=epsilon, step_size=epsilon, steps=1, kernels=kernels
        )

    return LabelAttack(_as_they_are, climb)


def no_attack() -> LabelAttack:
    """Return what leaves the images as they are."""
    return LabelAttack(_as_they_are, lambda images, labels, first: first)


def _as_they_are(batch: Batch, number: int) -> Tensor:
    return batch.images


class Judge:
    """Classifies the images that an attack makes, in eval mode.

    Args:
        networks: by name; they classify as they are, however the attack runs one of them.
        attack: makes the images that are classified.
        context: makes the context that they run in, such as autocast.
        record: takes a function of tensors and returns one that does the same, such as a captured one.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        attack: LabelAttack,
        context: Context = nullcontext,
        record: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda function: function,
    ) -> None:
        self.networks = dict(networks)
        self.attack = attack
        # Not a method of this: a captured one would then hold its memory until the next garbage collection.
        self._hits = record(partial(_attack_and_classify, attack, tuple(networks.values()), context))

    @torch.no_grad()
    def __call__(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Return for each network, bool (N,) on the CPU, which images it classifies right."""
        found = []
        with evaluating(*self.networks.values()):
            for number, batch in enumerate(batches):
                start = self.attack.start(batch, number)
                found.append(self._hits(batch.images, batch.labels, start).cpu())
        return dict(zip(self.networks, torch.cat(found, dim=1), strict=True))


def _attack_and_classify(
    attack: LabelAttack, networks: Sequence[nn.Module], context: Context,
    images: Tensor, labels: Tensor, start: Tensor,
) -> Tensor:  # fmt: skip
    # Outside of the context: the victim has its own, and compiled, it would be compiled again for this one.
    shown = attack.climb(images, labels, start)
    # Within this function: autocast keeps converted weights for as long as it lasts, and a captured function
    # that had found them there would never convert any again.
    with context():
        logits = [network(shown) for network in networks]
    return torch.stack([one.argmax(1) == labels for one in logits])
