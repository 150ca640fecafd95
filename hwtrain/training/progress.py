"""Progress of a training run: a bar in a terminal, a few plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.progress import TimeRemainingColumn as TimeRemaining

Report = Callable[[int, jax.Array], None]

_EVERY_S = 0.2
_PLAIN_LINES = 4


@contextmanager
def show_progress(
    console: Console, title: str, *, start: int, steps: int
) -> Iterator[Report]:
    """Shows loss and steps per second while training runs.

    Yields `report(step, loss)`, to be called after each update. It never waits for the
    update that was just started: it reads the loss of the report before.

    Args:
      console: where to show it.
      title: what is trained.
      start: number of updates done before.
      steps: number of updates at the end.
    """
    if not console.is_terminal:
        yield _plain_lines(console, title, start, steps)
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
        shown, pending = time.monotonic(), None
        first = (shown, start)

        def report(step: int, loss: jax.Array) -> None:
            nonlocal shown, pending
            now = time.monotonic()
            last = step >= steps
            if now - shown < _EVERY_S and not last:
                return
            value = loss if last or pending is None else pending
            fields = {"loss": f"{float(value):.4f}", "rate": _rate(first, step)}
            bar.update(task, completed=step, refresh=last, **fields)
            shown, pending = now, loss

        yield report


def _plain_lines(console: Console, title: str, start: int, steps: int) -> Report:
    first = (time.monotonic(), start)
    marks = {steps * line // _PLAIN_LINES for line in range(1, _PLAIN_LINES)} | {steps}

    def report(step: int, loss: jax.Array) -> None:
        if step in marks:
            value, rate = float(loss), _rate(first, step)
            console.print(
                f"{title}: step {step}/{steps}, loss {value:.4f}, {rate} steps/s",
                soft_wrap=True,
                highlight=False,
            )

    return report


def _rate(first: tuple[float, int], step: int) -> str:
    seconds = max(time.monotonic() - first[0], 1e-9)
    return f"{(step - first[1]) / seconds:.0f}"
