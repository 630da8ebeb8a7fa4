"""What the page shows of a network and no file holds: measured once on some test images, kept in the run."""

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastpeer.config import AttackConfig
from fastpeer.data.dataset import PreparedDataset, open_dataset
from fastpeer.data.host import HostSource
from fastpeer.data.split import open_split
from fastpeer.data.stream import Batch, EvaluationStream, spread
from fastpeer.device import memory_errors, placed
from fastpeer.errors import UserError
from fastpeer.evaluation.accuracy import evaluation_options
from fastpeer.evaluation.attacks import label_pgd
from fastpeer.evaluation.targets import Target, find_targets
from fastpeer.files import file_sha256, write_atomically
from fastpeer.models import build_model
from fastpeer.models.weights import load_weights
from fastpeer.report.landscape import loss_along, loss_over, random_direction
from fastpeer.report.networks import penultimate, predicted, semantic_gradient
from fastpeer.report.records import RunReport
from fastpeer.report.stored import stored_verdicts
from fastpeer.step.precision import number_format
from fastpeer.victims.pgd import evaluating

log = logging.getLogger(__name__)
FORMAT = 2
STEPS = 10
"""Of PGD; fastpeer eval has PGD-20 and AutoAttack on all images."""
SHOWN = 8
"""Images that are shown."""
FEATURE_CLASSES, FEATURES_EACH = 3, 40
EPSILONS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)
"""Of the epsilon curve, in multiples of the training's."""
Arrays = Mapping[str, np.ndarray]
Step = Callable[[str], None]
"""Is told what is measured next."""


@dataclass(frozen=True)
class Scope:
    """Which weights, and how many test images (N), of which the curves use a half at most.

    Attributes:
        checkpoint: last, swa, best or best-swa; empty: the best student's, else the last.
        images: N.
    """

    checkpoint: str = ""
    images: int = 128


def measure(report: RunReport, scope: Scope, device: torch.device, step: Step) -> Arrays:
    """Return what is measured of a run's student (and peer), from the run's folder if it was before.

    Returns:
        labels, clean, attacked: int64 (N,), in an order drawn by chance: the classes of the images, and
        those predicted before and after PGD; of the first batch alone, where eval has stored all;
        shown_clean, shown_attacked: float32 (8, 3, H, W); gradient_NETWORK: float32 (8, H, W) in [0, 1];
        epsilons, right: float64 and int64 (E,), of epsilon_images; alphas, line_clean, line_attacked: float64
        (A,); plane: float64 (P, P); embedded_NETWORK: float64 (2M, 2), clean images first, and
        embedded_labels (M,); classes: their names; weights: label and SHA-256.

    Raises:
        UserError: weights or data are missing, damaged or do not fit.
    """
    target = chosen_target(report, scope)
    sha256 = target.sha256
    # Where eval has stored how the test images fall, what the pictures and curves need is attacked alone.
    part = bool(stored_verdicts(report, sha256))
    folder = Path(str(report.facts["data"]["folder"]))
    dataset = open_dataset(folder).seen_at(report.config.data.size)
    key = _key(target, sha256, dataset, report.config.attack, scope, part)
    kept = report.run.path / "report" / f"measured-{key}.npz"
    arrays = _read(kept)
    if arrays is None:
        number_format("fp32").allow_tf32()
        with memory_errors("--images"):
            arrays = _Measurement(report, target, dataset, scope, device).all(step, part)
        _write(kept, arrays)
    return arrays


def chosen_target(report: RunReport, scope: Scope) -> Target:
    """Return the student's weights that a page shows.

    Raises:
        UserError: there is no such checkpoint.
    """
    found = {
        target.label.rpartition(" ")[2]: target
        for target in find_targets([report.run.path], scope.checkpoint or "all")
    }
    return found.get("best") or next(iter(found.values()))


