"""A tutor and its student under each other's attack, as in Table 2 of PeerAiD's paper."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastpeer.config import Config, teacher_flag, teacher_words
from fastpeer.data.stream import EvaluationStream
from fastpeer.errors import UserError
from fastpeer.evaluation.accuracy import Classified, build_attack
from fastpeer.evaluation.attack_names import known_name
from fastpeer.evaluation.attacks import AttackSettings, Progress
from fastpeer.evaluation.targets import Target
from fastpeer.files import file_sha256
from fastpeer.run_folder import RunFolder
from fastpeer.victims.pgd import evaluating

log = logging.getLogger(__name__)
COSINES = ("clean, student's", "student's, own", "clean, own")
"""Which features are compared: of clean images, of examples against the tutor itself, or its student."""


@dataclass(frozen=True)
class Tutored:
    """How a tutor f and its student S classify N images x, and examples x* against either.

    Attributes:
        clean: f on x.
        own: f on its own examples.
        students: f on its student's examples.
        student: S on its own examples.
        cosines: mean cosine similarities of f's features (what its last linear layer reads), by `COSINES`.
    """

    clean: Classified
    own: Classified
    students: Classified
    student: Classified
    cosines: dict[str, float]


@dataclass(frozen=True)
class Tutor:
    """A peer or teacher of a student.

    Attributes:
        role: peer, teacher or natural teacher.
        target: its weights.
        network: its name; empty: as the run says.
        mean, std: normalisation inside it; empty: none, or as the run says.
        weights_key: which set of weights in its file; empty: the usual one.
    """

    role: str
    target: Target
    network: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    weights_key: str = ""


def beside_their_peers(targets: Iterable[Target]) -> list[Target]:
    """Leave out the selected averages of runs with a peer, which are kept without one; the log says so."""
    kept: list[Target] = []
    alone: list[Target] = []
    for target in targets:
        has_peer = target.config is not None and "peer" in target.config.table.trained
        (alone if has_peer and target.checkpoint == "best-swa" else kept).append(target)
    for target in alone:
        log.warning("%s: left out, no peer is kept beside it", target.label)
    return kept


def find_tutors(target: Target) -> list[Tutor]:
    """Return the peer that a student learnt beside, and the teachers that it learnt from.

    Raises:
        UserError: there is none, or its weights are missing or are others than in the training.
    """
    run, config = target.run, target.config
    if run is None or config is None:
        raise UserError(f"{target.weights} belongs to no run: --table 2 needs one, with its peer or teacher")
    roles = [*config.table.trained, *config.table.frozen]
    tutors = [_peer(target)] if "peer" in roles else []
    tutors += [_teacher(run, config, role, target.label) for role in roles if role.endswith("teacher")]
    if not tutors:
        raise UserError(
            f"{run.path}: the method {config.method} has neither peer nor teacher, which --table 2 is about"
        )
    return tutors


def _peer(target: Target) -> Tutor:
    weights = target.weights.parent / "peer.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} is missing: --table 2 needs the peer beside its student")
    return Tutor("peer", replace(target, label=f"{target.label}: peer", weights=weights))


def _teacher(run: RunFolder, config: Config, role: str, label: str) -> Tutor:
    title, flag = teacher_words(role), teacher_flag(role)
    facts = run.read_facts().get("teachers", {}).get(role)
    if facts is None:
        raise UserError(f"{run.facts_file} does not tell which {title} {label} learnt from")
    weights = Path(facts["file"])
    if not weights.is_file():
        raise UserError(
            f"{weights}, the {title} of {label}, is missing: --table 2 needs it ({flag} in training)"
        )
    if file_sha256(weights) != facts["sha256"]:
        raise UserError(f"{weights} is not the {title} that {label} learnt from: its checksum is another")
    return Tutor(
        title, Target(f"{label}: {title}", weights, None, None), facts["network"], tuple(facts["mean"]),
        tuple(facts["std"]), getattr(config, role).weights_key,
    )  # fmt: skip


@torch.no_grad()
def tutored(
    tutor: nn.Module,
    student: nn.Module,
    stream: EvaluationStream,
    attack: str,
    settings: AttackSettings,
    progress: Progress,
) -> Tutored:
    """Attack a tutor and its student, and show the tutor the examples of both.

    Args:
        tutor: on the images' device.
        student: likewise.
        stream: the images.
        attack: name of a `LabelAttack`, from one start; the starts of both networks are the same.
        settings: of the attack.
        progress: called after each batch.

    Raises:
        UserError: the tutor has no linear layer.
    """
    found: list[tuple[Tensor, Tensor]] = []
    done = 0
    with evaluating(tutor, student):
        attacks = [build_attack(known_name(attack), network, settings) for network in (tutor, student)]
        features = _FeatureReader(tutor)
        for number, batch in enumerate(stream):
            against_tutor, against_student = (one.perturb(batch, number) for one in attacks)
            seen = [features.read(images) for images in (batch.images, against_tutor, against_student)]
            logits = [*(logits for logits, _ in seen), student(against_student)]
            found.append((_classified(logits, batch.labels), _cosines(*(part for _, part in seen))))
            done += len(batch.labels)
            progress(done)
    (correct, finite), cosines = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
    clean, own, students, student_own = map(Classified, correct, finite)
    means = dict(zip(COSINES, cosines.nanmean(1).tolist(), strict=True))
    return Tutored(clean, own, students, student_own, means)


def _classified(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Return bool (2, len(logits), B) on the CPU: classified correctly, and with finite logits."""
    finite = torch.stack([scores.isfinite().all(1) for scores in logits])
    correct = torch.stack([scores.argmax(1) == labels for scores in logits]) & finite
    return torch.stack([correct, finite]).cpu()


def _cosines(clean: Tensor, own: Tensor, students: Tensor) -> Tensor:
    """Return cosine similarities in float64 (3, B) on the CPU, in the order of `COSINES`."""
    clean, own, students = (features.double().flatten(1) for features in (clean, own, students))
    pairs = ((clean, students), (students, own), (clean, own))
    return torch.stack([F.cosine_similarity(*pair, dim=1) for pair in pairs]).cpu()


class _FeatureReader:
    """Reads what a network's last linear layer is given."""

    def __init__(self, network: nn.Module) -> None:
        linear = [part for part in network.modules() if isinstance(part, nn.Linear)]
        if not linear:
            raise UserError("Table 2 compares what a tutor's last linear layer reads: this tutor has none")
        self.network, self.linear = network, linear[-1]
        self._seen = torch.empty(0)

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and features (B, F) of images (B, 3, H, W)."""
        # Not longer than it is needed: attacks may run the network, too.
        handle = self.linear.register_forward_pre_hook(self._keep)
        try:
            return self.network(images), self._seen
        finally:
            handle.remove()

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen = inputs[0]
