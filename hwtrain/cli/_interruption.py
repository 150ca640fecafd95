"""Ctrl-C while a command runs: the first asks it to stop, the second stops it."""

import _thread
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from hwtrain.cli._errors import print_error

INTERRUPTED = 130
"""The exit status."""


_AGAIN = b"\0"
"""Asks for an interrupt a little later: it came where none can be raised."""


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

    ended = threading.Event()

    def on_signal(_: int, frame: FrameType | None) -> None:
        asked.set()
        if gently:
            return
        if _importing(frame):
            os.write(writing, _AGAIN)
            return
        # A library that it comes up in may report it as an error of its own.
        logging.disable(logging.CRITICAL)
        raise KeyboardInterrupt

    def on_lost(lost: Any) -> None:
        # As when an object goes, whose end cannot raise.
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            return hook(lost)
        os.write(writing, _AGAIN)

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    thread = threading.Thread(target=_watch, args=(reading, gently, ended), daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    hook, logged = sys.unraisablehook, logging.root.manager.disable
    sys.unraisablehook = on_lost
    signal.signal(signal.SIGINT, on_signal)
    try:
        yield asked.is_set
    finally:
        ended.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = hook
        logging.disable(logged)
        signal.set_wakeup_fd(before)
        os.close(writing)
        thread.join()
        os.close(reading)


def _importing(frame: FrameType | None) -> bool:
    """Returns whether Python imports a module, in whose C an interrupt is printed."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _watch(reading: int, gently: bool, ended: threading.Event) -> None:
    """Counts the signals as they come, also while the main thread is compiling."""
    pressed = ours = 0
    while number := os.read(reading, 1):
        if number == _AGAIN:
            time.sleep(0.01)  # until the main thread may be out of there
            if not ended.is_set():
                ours += 1
                _thread.interrupt_main()
        elif number[0] == signal.SIGINT and ours:
            ours -= 1
        else:
            pressed += number[0] == signal.SIGINT
        if pressed == 2:
            print_error("stopped at once")
            os._exit(INTERRUPTED)
        if gently:
            print_error("stopping after this step; once more Ctrl-C stops at once")
