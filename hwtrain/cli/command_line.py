"""The command `hwtrain`: reads the command line, runs a command, reports errors."""

import importlib
import io
import shlex
import signal
import sys
from collections.abc import Sequence

from hwtrain.cli.errors import BadInputError, print_error
from hwtrain.cli.interruption import interruptible
from hwtrain.cli.parser import make_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Bad input is one line on stderr and status 2.

    Args:
      arguments: the command line without the program's name; `sys.argv` by default.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that has no ± shows a ?, instead of ending a run of hours there.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = make_parser().parse_args(words)
    try:
        with interruptible(gently=options.command == "train") as options.stop:
            # Not before, because it loads JAX and Flax, and help should come at once.
            command = importlib.import_module(f"hwtrain.cli.{options.command}")
            return command.main(options)
    except BadInputError as error:
        print_error(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        print_error(_interrupted(words))
        return 130


def run() -> int:
    """Runs the command as a program that ends with it, and returns its exit status.

    While Python takes itself down, another Ctrl-C would come up in whatever is called.
    """
    try:
        return main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupted(words: Sequence[str]) -> str:
    if words[0] != "train":
        return "interrupted; nothing was left behind"
    flags = ("--overwrite", "--resume")
    again = shlex.join(["hwtrain", *(word for word in words if word not in flags)])
    return f"interrupted; to continue from the last checkpoint: {again} --resume"
