"""The output folder: what may be replaced, and how the new one takes its place."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import secrets
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastpeer.errors import UserError, one_line

MANIFEST = "dataset.json"
PREPARED_FILES = frozenset({"train.beton", "test.beton", MANIFEST})


class Destination:
    """The folder `out`, which stays as it is until `put_in_place`.

    Args:
        out: the folder to make.
        force: allow a prepared data set there to be replaced.
    """

    def __init__(self, out: Path, force: bool) -> None:
        self.shown = out
        self.out = out.resolve()
        self.force = force

    def check(self) -> None:
        """Raise UserError unless `out` is free, empty, or a prepared data set and force is given."""
        if not os.path.lexists(self.out):
            return
        if not self.out.is_dir():
            raise UserError(f"{self.shown} is a file: choose another folder as --out")
        if names := self._names():
            self._check_replaceable(names)

    def _names(self) -> set[str]:
        try:
            return set(os.listdir(self.out))
        except OSError as error:
            raise UserError(f"cannot read {self.shown} ({error.strerror}): choose another --out") from error

    def _check_replaceable(self, names: set[str]) -> None:
        # Replacing removes the whole folder: nothing of the user's may lie in it.
        if not is_prepared(self.out):
            raise UserError(f"{self.shown} holds other files: choose a new or an empty folder as --out")
        if odd := sorted(names - PREPARED_FILES):
            raise UserError(
                f"{self.shown} holds {odd[0]} besides a data set: move it out or choose another --out"
            )
        if not self.force:
            raise UserError(f"{self.shown} already holds a data set: pass --force to replace it")

    @contextmanager
    def partial(self) -> Iterator[Path]:
        """Yield a new folder beside `out` to write into; it is gone when the block is left."""
        # Beside it, to be on the same disk, where a rename is all that remains to be done.
        folder = self._beside("partial")
        try:
            held = self._make(folder)
            try:
                yield folder
            finally:
                os.close(held)
        finally:
            with undisturbed():
                shutil.rmtree(folder, ignore_errors=True)

    def _make(self, folder: Path) -> int:
        """Make the folder, and return a descriptor of it whose lock tells others that it is written to."""
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            held = os.open(folder, os.O_RDONLY)
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise UserError(f"cannot write beside {self.shown} ({reason}): choose another --out") from error
        _is_free(held)
        return held

    def clear_leftovers(self) -> None:
        """Remove what killed preparations of `out` have left; a data set that one had moved goes back."""
        for old in sorted(self.out.parent.glob(f".{glob.escape(self.out.name)}.old-????????")):
            with suppress(OSError):
                if not os.path.lexists(self.out):
                    old.rename(self.out)
            _remove_if_free(old)
        for partial in self.out.parent.glob(f".{glob.escape(self.out.name)}.partial-????????"):
            _remove_if_free(partial)

    def put_in_place(self, folder: Path) -> None:
        """Rename `folder` to `out`; a data set that stood there is removed only afterwards."""
        old = self._beside("old")
        with undisturbed():
            self.check()
            try:
                if self.out.exists():
                    self.out.rename(old)
                folder.rename(self.out)
            except OSError as error:
                with suppress(OSError):
                    old.rename(self.out)
                raise UserError(f"cannot put {self.shown} in place ({one_line(error)}): try again") from error
            shutil.rmtree(old, ignore_errors=True)

    def _beside(self, purpose: str) -> Path:
        return self.out.with_name(f".{self.out.name}.{purpose}-{secrets.token_hex(4)}")


def _remove_if_free(folder: Path) -> None:
    """Remove a folder, unless a process that is running writes to it, or that cannot be told."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if _is_free(descriptor):
                shutil.rmtree(folder)
        finally:
            os.close(descriptor)


def _is_free(folder: int) -> bool:
    """Lock an open folder, if no other process has; the lock ends with the process, however that ends."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_prepared(folder: Path) -> bool:
    """Tell whether `folder` carries an FFCV file or a `dataset.json` of this project."""
    if (folder / "train.beton").is_file():
        return True
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "format" in manifest and "splits" in manifest


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back Ctrl-C, SIGTERM and SIGHUP for the few moments of a clean-up."""
    ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
