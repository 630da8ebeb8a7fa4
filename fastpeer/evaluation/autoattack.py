"""AutoAttack on a data set: what one attack leaves of all images, the next one attacks, in full batches."""

import time
from collections.abc import Sequence

import torch
from pyautoattack import checks
from torch import Tensor, nn

from fastpeer.data.stream import Batch, EvaluationStream
from fastpeer.errors import counted
from fastpeer.evaluation.attacks import AttackSettings, Progress
from fastpeer.evaluation.autoattack_parts import standard
from fastpeer.evaluation.autoattack_parts.network import AttackedNetwork, Passes
from fastpeer.evaluation.autoattack_parts.official import official_attack
from fastpeer.evaluation.autoattack_parts.own import Attack, Found, own_attack
from fastpeer.evaluation.hidden_gradients import (
    SQUARE,
    SQUARE_GAIN,
    ZERO_IN_AUTOATTACK,
    autoattack_logger,
    autoattack_messages,
    autoattack_reasons,
)
from fastpeer.evaluation.verdicts import Verdicts, VerdictsFile
from fastpeer.printing import format_seconds

SHOWN_EVERY = 1.0
"""Seconds between two looks at how far an attack is within a batch."""


def classify_under_autoattack(
    network: nn.Module,
    stream: EvaluationStream,
    settings: AttackSettings,
    progress: Progress,
    file: VerdictsFile | None = None,
    attacks: Sequence[str] = standard.ATTACKS,
) -> tuple[Verdicts, list[str]]:
    """Attack images with AutoAttack's attacks in turn, each on what is still classified correctly.

    As where the official code is given the whole set: the same batches, its seed for each of them included.
    `settings.autoattack` says who runs the attacks: fast (fastpeer's own, on the folded network; whatever
    falls is checked on the network itself), tf32 (the same, rounded on CUDA), plain (on the network itself),
    or official (pyautoattack).

    Args:
        network: in eval mode, float32, on the stream's device.
        stream: float32 images (B, 3, H, W) in [0, 1]; its batches are attacked at once.
        settings: radius, norm, number of classes, seed, and how the network is attacked.
        progress: told which attack runs, its robust accuracy, the images and the time that are left.
        file: where to keep the verdicts after each batch, and to go on from.
        attacks: names, in order: those of a set (`attacks_of_set`), or a single one.

    Returns:
        The verdicts, and why they may be too good (`autoattack_reasons`).

    Raises:
        UserError: too few classes for one of the attacks, images of a size that Square cannot run on, or
            another pyautoattack than is known.
    """
    standard.check_classes(attacks, settings.classes)
    first = next(iter(stream))
    if settings.norm == "l2" and "square" in attacks:
        standard.check_size_for_l2(first.images.shape[2], first.images.shape[3])
    verdicts = Verdicts(len(stream.indices), tuple(attacks), stream.source.batch_size)
    if file is not None:
        file = file.of(attacks=list(attacks), autoattack=settings.autoattack)
        file.go_on(verdicts)
    with autoattack_messages() as messages, torch.no_grad():
        _check_network(network, first)
        _Run(network, stream, settings, verdicts, progress, messages, file).to_the_end()
    gained = len(attacks) > 1 and verdicts.counts().get("square", 0) > SQUARE_GAIN * len(stream.indices)
    return verdicts, [*verdicts.reasons, *([SQUARE] if gained else [])]


def _check_network(network: nn.Module, batch: Batch) -> None:
    """Let pyautoattack look at the network as it does before its attacks: it logs what it doubts."""
    images, logger = batch.images.contiguous(), autoattack_logger()
    checks.check_randomized(network, images, batch.labels, bs=len(images), logger=logger)
    checks.check_range_output(network, images, logger=logger)
    checks.check_dynamic(network, images, False, logger=logger)


