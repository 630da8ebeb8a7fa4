"""The `fastpeer` command: finds the subcommand, and turns errors into one line and an exit code."""

import codecs
import gc
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import pairwise
from textwrap import fill

from fastpeer.errors import UserError, printable
from fastpeer.own_code import trusting

COMMANDS = {
    "prep": "prep",
    "train": "train",
    "eval": "evaluate",
    "runs": "runs",
    "watch": "watch",
    "report": "report",
    "info": "info",
    "export": "export",
    "compare": "compare",
    "recipes": "recipes",
}
"""By the commands: the modules of `fastpeer.cli` that hold them."""
HELP = """\
usage: fastpeer COMMAND [OPTIONS]

Trains small networks that withstand adversarial attacks, with a peer instead of a teacher (PeerAiD).

commands:
  prep     turn a data set into .beton files        fastpeer prep --dataset cifar10
  train    train a robust student                   fastpeer train cifar10-resnet18 --amp
  eval     attack what was trained                  fastpeer eval runs/cifar10-resnet18
  runs     list runs and how far they are           fastpeer runs
  watch    show runs while they train               fastpeer watch runs/cifar10-resnet18
  report   make a page about runs, with charts      fastpeer report runs/cifar10-resnet18
  info     tell what is known of weights or a run   fastpeer info net.pth
  export   write a network for other programs       fastpeer export runs/mine --to exported
  compare  costs and accuracies side by side        fastpeer compare runs/mine runs/yours
  recipes  list the shipped recipes                 fastpeer recipes

fastpeer COMMAND --help tells all options of a command; fastpeer --version its version."""


SPELLED_OUT = {
    "α": "alpha", "γ": "gamma", "ε": "epsilon", "λ": "lambda", "τ": "tau",
    "×": "x", "±": "+-", "²": "^2", "∞": "inf", "…": "...", "–": "-", "−": "-",
}  # fmt: skip
"""What a terminal of few characters is given instead."""


def run() -> None:
    """Entry point of the console script."""
    codecs.register_error("spell out", _spell_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # ASCII and Latin-1 locales have no τ, which the help needs.
            stream.reconfigure(errors="spell out")
    code = main(sys.argv[1:])
    # The interpreter's end would look through all objects of PyTorch for garbage, which takes half a second.
    # Triton's bindings list everything that is left at the end as leaked.
    if "triton" not in sys.modules:
        gc.freeze()
    sys.exit(code)


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(SPELLED_OUT.get(letter, "?") for letter in missing), error.end


def main(words: Sequence[str]) -> int:
    """Run a command line and return the exit code: 0 done, 2 an error of the user's, 130 stopped."""
    try:
        with trusting(_trusted(words)):
            _dispatch(list(words))
    except UserError as error:
        _complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("fastpeer: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output went away; what was saved is saved.
        sys.stderr.write("fastpeer: stopped, nobody reads the output\n")
        return 1
    except RecursionError:
        # Of a file in JSON or TOML; what is nested in a sensible way does not come near.
        print("fastpeer: a file is nested too deeply to be read", file=sys.stderr)
        return 2
    except MemoryError:
        print("fastpeer: there is not enough memory for that", file=sys.stderr)
        return 1
    except OSError as error:
        _complain(f"{error.filename or 'a file or the output'}: {error.strerror or error}")
        return 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def _complain(what: object) -> None:
    """Print a complaint to standard error: broken between words on a terminal, in one line elsewhere."""
    line = f"fastpeer: {printable(what)}"
    if sys.stderr.isatty():
        with suppress(OSError):
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            line = fill(line, max(width, 20), break_long_words=False, break_on_hyphens=False)
    print(line, file=sys.stderr)


def _trusted(words: Sequence[str]) -> set[str] | None:
    """Return what a command may import, which is what its line names; None: whatever its files name, too."""
    # Of --model.student=nets:Net, what stands behind the sign.
    for word, value in pairwise([*words, ""]):
        if word == "--trust=true" or (word == "--trust" and value.lower() != "false"):
            return None
    return {word.partition("=")[2] or word for word in words}


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
    elif words[0] == "--version":
        from fastpeer import __version__

        print(f"fastpeer {__version__}")
    else:
        _command(words[0])(words[1:])


def _command(name: str) -> Callable[[list[str]], None]:
    """Find a command; each imports only what it needs."""
    if name not in COMMANDS:
        from fastpeer.suggestions import did_you_mean

        raise UserError(f"no command {name}; {did_you_mean(name, COMMANDS)}")
    module = import_module(f"fastpeer.cli.{COMMANDS[name]}")
    command: Callable[[list[str]], None] = getattr(module, f"{name}_command")
    return command
