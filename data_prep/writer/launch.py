"""Runs the writer in a process group of its own, and ends the whole group when anything goes wrong.

FFCV waits for ever once one of its workers has died. So a process apart (`process.py`) does the writing;
its reports come through a pipe as lines of JSON, and this side can end it at any time.
"""

from __future__ import annotations

import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import IO, Any

from fastpeer.data_prep.destination import undisturbed
from fastpeer.data_prep.options import Progress
from fastpeer.data_prep.writer.messages import Job
from fastpeer.errors import UserError

MODULE = "fastpeer.data_prep.writer.process"
READ_SIZE = 1 << 16
STDERR_KEPT = 4000  # bytes
TERMINATION_TIMEOUT_S = 10
POLL_S = 1.0


def run_writer(job: Job, progress: Progress) -> dict[str, Any]:
    """Write the data set and return the content of its `dataset.json`.

    Raises:
        UserError: the writer found the source, the disk or the memory at fault.
        RuntimeError: the writer process ended unexpectedly; carries its last messages.
    """
    process = _start(job)
    listener = _Listener(process, progress)
    try:
        listener.listen()
    finally:
        with undisturbed():
            _end_group(process)
    if listener.manifest is None:
        raise _failure(listener, process.returncode)
    return listener.manifest


def _start(job: Job) -> subprocess.Popen[bytes]:
    """Start the writer in the job's folder: it is empty, so that no file there is imported as a module."""
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=job.folder,
        # FFCV fills a dictionary of numba's when it is imported, which numba compiles for, four seconds long;
        # nothing that writes is compiled.
        env={**os.environ, "TQDM_DISABLE": "1", "NUMBA_DISABLE_JIT": "1"},
        start_new_session=True,
    )
    stdin = _stream(process.stdin)
    with suppress(BrokenPipeError), stdin:
        stdin.write(pickle.dumps(job))
    return process


class _Listener:
    """Reads reports and messages of errors from two pipes, which every process of the writer holds."""

    def __init__(self, process: subprocess.Popen[bytes], progress: Progress) -> None:
        self.process = process
        self.progress = progress
        self.manifest: dict[str, Any] | None = None
        self.error: str | None = None
        self.stderr = b""
        self._done: Counter[str] = Counter()
        self._rest = b""
        self._reports = _stream(process.stdout)
        self._messages = _stream(process.stderr)

    def listen(self) -> None:
        """Return at the first error, once both pipes are closed, or when the workers outlive the writer."""
        with selectors.DefaultSelector() as selector:
            for stream in (self._reports, self._messages):
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map() and self.error is None:
                ready = selector.select(POLL_S)
                if not ready and _has_ended(self.process):
                    return
                for key, _ in ready:
                    if not self._read(key):
                        selector.unregister(key.fileobj)

    def _read(self, key: selectors.SelectorKey) -> bool:
        """Take what has arrived in a pipe; False when it is closed."""
        data = os.read(key.fd, READ_SIZE)
        if key.fileobj is self._reports:
            self._take_reports(data)
        else:
            self.stderr = (self.stderr + data)[-STDERR_KEPT:]
        return bool(data)

    def _take_reports(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            report = json.loads(line)
            if "error" in report:
                self.error = self.error or report["error"]
            elif "manifest" in report:
                self.manifest = report["manifest"]
            else:
                stage = report["stage"]
                self._done[stage] += report["done"]
                self.progress(stage, self._done[stage], report["total"])


def _failure(listener: _Listener, code: int) -> Exception:
    if listener.error is not None:
        return UserError(listener.error)
    if code == -signal.SIGKILL:
        return UserError("the writer was killed, most likely for lack of memory: give it fewer --workers")
    messages = listener.stderr.decode("utf-8", "replace").strip()
    return RuntimeError(f"the writer ended with exit status {code}: {messages or 'no message'}")


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether the writer has ended; it stays a zombie, so that its group's number is not given anew."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End all processes of the writer, and return once they are gone with their shared memory.

    Python's resource tracker ignores SIGTERM; it removes the shared memory when all others are gone, and
    being the last to hold the pipe of error messages, it closes that then.
    """
    streams = [_stream(process.stdout), _stream(process.stderr)]
    _signal_group(process, signal.SIGTERM)
    if not _drain(streams):
        _signal_group(process, signal.SIGKILL)
    process.wait()
    for stream in streams:
        stream.close()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _drain(streams: list[IO[bytes]]) -> bool:
    """Read until all writers have closed the pipes; False if they have not in time."""
    deadline = time.monotonic() + TERMINATION_TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return False
            for key, _ in ready:
                if not os.read(key.fd, READ_SIZE):
                    selector.unregister(key.fileobj)
    return True


def _stream(pipe: IO[bytes] | None) -> IO[bytes]:
    """Return a pipe that Popen was told to open."""
    assert pipe is not None
    return pipe
