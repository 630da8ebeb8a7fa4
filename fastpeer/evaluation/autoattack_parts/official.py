"""AutoAttack by pyautoattack, with every constant set and checked: the oracle of the own attacks."""

from collections.abc import Sequence

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from fastpeer.config import Norm
from fastpeer.errors import UserError
from fastpeer.evaluation.attacks import AttackSettings
from fastpeer.evaluation.autoattack_parts import standard
from fastpeer.evaluation.autoattack_parts.network import Passes, misclassified
from fastpeer.evaluation.autoattack_parts.own import Attack, Found

NORMS: dict[Norm, str] = {"linf": "Linf", "l2": "L2"}


def build_autoattack(
    network: nn.Module, epsilon: float, classes: int, seed: int, device: torch.device, norm: Norm = "linf",
    attacks: Sequence[str] = standard.ATTACKS,
) -> AutoAttack:  # fmt: skip
    """Return AutoAttack standard for a network.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to logits (B, classes); in eval mode.
        epsilon: radius of the ball.
        classes: number of classes; with fewer than 10, the targeted attacks aim at fewer than 9.
        seed: of all its attacks.
        device: the images' device.
        norm: of the ball.
        attacks: names; others than the standard's, with its constants.

    Raises:
        UserError: too few classes for one of the attacks, or the installed pyautoattack has other constants
            than the standard.
    """
    standard.check_classes(attacks, classes)
    attack = AutoAttack(network, norm=NORMS[norm], eps=epsilon, version="standard", seed=seed, device=device)
    attack.attacks_to_run = list(attacks)
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = standard.ITERATIONS
    attack.apgd.n_restarts = attack.apgd_targeted.n_restarts = attack.fab.n_restarts = 1
    targets = standard.target_count(classes)
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    attack.square.n_queries = standard.SQUARE_QUERIES
    attack.square.n_restarts = 1
    check_constants(attack, epsilon, classes, norm, attacks)
    return attack


def check_constants(
    attack: AutoAttack, epsilon: float, classes: int, norm: Norm = "linf",
    attacks: Sequence[str] = standard.ATTACKS,
) -> None:  # fmt: skip
    """Make sure that an attack is AutoAttack standard, whatever the installed library's defaults are.

    Raises:
        UserError: a constant differs.
    """
    apgd, targeted, fab, square = attack.apgd, attack.apgd_targeted, attack.fab, attack.square
    iterations, queries = standard.ITERATIONS, standard.SQUARE_QUERIES
    targets = standard.target_count(classes)
    constants = {
        "attacks": (tuple(attack.attacks_to_run), tuple(attacks)),
        "norms": ({attack.norm, apgd.norm, targeted.norm, fab.norm, square.norm}, {NORMS[norm]}),
        "radii": ({attack.epsilon, apgd.eps, targeted.eps, fab.eps, square.eps}, {epsilon}),
        "iterations": ({apgd.n_iter, targeted.n_iter, fab.n_iter}, {iterations}),
        "restarts": ({apgd.n_restarts, targeted.n_restarts, fab.n_restarts, square.n_restarts}, {1}),
        "targets": ({targeted.n_target_classes, fab.n_target_classes}, {targets}),
        "gradients averaged": ({apgd.eot_iter, targeted.eot_iter}, {1}),
        "step-size rule": ({apgd.thr_decr, targeted.thr_decr}, {0.75}),
        "random starts": ((apgd.use_rs, targeted.use_rs), (True, True)),
        "radius schedules": ((apgd.use_largereps, targeted.use_largereps), (False, False)),
        "targeted loss": (targeted.loss, "dlr-targeted"),
        "FAB's steps": ((fab.alpha_max, fab.eta, fab.beta), (0.1, 1.05, 0.9)),
        "square's loss": ((square.loss, square.targeted), ("margin", False)),
        "square": ((square.n_queries, square.p_init, square.rescale_schedule), (queries, 0.8, False)),
    }
    for name, (actual, expected) in constants.items():
        if actual != expected:
            raise UserError(
                f"the installed pyautoattack is not AutoAttack standard: its {name} must be {expected}, got"
                f" {actual}; install pyautoattack 0.2"
            )


def official_attack(
    name: str, network: nn.Module, settings: AttackSettings, device: torch.device, passes: Passes
) -> Attack:
    """Return one of `standard.MIN_CLASSES_OF`, as pyautoattack runs it on a network in eval mode."""
    model = _RowMajor(network, passes)
    attack = build_autoattack(
        model, settings.epsilon, settings.classes, settings.seed, device, settings.norm, (name,)
    )
    attack.apgd.loss, attack.fab.targeted = "dlr" if name == "apgd-dlr" else "ce", True
    part = {"apgd-t": attack.apgd_targeted, "fab-t": attack.fab, "square": attack.square}.get(
        name, attack.apgd
    )

    def perturb(images: Tensor, labels: Tensor) -> Found:
        # Anew for each batch, as pyautoattack does: Square and FAB count on from it.
        part.seed = attack.get_seed()
        perturbed: Tensor = part.perturb(images, labels)
        return Found(perturbed, misclassified(model(perturbed), labels))

    return perturb


class _RowMajor(nn.Module):
    """A network whose input gradients are contiguous (NCHW); counts what goes through it.

    AutoAttack flattens them with `view`, which fails for the channels-last gradients of convolutions.
    """

    def __init__(self, network: nn.Module, passes: Passes) -> None:
        super().__init__()
        self.network, self.passes = network, passes

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            images = images.clone()
            images.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
        logits: Tensor = self.network(images)
        if images.requires_grad and not logits.requires_grad:
            # Cut off inside, which is warned of; APGD's gradient is zero, FAB's and Square's go on.
            logits = logits + 0 * images.flatten(1).sum(1, keepdim=True)
        self.passes.add(2 * len(images) if images.requires_grad else len(images))
        return logits
