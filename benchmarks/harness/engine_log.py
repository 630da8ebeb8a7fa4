"""What the engine logs of parts that it goes without, kept for the step that it is about."""

import logging
from types import TracebackType


class EngineLog(logging.Handler):
    """Collects what fastpeer logs within `with log:`; several steps measured in turn have one each.

    Attributes:
        lines: what was logged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._logger = logging.getLogger("fastpeer")

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's text."""
        self.lines.append(record.getMessage())

    def __enter__(self) -> "EngineLog":
        """Begin to listen."""
        self._logger.addHandler(self)
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
