"""`fastpeer train --resume`: what may have changed since the run was stopped, and what may not."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastpeer.cli.arguments import TrainArguments
from fastpeer.config import Config, teacher_words
from fastpeer.config.differences import differences, fixed_differences
from fastpeer.config.recipes import recipe_of_method
from fastpeer.errors import UserError
from fastpeer.run_folder import RunFolder

if TYPE_CHECKING:
    from fastpeer.training.trainer import Trainer

log = logging.getLogger(__name__)


def resumed_base(run: RunFolder, given: TrainArguments, method: str | None = None) -> Config:
    """Return the run's own settings; a recipe that is named says which run is meant, and changes none.

    With a method, the recipe of that method is meant.

    Raises:
        UserError: there is no run, or a flag is for new runs only.
    """
    if given.force or given.init_student or given.init_peer:
        raise UserError(
            "--resume goes on from a checkpoint: --force, --init-student and --init-peer do not fit"
        )
    saved = run.read_config()
    if not run.has_checkpoint:
        force = "; --force deletes what it has logged" if run.holds_work else "; --force is not needed"
        raise UserError(
            f"{run.path} has no checkpoint to resume from: begin it again without --resume{force}"
        )
    others = sorted(differences(recipe_of_method(given.recipe, method), saved)) if given.recipe else []
    if others:
        log.info("note: the run keeps its own %s, not the recipe's", ", ".join(others))
    return saved


def refuse_other_settings(config: Config, run: RunFolder, force: bool) -> None:
    """Refuse settings that the run was not trained with, by flags or by an edited config.toml.

    Args:
        config: the settings to go on with.
        run: the run.
        force: go on with an edited config.toml.

    Raises:
        UserError: a setting has another value; the first by flags, or all that were edited, are named.
    """
    # Imported here: torch takes a second that other errors in the words need not wait for.
    from fastpeer.checkpoint import newest_settings

    for name, (new, old) in fixed_differences(config, run.read_config()).items():
        raise UserError(f"--resume: {name} was {old} in this run and cannot become {new}; begin a new run")
    trained = newest_settings(run.checkpoints, "last")
    if trained is None or not (edited := fixed_differences(config, trained)):
        return
    changes = ", ".join(f"{name} was {old}, now {new}" for name, (new, old) in edited.items())
    if not force:
        raise UserError(
            f"{run.config_file} is not what {run.path} was trained with: {changes}; set it back, or go on by"
            " --force-settings"
        )
    log.warning("going on with other settings than until now: %s", changes)


def refuse_other_files(run: RunFolder, facts: Mapping[str, Any]) -> None:
    """Refuse other teachers or data than the run began with; say what else gives other bits.

    Args:
        run: the run.
        facts: what is there now, for run.json.

    Raises:
        UserError: a file is another one.
    """
    former = run.read_facts()
    for role, teacher in facts["teachers"].items():
        if former.get("teachers", {}).get(role, {}).get("sha256") != teacher["sha256"]:
            raise UserError(f"--resume: {teacher['file']} is not the {teacher_words(role)} of {run.path}")
    data = facts["data"]
    if former["data"]["train_sha256"] != data["train_sha256"]:
        raise UserError(f"--resume: {data['folder']} is not the data that {run.path} was trained on")
    if former["data"].get("test_sha256", data["test_sha256"]) != data["test_sha256"]:
        raise UserError(f"--resume: {data['folder']} has other test images than {run.path} began with")
    for what, (before, now) in _environments(former, facts).items():
        log.info("note: %s was %s when the run began, now %s: rounding will differ", what, before, now)


def _environments(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs of that which rounding depends on, with both values."""
    pairs = {name: (former.get(name), facts[name]) for name in ("device", "threads")}
    pairs["PyTorch"] = former.get("versions", {}).get("torch"), facts["versions"]["torch"]
    return {name: pair for name, pair in pairs.items() if pair[0] is not None and pair[0] != pair[1]}


def resume(trainer: "Trainer") -> None:
    """Restore a run's state.

    Raises:
        UserError: there is no whole checkpoint, or the run has trained longer than it now shall.
    """
    trainer.resume()
    position, train = trainer.position, trainer.config.train
    trained = position.epoch + (position.in_epoch > 0)
    if train.epochs < trained:
        raise UserError(
            f"--train.epochs must be {trained} or more, which {trainer.run.path} has begun,"
            f" got {train.epochs}"
        )
    if 0 < train.max_steps < position.step:
        raise UserError(
            f"--train.max-steps must be {position.step} or more, which {trainer.run.path} has taken,"
            f" got {train.max_steps}"
        )
