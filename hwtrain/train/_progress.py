"""Progress of a training run: a bar in a terminal, a few plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.progress import TimeRemainingColumn as TimeRemaining

_EVERY_S = 0.2
_PLAIN_LINES = 4


class Shown(Protocol):
    """Where a training tells its progress."""

    def report(self, step: int, loss: jax.Array) -> float | None:
        """Tells that an update has been started.

        So as not to wait for this update, it reads and returns the loss of an earlier
        one that it was told of, or `None` if it reads none.

        Args:
          step: number of updates.
          loss: its loss.
        """
        ...

    def aside(self, loss: jax.Array) -> AbstractContextManager[None]:
        """Keeps what is done under it, beside the updates, out of their rate.

        Args:
          loss: of the last update, which it waits for.
        """
        ...


@contextmanager
def show_progress(
    console: Console, title: str, *, start: int, steps: int
) -> Iterator[Shown]:
    """Shows loss and steps per second while a training runs, and yields where to tell.

    Args:
      console: where to show it.
      title: label of the training.
      start: number of updates done before.
      steps: total number of updates.
    """
    if not console.is_terminal:
        yield _Lines(console, title, steps)
        return
    columns = (
        TextColumn("{task.description:26}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("step {task.completed:>5.0f}"),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[rate]:>5} steps/s"),
        TimeRemaining(compact=True),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=steps, completed=start, loss="-", rate="-")
        yield _Bar(bar, task, steps)


@contextmanager
def show_count(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """Shows how many of several runs have ended.

    Yields `report(text)`, to be called with a line about each run that has ended.

    Args:
      console: where to show it.
      total: number of runs.
    """
    columns = (
        TextColumn("{task.completed:.0f} of {task.total:.0f} runs"),
        BarColumn(bar_width=30),
        TimeRemaining(compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def report(text: str) -> None:
            bar.advance(task)
            console.print(text, soft_wrap=True, highlight=False, markup=False)

        yield report


class _Rated:
    """Steps per second, without the first step, which includes compiling."""

    _since: tuple[float, int] | None = None

    @contextmanager
    def aside(self, loss: jax.Array) -> Iterator[None]:
        jax.block_until_ready(loss)
        self.waited()
        start = time.monotonic()
        yield
        if self._since is not None:
            moment, step = self._since
            self._since = moment + time.monotonic() - start, step

    def waited(self) -> None:
        """Is told that all reported steps have ended."""

    def started(self, step: int, loss: jax.Array) -> None:
        """Counts from here on, if this is the first step."""
        if self._since is None:
            jax.block_until_ready(loss)
            self._since = time.monotonic(), step

    def rate(self, step: int) -> str:
        """Returns the rate until now, when this step has ended."""
        if self._since is None or step <= self._since[1]:
            return "-"
        seconds = max(time.monotonic() - self._since[0], 1e-9)
        rate = (step - self._since[1]) / seconds
        return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


class _Lines(_Rated):
    def __init__(self, console: Console, title: str, steps: int):
        self._console, self._title, self._steps = console, title, steps
        marks = {steps * line // _PLAIN_LINES for line in range(1, _PLAIN_LINES)}
        self._marks = marks | {steps}

    def report(self, step: int, loss: jax.Array) -> float | None:
        self.started(step, loss)
        if step not in self._marks:
            return None
        value = float(loss)
        self._console.print(
            f"{self._title}: step {step}/{self._steps}, loss {value:.4f}, "
            f"{self.rate(step)} steps/s",
            soft_wrap=True,
            highlight=False,
        )
        return value


class _Bar(_Rated):
    def __init__(self, bar: Progress, task: TaskID, steps: int):
        self._bar, self._task, self._steps = bar, task, steps
        self._shown = time.monotonic()
        self._last: tuple[int, jax.Array] | None = None
        self._pending: tuple[int, jax.Array] | None = None

    def waited(self) -> None:
        self._pending = self._last

    def report(self, step: int, loss: jax.Array) -> float | None:
        self.started(step, loss)
        last = step >= self._steps
        self._last = step, loss
        if time.monotonic() - self._shown < _EVERY_S and not last:
            return None
        # Steps after the one whose loss is read may only have been started.
        array: Any = loss
        ended = last or array.is_ready()
        done, read = self._last if ended else self._pending or self._last
        value = float(read)
        self._bar.update(
            self._task,
            completed=done,
            refresh=last,
            loss=f"{value:.4f}",
            rate=self.rate(done),
        )
        self._shown, self._pending = time.monotonic(), self._last
        return value
