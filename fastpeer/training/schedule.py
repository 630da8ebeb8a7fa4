"""The learning-rate schedule."""

from fastpeer.config import Config


def learning_rate(config: Config, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0: divided by 10 at each milestone.

    Unlike PyTorch's schedulers it depends on nothing but the epoch: there is no state to save, and a resumed
    run has the learning rates of an uninterrupted one to the last bit. For another schedule, replace this
    function.
    """
    return config.optim.lr * 0.1 ** sum(epoch >= milestone for milestone in config.optim.milestones)