def _key(
    target: Target, sha256: str, dataset: PreparedDataset, attack: AttackConfig, scope: Scope, part: bool
) -> str:
    facts = {
        "format": FORMAT,
        "weights": sha256,
        "data": dataset.splits["test"]["sha256"],
        "size": dataset.size,
        "attack": asdict(attack),
        "scope": asdict(scope),
        "normalization": target.config and asdict(target.config.model),
        **({"part": True} if part else {}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _read(file: Path) -> Arrays | None:
    try:
        with np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s: not used (%s); it is measured again", file, error)
        return None


def _write(file: Path, arrays: Arrays) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    try:
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, content.getvalue())
    except OSError as error:
        log.warning("%s: cannot be written (%s); the next report measures again", file, error.strerror)
    except UserError as error:
        log.warning("%s; the next report measures again", error)


class _Measurement:
    """Measures one run's networks."""

    def __init__(
        self, report: RunReport, target: Target, dataset: PreparedDataset, scope: Scope, device: torch.device
    ) -> None:
        self.attack, self.target, self.dataset = report.config.attack, target, dataset
        self.seed = report.config.seed
        self.networks = {"student": self._network(target, device)}
        peer = target.weights.with_name("peer.safetensors")
        if peer.is_file():
            self.networks["peer"] = self._network(replace(target, weights=peer), device)
        source = HostSource(open_split(dataset, "test", min(scope.images, 64)), device)
        self.labels = source.labels
        self.stream = EvaluationStream(source, np.arange(len(source.labels)), torch.float32)
        # Test images often lie class by class, and half of the figures take the first of these.
        spread_out = spread(self.stream.indices, scope.images)
        self.places = np.random.default_rng(0).permutation(spread_out)
        factory = evaluation_options(device).victim_factory(number_format("fp32"), device)
        self.victim, self.kernels = factory.victim(self.student, "student"), factory.kernels
        self.victim.refresh()

    @property
    def student(self) -> nn.Module:
        return self.networks["student"]

    def _network(self, target: Target, device: torch.device) -> nn.Module:
        name = target.network("--model")
        mean, std = target.normalization(name)
        network = build_model(name, len(self.dataset.classes), self.dataset.size, mean=mean, std=std)
        load_weights(network, target.weights)
        return placed(network, device, torch.float32).requires_grad_(False).eval()

    def all(self, step: Step, part: bool) -> Arrays:
        """Measure everything; with `part`, the predictions on the first batch alone."""
        with evaluating(*self.networks.values()):
            step("images under attack")
            sampled = list(self.stream.only(self.places))[: 1 if part else None]
            pairs = [(batch, self._attacked(batch, number)) for number, batch in enumerate(sampled)]
            found = {**self._facts(), **self._predictions(pairs), **self._pictures(pairs)}
            step("accuracy over epsilon")
            found |= self._epsilons(sampled[0])
            step("loss landscape")
            found |= self._landscape(*pairs[0])
            step("features")
            found |= self._features()
        return found

    def _attacked(self, batch: Batch, number: int, scale: float = 1.0) -> Tensor:
        """Return a batch under PGD with the training's norm, and with `scale` times its epsilon and step."""
        epsilon, pace = scale * self.attack.epsilon, scale * self.attack.step_size
        norm, seed = self.attack.norm, self.seed
        attack = label_pgd(self.victim, self.kernels, epsilon, pace, STEPS, seed, "report", norm)
        return attack.perturb(batch, number)

    def _facts(self) -> dict[str, np.ndarray]:
        weights = np.array([self.target.label, file_sha256(self.target.weights)])
        return {"classes": np.array(self.dataset.classes), "weights": weights}

    def _predictions(self, pairs: list[tuple[Batch, Tensor]]) -> dict[str, np.ndarray]:
        return {
            "labels": np.concatenate([batch.labels.cpu().numpy() for batch, _ in pairs]),
            "clean": np.concatenate([predicted(self.student, batch.images) for batch, _ in pairs]),
            "attacked": np.concatenate([predicted(self.student, images) for _, images in pairs]),
        }

    def _pictures(self, pairs: list[tuple[Batch, Tensor]]) -> dict[str, np.ndarray]:
        batch, attacked = pairs[0]
        clean, labels = batch.images[:SHOWN], batch.labels[:SHOWN]
        gradients = {
            f"gradient_{name}": semantic_gradient(network, clean, labels).cpu().numpy()
            for name, network in self.networks.items()
        }
        shown = {"shown_clean": clean, "shown_attacked": attacked[:SHOWN]}
        return {name: images.cpu().contiguous().numpy() for name, images in shown.items()} | gradients

    def _epsilons(self, batch: Batch) -> dict[str, np.ndarray]:
        right = []
        for scale in EPSILONS:
            images = self._attacked(batch, 0, scale) if scale else batch.images
            right.append(int((predicted(self.student, images) == batch.labels.cpu().numpy()).sum()))
        epsilons = np.array(EPSILONS) * self.attack.epsilon
        return {"epsilons": epsilons, "right": np.array(right), "epsilon_images": np.array(len(batch.labels))}

    def _landscape(self, batch: Batch, attacked: Tensor) -> dict[str, np.ndarray]:
        first, second = (random_direction(self.student, self.seed, number) for number in range(2))
        alphas = np.linspace(-0.75, 0.75, 21)
        clean, under = (
            loss_along(self.student, first, alphas, images, batch.labels)
            for images in (batch.images, attacked)
        )
        grid = np.linspace(-0.75, 0.75, 11)
        half = slice(0, 32)
        plane = loss_over(self.student, (first, second), grid, attacked[half], batch.labels[half])
        return {"alphas": alphas, "line_clean": clean, "line_attacked": under, "plane": plane}

    def _features(self) -> dict[str, np.ndarray]:
        """Embed the features of three classes, drawn by the seed, clean and under attack (Figure 5)."""
        present = np.unique(self.labels)
        drawn = np.random.default_rng(self.seed).permutation(present)[:FEATURE_CLASSES]
        places = np.concatenate([np.flatnonzero(self.labels == label)[:FEATURES_EACH] for label in drawn])
        batches = list(self.stream.only(places))
        pairs = [(batch, self._attacked(batch, number)) for number, batch in enumerate(batches)]
        found = {"embedded_labels": self.labels[places]}
        for name, network in self.networks.items():
            images = [*(batch.images for batch, _ in pairs), *(attacked for _, attacked in pairs)]
            features = [part for part in (penultimate(network, part) for part in images) if part is not None]
            if len(features) == len(images):
                found |= _embedded(name, np.concatenate(features), self.seed)
        return found


def _embedded(name: str, features: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return t-SNE's two coordinates (n, 2) of features (n, D); nothing where there are too few to embed."""
    from sklearn.manifold import TSNE

    if len(features) < 8 or not np.isfinite(features).all():
        return {}
    perplexity = min(30.0, (len(features) - 1) / 3)
    found = TSNE(perplexity=perplexity, random_state=seed, init="random").fit_transform(features)
    return {f"embedded_{name}": found.astype(np.float64)}
