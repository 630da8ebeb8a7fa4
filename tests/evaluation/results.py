"""Results that nobody found."""

import numpy as np

from fastpeer.evaluation.by_image import ByImage
from fastpeer.evaluation.results import Result


def by_image(correct: np.ndarray) -> ByImage:
    """Tell of N images which are classified correctly, and nothing else of worth."""
    number = np.arange(len(correct), dtype=np.int32)
    return ByImage(number, 0 * number, correct, correct >= 0, np.empty(0, np.int8), (), ("a",))


def result(attack: str, dataset: str = "cifar10", **facts) -> Result:
    """One of eight images under an attack of the paper's."""
    usual = {
        "target": "", "weights_sha256": "", "correct": 1, "images": 8, "total": 8, "epsilon": 8 / 255,
        "step_size": 2 / 255, "seed": 0, "batch_size": 8, "targets": None, "data_sha256": "", "seconds": 1.0,
        "torch": "", "pixels": "official pixels", "by_image": by_image(np.arange(8) < 1),
    }  # fmt: skip
    return Result(attack=attack, dataset=dataset, **{**usual, **facts})
