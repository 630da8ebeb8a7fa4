"""The attacks of a method's table, carried out on the networks of a run."""

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
    """Return an attack with the start, clamping and BatchNorm mode of the settings, where they set these."""
    if settings.start != "method":
        attack = replace(attack, start=settings.start)
    if settings.clamp_start != "method":
        attack = replace(attack, clamped=settings.clamp_start == "on")
    if settings.batchnorm != "method":
        attack = replace(attack, batchnorm=settings.batchnorm)
    return attack


class Adversary:
    """Makes the adversarial examples of one attack.

    Args:
        attack: the table's, after `overruled`.
        images: name of the examples it makes.
        networks: all of the run, by name.
        settings: norm and radius of the ball, size and number of steps, and standard deviation of the noise.
        victim_factory: makes the form in which networks are attacked.
    """

    def __init__(
        self, attack: Attack, images: str, networks: Mapping[str, nn.Module], settings: AttackConfig,
        victim_factory: VictimFactory,
    ) -> None:  # fmt: skip
        self.attack = attack
        self.settings = settings
        self.kernels: Kernels = victim_factory.kernels
        self._network = networks[attack.victim]
        # Set only if the target moves: the attack is then differentiated through this network too.
        moving_target = attack.away_from if attack.moves(images) else None
        self._target_network = networks[moving_target.network] if isinstance(moving_target, Forward) else None
        self._in_eval = self._networks_in_eval()
        self.victim = self._victim(victim_factory)

    def perturb(
        self,
        images: Tensor,
        labels: Tensor,
        key: Tensor,
        predict: Predict,
        nonfinite_count: Tensor | None = None,
    ) -> Tensor:
        """Return adversarial images (B, 3, H, W), in the dtype of the clean ones.

        Args:
            images: clean images (B, 3, H, W) in [0, 1].
            labels: int64 (B,).
            key: seed of the start's noise, int64 (), on the device.
            predict: computes the target's logits; the victims have been refreshed.
            nonfinite_count: int64 (1,), to which the number of values in gradients that are not finite is
                added; see `pgd`.
        """
        with evaluating(*self._in_eval):
            return pgd(
                self.victim, images, self._target(images, labels, predict), self._start(images, key),
                norm=self.settings.norm, epsilon=self.settings.epsilon, step_size=self.settings.step_size,
                steps=self.settings.steps, kernels=self.kernels, nonfinite_count=nonfinite_count,
            )  # fmt: skip

    def _networks_in_eval(self) -> list[nn.Module]:
        """Return the networks that are put into eval mode during the attack."""
        victim = [self._network] if self.attack.batchnorm == "eval" else []
        return victim if self._target_network is None else [*victim, self._target_network]

    def _victim(self, victim_factory: VictimFactory) -> Victim:
        name, in_train_mode = self.attack.victim, self.attack.batchnorm == "train"
        if self._target_network is not None:
            return victim_factory.moving_target(self._network, self._target_network, name, in_train_mode)
        if in_train_mode:
            return victim_factory.in_train_mode(self._network, name)
        return victim_factory.victim(self._network, name)

    def _target(self, images: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        """Return what the attack leads away from: labels (B,), or probabilities (B, C).

        A moving target is computed in each step of the attack, so the labels here are ignored.
        """
        if self._target_network is not None or not isinstance(self.attack.away_from, Forward):
            return labels
        return torch.softmax(predict(self.attack.away_from, images).to(images.dtype), dim=1)

    def _start(self, images: Tensor, key: Tensor) -> Tensor:
        start, clamp = self.attack.start, self.attack.clamped
        if start == "uniform":
            in_l2 = self.settings.norm == "l2"
            draw = self.kernels.uniform_l2_start if in_l2 else self.kernels.uniform_start
            uniform: Tensor = draw(images, self.settings.epsilon, key, clamp=clamp)
            return uniform
        if start == "gaussian" and self.settings.start_std > 0:
            gaussian: Tensor = self.kernels.gaussian_start(images, self.settings.start_std, key, clamp=clamp)
            return gaussian
        return images
