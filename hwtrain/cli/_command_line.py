"""The command `hwtrain`: parses the command line, runs a command, reports errors."""

import contextlib
import errno
import importlib
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from hwtrain._memory import keep_memory
from hwtrain.cli._errors import BadInputError, print_error
from hwtrain.cli._interruption import INTERRUPTED, interruptible
from hwtrain.cli._parser import make_parser

_CONTINUED = ("train", "sweep")
"""Commands that are continued after a Ctrl-C, which they check for themselves."""

_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EPIPE)
"""Why a stream cannot be written: a full disk, or a reader that has gone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Bad input gives one line on stderr and status 2.

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
      interrupted: returns the status after a Ctrl-C; called while everything that the
        command started is still alive.
      failed: returns the status after bad input, likewise.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal without ± shows a ?, instead of failing after hours of training.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    stop = None
    try:
        options = make_parser().parse_args(words)
        gently = options.command in _CONTINUED
        with interruptible(gently=gently) as options.stop:
            stop = None if gently else options.stop
            # Imported late, because it loads JAX and Flax and --help should be fast.
            command = importlib.import_module(f"hwtrain.cli._{options.command}")
            status = command.main(options)
            sys.stdout.flush()
            return status
    except (Exception, KeyboardInterrupt) as error:
        # A library may turn an interrupt in its callback into an error of its own.
        if isinstance(error, KeyboardInterrupt) or (stop is not None and stop()):
            return interrupted(words)
        # A stream has no file's name.
        if isinstance(error, OSError) and error.filename is None:
            if error.errno in _UNWRITTEN:
                said = f"the output could not be written: {error.strerror}"
                return failed(BadInputError(said))
        if not isinstance(error, BadInputError):
            raise
        return failed(error)


def _tell_error(error: Exception) -> int:
    print_error(f"error: {error}")
    return 2


def run() -> int:
    """Runs the command as a program and returns its exit status.

    During Python's shutdown, another Ctrl-C would surface in unrelated code.
    """
    for name in ("stdout", "stderr"):
        # Closed, as by `>&-`. The next file to be opened would be taken for it.
        if getattr(sys, name) is None:
            stream = open(os.devnull, "w")
            os.set_inheritable(stream.fileno(), True)  # for the runs of a sweep
            setattr(sys, name, stream)
    if sys.argv[1:2] in (["train"], ["evaluate"]):
        keep_memory()  # of the program's own process
    try:
        status = _status(sys.argv[1:], _leave, _fail)
        if status:
            _end(status)
        return status
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _leave(words: list[str]) -> NoReturn:
    """Ends the process after a Ctrl-C without cleaning up.

    XLA's threads still compute with arrays of the interrupted frames. If these are
    freed before the process ends, it may end with SIGSEGV instead.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _end(_tell(words))


def _fail(error: Exception) -> NoReturn:
    """Ends the process after an error without cleaning up.

    The failure may leave threads of Orbax that would print their own errors beside the
    one line, or during Python's shutdown.
    """
    threading.excepthook = lambda _: None
    _end(_tell_error(error))


def _end(status: int) -> NoReturn:
    """Ends the process after flushing its output, without cleaning up."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _tell(words: list[str]) -> int:
    """Prints one line about the interruption and returns the exit status."""
    flags = ("--overwrite", "--resume")
    again = shlex.join(["hwtrain", *(word for word in words if word not in flags)])
    if words and words[0] in _CONTINUED:
        then = f"to continue, from the last checkpoint if any: {again} --resume"
    else:
        then = "nothing half-written was left behind"
    print_error(f"interrupted; {then}")
    return INTERRUPTED
