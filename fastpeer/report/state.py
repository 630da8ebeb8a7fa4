"""How far a run is, in words: by its lock, its last checkpoint, and what it has logged."""

import re

from safetensors import SafetensorError, safe_open

from fastpeer.errors import UserError, one_line
from fastpeer.models.weight_facts import recorded_facts
from fastpeer.report.records import RunReport
from fastpeer.run_folder import RunFolder


def state_of(report: RunReport) -> str:
    """Return a run's state: running, finished, stopped, failed (it took steps that no checkpoint has) ….

    Raises:
        UserError: the last checkpoint's weights are damaged.
    """
    saved, seen = saved_step(report.run), report.records.last_step
    whole, limit = report.whole_length, report.config.train.max_steps
    total = min(whole, limit or whole) or limit
    of = f" of {total}" if total else ""
    if report.run.is_locked():
        return f"running, step {max(saved, seen)}{of}"
    if 0 < limit <= saved < whole:
        return f"at train.max_steps, {saved} of {whole}"
    if total and saved >= total and _is_complete(report, saved):
        return "finished"
    if not max(saved, seen):
        return "no step saved"
    if seen > saved:
        return f"failed after step {seen}{of}, saved at {saved}"
    return f"stopped at step {saved}{of}"


def saved_step(run: RunFolder) -> int:
    """Return the step of the last checkpoint; 0: there is none, or only that of the beginning.

    Raises:
        UserError: its weights are damaged.
    """
    weights = run.checkpoint("last") / "student.safetensors"
    if not weights.is_file():
        return 0
    try:
        with safe_open(weights, "numpy"):
            pass
    except SafetensorError as error:
        raise UserError(f"{weights.name}: {one_line(error)}") from None
    # Weights of older versions do not tell the step, but the name of their folder does.
    named = re.fullmatch(r"last-(\d+)", weights.parent.resolve().name)
    return recorded_facts(weights).step or (int(named[1]) if named else 0)


def _is_complete(report: RunReport, step: int) -> bool:
    """Whether the last epoch was evaluated, or was not to be: train.max_steps may end within an epoch."""
    evaluated = any("selection" in line and line["step"] == step for line in report.records.lines)
    return evaluated or 0 < report.config.train.max_steps <= step
