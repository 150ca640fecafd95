"""Progress of a training run: a bar in a terminal, a few plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.progress import TimeRemainingColumn as TimeRemaining

Report = Callable[[int, jax.Array], float | None]

_EVERY_S = 0.2
_PLAIN_LINES = 4


@contextmanager
def show_progress(
    console: Console, title: str, *, start: int, steps: int
) -> Iterator[Report]:
    """Shows loss and steps per second while a training runs.

    Yields `report(step, loss)`, to be called after each update. So as not to wait for
    the update just started, it reads and returns the loss of the previous report, or
    `None` if it reads none.

    Args:
      console: where to show it.
      title: label of the training.
      start: number of updates done before.
      steps: total number of updates.
    """
    if not console.is_terminal:
        yield _plain_lines(console, title, steps)
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
        rate = _Rate()
        shown, pending = time.monotonic(), None

        def report(step: int, loss: jax.Array) -> float | None:
            nonlocal shown, pending
            now = time.monotonic()
            last = step >= steps
            rate.start(step)
            if now - shown < _EVERY_S and not last:
                return None
            value = float(loss if last or pending is None else pending)
            bar.update(
                task,
                completed=step,
                refresh=last,
                loss=f"{value:.4f}",
                rate=rate.at(step),
            )
            shown, pending = now, loss
            return value

        yield report


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


def _plain_lines(console: Console, title: str, steps: int) -> Report:
    rate = _Rate()
    marks = {steps * line // _PLAIN_LINES for line in range(1, _PLAIN_LINES)} | {steps}

    def report(step: int, loss: jax.Array) -> float | None:
        rate.start(step)
        if step not in marks:
            return None
        value = float(loss)
        console.print(
            f"{title}: step {step}/{steps}, loss {value:.4f}, {rate.at(step)} steps/s",
            soft_wrap=True,
            highlight=False,
        )
        return value

    return report


class _Rate:
    """Steps per second after the end of the first step, which includes compiling."""

    def __init__(self):
        self._first: tuple[float, int] | None = None

    def start(self, step: int) -> None:
        self._first = self._first or (time.monotonic(), step)

    def at(self, step: int) -> str:
        if self._first is None or step <= self._first[1]:
            return "-"
        seconds = max(time.monotonic() - self._first[0], 1e-9)
        return f"{(step - self._first[1]) / seconds:.0f}"
