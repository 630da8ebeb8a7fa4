"""How a benchmark starts."""

import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

import tyro

from fastpeer.errors import UserError

Arguments = TypeVar("Arguments")


def start(main: Callable[[Arguments], None], arguments: type[Arguments]) -> None:
    """Read the arguments and run `main`; what the user can fix is said in one line."""
    # The released losses warn at each call, and a measured step is no place for that.
    warnings.filterwarnings("ignore", message=".*reduction.*", category=UserWarning)
    signal.signal(signal.SIGTERM, _stop)
    try:
        main(tyro.cli(arguments, description=arguments.__doc__))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _stop(number: int, frame: FrameType | None) -> None:
    """End as after an error, so that the processes that were started are ended too."""
    sys.exit(128 + number)
