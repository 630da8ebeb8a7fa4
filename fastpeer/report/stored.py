"""How each test image was classified, as `fastpeer eval` has stored it: what need not be attacked again."""

import logging
import math
from collections.abc import Mapping

import numpy as np

from fastpeer.errors import UserError
from fastpeer.evaluation.attack_names import AUTOATTACK, split_name
from fastpeer.evaluation.by_image import ByImage
from fastpeer.evaluation.results import Result, images_of
from fastpeer.report.records import RunReport

log = logging.getLogger(__name__)
Stored = Mapping[str, ByImage]
"""By attack, clean first and then from the weakest to the strongest: the same test images in each."""


def stored_verdicts(report: RunReport, sha256: str) -> Stored:
    """Return what was stored of weights on the run's test images: clean, under PGD-N and AutoAttack.

    The attacks have the norm and epsilon of the training. A file that is missing or damaged is logged.

    Args:
        report: of the run.
        sha256: checksum of the weights.

    Returns:
        Verdicts on the most images that were attacked; empty: there are none, clean and under an attack.
    """
    fitting = [result for result in report.results if _fits(result, report, sha256)]
    most = max((result.images for result in fitting), default=0)
    # Of those that differ in seed or batch size alone, the newest.
    newest = {result.attack: result for result in fitting if result.images == most}
    found = {attack: _read(report, newest[attack]) for attack in sorted(newest, key=_strength)}
    whole = {attack: images for attack, images in found.items() if images is not None}
    clean = whole.get("clean")
    alike = {
        attack: images
        for attack, images in whole.items()
        if clean is not None and np.array_equal(images.index, clean.index)
    }
    return alike if len(alike) > 1 else {}


def _fits(result: Result, report: RunReport, sha256: str) -> bool:
    attack, own = report.config.attack, not (result.role or result.source)
    same_weights = result.weights_sha256 == sha256 and not (result.weights_key or result.mean or result.std)
    same_images = (result.data_sha256, result.side) == (report.data[1], report.config.data.size)
    same_ball = (result.norm, result.epsilon) == (attack.norm, attack.epsilon)
    named = result.attack == "clean" or (same_ball and _strength(result.attack) > 0)
    return bool(own and same_weights and same_images and named and result.by_image_file)


def _strength(attack: str) -> float:
    """Return a number that grows with an attack's strength; 0: of clean images, and of what is not shown."""
    name = split_name(attack)
    if name is None or name.restarts > 1:
        return 0.0
    return {"pgd": float(name.steps), AUTOATTACK: math.inf}.get(name.kind, 0.0)


def _read(report: RunReport, result: Result) -> ByImage | None:
    try:
        return images_of(report.run.results_file, result)
    except UserError as error:
        log.warning("%s; not used", error)
        return None
