"""AutoAttack standard (Croce and Hein, ICML 2020): its attacks, their constants, the classes they need."""

from collections.abc import Sequence

from fastpeer.errors import UserError

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
ITERATIONS = 100
TARGETS = 9
SQUARE_QUERIES = 5000
MIN_CLASSES = 4
"""The targeted DLR loss divides by a difference to the third and fourth largest logits."""
MIN_CLASSES_OF = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": MIN_CLASSES, "fab-t": 2, "square": 2}
"""By attack: how many classes it is defined for."""
FEW_CLASSES = "aa-few-classes"
"""Not AutoAttack standard: what is defined with two or three classes."""


def attacks_of_set(name: str, classes: int) -> tuple[str, ...]:
    """Return the attacks of `aa` or `aa-few-classes`, in order.

    With two classes these are APGD-CE, FAB-T at the other class and Square, with three also APGD on the
    untargeted DLR loss.

    Raises:
        UserError: the set is not meant for so few or so many classes.
    """
    if name != FEW_CLASSES:
        check_classes(ATTACKS, classes)
        return ATTACKS
    if classes >= MIN_CLASSES:
        raise UserError(f"{FEW_CLASSES} is for 2 or 3 classes, got {classes}: use aa")
    few = ("apgd-ce", "apgd-dlr", "fab-t", "square")
    return tuple(attack for attack in few if MIN_CLASSES_OF[attack] <= classes)


def check_classes(attacks: Sequence[str], classes: int) -> None:
    """Make sure that attacks are defined for a number of classes.

    Raises:
        UserError: one is not.
    """
    for attack in attacks:
        least = MIN_CLASSES_OF[attack]
        if classes >= least:
            continue
        what = "AutoAttack standard" if tuple(attacks) == ATTACKS else attack
        advice = f"use {FEW_CLASSES} or pgd20" if classes > 1 else "there is nothing to attack"
        raise UserError(f"{what} needs at least {least} classes, got {classes}: {advice}")


def check_size_for_l2(height: int, width: int) -> None:
    """Make sure that the official Square in L2 can run: it lays out windows of a fifth of the height.

    Raises:
        UserError: its last windows would be cut off, which it cannot handle.
    """
    window = height // 5
    begin = (height - 5 * window) // 2
    ends = [begin + side // window * window for side in (height, width)] if window else []
    # Windows of one pixel do not mind.
    if not window or (window > 1 and (ends[0] > height or ends[1] > width)):
        raise UserError(
            f"Square in L2 (of AutoAttack) cannot run on images of {height}x{width} pixels, as pyautoattack"
            " lays out its first windows: use another --size, or pgd20"
        )


def target_count(classes: int) -> int:
    """Return the number of wrong classes that the targeted attacks aim at."""
    return min(TARGETS, classes - 1)
