"""Ctrl-C while a command runs: the first asks it to stop, the second stops it."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from hwtrain.cli.errors import print_error

_STATUS = 130


@contextlib.contextmanager
def interruptible(*, gently: bool) -> Iterator[Callable[[], bool]]:
    """Watches for Ctrl-C, and gives a function that says whether it came.

    Only in the main thread, and where Ctrl-C does what Python lets it do: a program
    around that has a handler of its own keeps it.

    Args:
      gently: whether the first Ctrl-C only sets what the function says, for a command
        that asks for it. Python's `KeyboardInterrupt` may come inside of a callback of
        a library, which prints or swallows it.
    """
    asked = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield asked.is_set
        return

    def on_signal(*_: object) -> None:
        asked.set()
        if not gently:
            raise KeyboardInterrupt

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    thread = threading.Thread(target=_watch, args=(reading, gently), daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, on_signal)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.set_wakeup_fd(before)
        os.close(writing)
        thread.join()
        os.close(reading)


def _watch(reading: int, gently: bool) -> None:
    """Counts the signals as they come, also while the main thread is compiling."""
    pressed = 0
    while number := os.read(reading, 1):
        pressed += number[0] == signal.SIGINT
        if pressed == 2:
            print_error("stopped at once")
            os._exit(_STATUS)
        if gently:
            print_error("stopping after this step; once more Ctrl-C stops at once")
