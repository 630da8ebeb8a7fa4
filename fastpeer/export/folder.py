"""Exports a network into a folder, whole or not at all: each format is opened again and compared first."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastpeer import __version__
from fastpeer.errors import UserError
from fastpeer.evaluation.opening import OpenedNetwork, label_of
from fastpeer.export.card import CARD, model_card
from fastpeer.export.formats import FORMATS, Forward, write_format

FACTS = "export.json"
"""What was exported, and how near each format is; also marks a folder that --force may replace."""
TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit."""


@dataclass(frozen=True)
class CheckImages:
    """Images that an export is compared on.

    Attributes:
        images: (n, 3, H, W) in [0, 1], n at least 3.
        labels: int64 (n,); None: the images are random.
    """

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Compared:
    """How near what was opened again is to the network.

    Attributes:
        difference: largest difference of logits over batches of all images, of 1 and of 3.
        changed: number of images whose predicted class differs.
        correct: number of images classified correctly; None: they have no labels.
    """

    difference: float
    changed: int
    correct: int | None


def export(
    opened: OpenedNetwork,
    formats: Sequence[str],
    to: Path,
    check: CheckImages,
    license: str = "",
    classes: Sequence[str] = (),
    force: bool = False,
) -> dict[str, Compared]:
    """Write a network in some formats with a card, and return how near each is to the network.

    Args:
        opened: the network.
        formats: names in `FORMATS` that it can be written in.
        to: the folder, which appears when all in it is complete.
        check: images to compare on.
        license: of the weights, as the card names it; empty: the card says that nobody chose one.
        classes: names of the classes, in label order; empty: unknown.
        force: whether an earlier export in `to` may be replaced.

    Raises:
        UserError: the folder exists, a format cannot be written, or what was opened differs from the network.
    """
    refuse_unless_free(to, force)
    place = Path(os.path.abspath(to))
    new = place.with_name(f".{place.name}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        compared = {name: _compare(name, write_format(name, opened, new), opened, check) for name in formats}
        _describe(new, opened, compared, check, license, classes)
        _put(new, place)
    except OSError as error:
        raise UserError(f"{to}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return compared


def refuse_unless_free(to: Path, force: bool) -> None:
    """Make sure that an export may be written to a folder.

    Raises:
        UserError: there is something that is no export; or an export, and `force` is not given.
    """
    if not to.exists() and not to.is_symlink():
        return
    if not to.is_dir() or to.is_symlink():
        raise UserError(f"{to} is not a folder: choose another --to")
    # Python makes __pycache__ where network.py is imported.
    names = {
        CARD,
        FACTS,
        "classes.json",
        "__pycache__",
        *(file for form in FORMATS.values() for file in form.files),
    }
    foreign = sorted(entry.name for entry in to.iterdir() if entry.name not in names)
    if foreign or not (to / FACTS).is_file():
        raise UserError(f"{to} exists and is no export of fastpeer's: choose another --to")
    if not force:
        raise UserError(f"{to} already holds an export: --force replaces it, another --to keeps it")


@torch.no_grad()
def _compare(name: str, forward: Forward, opened: OpenedNetwork, check: CheckImages) -> Compared:
    images, expected = check.images, opened.network(check.images.clone())
    found = forward(images.clone())
    parts = [(found, expected)]
    for count in (1, 3):
        parts.append((forward(images[:count].clone()), opened.network(images[:count].clone())))
    difference = max(float((one - other).abs().max()) for one, other in parts)
    allowed = TOLERANCE * float(expected.abs().max())
    # NaN is not near anything either.
    if not difference <= allowed:
        raise UserError(
            f"{name}: what was written gives other logits (largest difference must be at most {allowed:.1e},"
            f" got {difference:.1e}); nothing is kept of it"
        )
    predicted, changed = found.argmax(1), int((found.argmax(1) != expected.argmax(1)).sum())
    correct = None if check.labels is None else int((predicted == check.labels).sum())
    return Compared(difference, changed, correct)


def _describe(
    folder: Path,
    opened: OpenedNetwork,
    compared: Mapping[str, Compared],
    check: CheckImages,
    license: str,
    classes: Sequence[str],
) -> None:
    mean, std = opened.normalization
    facts = {
        "format": 1,
        "fastpeer": __version__,
        "source": label_of(opened),
        "weights_sha256": opened.sha256,
        "network": opened.name,
        "classes": opened.classes,
        "size": opened.size,
        "mean": mean,
        "std": std,
        "checked_on": f"{len(check.images)} {'random' if check.labels is None else 'test'} images",
        "largest_difference": {name: found.difference for name, found in compared.items()},
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    if classes:
        text = json.dumps(list(classes), indent=1, ensure_ascii=False)
        (folder / "classes.json").write_text(text + "\n", "utf-8")
    files = {file: use for name in compared for file, use in FORMATS[name].files.items()}
    (folder / CARD).write_text(model_card(opened, files, license, classes), "utf-8")


def _put(new: Path, to: Path) -> None:
    """Let a complete folder take its place; an earlier one goes when the new one stands."""
    former = to.with_name(f".{to.name}.former")
    if to.exists():
        shutil.rmtree(former, ignore_errors=True)
        os.rename(to, former)
    try:
        os.rename(new, to)
    except OSError:
        if former.exists():
            os.rename(former, to)
        raise
    shutil.rmtree(former, ignore_errors=True)
