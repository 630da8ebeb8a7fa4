"""Changes whole examples of a kind, and counts what comes of it.

`python -m tests.fuzz.fuzzing KIND SEED COUNT` does so in a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeGuard

from fastpeer.errors import UserError
from tests.fuzz.kinds import KINDS
from tests.fuzz.mutations import mutated

LONGEST_S = 5
EXECUTION = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")


class Hang(BaseException):
    """An input took longer than `LONGEST_S`."""


def fuzz(name: str, seed: int, count: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Use changed examples of a kind.

    Returns:
        How many were refused, accepted or failed, and the first lines of each kind of failure.
    """
    kind, source = KINDS[name], random.Random(f"{name} {seed}")
    examples = kind.examples(folder)
    for example in examples:
        # Whatever is imported or compiled for a first one is no hang.
        with suppress(UserError), TemporaryDirectory(dir=folder) as first:
            kind.use(example, Path(first))
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        data = mutated(source.choice(examples), source)
        outcome, failure = outcome_of(name, data, place)
        outcomes[outcome] += 1
        if failure:
            failures.append(f"{name} {seed} #{number}: {failure} {data[:200]!r}")
        shutil.rmtree(place)
    return outcomes, failures


def outcome_of(name: str, data: bytes, place: Path) -> tuple[str, str]:
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[name].use(data, place)
    # The command line makes one line of both.
    except (UserError, OSError):
        return "refused", ""
    except Hang:
        return "hung", "hung"
    except BaseException:
        return "failed", " ".join(traceback.format_exc().splitlines()[-5:])
    return "accepted", ""


@contextmanager
def _limited() -> Iterator[None]:
    """Raise `Hang` after a while of the processor's time, or a longer one: others may want the processor."""

    def stop(number: int, frame: object) -> None:
        raise Hang

    timers = {signal.ITIMER_PROF: signal.SIGPROF, signal.ITIMER_REAL: signal.SIGALRM}
    before = [signal.signal(number, stop) for number in timers.values()]
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    signal.setitimer(signal.ITIMER_REAL, 10 * LONGEST_S)
    try:
        yield
    finally:
        for (timer, number), handler in zip(timers.items(), before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def watch(folder: Path, seen: list[str]) -> None:
    """From now on, note whatever is written outside a folder, and programs and connections begun."""

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event in EXECUTION:
            seen.append(f"{event} {arguments[:2]!r}")
        # Relative to an open folder, which what clears up here alone does.
        elif event in CHANGES and isinstance(arguments[-1], int) and arguments[-1] >= 0:
            return
        elif event in CHANGES or (event == "open" and _writes(arguments)):
            for path in _changed(event, arguments):
                if not path.startswith((str(folder), "/dev/null")):
                    seen.append(f"{event} {path}")

    sys.addaudithook(note)


def _changed(event: str, arguments: tuple[object, ...]) -> Iterator[str]:
    """Yield what is changed, by its path; what a link leads to is not."""
    first = 1 if event == "os.symlink" else 0
    for name in arguments[first : 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
        if _is_path(name):
            yield os.path.abspath(os.fsdecode(name))


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _is_path(value: object) -> TypeGuard[str | bytes | os.PathLike[str]]:
    return isinstance(value, str | bytes | os.PathLike)


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        home, outside = Path(temporary).resolve(), list[str]()
        # PyTorch makes its cache when it is imported.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(home)
        # Made before: to prepare images begins programs.
        KINDS[sys.argv[1]].examples(home)
        watch(home, outside)
        found, broken = fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), home)
    print(json.dumps({"counts": found, "failures": broken[:20], "outside": outside[:20]}))
