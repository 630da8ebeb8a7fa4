"""The `fastpeer` command: finds the subcommand, and turns errors into one line and an exit code."""

import codecs
import io
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

from fastpeer.errors import UserError, printable
from fastpeer.own_code import trusting

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
    sys.exit(main(sys.argv[1:]))


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
        print(f"fastpeer: {printable(error)}", file=sys.stderr)
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
        text = f"{error.filename or 'a file'}: {error.strerror or error}"
        print(f"fastpeer: {printable(text)}", file=sys.stderr)
        return 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


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
    if name == "prep":
        from fastpeer.cli.prep import prep_command as command
    elif name == "train":
        from fastpeer.cli.train import train_command as command
    elif name == "eval":
        from fastpeer.cli.evaluate import eval_command as command
    elif name == "runs":
        from fastpeer.cli.runs import runs_command as command
    elif name == "watch":
        from fastpeer.cli.watch import watch_command as command
    elif name == "report":
        from fastpeer.cli.report import report_command as command
    elif name == "info":
        from fastpeer.cli.info import info_command as command
    elif name == "export":
        from fastpeer.cli.export import export_command as command
    elif name == "compare":
        from fastpeer.cli.compare import compare_command as command
    elif name == "recipes":
        from fastpeer.cli.recipes import recipes_command as command
    else:
        from fastpeer.suggestions import did_you_mean

        known = (
            "prep", "train", "eval", "runs", "watch", "report", "info", "export", "compare", "recipes",
        )  # fmt: skip
        raise UserError(f"no command {name}; {did_you_mean(name, known)}")
    return command
