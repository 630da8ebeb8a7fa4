"""AutoAttack standard (Croce and Hein 2020) in L-infinity or L2, with every constant set and checked."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from fastpeer.config import Norm
from fastpeer.errors import UserError

NORMS: Mapping[Norm, str] = {"linf": "Linf", "l2": "L2"}
ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
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
) -> AutoAttack:
    """Return AutoAttack standard for a network.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to logits (B, classes); in eval mode.
        epsilon: radius of the ball.
        classes: number of classes; with fewer than 10, the targeted attacks aim at fewer than 9.
        seed: of all its attacks.
        device: the images' device.
        norm: of the ball.

    Raises:
        UserError: fewer than 4 classes, for which the targeted DLR loss is not defined, or the installed
            pyautoattack has other constants than the standard.
    """
    if classes < MIN_CLASSES:
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
    images: Tensor,
    labels: Tensor,
    *,
    announce: Callable[[str], None] = lambda attack: None,
    epsilon: float,
    classes: int,
    seed: int,
    batch_size: int,
    norm: Norm = "linf",
) -> tuple[Tensor, Tensor]:
    """Attack images with AutoAttack standard, whose attacks each run on what is still classified correctly.

    Args:
        network: in eval mode, float32, on the images' device.
        images: float32 (N, 3, H, W) in [0, 1].
        labels: int64 (N,).
        epsilon: radius of the ball.
        classes: number of classes.
        announce: is told which attack begins, by its name in `ATTACKS`, once for each batch of it.
        seed: of all its attacks.
        batch_size: images attacked at once.
        norm: of the ball.

    Returns:
        bool (N,) on the CPU: classified correctly under all attacks; and with logits that are finite.

    Raises:
        UserError: see `build_autoattack`.
    """
    attack = build_autoattack(_RowMajor(network), epsilon, classes, seed, images.device, norm)
    _announce_attacks(attack, announce)
    perturbed, predicted = attack.run_standard_evaluation(images.contiguous(), labels, batch_size=batch_size)
    with torch.no_grad():
        parts = [network(part).isfinite().all(1) for part in perturbed.to(images.device).split(batch_size)]
    finite = torch.cat(parts).cpu()
    return (predicted == labels).cpu() & finite, finite


def _announce_attacks(attack: AutoAttack, announce: Callable[[str], None]) -> None:
    parts = (attack.apgd, attack.apgd_targeted, attack.fab, attack.square)
    for name, part in zip(ATTACKS, parts, strict=True):
        part.perturb = partial(_announced, part.perturb, announce, name)


def _announced(
    perturb: Callable[..., Tensor], announce: Callable[[str], None], name: str, *batch: Tensor
) -> Tensor:
    announce(name)
    return perturb(*batch)


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
