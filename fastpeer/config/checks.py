"""Checks of settings, whose errors begin with the name of the setting."""

import math
from typing import Any

LARGEST_BATCH = 1 << 20


def check_at_least(low: float, config: Any, *names: str) -> None:
    """Raise ValueError where one of a dataclass's fields, of these names, is below `low` or not finite."""
    for name in names:
        if not low <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be {low} or more, got {getattr(config, name)}")


def check_batch_size(size: int) -> None:
    """Raise ValueError for more images at once than any device has memory for."""
    if size > LARGEST_BATCH:
        raise ValueError(f"batch_size must be at most {LARGEST_BATCH:,}, got {size}")
