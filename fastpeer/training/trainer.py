"""Epochs of steps, with averaging, selection, checkpoints and a log."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from fastpeer.checkpoint import load_networks, load_state, save_checkpoint
from fastpeer.config import Config
from fastpeer.data.stream import Batch
from fastpeer.errors import UserError, brief, one_line
from fastpeer.kernels.refusal import KernelRefusal
from fastpeer.run_folder import RunFolder
from fastpeer.step.step import StepResult, TrainingStep
from fastpeer.training.averaging import AveragedStudent
from fastpeer.training.log import Interval, MetricsLog
from fastpeer.training.memory import out_of_memory
from fastpeer.training.progress import Reporter
from fastpeer.training.schedule import learning_rate
from fastpeer.training.selection import Selection
from fastpeer.training.setup import TrainingSetup
from fastpeer.training.signals import Stopped, StopRequest

log = logging.getLogger(__name__)


@dataclass
class Position:
    """How far a run has come: the next step is number `in_epoch` of `epoch`, number `step` of the run."""

    epoch: int = 0
    in_epoch: int = 0
    step: int = 0


class Trainer:
    """Carries a run from where it stands to its end.

    Args:
        run: where it lies.
        config: its settings.
        setup: data, networks and device.
        reporter: shows progress.
        stop: asked between steps.
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
        self.selection = Selection(
            config, setup.selection, self.step.victim_factory, setup.method.seeks_robustness, stop.check,
            self.step.recorded,
        )  # fmt: skip
        self.average: AveragedStudent | None = None
        if config.swa_start is not None:
            student = setup.networks["student"]
            self.average = AveragedStudent(student, setup.number_format, self.step.recorded)
        self.interval = Interval.of(self.step)
        self.summary: dict[str, dict[str, Any]] = {}
        self._log_length = 0

    def train(self) -> None:
        """Run all epochs that are left.

        Raises:
            Stopped: on demand, after everything was saved.
            UserError: a loss is not finite.
        """
        tensorboard = self.run.path / "tensorboard" if self.config.log.tensorboard else None
        self.log = MetricsLog(self.run.metrics_file, self._log_length, tensorboard, self.position.step)
        with closing(self.log):
            if not (self.run.checkpoints / "last").exists():
                # So that a run can be resumed from whatever it began with.
                self._save_last()
            if self._finished():
                log.info("finished already; more --train.epochs would let it go on")
            try:
                self._run_epochs()
            except Stopped:
                self._refuse_non_finite(self.interval.losses())
                self._save_last()
                raise

    def _run_epochs(self) -> None:
        with self.reporter.running(self.position.step, self._total_steps(), self._steps_per_epoch):
            while not self._finished():
                self._run_epoch()

    def resume(self) -> None:
        """Take up the run's last checkpoint.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        folder = self.run.checkpoints / "last"
        state = load_state(folder)
        load_networks(folder, self._saved_networks())
        try:
            self._take_up(state)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{folder / 'state.pt'}: damaged or not this run's checkpoint") from None

    def _take_up(self, state: Mapping[str, Any]) -> None:
        self.step.load_optimizer(state["optimizer"])
        self.step.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.count = state["swa_count"]
            self.average.measured = state["swa_measured"]
        self.position = Position(**state["position"])
        # At an epoch's start, of the one before: sums and weights are of its table.
        self._take_table(max(0, self.position.epoch - (self.position.in_epoch == 0)))
        self.step.balance.load_state(state.get("balance", {}))
        self.interval.load_state(state["interval"])
        self.summary = state["summary"]
        self._log_length = state["log_length"]

    @property
    def _steps_per_epoch(self) -> int:
        return self.setup.training.steps_per_epoch

    def _total_steps(self) -> int:
        total = self.config.train.epochs * self._steps_per_epoch
        return min(total, self.config.train.max_steps or total)

    def _finished(self) -> bool:
        return self.position.epoch >= self.config.train.epochs or self._at_limit()

    def _at_limit(self) -> bool:
        return 0 < self.config.train.max_steps <= self.position.step

    def _take_table(self, epoch: int) -> None:
        """Go on by the table of an epoch, where the method has another one from then on."""
        method = self.setup.method.at(epoch)
        if method is not self.step.method:
            self.step.use(method)
            self.interval = Interval.of(self.step)

    def _run_epoch(self) -> None:
        self._take_table(self.position.epoch)
        self.step.set_learning_rate(learning_rate(self.config, self.position.epoch))
        self._run_steps()
        if self.position.in_epoch == self._steps_per_epoch:
            self._close_epoch()
        else:
            log.info("stopped at step %d, within an epoch: train.max_steps", self.position.step)
        self._save_last()

    def _run_steps(self) -> None:
        position = self.position
        self.interval.restart_clock()
        with closing(self.setup.training.epoch(position.epoch, position.in_epoch)) as batches:
            for batch in batches:
                result = self._train_on(batch)
                self._report_compiling()
                position.in_epoch += 1
                position.step += 1
                self.interval.add(result, len(batch.labels))
                self.reporter.step(position.step)
                if self._at_log_line():
                    self._log_interval()
                if self._at_limit():
                    return
                self.stop.check()

    def _train_on(self, batch: Batch) -> StepResult:
        try:
            return self.step(batch, self.position.step)
        except torch.OutOfMemoryError:
            pass  # What the step allocated is free only once the exception is gone.
        except Exception as error:  # Triton's errors have no class in common but this one.
            if reason := self._reason(error):
                raise UserError(reason) from None
            raise
        raise UserError(out_of_memory(self.step, batch))

    def _report_compiling(self) -> None:
        if self.step.compiler is not None and (line := self.step.compiler.news()):
            log.info(line)

    def _reason(self, error: Exception) -> str:
        """Say what of a step's error the user can fix; nothing, if it is another one."""
        if isinstance(error, KernelRefusal) or type(error).__module__.partition(".")[0] == "triton":
            return f"{one_line(error)}; --engine.kernels off does without Triton"
        if "more than 1 value per channel" in str(error):
            return "BatchNorm cannot train on a batch of one: --data.drop-last or another --train.batch-size"
        if self.step.differentiates_twice and "is not implemented" in str(error):
            method, student = self.config.method, self.config.model.student
            return f"{method} differentiates the student twice, and {student} cannot be ({brief(error)})"
        return ""

    def _at_log_line(self) -> bool:
        at_end = self.position.in_epoch == self._steps_per_epoch
        return at_end or self._at_limit() or self.position.step % self.config.log.every == 0

    def _log_interval(self) -> None:
        record = {"epoch": self.position.epoch, "step": self.position.step, **self.interval.record()}
        record["lr"] = learning_rate(self.config, self.position.epoch)
        if self.step.scaler.is_enabled():
            # Halves whenever a step was left out because its gradients overflowed.
            record["loss_scale"] = self.step.scaler.get_scale()
        self._refuse_non_finite(record["losses"])
        self._report_faults(record)
        self.log.write(record)
        self.reporter.interval(record)

    def _report_faults(self, record: Mapping[str, Any]) -> None:
        """Say what low precision swallowed: it would look like a weak attack or a slow start."""
        if "nan_gradients" in record:
            found = record["step"], record["nan_gradients"]
            log.warning("step %d: %d pixels of the attack met a NaN gradient", *found)
        if "skipped_steps" in record:
            found = record["step"], record["skipped_steps"]
            log.warning("step %d: %d steps left out, fp16 gradients overflowed", *found)

    def _refuse_non_finite(self, losses: Mapping[str, float]) -> None:
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        if bad:
            last = self.run.checkpoints / "last"
            kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"
            raise UserError(f"the loss {bad[0]} is not finite at step {self.position.step}; {kept}")

    def _close_epoch(self) -> None:
        """Average, evaluate and select. Done again from the start if it is interrupted."""
        epoch = self.position.epoch
        self._update_average(epoch)
        last = epoch + 1 == self.config.train.epochs
        if last or (epoch + 1) % self.config.selection.every == 0 or self._at_limit():
            self._select(epoch)
        self.position.epoch += 1
        self.position.in_epoch = 0

    def _update_average(self, epoch: int) -> None:
        start = self.config.swa_start
        if self.average is None or start is None or epoch < start:
            return
        if self.average.count <= epoch - start:
            self.average.collect(self.setup.networks["student"])
        self.average.reestimate(self._checked(epoch))

    def _checked(self, epoch: int) -> Iterator[Batch]:
        for batch in self.setup.training.epoch(epoch, purpose="averaging"):
            self.stop.check()
            yield batch

    def _select(self, epoch: int) -> None:
        found = self.selection.evaluate(self.setup.networks, "student")
        if self.average is not None and self.average.count:
            found |= self.selection.evaluate({"swa": self.average.network}, "swa")
        record = {
            "epoch": epoch,
            "step": self.position.step,
            "split": self.selection.split,
            "images": self.selection.images,
            "precision": self.config.precision,
            "selection": found,
        }
        self.log.write(record)
        self._keep_best(epoch, found)
        self.reporter.epoch(record)

    def _keep_best(self, epoch: int, found: Mapping[str, Mapping[str, float]]) -> None:
        self._keep_if_better(("last", "best"), {"epoch": epoch, **found["student"]}, self.setup.networks)
        if "swa" in found and self.average is not None:
            averaged = {"student": self.average.network}
            self._keep_if_better(("swa", "best-swa"), {"epoch": epoch, **found["swa"]}, averaged)

    def _keep_if_better(
        self, names: tuple[str, str], entry: dict[str, Any], networks: Mapping[str, nn.Module]
    ) -> None:
        last, best = names
        self.summary[last] = entry
        if best not in self.summary or self.selection.is_better(entry, self.summary[best]):
            self.summary[best] = entry
            self._save_best(best, networks)

    def _saved_networks(self) -> dict[str, nn.Module]:
        average = {} if self.average is None else {"swa": self.average.network}
        return {**self.setup.networks, **average}

    def _save_last(self) -> None:
        networks, state = self._saved_networks(), self._state()
        save_checkpoint(self.run.checkpoints, "last", self.position.step, networks, state)

    def _save_best(self, name: str, networks: Mapping[str, nn.Module]) -> None:
        state = {"selected": self.summary[name], "split": self.selection.split}
        save_checkpoint(self.run.checkpoints, name, self.position.step, networks, state)

    def _state(self) -> dict[str, Any]:
        return {
            "format": 1,
            "position": asdict(self.position),
            "optimizer": self.step.optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "balance": self.step.balance.state,
            "swa_count": 0 if self.average is None else self.average.count,
            "swa_measured": self.average is not None and self.average.measured,
            "interval": self.interval.state(),
            "summary": self.summary,
            "log_length": self.log.length,
        }
