"""Progress of an export: a bar in a terminal, nothing otherwise."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeRemainingColumn as TimeRemaining

Report = Callable[[int, int], None]
"""Called with the number of written layers and the total."""


@contextmanager
def show_progress(console: Console | None = None) -> Iterator[Report]:
    """Shows the progress of an export: `export(..., report=report)`.

    >>> import io
    >>> with show_progress(Console(file=io.StringIO())) as report:
    ...     report(1, 3)

    Args:
      console: where to show it; by default the terminal's stderr.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("layers"),
        TimeRemaining(compact=True),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("exporting", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