class _Run:
    """Attacks what is left, batch after batch; notes, keeps and shows what is known."""

    def __init__(
        self, network: nn.Module, stream: EvaluationStream, settings: AttackSettings, verdicts: Verdicts,
        progress: Progress, messages: list[str], file: VerdictsFile | None,
    ) -> None:  # fmt: skip
        self.network, self.stream, self.settings = network, stream, settings
        self.verdicts, self.progress, self.messages, self.file = verdicts, progress, messages, file
        self.passes = Passes(self._tell_now_and_then)
        self.time = _TimeLeft(verdicts, settings, self.passes)
        self._shown = time.perf_counter()

    def to_the_end(self) -> None:
        """Attack with each attack in turn, and keep what was found after each batch."""
        attacks = [_no_attack, *self._attacks()]
        began, before, attack = time.perf_counter(), self.verdicts.seconds, None
        while not self.verdicts.complete:
            if attack != self.verdicts.attack:
                attack = self.verdicts.attack
                self.progress(*self._state())
            self._attack_batch(attacks[attack + 1], self.verdicts.batches_left()[0])
            self.verdicts.seconds = before + time.perf_counter() - began
            state = self._state()
            self.verdicts.move_on()
            if self.file is not None:
                self.file.keep(self.verdicts)
            self.progress(*state)

    def _attacks(self) -> list[Attack]:
        way, device, names = self.settings.autoattack, self.stream.device, self.verdicts.attacks
        if way == "official":
            return [official_attack(name, self.network, self.settings, device, self.passes) for name in names]
        options = None if way == "plain" else self.settings.options
        attacked = AttackedNetwork(self.network, options, device, self.passes, tf32=way == "tf32")
        return [own_attack(name, attacked, self.settings) for name in names]

    def _attack_batch(self, attack: Attack, number: int) -> None:
        places = self.verdicts.batch(number)
        self.time.begin_batch(number)
        for batch in self.stream.only(places):
            found = attack(batch.images.contiguous(), batch.labels)
            logits = self.network(found.images)
            finite, correct = logits.isfinite().all(1), ~found.fallen & (logits.argmax(1) == batch.labels)
            self.verdicts.note(number, correct.cpu().numpy(), finite.cpu().numpy())
            reasons = [*autoattack_reasons(self.messages), *([ZERO_IN_AUTOATTACK] if found.flat else [])]
            self.verdicts.reasons = list(dict.fromkeys([*self.verdicts.reasons, *reasons]))
            if self.verdicts.attack >= 0:
                self.verdicts.passes[self.verdicts.attack] += self.time.end_batch()

    def _tell_now_and_then(self) -> None:
        if time.perf_counter() - self._shown >= SHOWN_EVERY:
            self.progress(*self._state())

    def _state(self) -> tuple[int, str]:
        """Return how many images the attack has done or need not attack, and what is known so far."""
        self._shown = time.perf_counter()
        verdicts = self.verdicts
        if verdicts.attack < 0:
            return verdicts.number_done, ""
        name, place = verdicts.attacks[verdicts.attack], verdicts.attack + 1
        standing = int(verdicts.correct.sum())
        robust = f"{100 * standing / len(verdicts.fallen):.1f} % robust so far"
        left = self.time.left()
        time_left = f", at most about {format_seconds(left)} left" if left else ""
        part = f"{name} ({place} of {len(verdicts.attacks)})"
        images = counted(standing, "image")
        return verdicts.number_done, f"{part}, {robust}, {images} left{time_left}"


def _no_attack(images: Tensor, labels: Tensor) -> Found:
    return Found(images, torch.zeros_like(labels, dtype=torch.bool))


class _TimeLeft:
    """Estimates how long an evaluation will last, if no further image falls.

    Args:
        verdicts: of the evaluation, as they change.
        settings: of the attacks.
        passes: of images through the network; counted on.
    """

    def __init__(self, verdicts: Verdicts, settings: AttackSettings, passes: Passes) -> None:
        self.verdicts, self.passes = verdicts, passes
        self.costs = [_passes_of(name, settings) for name in verdicts.attacks]
        self.began = time.perf_counter()
        self._number, self._passes_before = -1, 0

    def begin_batch(self, number: int) -> None:
        """Take the number of the batch that is attacked from now on."""
        self._number, self._passes_before = number, self.passes.number

    def end_batch(self) -> int:
        """Take it that no batch is attacked now; return the passes of the last one."""
        self._number = -1
        return self.passes.number - self._passes_before

    def left(self) -> float:
        """Return the seconds that are left, at most; 0: not known yet."""
        verdicts = self.verdicts
        if not self.passes.number or verdicts.complete or verdicts.attack < 0:
            return 0.0
        here, *later = self.costs[verdicts.attack :]
        now = here * sum(len(verdicts.batch(number)) for number in verdicts.batches_left())
        now += sum(later) * int(verdicts.correct.sum())
        if self._number >= 0:
            cost = self.costs[verdicts.attack] * len(verdicts.batch(self._number))
            now -= min(cost, self.passes.number - self._passes_before)
        return now * (time.perf_counter() - self.began) / self.passes.number


def _passes_of(name: str, settings: AttackSettings) -> int:
    """Return how often an image that does not fall goes through the network, forward or backward."""
    steps, targets = standard.ITERATIONS, standard.target_count(settings.classes)
    return {
        "apgd-ce": 2 * (steps + 1),
        "apgd-dlr": 2 * (steps + 1),
        "apgd-t": 2 * (steps + 1) * targets + 1,
        "fab-t": 3 * steps * targets + 1,
        "square": standard.SQUARE_QUERIES + 1,
    }[name]
