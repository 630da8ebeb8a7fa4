"""Runs a stage's sections against the clock, some beside others."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.display import show
from benchmarks.harness.process import Ended, end, started
from benchmarks.suite.stages import HERE, Section

ALIVE = "import torch; assert torch.ones(8, device='cuda').sum().item() == 8"
"""Fails where the GPU does not compute any more, as after an illegal access."""
ENVIRONMENT = {
    "MPLBACKEND": "Agg",
    # The profiler, taken down and set up again, crashes where CUDA graphs are; PyTorch sees to it for its own
    # graphs only.
    "TEARDOWN_CUPTI": "0",
    "DISABLE_CUPTI_LAZY_REINIT": "1",
}
"""Of a section."""
LINES = 5
"""Of a section's output that are shown when it is done; of one that is not, five times as many."""


class Running:
    """A section's process, in a session of its own, so that all it starts can be ended with it."""

    def __init__(self, section: Section, command: Sequence[str], seconds: float, log: Path) -> None:
        self.section = section
        self.log = log
        self.began = time.monotonic()
        self.until = self.began + seconds
        with log.open("ab") as file:
            file.write(f"\n== {section.name}, at most {seconds:.0f} s\n$ {' '.join(command)}\n".encode())
            file.flush()
            self.place = file.tell()
            self.process = started(command, HERE.parent, file, ENVIRONMENT)

    def ended(self) -> Ended | None:
        """Return how it ended; None while it runs. When its time is over, it is ended."""
        status = self.process.poll()
        if status is None and time.monotonic() < self.until:
            return None
        seconds = time.monotonic() - self.began
        self.end()
        if status is None:
            return Ended("timed out", seconds, f"ended after {seconds:.0f} s", self.output())
        state, reason = ("done", "") if status == 0 else ("failed", f"exit status {status}")
        return Ended(state, seconds, reason, self.output())

    def end(self) -> None:
        """End it, and whatever it has started."""
        end(self.process)

    def output(self) -> str:
        """Return what it has printed."""
        return self.log.read_bytes()[self.place :].decode("utf-8", "replace").strip()


@dataclass(frozen=True)
class Course:
    """How a stage is run.

    Attributes:
        short: the short form.
        seconds: for the whole stage.
        work: folder for the sections' reports, and for what outlives the stage.
        logs: folder for suite.log, and beside.log of what runs beside others.
        given: what the command was given, by name: images, reference; empty: nothing.
        keep: takes a section, how it ended or how far it is, and the file of its report.
        cuda: sections compute on a GPU, which is to answer after each failure.
    """

    short: bool
    seconds: float
    work: Path
    logs: Path
    given: Mapping[str, str]
    keep: Callable[[Section, Ended, Path], None]
    cuda: bool


class Runner:
    """Carries out a course over sections; what is not begun is named."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.deadline = time.monotonic() + course.seconds
        self.reserve = 0.0
        self.beside: list[Running] = []
        self.alive: list[Running] = []

    def run(self, sections: Sequence[Section]) -> None:
        """Run them in order."""
        for number, section in enumerate(sections):
            self.reserve = sum(other.reserve for other in sections[number + 1 :])
            if not self._go_on(section):
                for other in sections[number + 1 :]:
                    self._leave_out(other, f"after {section.name} nothing else makes sense")
                break
        self._join()

    def stop(self) -> None:
        """End what runs, and keep what there is of it."""
        for running in self.alive:
            running.end()
            seconds = time.monotonic() - running.began
            self._keep(running, Ended("stopped", seconds, "the suite was stopped", running.output()))
            self._add_to_common_log(running)
        self.alive.clear()

    def _go_on(self, section: Section) -> bool:
        """Run a section; return whether others may follow."""
        if section.joins:
            self._join(section.reserve)
        left = self.deadline - self.reserve - time.monotonic()
        reason = section.obstacle(self.course.given)
        if not reason and left < section.least:
            reason = "no time left: ask for it with --sections"
        if reason:
            self._leave_out(section, reason)
            return not section.vital
        running = self._begin(section, min(section.seconds, left))
        if section.beside:
            self.beside.append(running)
            return True
        ended = self._wait(running)
        if ended.state == "done":
            return True
        # One that was only too slow has not shown that the others make no sense.
        if section.vital and ended.state == "failed":
            return False
        return time.monotonic() < self.deadline and self._device_answers(section)

    def _begin(self, section: Section, seconds: float) -> Running:
        show(
            f"== {section.name}, at most {seconds:.0f} s"
            + (", beside those that follow" if section.beside else "")
        )
        report = self._report(section)
        for former in (report, report.with_suffix(".png")):
            former.unlink(missing_ok=True)
        blanks = {
            "json": str(report), "work": str(self.course.work),
            # Less what it takes to start and to write.
            "budget": f"{max(10.0, seconds - 15):.0f}",
        }  # fmt: skip
        log = self.course.work / f"{section.name}.log" if section.beside else self.course.logs / "suite.log"
        command = section.command(self.course.short, {**self.course.given, **blanks})
        running = Running(section, command, seconds, log)
        self.alive.append(running)
        return running

    def _wait(self, running: Running) -> Ended:
        """Wait for a section's end; meanwhile keep what it has found, lest the suite itself is killed."""
        kept = time.monotonic()
        while (ended := running.ended()) is None:
            time.sleep(0.1)
            if time.monotonic() - kept > 10:
                for each in self.alive:
                    self._keep(each, Ended("running", time.monotonic() - each.began, "", each.output()))
                kept = time.monotonic()
        self.alive.remove(running)
        self._add_to_common_log(running)
        lines = ended.output.splitlines()
        show(
            "\n".join(f"  {line[:170]}" for line in lines[-LINES if ended.state == "done" else -5 * LINES :])
        )
        show(f"  {running.section.name}: {ended.state} in {ended.seconds:.0f} s {ended.reason}".rstrip())
        self._keep(running, ended)
        return ended

    def _join(self, reserve: float = 0.0) -> None:
        """Wait for all that runs beside, but leave so many seconds of the stage."""
        for running in self.beside:
            running.until = min(running.until, self.deadline - reserve)
            self._wait(running)
        self.beside.clear()

    def _add_to_common_log(self, running: Running) -> None:
        """Sections that run beside others write a file each; those of a stage end up in one."""
        if running.section.beside:
            with (self.course.logs / "beside.log").open("ab") as log:
                log.write(running.log.read_bytes())
            running.log.unlink()

    def _device_answers(self, section: Section) -> bool:
        if not self.course.cuda:
            return True
        try:
            subprocess.run([sys.executable, "-c", ALIVE], timeout=30, check=True, capture_output=True)
        except subprocess.SubprocessError:
            show(f"the GPU does not answer any more after {section.name}")
            return False
        return True

    def _leave_out(self, section: Section, reason: str) -> None:
        show(f"== {section.name}: left out, {reason}")
        self.course.keep(section, Ended("left out", 0.0, reason), self._report(section))

    def _keep(self, running: Running, ended: Ended) -> None:
        self.course.keep(running.section, ended, self._report(running.section))

    def _report(self, section: Section) -> Path:
        return self.course.work / "reports" / f"{section.name}.json"
