"""Text tables, printed with rich."""

import io
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH = 120
"""Width of a line of text, in characters."""

LONGEST_NAME = 40
"""Number of characters up to which the names of rows are kept whole."""


def tables_of(rows: Sequence[dict[str, str]], title: str) -> Iterator[Table]:
    """Yields tables of rows, in which values common to many rows appear once.

    Values that all rows share come first. If the rest is too wide to read, rows with
    mostly equal values are grouped, and the last table holds the remaining differences.

    Args:
      rows: the columns of each row by name; the first one names the row.
      title: title of the table; the common values are titled `"Every ..."`.
    """
    if not rows:
        return
    first, *names = rows[0]
    if len(rows) == 1:
        yield _list(rows[0], names, f"{title}: {rows[0][first]}")
        return
    values = {name: {row[name] for row in rows} for name in names}
    common = [name for name in names if len(values[name]) == 1]
    if common:
        yield _list(rows[0], common, f"Every {title.lower()} weight")
    shown = [name for name in names if name not in common]
    widths = [max(map(len, (name, *values[name]))) + 3 for name in shown]
    if sum(widths) + max(len(row[first]) for row in rows) + 4 > WIDTH:
        few = max(2, len(rows) // 3)
        shared = [name for name in shown if len(values[name]) <= few]
        alike: dict[tuple[str, ...], list[dict[str, str]]] = {}
        for row in rows:
            alike.setdefault(tuple(row[name] for name in shared), []).append(row)
        for group in alike.values() if shared else ():
            members = ", ".join(row[first] for row in group)
            yield _list(group[0], shared, f"{title}: {members}")
        shown = [name for name in shown if name not in shared]
    if shown or not common:
        found = table(first, *shown, title=title)
        # In a narrow terminal the other cells are broken, which have several words.
        found.columns[0].no_wrap = max(len(row[first]) for row in rows) <= LONGEST_NAME
        for row in rows:
            found.add_row(row[first], *(row[name] for name in shown))
        yield found


def _list(row: dict[str, str], names: Iterable[str], title: str) -> Table:
    """Returns a row's columns one below the other; those that are off on one line."""
    found = table("", "", title=title, show_header=False)
    off = [name for name in names if row[name] == "none"]
    for name in (name for name in names if name not in off):
        found.add_row(name, row[name])
    if off:
        found.add_row("off", ", ".join(off))
    return found


def table(*columns: str, title: str, show_header: bool = True) -> Table:
    """Returns an empty table whose long cells are wrapped."""
    found = Table(title=title, title_justify="left", show_header=show_header)
    for name in columns:
        found.add_column(name, overflow="fold")
    return found


def listed(rows: Sequence[dict[str, str]], title: str) -> Table:
    """Returns a table of text with one line for each row.

    Args:
      rows: the columns of each row by name, the same in all.
      title: title of the table.
    """
    found = table(*rows[0], title=title)
    for row in rows:
        found.add_row(*map(escape, row.values()))
    return found


def table_of(rows: Sequence[dict[str, str]]) -> Table:
    """Returns a table of numbers, with a column for each name in any row.

    Args:
      rows: cells by the names of their columns; one that a row has not is left empty.
    """
    found = Table()
    names = list(dict.fromkeys(itertools.chain(max(rows, key=len), *rows)))
    for name in names:
        found.add_column(name, justify="right")
    for row in rows:
        found.add_row(*(row.get(name, "") for name in names))
    return found


def as_text(parts: Iterable[Table | str]) -> str:
    """Returns tables and lines as text.

    >>> print(as_text(["tiles: 3"]))
    tiles: 3
    """
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    for part in parts:
        console.print(part, highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def mean_and_spread(values: np.ndarray, form: str) -> str:
    """Returns the mean of numbers, and their standard deviation if there are several.

    >>> mean_and_spread(np.array([1.0, 2.0, 3.0]), ".1f")
    '2.0 ± 1.0'

    Args:
      values: the numbers.
      form: format specification of a number.
    """
    if len(values) < 2:
        return f"{values.mean():{form}}"
    # For equal numbers, the rounding of the mean would look like a spread.
    spread = values.std(ddof=1) if np.ptp(values) else 0.0
    return f"{values.mean():{form}} ± {spread:{form}}"


def with_spread(value: float, spread: float) -> str:
    """Returns a number and its spread to the same decimals, two digits of the spread.

    >>> with_spread(0.6144, 0.01342), with_spread(12345.6, 321.0), with_spread(0.5, 0.0)
    ('0.614 ± 0.013', '12346 ± 321', '0.5 ± 0')
    >>> with_spread(6.4761e-6, 4.4e-7)
    '6.476e-06 ± 4.4e-07'

    Args:
      value: the number.
      spread: its spread; 0, NaN, and numbers that need an exponent are written alone.
    """
    size = abs(value) if value else spread
    if not (math.isfinite(spread) and spread and 1e-3 <= size < 1e6):
        return f"{value:.4g} ± {spread:.2g}"
    decimals = max(0, 1 - math.floor(math.log10(spread)))
    return f"{value:.{decimals}f} ± {spread:.{decimals}f}"


def fold_names(table: Table, number: int) -> None:
    """Lets a narrow terminal break the first columns between words, and no numbers.

    Args:
      table: the table.
      number: number of columns of names.
    """
    for place, column in enumerate(table.columns):
        column.overflow, column.no_wrap = "fold", place >= number
        if place < number:
            words = f"{column.header} {' '.join(map(str, column.cells))}".split()
            column.min_width = min(max(map(len, words), default=1), 16)


def count(number: int, noun: str) -> str:
    """Returns a count with its noun, in the plural unless it is 1.

    >>> count(1, "chip"), count(2, "chip")
    ('1 chip', '2 chips')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def time_name(t_s: float) -> str:
    """Returns a time in the largest unit that fits.

    >>> [time_name(t_s) for t_s in (0.0, 25.0, 3600.0, 86_400.0, 31_536_000.0)]
    ['0', '25 s', '1 h', '1 d', '1 y']

    Args:
      t_s: time in seconds.
    """
    if not t_s:
        return "0"
    for unit, size in (("y", 31_536_000), ("d", 86_400), ("h", 3600), ("min", 60)):
        if t_s >= size:
            return f"{t_s / size:.3g} {unit}"
    return f"{t_s:.3g} s"
