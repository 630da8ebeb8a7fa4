"""In which settings a run differs from another, and from the recipe whose row of the paper it bears."""

from dataclasses import asdict, replace

from fastpeer.config import Config, PaperConfig
from fastpeer.config.recipes import list_recipes, load_recipe
from fastpeer.config.toml import flat

INCIDENTAL = (
    "seed", "precision", "log.", "record.", "engine.", "data.dataset", "data.residency", "data.reader",
    "teacher.weights", "natural_teacher.weights", "checkpoint.", "train.on_nonfinite", "train.rollback",
)  # fmt: skip
"""Settings, or the beginnings of their names, that make no run depart from its recipe."""
CHANGEABLE = (
    "train.epochs", "train.max_steps", "train.on_nonfinite", "train.rollbacks", "checkpoint.", "log.",
    "record.", "engine.", "data.residency", "data.reader", "teacher.weights", "natural_teacher.weights",
)  # fmt: skip
"""Settings, and sections of them, that a run may be resumed with other values of."""
NETWORKS = (
    "model.student", "model.peer", "model.mean", "model.std", "data.size",
)  # fmt: skip
"""Settings that an evaluation depends on."""


OFFICIAL_PIXELS = "official pixels"
UNKNOWN_PIXELS = "not known to be the official pixels"


def differences(config: Config, other: Config) -> dict[str, tuple[object, object]]:
    """Return the settings that differ, by dotted name, with both values; the paper's figures are none."""
    ours, theirs = flat(asdict(config)), flat(asdict(other))
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return {name: (ours.get(name), theirs.get(name)) for name in names}


def fixed_differences(config: Config, other: Config) -> dict[str, tuple[object, object]]:
    """Return those of `differences` that no run may be resumed with."""
    found = differences(config, other)
    free = [name for name in found if name in CHANGEABLE or f"{name.partition('.')[0]}." in CHANGEABLE]
    return {name: values for name, values in found.items() if name not in free}


def other_settings(config: Config) -> list[str]:
    """Name the settings in which a run departs from the shipped recipe whose paper row it bears.

    Seed, number format, logging, the data set's name and where teachers lie do not count, nor does what
    leaves the result as it is.
    """
    origin = next((entry.name for entry in list_recipes() if _same_row(entry.paper, config.paper)), None)
    if origin is None:
        return []
    names = differences(config, load_recipe(origin))
    return [name for name in names if not name.startswith(INCIDENTAL)]


def other_data(dataset: str, pixels: str, paper: PaperConfig) -> list[str]:
    """Name the data, and why, unless they are known to be those of a row of the paper.

    Args:
        dataset: name of the data set.
        pixels: what its `dataset.json` tells of its pixels; empty: nothing.
        paper: the row.
    """
    if dataset != paper.dataset:
        return [f"data ({dataset} for {paper.dataset})"]
    if pixels == OFFICIAL_PIXELS:
        return []
    return [f"data ({pixels or UNKNOWN_PIXELS})"]


def _same_row(paper: PaperConfig | None, other: PaperConfig | None) -> bool:
    """Compare the figures: no two rows share them, and what a row is called may change."""
    return paper is not None and other is not None and replace(paper, row=other.row) == other
