"""What a submission to RobustBench states of a network.

Source: the README of RobustBench (github.com/RobustBench/robustbench, "Adding a new model") and the files in
its model_info/. No submission was made with this.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from fastpeer.config import format_fraction
from fastpeer.evaluation.opening import OpenedNetwork, results_of
from fastpeer.evaluation.results import Result
from fastpeer.models.names import wide_resnet_size

CLAIM = "model_info.json"
DATASETS = ("cifar10", "cifar100")
ARCHITECTURES = {
    "resnet18": "ResNet-18", "resnet34": "ResNet-34", "resnet50": "ResNet-50",
    "preactresnet18": "PreActResNet-18", "preactresnet18-rice": "PreActResNet-18",
    "mobilenetv2": "MobileNetV2",
}  # fmt: skip
AUTHORS = ("link", "name", "authors", "venue")
"""What only the authors know."""


def why_no_claim(opened: OpenedNetwork) -> str:
    """Return why RobustBench has no leaderboard for a network; empty if it has."""
    name = opened.data_name
    if name not in DATASETS:
        found = f"was trained on {name}" if name else "does not record its data set"
        return f"RobustBench is for networks of {' or '.join(DATASETS)}, this one {found}"
    return ""


def write_claim(opened: OpenedNetwork, folder: Path) -> None:
    """Write the claim; what was not measured, and what only the authors know, is empty."""
    results = [result for result in results_of(opened) if result.images == result.total]
    norm = opened.target.config.attack.norm if opened.target.config else "linf"
    epsilon = {"linf": 8 / 255, "l2": 0.5}[norm]
    robust = [result for result in results if (result.attack, result.norm) == ("aa", norm)]
    robust = [result for result in robust if result.epsilon == epsilon]
    accuracy, autoattack = _accuracy([r for r in results if r.attack == "clean"]), _accuracy(robust)
    claim: dict[str, object] = dict.fromkeys(AUTHORS, "") | {
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": opened.data_name,
        "architecture": _architecture(opened.name),
        "eps": format_fraction(epsilon),
        "clean_acc": accuracy,
        "reported": autoattack,
        "autoattack_acc": autoattack,
        "footnote": "",
        "unreliable": False,
    }
    (folder / CLAIM).write_text(json.dumps(claim, indent=2) + "\n", "utf-8")


def _accuracy(results: Sequence[Result]) -> str:
    return f"{results[-1].accuracy:.2f}" if results else ""


def _architecture(name: str) -> str:
    wide = wide_resnet_size(name)
    return f"WideResNet-{wide[0]}-{wide[1]}" if wide else ARCHITECTURES.get(name, name)
