"""The command `hwtrain`: reads the command line, runs a command, reports errors."""

import contextlib
import importlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from hwtrain.cli.errors import BadInputError, print_error
from hwtrain.cli.interruption import INTERRUPTED, interruptible
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
    stop = None
    try:
        options = make_parser().parse_args(words)
        gently = options.command == "train"
        with interruptible(gently=gently) as options.stop:
            stop = None if gently else options.stop
            # Not before, because it loads JAX and Flax, and help should come at once.
            command = importlib.import_module(f"hwtrain.cli.{options.command}")
            return command.main(options)
    except (Exception, KeyboardInterrupt) as error:
        # What a library makes of an interrupt in its callback is an interrupt too.
        if isinstance(error, KeyboardInterrupt) or (stop is not None and stop()):
            print_error(_interrupted(words))
            return INTERRUPTED
        if not isinstance(error, BadInputError):
            raise
        print_error(f"error: {error}")
        return 2


def run() -> int:
    """Runs the command as a program that ends with it, and returns its exit status.

    While Python takes itself down, another Ctrl-C would come up in whatever is called.
    After one, Python is not taken down at all: libraries that were left in the middle
    of something may crash, and Python may end itself by a signal instead.
    """
    try:
        status = main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if status == INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    return status


def _interrupted(words: Sequence[str]) -> str:
    if words[:1] != ["train"]:
        return "interrupted; nothing half-written was left behind"
    flags = ("--overwrite", "--resume")
    again = shlex.join(["hwtrain", *(word for word in words if word not in flags)])
    return f"interrupted; to continue from the last checkpoint: {again} --resume"
