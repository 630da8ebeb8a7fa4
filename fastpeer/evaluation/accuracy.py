"""Which images a network classifies correctly, clean and under attack."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fastpeer.config import EngineConfig
from fastpeer.data.stream import Batch, EvaluationStream
from fastpeer.evaluation.attack_names import AttackName, Workbench, autoattacks_of, known_name
from fastpeer.evaluation.attacks import AttackSettings, LabelAttack, Progress, Record
from fastpeer.evaluation.verdicts import Verdicts, VerdictsFile
from fastpeer.step.measured import Workload
from fastpeer.step.options import Options, choose_options
from fastpeer.step.precision import number_format
from fastpeer.victims.compiled import CompiledVictim, EagerVictim
from fastpeer.victims.interface import Context
from fastpeer.victims.pgd import evaluating


@dataclass(frozen=True)
class Classified:
    """How a network classified N images.

    Attributes:
        correct: bool (N,) on the CPU; an image that is not `finite` is not.
        finite: bool (N,) on the CPU: all logits of the image are finite, and no gradient of NaN kept PGD from
            attacking it.
        broken: how many images each of AutoAttack's attacks broke, and were wrong without one ("clean").
        reasons: why the images classified correctly may be too many.
        seconds: of AutoAttack, those before a stop included; 0: of the others.
        verdicts: of AutoAttack, which of its attacks each image fell to.
    """

    correct: Tensor
    finite: Tensor
    broken: Mapping[str, int] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0
    verdicts: Verdicts | None = None


class Evaluator:
    """Attacks batches of images and classifies the result with one or more networks, in eval mode.

    Args:
        networks: by name; they classify unfolded and uncompiled, however the attack runs one of them.
        attack: perturbs the images.
        context: returns the context that the networks run in, such as autocast.
        record: captures what an attack and its classification do, unless the attack reads values back.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        attack: LabelAttack,
        context: Context = nullcontext,
        record: Record = lambda function: function,
    ) -> None:
        self.networks = dict(networks)
        self.attack = attack
        # Not a bound method: a captured one would form a reference cycle with this object, and keep its
        # graph's memory until the next garbage collection.
        classify = partial(_attack_and_classify, attack, tuple(networks.values()), context)
        self._classify = classify if attack.reads_back else record(classify)

    def correct(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Return which images each network classifies correctly.

        Args:
            batches: N images in all, on the networks' device.

        Returns:
            bool (N,) on the CPU, by network.
        """
        return {name: found.correct for name, found in self.classify(batches).items()}

    @torch.no_grad()
    def classify(self, batches: Iterable[Batch], restart: int = 0) -> dict[str, Classified]:
        """Return how each network classifies images that are on the networks' device.

        The attack starts at other random images for each number of a restart.
        """
        found = []
        with evaluating(*self.networks.values()):
            for number, batch in enumerate(batches):
                start = self.attack.start(batch, number, restart)
                # Copied to the host before the next batch: a replayed graph overwrites its result.
                found.append(self._classify(batch.images, batch.labels, start).cpu())
        correct, finite = torch.cat(found, dim=2)
        return {name: Classified(*pair) for name, *pair in zip(self.networks, correct, finite, strict=True)}


def _attack_and_classify(
    attack: LabelAttack, networks: Sequence[nn.Module], context: Context,
    images: Tensor, labels: Tensor, start: Tensor,
) -> Tensor:  # fmt: skip
    """Return bool (2, networks, B): classified correctly after the attack, and with finite logits."""
    # Outside the context: the victim enters its own, and a compiled victim would be compiled a second time
    # under this one.
    perturbed = attack.ascend(images, labels, start)
    # Entered here, not by the caller: autocast caches the converted weights until its context ends. A graph
    # captured with a filled cache would replay with those weights after the network was trained further.
    with context():
        logits = [network(perturbed) for network in networks]
    finite = torch.stack([scores.isfinite().all(1) for scores in logits])
    # The first NaN is the largest logit: images of that class would count as classified correctly.
    correct = torch.stack([scores.argmax(1) == labels for scores in logits]) & finite
    return torch.stack([correct, finite])


def evaluation_options(device: torch.device) -> Options:
    """Return the engine parts that an evaluation uses on a device; all are exact up to rounding.

    They are fixed rather than "auto": auto goes by measurements of training steps, whose attack is compiled
    and may compute in bf16. Compiling is off, as it takes longer than an evaluation gains.
    """
    parts = EngineConfig(
        fold="on", chain="on", kernels="on", graph="on", merge="off", compile="off", streams="off"
    )
    return choose_options(parts, device, Workload(network="", size=0, batch=0, precision="fp32"))


def classify_under_attack(
    name: str,
    network: nn.Module,
    stream: EvaluationStream,
    settings: AttackSettings,
    progress: Progress,
    file: VerdictsFile | None = None,
    attacked: nn.Module | None = None,
) -> Classified:
    """Classify images under a named attack, in the precision of the network's weights.

    Args:
        name: that `parse_attacks` has returned.
        network: classifies; on the images' device.
        stream: the images.
        settings: of the attack.
        progress: called after each batch.
        file: where AutoAttack keeps its verdicts after each batch, and goes on from if it was stopped.
        attacked: the network that the images are made against; None: the one that classifies them. Not for
            AutoAttack, whose attacks end as soon as their own network is wrong.
    """
    named = known_name(name)
    if attacks := autoattacks_of(name, settings.classes):
        assert attacked is None
        return _autoattack(attacks, network, stream, settings, progress, file)
    attacked = network if attacked is None else attacked
    record = _recorder(attacked, settings)
    with _cudnn_benchmark(), evaluating(attacked):
        evaluator = Evaluator({"network": network}, build_attack(named, attacked, settings), record=record)
        return _classify_with_restarts(evaluator, stream, named.restarts, progress)


def _classify_with_restarts(
    evaluator: Evaluator, stream: EvaluationStream, restarts: int, progress: Progress
) -> Classified:
    """Attack all images once, then again what is left, in full batches; one success breaks an image."""
    found = evaluator.classify(_with_progress(stream, progress))["network"]
    correct, finite = found.correct, found.finite
    for restart in range(1, restarts):
        left = np.flatnonzero(correct.numpy())
        if not len(left):
            break
        batches = _with_progress(
            stream.only(left), progress, len(correct) - len(left), f"start {restart + 1} of {restarts}"
        )
        again = evaluator.classify(batches, restart)["network"]
        correct[left], finite[left] = again.correct, again.finite
    return Classified(correct, finite)


def build_attack(name: AttackName, network: nn.Module, settings: AttackSettings) -> LabelAttack:
    """Build an attack on a network, which must be in eval mode; not AutoAttack."""
    factory = settings.options.victim_factory(number_format("fp32"), _device(network))

    def victim() -> EagerVictim:
        prepared = factory.victim(network, "network")
        assert not isinstance(prepared, CompiledVictim)  # without a compiler there is none
        prepared.refresh()
        return prepared

    assert name.attack.build is not None
    bench = Workbench(victim, factory.kernels, settings, _recorder(network, settings))
    return name.attack.build(bench, name.steps)


def _recorder(network: nn.Module, settings: AttackSettings) -> Record:
    def record(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return settings.options.recorded(function, _device(network), "the evaluation")

    return record


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


@contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN search for its fastest algorithms, once for each shape.

    Not used for AutoAttack, whose batches shrink to the images that are still classified correctly.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _autoattack(
    attacks: tuple[str, ...],
    network: nn.Module,
    stream: EvaluationStream,
    settings: AttackSettings,
    progress: Progress,
    file: VerdictsFile | None,
) -> Classified:
    # Imported here: only these attacks need pyautoattack.
    from fastpeer.evaluation.autoattack import classify_under_autoattack

    with evaluating(network):
        verdicts, reasons = classify_under_autoattack(network, stream, settings, progress, file, attacks)
    correct, finite = torch.from_numpy(verdicts.correct), torch.from_numpy(verdicts.finite)
    return Classified(correct, finite, verdicts.counts(), tuple(reasons), verdicts.seconds, verdicts)


def _with_progress(
    batches: Iterable[Batch], progress: Progress, done: int = 0, stage: str = ""
) -> Iterable[Batch]:
    """Yield batches, and tell the progress after each; `done` images were none of them."""
    for batch in batches:
        yield batch
        done += len(batch.labels)
        progress(done, stage)
