"""How a benchmark starts."""

import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

import tyro

from fastpeer.errors import UserError

Arguments = TypeVar("Arguments")


def start(main: Callable[[Arguments], None], arguments: type[Arguments]) -> None:
    """Read the arguments and run `main`; what the user can mend is said in one line."""
    # The released losses warn at each call, and a measured step is no place for that.
    warnings.filterwarnings("ignore", message=".*reduction.*", category=UserWarning)
    try:
        main(tyro.cli(arguments, description=arguments.__doc__))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
