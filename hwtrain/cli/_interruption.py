"""Ctrl-C and SIGTERM ask a command to stop; a second Ctrl-C kills it."""

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
"""The exit status after an interruption."""

_AGAIN = b"\0"
"""Asks the thread to interrupt again soon, after an interrupt that cannot be raised."""


@contextlib.contextmanager
def interruptible(*, gently: bool) -> Iterator[Callable[[], bool]]:
    """Watches for Ctrl-C, and yields a function that returns whether it was pressed.

    Only active in the main thread and with Python's default handler; a handler of a
    surrounding program stays in place.

    Args:
      gently: whether the first Ctrl-C only changes the function's result, for a command
        that checks it. Python's `KeyboardInterrupt` could be raised inside a library's
        callback, which prints or swallows it. A SIGTERM, which a scheduler sends before
        it takes the machine away, then does the same, however often it comes; also
        where a shell has turned Ctrl-C off, as it does behind `&` in a script.
    """
    asked = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    pressable = before is signal.default_int_handler
    terminable = gently and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    terminable &= pressable or before is signal.SIG_IGN
    if not main or not (pressable or terminable):
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
        # A library interrupted by this may log it as an error of its own.
        logging.disable(logging.CRITICAL)
        raise KeyboardInterrupt

    def on_lost(lost: Any) -> None:
        # Raised where exceptions are lost, such as in an object's finaliser.
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            return hook(lost)
        os.write(writing, _AGAIN)

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    thread = threading.Thread(target=_watch, args=(reading, gently, ended), daemon=True)
    thread.start()
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    hook, logged = sys.unraisablehook, logging.root.manager.disable
    sys.unraisablehook = on_lost
    if pressable:
        signal.signal(signal.SIGINT, on_signal)
    if terminable:
        signal.signal(signal.SIGTERM, on_signal)
    try:
        yield asked.is_set
    finally:
        ended.set()
        signal.signal(signal.SIGINT, before)
        if terminable:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.unraisablehook = hook
        logging.disable(logged)
        signal.set_wakeup_fd(wakeup)
        os.close(writing)
        thread.join()
        os.close(reading)


def _importing(frame: FrameType | None) -> bool:
    """Returns whether an import is running; its C code prints interrupts."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _watch(reading: int, gently: bool, ended: threading.Event) -> None:
    """Counts the signals as they arrive, even while the main thread is compiling."""
    pressed = ours = 0
    told = False
    while number := os.read(reading, 1):
        if number == _AGAIN:
            time.sleep(0.01)  # give the main thread time to leave that code
            if not ended.is_set():
                ours += 1
                _thread.interrupt_main()
        elif number[0] == signal.SIGTERM:
            if not told:
                print_error("stopping as SIGTERM asks; in training, after this step")
            told = True
            continue
        elif number[0] == signal.SIGINT and ours:
            ours -= 1
        else:
            pressed += number[0] == signal.SIGINT
        if pressed == 2:
            print_error("stopped at once")
            os._exit(INTERRUPTED)
        if gently:
            print_error("stopping after this step; once more Ctrl-C stops at once")
