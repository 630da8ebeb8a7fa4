"""How many images a network still classifies right, clean and under attack."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from fastpeer.config import EngineConfig
from fastpeer.data.stream import Batch
from fastpeer.evaluation.attacks import AUTOATTACK, AttackSettings, LabelAttack, build_attack
from fastpeer.step.measured import Workload
from fastpeer.step.options import Options, choose_options
from fastpeer.step.precision import number_format
from fastpeer.victims.interface import Context, Victim
from fastpeer.victims.pgd import evaluating


class Evaluator:
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
    def correct(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
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


Progress = Callable[[int], None]
"""Called with the number of images done."""


def evaluation_options(device: torch.device) -> Options:
    """Return the parts of an evaluation; all are exact up to rounding, and compiling would take longer.

    What was measured of a training step does not count: there, the attack is compiled and computes in bf16.
    """
    parts = EngineConfig(
        fold="on", chain="on", kernels="on", graph="on", merge="off", compile="off", streams="off"
    )
    return choose_options(parts, device, Workload(network="", size=0, batch=0, precision="fp32"))


def right_under_attack(
    name: str, network: nn.Module, batches: Iterable[Batch], settings: AttackSettings, progress: Progress
) -> Tensor:
    """Classify images under a named attack on `network`, in the precision of its weights.

    Returns:
        bool (N,) on the CPU: classified right.
    """
    if name == AUTOATTACK:
        return _autoattack(network, batches, settings, progress)
    device = next(network.parameters()).device

    def record(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return settings.options.recorded(function, device, "the evaluation")

    evaluator = Evaluator({"it": network}, _attack(name, network, settings), record=record)
    with _searching_for_algorithms():
        return evaluator.correct(_counted(batches, progress))["it"]


@contextmanager
def _searching_for_algorithms() -> Iterator[None]:
    """Let cuDNN try its algorithms out; it pays where batches are of one size, as AutoAttack's are not."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _attack(name: str, network: nn.Module, settings: AttackSettings) -> LabelAttack:
    device = next(network.parameters()).device
    factory = settings.options.victim_factory(number_format("fp32"), device)

    def victim() -> Victim:
        found = factory.victim(network, "network")
        found.refresh()
        return found

    return build_attack(name, victim, factory.kernels, settings)


def _autoattack(
    network: nn.Module, batches: Iterable[Batch], settings: AttackSettings, progress: Progress
) -> Tensor:
    from fastpeer.evaluation.autoattack import survivors

    right, done = [], 0
    with evaluating(network):
        for batch in batches:
            right.append(
                survivors(
                    network, batch.images, batch.labels, epsilon=settings.epsilon, classes=settings.classes,
                    seed=settings.seed, batch_size=settings.batch_size,
                )
            )  # fmt: skip
            done += len(batch.labels)
            progress(done)
    return torch.cat(right)


def _counted(batches: Iterable[Batch], progress: Progress) -> Iterable[Batch]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.labels)
        progress(done)
