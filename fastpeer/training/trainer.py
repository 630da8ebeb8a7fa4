"""The training loop: epochs of steps, then averaging, selection and checkpoints; metrics and log lines."""

import logging
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from fastpeer.checkpoint import load_networks, load_state
from fastpeer.config import Config
from fastpeer.data.stream import Batch, EvaluationStream
from fastpeer.errors import UserError
from fastpeer.run_folder import RunFolder
from fastpeer.step.step import StepResult, TrainingStep
from fastpeer.training.averaging import AveragedStudent
from fastpeer.training.checkpoints import Checkpoints
from fastpeer.training.cross_robustness import CrossRobustness
from fastpeer.training.forecast import Pace
from fastpeer.training.log import Interval, MetricsLog, report_faults
from fastpeer.training.memory import out_of_memory
from fastpeer.training.metrics_file import LogMark
from fastpeer.training.nonfinite import NonFinite, first_non_finite, last_good
from fastpeer.training.progress import Reporter
from fastpeer.training.schedule import learning_rate
from fastpeer.training.selection import Selection
from fastpeer.training.setup import TrainingSetup
from fastpeer.training.signals import Stopped, StopRequest
from fastpeer.training.state_checks import check_state
from fastpeer.training.step_errors import user_message
from fastpeer.training.too_good import TooGood

log = logging.getLogger(__name__)


@dataclass
class Position:
    """The next step of a run, counted from 0: `in_epoch` within its epoch, `step` within the run."""

    epoch: int = 0
    in_epoch: int = 0
    step: int = 0


