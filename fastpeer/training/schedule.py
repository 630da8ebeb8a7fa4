"""The learning-rate schedule."""

from fastpeer.config import Config


def learning_rate(config: Config, epoch: int) -> float:
    """Return the rate of an epoch counted from 0: a tenth for each milestone that is reached."""
    return config.optim.lr * 0.1 ** sum(epoch >= milestone for milestone in config.optim.milestones)
