"""Runs commands in processes of their own, which end with this one."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from hwtrain.cli._interruption import INTERRUPTED


class Ended(NamedTuple):
    """A command that has ended.

    Attributes:
      number: which command.
      status: its exit status; negative for a signal that killed it.
      error: the last line that it wrote to stderr.
    """

    number: int
    status: int
    error: str


def run_all(
    commands: Sequence[tuple[Sequence[str], Path]],
    *,
    jobs: int,
    stop: Callable[[], bool],
    started: Callable[[int], None] = lambda number: None,
) -> Iterator[Ended]:
    """Runs commands, several at a time, and yields each that has ended.

    Args:
      commands: pairs of a command line of `hwtrain`, and a file for what it prints.
      jobs: number of processes.
      stop: whether to stop: the processes are then interrupted once, and no further
        ones are started.
      started: is told the number of each command when it starts.

    Raises:
      KeyboardInterrupt: if `stop` returned true, when all processes have ended.
    """
    # A forked process would share the locks of XLA's threads.
    context = multiprocessing.get_context("spawn")
    waiting, running = list(enumerate(commands)), {}
    asked = False
    try:
        while running or (waiting and not asked):
            while waiting and len(running) < jobs and not asked:
                number, (words, log) = waiting.pop(0)
                process = context.Process(target=_run, args=(list(words), str(log)))
                process.start()
                started(number)
                running[process.sentinel] = number, process, log
            ended: Any = wait(list(running), timeout=0.1)
            for sentinel in ended:
                number, process, log = running.pop(sentinel)
                process.join()
                yield Ended(number, process.exitcode or 0, _last_line(log))
            if stop() and not asked:
                asked = True
                for _, process, _ in running.values():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGINT)
    finally:
        for _, process, _ in running.values():
            process.kill()
    if asked:
        raise KeyboardInterrupt


def _last_line(log: Path) -> str:
    """Returns the last line of a log, without the command's name."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    found = [line.strip() for line in lines if line.strip()]
    return found[-1].removeprefix("hwtrain: error: ") if found else ""


def _run(words: list[str], log: str) -> None:
    """Runs a command; everything that it prints goes into a file."""
    # A Ctrl-C on the terminal goes to the parent alone, which passes it on once.
    if hasattr(os, "setsid"):
        os.setsid()
    # Where a shell has turned Ctrl-C off, the parent's would not arrive.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    sys.argv[1:] = words
    # Imported late, because it loads JAX.
    from hwtrain.cli import run

    sys.exit(run())


def _end_with_parent() -> None:
    """Ends the process when its parent has ended, also by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(INTERRUPTED)