class Trainer:
    """Trains a run from its current position to its end.

    Args:
        run: the run's folder.
        config: the run's settings.
        setup: data, networks and device.
        reporter: shows progress.
        stop: checked between steps and between evaluated batches.

    Attributes:
        rollbacks: how often the run went back to a checkpoint because a loss was not finite.
        pace: how long a step takes, once it was measured.
        average: the averaged student; None if the settings do without.
        cross_robustness: what is recorded of it, if the settings ask for it.
        summary: accuracies of the checkpoints last, swa, best and best-swa, as far as they were evaluated.
    """

    def __init__(
        self, run: RunFolder, config: Config, setup: TrainingSetup, reporter: Reporter, stop: StopRequest
    ) -> None:
        self.run = run
        self.config = config
        self.setup = setup
        self.reporter = reporter
        self.stop = stop
        self.position = Position()
        self.step = TrainingStep(config, setup.method.at(0), setup.all_networks, max(setup.dataset.size))
        self.selection = self.selection_on(setup.selection)
        self.cross_robustness = CrossRobustness(config, setup, self.step, stop)
        self._too_good = TooGood(config, setup)
        self.average: AveragedStudent | None = None
        if config.swa_start is not None:
            student = setup.networks["student"]
            self.average = AveragedStudent(student, setup.number_format, self.step.recorded)
        self.interval = Interval.of(self.step)
        self.summary: dict[str, dict[str, Any]] = {}
        self.checkpoints = Checkpoints(run, config, setup)
        self.rollbacks = 0
        self._log_mark = LogMark()
        self._accuracy: dict[str, float] = {}
        self._shown: float | None = None
        self.pace = Pace(setup.device, self.step.compiler)

    def train(self) -> None:
        """Run the remaining epochs.

        Raises:
            Stopped: a stop was requested; the run is saved.
            NonFinite: a loss or a weight is not finite.
            UserError: a file cannot be written.
        """
        self.checkpoints.begin()
        self.log = MetricsLog(self.run, self.config, self._log_mark)
        with closing(self.log):
            if not self.run.checkpoint("last").exists():
                # A run that is stopped or killed in its first epoch can be resumed too.
                self._save_last()
            if self._finished():
                limit = "--train.max-steps" if self._at_max_steps() else "--train.epochs"
                log.info("already finished; to continue, raise %s", limit)
            try:
                self._run_epochs()
            except Stopped:
                self._save_last()
                raise

    def _run_epochs(self) -> None:
        with self.reporter.running(self.position.step, self.total_steps, self.steps_per_epoch):
            while not self._finished():
                self._run_epoch()

    def selection_on(self, stream: EvaluationStream) -> Selection:
        """Return what evaluates the run's networks on the images of a stream."""
        return Selection(
            self.config, stream, self.step.victim_factory, self.setup.method.seeks_robustness,
            self.stop.check, self.step.recorded,
        )  # fmt: skip

    def resume(self) -> None:
        """Restore weights and state from the run's last checkpoint that is whole.

        Raises:
            UserError: there is no checkpoint, or none that is whole.
        """
        folder = self.checkpoints.find()
        state = load_state(folder)
        load_networks(folder, self._saved_networks())
        try:
            self._restore(state)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError):
            raise UserError(f"{folder / 'state.pt'}: damaged or not this run's checkpoint") from None

    def rolled_back(self) -> "Trainer":
        """Return a trainer of the same run at its last checkpoint, with a lower learning rate.

        Raises:
            UserError: see `resume`.
        """
        # Another one: what this one has captured and compiled reads memory that loading would replace.
        trainer = Trainer(self.run, self.config, self.setup, self.reporter, self.stop)
        trainer.resume()
        trainer.rollbacks = self.rollbacks + 1
        return trainer

    def _restore(self, state: Mapping[str, Any]) -> None:
        check_state(state, self.steps_per_epoch, ("clean", self.selection.robust))
        self.step.load_optimizer(state["optimizer"])
        self.step.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.count = state["swa_count"]
            self.average.measured = state["swa_measured"]
        self.position = Position(**state["position"])
        # A checkpoint at an epoch's start was saved at the end of the epoch before: its sums and loss weights
        # belong to that epoch's table.
        self._use_table_of(max(0, self.position.epoch - (self.position.in_epoch == 0)))
        self.step.balance.load_state(state.get("balance", {}))
        self.interval.load_state(state["interval"])
        self._accuracy = state.get("accuracy", {})
        self.summary = state["summary"]
        self.rollbacks = state.get("rollbacks", 0)
        self._log_mark = LogMark(state["log_length"], state.get("log_sha256", ""), self.position.step)

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        total = self.config.train.epochs * self.steps_per_epoch
        return min(total, self.config.train.max_steps or total)

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of an epoch."""
        return self.setup.training.steps_per_epoch

    def _finished(self) -> bool:
        return self.position.epoch >= self.config.train.epochs or self._at_max_steps()

    def _at_max_steps(self) -> bool:
        return 0 < self.config.train.max_steps <= self.position.step

    def _use_table_of(self, epoch: int) -> None:
        """Switch to the method's table for an epoch, if it differs from the current one."""
        method = self.setup.method.at(epoch)
        # Only then: a switch discards the recorded graph and the sums, whose terms may be others.
        if method is not self.step.method:
            self.step.use(method)
            self.interval = Interval.of(self.step)

    def begin_epoch(self) -> None:
        """Prepare for the steps of the current epoch: the method's table, the learning rate, the clocks."""
        self._use_table_of(self.position.epoch)
        self.step.set_learning_rate(self.learning_rate())
        self.pace.pause()
        self.interval.restart_clock()

    def learning_rate(self) -> float:
        """Return the current epoch's learning rate, which each rollback has lowered."""
        return (
            learning_rate(self.config, self.position.epoch) * self.config.train.rollback_rate**self.rollbacks
        )

    def _run_epoch(self) -> None:
        self.begin_epoch()
        self._run_steps()
        if self.position.in_epoch == self.steps_per_epoch:
            self._finish_epoch()
        else:
            log.info("stopped at step %d, within an epoch: train.max_steps is reached", self.position.step)
        self._save_last()
        if self.position.in_epoch == 0 and self.checkpoints.keeps(self.position.epoch - 1):
            self.checkpoints.keep(self.position.epoch - 1)

    def _run_steps(self) -> None:
        position = self.position
        if self._shown is None:
            self.reporter.busy("compiling, and the first step" if self.step.compiler else "the first step")
        # Closed at once if the epoch is left early: the loader's thread would otherwise keep decoding.
        with closing(self.setup.training.epoch(position.epoch, position.in_epoch)) as batches:
            for batch in batches:
                result = self.train_on(batch)
                self.report_compiling()
                position.in_epoch += 1
                position.step += 1
                self.interval.add(result, len(batch.labels))
                self.reporter.step(position.step)
                if self._at_log_line():
                    self._log_interval()
                elif self._line_is_due():
                    self._show_interval()
                if self.pace.step_done():
                    log.info(self.pace.describe(self.total_steps - position.step))
                if self._at_max_steps():
                    return
                # After the step is counted, so that a checkpoint saved here continues with the next one.
                self.stop.check()
                if self.checkpoints.is_due():
                    self._save_last()
                    self.pace.pause()

    def train_on(self, batch: Batch) -> StepResult:
        """Take a step on a batch.

        Raises:
            UserError: the device has too little memory, or the step failed in a way that the user can fix.
        """
        try:
            return self.step.train_on(batch, self.position.step)
        except torch.OutOfMemoryError:
            pass  # The exception holds the step's tensors: memory is measured after this clause, below.
        except Exception as error:  # Triton's errors have no other base class in common.
            if message := user_message(error, self.step):
                raise UserError(message) from None
            raise
        raise UserError(out_of_memory(self.step, batch))

    def report_compiling(self) -> None:
        """Log what was compiled since the last call."""
        if self.step.compiler is not None and (line := self.step.compiler.news()):
            log.info(line)

    def _at_log_line(self) -> bool:
        at_end = self.position.in_epoch == self.steps_per_epoch
        return at_end or self._at_max_steps() or self.position.step % self.config.log.every == 0

    def _log_interval(self) -> None:
        record = self._interval_record(self.interval.record())
        self._accuracy = record["accuracy"]
        report_faults(record)
        self.log.write(record)
        if self.log.records == 1:  # The loggers are imported with it, which is no part of a step's pace.
            self.pace.pause()
        self._show(record)

    def _interval_record(self, means: Mapping[str, Any]) -> dict[str, Any]:
        record = {"epoch": self.position.epoch, "step": self.position.step, **means}
        record["lr"] = self.learning_rate()
        if self.step.scaler.is_enabled():
            # Halved by GradScaler whenever a step was skipped because its gradients overflowed.
            record["loss_scale"] = self.step.scaler.get_scale()
        self._refuse_non_finite(record["losses"])
        return record

    def _line_is_due(self) -> bool:
        longest = self.config.log.seconds
        return longest > 0 and (self._shown is None or time.monotonic() - self._shown >= longest)

    def _show_interval(self) -> None:
        """Show the means so far. They are not written: a run's record must not depend on the time it took."""
        first = self._shown is None
        self._show(self._interval_record(self.interval.means()))
        if first:
            # What the first step compiled would spoil the speed of the interval.
            self.interval.restart_clock()

    def _show(self, record: Mapping[str, Any]) -> None:
        self._shown = time.monotonic()
        self.reporter.interval(record)

    def _refuse_non_finite(
        self, losses: Mapping[str, float], networks: Mapping[str, nn.Module] = MappingProxyType({})
    ) -> None:
        what, details = first_non_finite(losses, self.step.method, networks)
        if what:
            where = f"at step {self.position.step}; {details}, learning rate {self.learning_rate():g}"
            raise NonFinite(f"{what} is not finite {where}; {last_good(self.run)}")

    def _finish_epoch(self) -> None:
        """Average, evaluate and select; a run stopped meanwhile repeats all of it when it is resumed."""
        epoch = self.position.epoch
        self._update_average(epoch)
        recorded = None
        if self.cross_robustness.is_due(epoch, self.config.train.epochs):
            self.reporter.busy("recording cross-robustness")
            recorded = self.cross_robustness.record(self.pace.seconds * self.steps_per_epoch)
        if self.evaluates(epoch, self.config.train.epochs) or self._at_max_steps():
            self._select(epoch)
        if recorded is not None:
            # Not before the selection, which may be stopped: the epoch's end is then repeated.
            self.log.write({"epoch": epoch, "step": self.position.step, **recorded})
        # Only now: a run that is stopped before this has its averaging and selection still to do.
        self.position.epoch += 1
        self.position.in_epoch = 0

    def evaluates(self, epoch: int, epochs: int) -> bool:
        """Whether an epoch, counted from 0, of so many ends with an evaluation."""
        return epoch + 1 == epochs or (epoch + 1) % self.config.selection.every == 0

    def _update_average(self, epoch: int) -> None:
        start = self.config.swa_start
        if self.average is None or start is None or epoch < start:
            return
        # A run that was stopped in the BatchNorm pass has collected this epoch's student already.
        if self.average.count <= epoch - start:
            self.average.collect(self.setup.networks["student"])
        self.reporter.busy("BatchNorm statistics of the averaged student")
        self.average.reestimate(self.stop.checked(self.setup.training.epoch(epoch, purpose="averaging")))

    def _select(self, epoch: int) -> None:
        self.reporter.busy(f"evaluating the epoch on {self.selection.images} images")
        accuracies = self.selection.evaluate(self.setup.networks, "student")
        if self.average is not None and self.average.count:
            accuracies |= self.selection.evaluate({"swa": self.average.network}, "swa")
        record = {"epoch": epoch, "step": self.position.step, **self.selection.record(accuracies)}
        record |= self._too_good.record(self.step.method, self._accuracy, accuracies["student"])
        self.log.write(record)
        self._keep_best(epoch, accuracies)
        self.reporter.epoch(record)

    def _keep_best(self, epoch: int, accuracies: Mapping[str, Mapping[str, float]]) -> None:
        student = {"epoch": epoch, **accuracies["student"]}
        self._keep_if_better(("last", "best"), student, self.setup.networks)
        if "swa" in accuracies and self.average is not None:
            averaged = {"student": self.average.network}
            self._keep_if_better(("swa", "best-swa"), {"epoch": epoch, **accuracies["swa"]}, averaged)

    def _keep_if_better(
        self, names: tuple[str, str], entry: dict[str, Any], networks: Mapping[str, nn.Module]
    ) -> None:
        last, best = names
        self.summary[last] = entry
        if best not in self.summary or self.selection.is_better(entry, self.summary[best]):
            self.summary[best] = entry
            state = {"selected": entry, "split": self.selection.split}
            self.checkpoints.save(best, self.position.step, networks, state)

    def _saved_networks(self) -> dict[str, nn.Module]:
        average = {} if self.average is None else {"swa": self.average.network}
        return {**self.setup.networks, **average}

    def _save_last(self) -> None:
        # Not checked since the last log line: the last good checkpoint must not be overwritten.
        self._refuse_non_finite(self.interval.losses(), self.setup.networks)
        self.log.file.flush()
        self.checkpoints.save("last", self.position.step, self._saved_networks(), self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "position": asdict(self.position),
            "optimizer": self.step.optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "balance": self.step.balance.state,
            "swa_count": 0 if self.average is None else self.average.count,
            "swa_measured": self.average is not None and self.average.measured,
            "interval": self.interval.state(),
            "accuracy": self._accuracy,
            "summary": self.summary,
            "rollbacks": self.rollbacks,
            # A resumed run cuts metrics.jsonl to this length: later lines will be written again.
            "log_length": self.log.file.length,
            "log_sha256": self.log.file.sha256,
        }
