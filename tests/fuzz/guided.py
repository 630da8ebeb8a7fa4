"""Changes that coverage guides: python -m tests.fuzz.guided KIND SECONDS, behind pip install atheris.

What reaches new lines of fastpeer, or of the readers of TOML, zip and tar files, is kept and changed further.
A failure is printed with its input and the search goes on; a crash of the interpreter ends it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import atheris

with atheris.instrument_imports(include=["fastpeer", "tomllib", "tomli", "zipfile", "tarfile"]):
    from tests.fuzz.fuzzing import outcome_of, watch
    from tests.fuzz.kinds import KINDS


class Search:
    """Uses what libFuzzer makes of the examples of a kind, for so many seconds."""

    def __init__(self, name: str, seconds: float, home: Path, examples: list[bytes]) -> None:
        self._name, self._home = name, home
        self._counts: Counter[str] = Counter()
        self._outside: list[str] = []
        self._known: set[str] = set()
        for example in examples:
            # What is imported for the first one takes its time.
            self._outcome(example)
        watch(home, self._outside)
        self._end = time.monotonic() + seconds

    def use(self, data: bytes) -> None:
        """Use one input, and print a failure that is new, or what was written elsewhere."""
        outcome, failure = self._outcome(data)
        self._counts[outcome] += 1
        for what in {failure, *self._outside} - {""} - self._known:
            print(f"{self._name}: {what} {data!r:.400}", flush=True)
            self._known.add(what)
        self._outside.clear()
        if time.monotonic() > self._end:
            print(f"{self._name}: {dict(self._counts)}", flush=True)
            shutil.rmtree(self._home)
            # libFuzzer calls this from C++, where an exception would be reported as a crash.
            os._exit(0)

    def _outcome(self, data: bytes) -> tuple[str, str]:
        with TemporaryDirectory(dir=self._home) as place:
            return outcome_of(self._name, data, Path(place))


def main(name: str, seconds: float) -> None:
    """Search; ends the process."""
    home = Path(mkdtemp()).resolve()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(home)
    corpus, examples = home / "corpus", KINDS[name].examples(home)
    corpus.mkdir()
    for number, example in enumerate(examples):
        (corpus / str(number)).write_bytes(example)
    # The limits of time are those of the other changes; both would take the same signal.
    limits = ["-timeout=0", "-rss_limit_mb=0", "-max_len=65536", "-verbosity=0", f"-artifact_prefix={home}/"]
    atheris.Setup([sys.argv[0], str(corpus), *limits], Search(name, seconds, home, examples).use)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
