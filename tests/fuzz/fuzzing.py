"""Changes whole examples of a kind, and counts what comes of it.

`python -m tests.fuzz.fuzzing KIND SEED COUNT` does so in a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastpeer.errors import UserError
from tests.fuzz.kinds import KINDS

LONGEST_S = 5
TOKENS = (
    b"\0", b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"../", b"/etc/passwd", b"[" * 3000, b"{" * 3000, b"1" * 5000,
    b"a" * 5000, b"1e999999999", b"nan", b"-1", b"0", b"18446744073709551616", b"\x1b[2J", b"\n", b'"', b"'",
    b"=", b"true", b"null", "é∞\u202e".encode(), b"os:_exit", b"this.s", b"--", b" ", b"8/0",
    b"1000000000000",
)  # fmt: skip
"""What readers stumble over."""
WORD = re.compile(rb"[\w.+-]+|\"[^\"]*\"|\[[^\]]*\]")
VALUES = (
    b"0", b"-1", b"1", b"3.5", b"nan", b"inf", b"1e999", b"true", b'"a"', b'""', b"[]", b"[1, 2]", b'["a"]',
    b"{}", b"9" * 20, b"9" * 5000, b"1979-05-27", b'"resnet18"', b'"os:_exit"', b'"this.s"', b'"1/0"', b"on",
    b"0x" + b"f" * 5000,
)  # fmt: skip
"""What may stand in place of a number or word, and leave the rest readable."""
EXECUTION = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")


class Hang(BaseException):
    """An input took longer than `LONGEST_S`."""


def mutated(data: bytes, source: random.Random) -> bytes:
    """Return a changed copy: bytes or bits replaced, parts removed, repeated or moved, tokens inserted."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        start = source.randrange(len(changed) + 1)
        length = min(source.choice((1, 1, 2, 4, 8, 30, 300)), len(changed) - start)
        part = bytes(changed[start : start + length])
        change = source.randrange(11)
        if change > 6 and (words := list(WORD.finditer(changed))):
            word = source.choice(words)
            changed[word.start() : word.end()] = source.choice(VALUES)
        elif change == 0:
            changed[start : start + length] = source.randbytes(length)
        elif change == 1 and part:
            changed[start] ^= 1 << source.randrange(8)
        elif change == 2:
            del changed[start : start + length]
        elif change == 3:
            changed[start:start] = part * source.choice((1, 2, 50))
        elif change == 4:
            changed[start : start + source.choice((0, length))] = source.choice(TOKENS)
        elif change == 5 and source.random() < 0.3:
            del changed[start:]
        else:
            other = source.randrange(len(changed) + 1)
            changed[other:other] = part
    return bytes(changed)


def fuzz(name: str, seed: int, count: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Use changed examples of a kind.

    Returns:
        How many were refused, accepted or failed, and the first lines of each kind of failure.
    """
    kind, source = KINDS[name], random.Random(f"{name} {seed}")
    examples = kind.examples(folder)
    for example in examples:
        # Whatever is imported or compiled for a first one is no hang.
        with suppress(UserError):
            kind.use(example, folder)
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        data = mutated(source.choice(examples), source)
        outcome, failure = _outcome(name, data, place)
        outcomes[outcome] += 1
        if failure:
            failures.append(f"{name} {seed} #{number}: {failure} {data[:200]!r}")
        shutil.rmtree(place)
    return outcomes, failures


def _outcome(name: str, data: bytes, place: Path) -> tuple[str, str]:
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
    """Raise `Hang` after a while."""

    def stop(number: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def watch(folder: Path, seen: list[str]) -> None:
    """From now on, note whatever is written outside a folder, and programs and connections begun."""

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event in EXECUTION:
            seen.append(f"{event} {arguments[:2]!r}")
        # Relative to an open folder, which what clears up here alone does.
        elif event in CHANGES and isinstance(arguments[-1], int) and arguments[-1] >= 0:
            return
        elif event in CHANGES or (event == "open" and _writes(arguments)):
            path = os.path.abspath(os.fsdecode(arguments[0])) if _is_path(arguments[0]) else str(folder)
            if not path.startswith((str(folder), "/dev/null")):
                seen.append(f"{event} {path}")

    sys.addaudithook(note)


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _is_path(value: object) -> bool:
    return isinstance(value, str | bytes | os.PathLike)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        home, outside = Path(temporary).resolve(), list[str]()
        # PyTorch makes its cache when it is imported.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(home)
        watch(home, outside)
        found, broken = fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), home)
    print(json.dumps({"counts": found, "failures": broken[:20], "outside": outside[:20]}))
