"""AutoAttack standard (Croce and Hein 2020) in L-infinity or L2, with every constant set and checked."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from pyautoattack import AutoAttack, checks
from torch import Tensor, nn

from fastpeer.config import Norm
from fastpeer.data.stream import Batch, EvaluationStream
from fastpeer.errors import UserError
from fastpeer.evaluation.attack_names import AUTOATTACK_PARTS
from fastpeer.evaluation.attacks import AttackSettings, Progress
from fastpeer.evaluation.hidden_gradients import SQUARE, SQUARE_GAIN, autoattack_messages, autoattack_reasons
from fastpeer.evaluation.verdicts import Verdicts, VerdictsFile

NORMS: Mapping[Norm, str] = {"linf": "Linf", "l2": "L2"}
ATTACKS = AUTOATTACK_PARTS
ITERATIONS = 100
TARGETS = 9
SQUARE_QUERIES = 5000
MIN_CLASSES = 4
"""The targeted DLR loss divides by a difference to the third and fourth largest logits."""


def build_autoattack(
    network: nn.Module,
    epsilon: float,
    classes: int,
    seed: int,
    device: torch.device,
    norm: Norm = "linf",
    parts: Collection[str] = ATTACKS,
) -> AutoAttack:
    """Return AutoAttack standard for a network.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to logits (B, classes); in eval mode.
        epsilon: radius of the ball.
        classes: number of classes; with fewer than 10, the targeted attacks aim at fewer than 9.
        seed: of all its attacks.
        device: the images' device.
        norm: of the ball.
        parts: which of its attacks will run.

    Raises:
        UserError: fewer than 4 classes for APGD-T, whose targeted DLR loss is not defined then, or the
            installed pyautoattack has other constants than the standard.
    """
    if classes < MIN_CLASSES and "apgd-t" in parts:
        raise UserError(f"AutoAttack standard needs at least {MIN_CLASSES} classes, got {classes}: use pgd20")
    attack = AutoAttack(network, norm=NORMS[norm], eps=epsilon, version="standard", seed=seed, device=device)
    attack.attacks_to_run = list(ATTACKS)
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = ITERATIONS
    attack.apgd.n_restarts = attack.apgd_targeted.n_restarts = attack.fab.n_restarts = 1
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = target_count(classes)
    attack.square.n_queries = SQUARE_QUERIES
    attack.square.n_restarts = 1
    check_constants(attack, epsilon, classes, norm)
    return attack


def target_count(classes: int) -> int:
    """Return the number of wrong classes that the targeted attacks aim at."""
    return min(TARGETS, classes - 1)


def check_constants(attack: AutoAttack, epsilon: float, classes: int, norm: Norm = "linf") -> None:
    """Make sure that an attack is AutoAttack standard, whatever the installed library's defaults are.

    Raises:
        UserError: a constant differs.
    """
    apgd, targeted, fab, square = attack.apgd, attack.apgd_targeted, attack.fab, attack.square
    constants = {
        "attacks": (tuple(attack.attacks_to_run), ATTACKS),
        "norms": ({attack.norm, apgd.norm, targeted.norm, fab.norm, square.norm}, {NORMS[norm]}),
        "radii": ({attack.epsilon, apgd.eps, targeted.eps, fab.eps, square.eps}, {epsilon}),
        "iterations": ({apgd.n_iter, targeted.n_iter, fab.n_iter}, {ITERATIONS}),
        "restarts": ({apgd.n_restarts, targeted.n_restarts, fab.n_restarts, square.n_restarts}, {1}),
        "targets": ({targeted.n_target_classes, fab.n_target_classes}, {target_count(classes)}),
        "gradients averaged": ({apgd.eot_iter, targeted.eot_iter}, {1}),
        "step-size rule": ({apgd.thr_decr, targeted.thr_decr}, {0.75}),
        "random starts": ((apgd.use_rs, targeted.use_rs), (True, True)),
        "radius schedules": ((apgd.use_largereps, targeted.use_largereps), (False, False)),
        "targeted loss": (targeted.loss, "dlr-targeted"),
        "FAB's steps": ((fab.alpha_max, fab.eta, fab.beta), (0.1, 1.05, 0.9)),
        "square's loss": ((square.loss, square.targeted), ("margin", False)),
        "square": (
            (square.n_queries, square.p_init, square.rescale_schedule),
            (SQUARE_QUERIES, 0.8, False),
        ),
    }
    for name, (actual, standard) in constants.items():
        if actual != standard:
            raise UserError(
                f"the installed pyautoattack is not AutoAttack standard: its {name} must be {standard}, got"
                f" {actual}; install pyautoattack 0.2"
            )


def classify_under_autoattack(
    network: nn.Module,
    stream: EvaluationStream,
    settings: AttackSettings,
    progress: Progress,
    file: VerdictsFile | None = None,
    parts: tuple[str, ...] = ATTACKS,
) -> tuple[Verdicts, list[str]]:
    """Attack images with AutoAttack standard, whose attacks each run on what is still classified correctly.

    What an attack leaves of all images is what the next one attacks, in full batches: as where the official
    code is given the whole set, image by image the same, its seed for each batch included.

    Args:
        network: in eval mode, float32, on the stream's device.
        stream: float32 images (B, 3, H, W) in [0, 1]; its batches are attacked at once.
        settings: radius, norm, number of classes and seed.
        progress: told after each batch how many images the attack that runs has done or need not attack.
        file: where to keep the verdicts after each batch, and to go on from.
        parts: the attacks that run; one alone has the verdicts of pyautoattack's with that attack alone.

    Returns:
        The verdicts, and why they may be too good (`autoattack_reasons`).

    Raises:
        UserError: see `build_autoattack`.
    """
    device, norm = stream.device, settings.norm
    attack = build_autoattack(
        _RowMajor(network), settings.epsilon, settings.classes, settings.seed, device, norm, parts
    )
    verdicts = Verdicts(len(stream.indices), parts)
    if file is not None:
        file.read(verdicts)
    began = time.perf_counter() - verdicts.seconds
    with autoattack_messages() as messages, torch.no_grad():
        _check_network(attack, next(iter(stream)))
        while verdicts.attack < len(parts):
            for _ in _classify_left(attack, stream, verdicts, progress):
                verdicts.reasons = list(dict.fromkeys([*verdicts.reasons, *autoattack_reasons(messages)]))
                verdicts.seconds = time.perf_counter() - began
                if file is not None:
                    file.write(verdicts)
            verdicts.next_attack()
    if file is not None:
        file.write(verdicts)
    square = len(parts) > 1 and verdicts.counts()["square"] > SQUARE_GAIN * len(stream.indices)
    return verdicts, [*verdicts.reasons, *([SQUARE] if square else [])]


def _check_network(attack: AutoAttack, batch: Batch) -> None:
    """Let pyautoattack look at the network as it does before its attacks: it logs what it doubts."""
    images, logger = batch.images.contiguous(), attack.logger
    checks.check_randomized(attack.get_logits, images, batch.labels, bs=len(images), logger=logger)
    checks.check_range_output(attack.get_logits, images, logger=logger)
    checks.check_dynamic(attack.model, images, False, logger=logger)


def _classify_left(
    attack: AutoAttack, stream: EvaluationStream, verdicts: Verdicts, progress: Progress
) -> Iterator[None]:
    """Attack what the former attacks left and this one has not attacked yet; yield after each batch."""
    places = verdicts.attacked()
    perturb = _perturbation(attack, verdicts.attacks[verdicts.attack] if verdicts.attack >= 0 else "")
    done = verdicts.batch * stream.source.batch_size
    spared, stage = len(stream.indices) - len(places), _stage(verdicts)
    progress(spared + done, stage)
    for batch in stream.only(places[done:]):
        logits = attack.get_logits(perturb(batch.images.contiguous(), batch.labels))
        finite = logits.isfinite().all(1)
        correct = logits.argmax(1) == batch.labels
        verdicts.note(places[done:][: len(finite)], correct.cpu().numpy(), finite.cpu().numpy())
        done += len(finite)
        yield
        progress(spared + done, _stage(verdicts))


def _perturbation(attack: AutoAttack, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what one of `ATTACKS` makes of images (B, 3, H, W) and labels (B,); no name: the images."""
    if not name:
        return lambda images, labels: images
    attack.apgd.loss, attack.fab.targeted = "ce", True
    parts = (attack.apgd, attack.apgd_targeted, attack.fab, attack.square)
    part = dict(zip(ATTACKS, parts, strict=True))[name]

    def perturb(images: Tensor, labels: Tensor) -> Tensor:
        # Anew for each batch, as pyautoattack does: Square and FAB count on from it.
        part.seed = attack.get_seed()
        perturbed: Tensor = part.perturb(images, labels)
        return perturbed

    return perturb


def _stage(verdicts: Verdicts) -> str:
    if verdicts.attack < 0:
        return ""
    share = 100 * float(verdicts.correct.mean())
    name, count = verdicts.attacks[verdicts.attack], len(verdicts.attacks)
    return f"{name} ({verdicts.attack + 1} of {count}), {share:.1f} % correct"


class _RowMajor(nn.Module):
    """A network whose input gradients are contiguous (NCHW).

    AutoAttack flattens them with `view`, which fails for the channels-last gradients of convolutions.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            images = images.clone()
            images.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
        logits: Tensor = self.network(images)
        if images.requires_grad and not logits.requires_grad:
            # Cut off inside, which is warned of; APGD's gradient is zero, FAB's and Square's go on.
            logits = logits + 0 * images.flatten(1).sum(1, keepdim=True)
        return logits
