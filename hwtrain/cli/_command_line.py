"""The command `hwtrain`: reads the command line, runs a command, reports errors."""

import contextlib
import importlib
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from hwtrain.cli._errors import BadInputError, print_error
from hwtrain.cli._interruption import INTERRUPTED, interruptible
from hwtrain.cli._parser import make_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Bad input is one line on stderr and status 2.

    Args:
      arguments: the command line without the program's name; `sys.argv` by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return _status(words, _tell, _tell_error)


def _status(
    words: list[str],
    interrupted: Callable[[list[str]], int],
    failed: Callable[[Exception], int],
) -> int:
    """Runs the command and returns its exit status.

    Args:
      words: the command line without the program's name.
      interrupted: makes the status after a Ctrl-C, while all that the command has
        under way is still alive.
      failed: likewise after bad input.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that has no ± shows a ?, instead of ending a run of hours there.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    stop = None
    try:
        options = make_parser().parse_args(words)
        gently = options.command == "train"
        with interruptible(gently=gently) as options.stop:
            stop = None if gently else options.stop
            # Not before, because it loads JAX and Flax, and help should come at once.
            command = importlib.import_module(f"hwtrain.cli._{options.command}")
            return command.main(options)
    except (Exception, KeyboardInterrupt) as error:
        # What a library makes of an interrupt in its callback is an interrupt too.
        if isinstance(error, KeyboardInterrupt) or (stop is not None and stop()):
            return interrupted(words)
        if not isinstance(error, BadInputError):
            raise
        return failed(error)


def _tell_error(error: Exception) -> int:
    print_error(f"error: {error}")
    return 2


def run() -> int:
    """Runs the command as a program that ends with it, and returns its exit status.

    While Python takes itself down, another Ctrl-C would come up in whatever is called.
    """
    try:
        status = _status(sys.argv[1:], _leave, _fail)
        if status:
            _end(status)
        return status
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _leave(words: list[str]) -> NoReturn:
    """Ends the process after a Ctrl-C: nothing of what is under way is taken down.

    Threads of XLA still compute with the arrays of the frames that the interrupt came
    up through. Where these go before the process does, it may end by SIGSEGV instead.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _end(_tell(words))


def _fail(error: Exception) -> NoReturn:
    """Ends the process after an error.

    What failed may leave threads of Orbax, which would complain beside the one line, or
    while Python takes itself down.
    """
    threading.excepthook = lambda _: None
    _end(_tell_error(error))


def _end(status: int) -> NoReturn:
    """Ends the process with what was said, and takes nothing down."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _tell(words: list[str]) -> int:
    """Says in one line that a command was interrupted, and returns its exit status."""
    flags = ("--overwrite", "--resume")
    again = shlex.join(["hwtrain", *(word for word in words if word not in flags)])
    if words[:1] == ["train"]:
        then = f"to continue from the last checkpoint: {again} --resume"
    else:
        then = "nothing half-written was left behind"
    print_error(f"interrupted; {then}")
    return INTERRUPTED
