"""The attacks of a method's table, on the networks of a run."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastpeer.config import AttackConfig
from fastpeer.kernels.choice import Kernels
from fastpeer.methods.table import Attack, Forward
from fastpeer.victims.factory import VictimFactory
from fastpeer.victims.interface import Victim
from fastpeer.victims.pgd import evaluating, pgd

Predict = Callable[[Forward, Tensor], Tensor]
"""Returns the logits (B, C) of a forward's network on clean images (B, 3, H, W), in eval mode."""


def overruled(attack: Attack, settings: AttackConfig) -> Attack:
    """Return an attack with what the settings say in place of the table."""
    if settings.start != "method":
        attack = replace(attack, start=settings.start)
    if settings.clamp_start != "method":
        attack = replace(attack, clamped=settings.clamp_start == "on")
    if settings.batchnorm != "method":
        attack = replace(attack, batchnorm=settings.batchnorm)
    return attack


class Adversary:
    """Makes the examples of one attack.

    Args:
        attack: row of the table, overruled already.
        images: name of the examples it makes.
        networks: of the run.
        settings: radius, steps and noise.
        victim_factory: how networks are attacked.
    """

    def __init__(
        self, attack: Attack, images: str, networks: Mapping[str, nn.Module], settings: AttackConfig,
        victim_factory: VictimFactory,
    ) -> None:  # fmt: skip
        self.attack = attack
        self.settings = settings
        self.kernels: Kernels = victim_factory.kernels
        self._network = networks[attack.victim]
        moving = attack.away_from if attack.moves(images) else None
        self._target_network = networks[moving.network] if isinstance(moving, Forward) else None
        self._in_eval = self._networks_in_eval()
        self.victim = self._victim(victim_factory)

    def perturb(
        self, images: Tensor, labels: Tensor, key: Tensor, predict: Predict, nan_count: Tensor | None = None
    ) -> Tensor:
        """Return adversarial images (B, 3, H, W).

        Args:
            images: clean, in [0, 1].
            labels: int64 (B,).
            key: of the noise, int64 ().
            predict: for the target; what it knows of the victim is up to date.
            nan_count: see `pgd`.
        """
        with evaluating(*self._in_eval):
            return pgd(
                self.victim, images, self._target(images, labels, predict), self._start(images, key),
                epsilon=self.settings.epsilon, step_size=self.settings.step_size, steps=self.settings.steps,
                kernels=self.kernels, nan_count=nan_count,
            )  # fmt: skip

    def _networks_in_eval(self) -> list[nn.Module]:
        """Return what is run in eval mode during the attack, whatever mode it is in otherwise."""
        victim = [self._network] if self.attack.batchnorm == "eval" else []
        return victim if self._target_network is None else [*victim, self._target_network]

    def _victim(self, victim_factory: VictimFactory) -> Victim:
        name, live = self.attack.victim, self.attack.batchnorm == "train"
        if self._target_network is not None:
            return victim_factory.moving(self._network, self._target_network, name, live)
        return victim_factory.live(self._network) if live else victim_factory.victim(self._network, name)

    def _target(self, images: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        if self._target_network is not None or not isinstance(self.attack.away_from, Forward):
            return labels
        return torch.softmax(predict(self.attack.away_from, images).to(images.dtype), dim=1)

    def _start(self, images: Tensor, key: Tensor) -> Tensor:
        start, clamp = self.attack.start, self.attack.clamped
        if start == "uniform":
            drawn: Tensor = self.kernels.uniform_start(images, self.settings.epsilon, key, clamp=clamp)
            return drawn
        if start == "gaussian" and self.settings.start_std > 0:
            drawn = self.kernels.gaussian_start(images, self.settings.start_std, key, clamp=clamp)
            return drawn
        return images
