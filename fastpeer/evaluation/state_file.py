"""What a stopped evaluation goes on from: a checked JSON file, named after what is evaluated and how."""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from fastpeer.errors import UserError, one_line
from fastpeer.files import read_text, write_atomically

log = logging.getLogger(__name__)
State = TypeVar("State")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


class StateFile:
    """Keeps the state of an evaluation in `folder`.

    Args:
        folder: created with the first state.
        kind: what the file's name begins with.
        title: the evaluation's name in the log.
        facts: weights, data and settings, as JSON can write them; the state of any others is not taken.
        format: number of the present form of a state.
    """

    def __init__(self, folder: Path, kind: str, title: str, facts: Mapping[str, Any], format: int) -> None:
        self.facts = json.loads(json.dumps(facts))
        self.folder, self.kind, self.title, self.format = folder, kind, title, format
        self.path = folder / f"{kind}-{_sha256(self.facts)[:12]}.json"
        self._warned = False

    def read(self, check: Callable[[Mapping[str, Any]], State]) -> State | None:
        """Return what `check` makes of the state in the file; None, and a line in the log, if it cannot.

        `check` raises any of `UNREADABLE` for a state that this evaluation cannot go on from: anybody may
        have written the file.
        """
        try:
            return check(self._found())
        except FileNotFoundError:
            self._name_older()
        except UNREADABLE as error:
            log.warning("%s: not used (%s); %s begins anew", self.path, one_line(error), self.title)
        return None

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the file; where that fails, log it once and go on without."""
        entry = {"format": self.format, "facts": self.facts, **state}
        entry["sha256"] = _sha256(entry)
        try:
            self.folder.mkdir(exist_ok=True)
            write_atomically(self.path, json.dumps(entry) + "\n")
        except (OSError, UserError) as error:
            if not self._warned:
                log.warning("%s: cannot be written (%s); a stop would lose the work", self.path, error)
            self._warned = True

    def _found(self) -> Mapping[str, Any]:
        found: dict[str, Any] = json.loads(read_text(self.path))
        if found.pop("sha256") != _sha256(found) or found["facts"] != self.facts:
            raise ValueError("it is damaged")
        if found["format"] != self.format:
            raise ValueError(f"its format must be {self.format}, got {found['format']}")
        return found

    def _name_older(self) -> None:
        """Log each file of the same weights in an older format: its name may come of other facts."""
        for path in sorted(self.folder.glob(f"{self.kind}-*.json")):
            with suppress(*UNREADABLE, UserError):
                found = json.loads(read_text(path))
                same = found["facts"]["weights_sha256"] == self.facts["weights_sha256"]
                if same and found["format"] < self.format:
                    log.warning(
                        "%s: of an older fastpeer (format %s, now %s), not used; %s begins anew",
                        path, int(found["format"]), self.format, self.title,
                    )  # fmt: skip


def _sha256(entry: Mapping[str, Any]) -> str:
    return sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
