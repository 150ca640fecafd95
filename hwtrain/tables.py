"""Tables for people, as rich prints them."""

import io
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table


def tables_of(rows: Sequence[dict[str, str]], title: str) -> Iterator[Table]:
    """Yields a table of rows, and before it one of what is the same in all of them.

    Args:
      rows: for every row its columns by name, of which the first names it.
      title: title of the table; `"Every ..."` is that of the other.
    """
    if not rows:
        return
    first, names = rows[0], list(rows[0])
    values = {name: {row[name] for row in rows} for name in names}
    common = [n for n in names[1:] if len(rows) > 1 and len(values[n]) == 1]
    if common:
        shared = table("", "", title=f"Every {title.lower()} weight", show_header=False)
        off = [name for name in common if values[name] == {"none"}]
        for name in (name for name in common if name not in off):
            shared.add_row(name, first[name])
        if off:
            shared.add_row("off", ", ".join(off))
        yield shared
    shown = [name for name in names if name not in common]
    found = table(*shown, title=title)
    for row in rows:
        found.add_row(*(row[name] for name in shown))
    yield found


def table(*columns: str, title: str, show_header: bool = True) -> Table:
    """Returns an empty table, whose cells break where they are long."""
    found = Table(title=title, title_justify="left", show_header=show_header)
    for name in columns:
        found.add_column(name, overflow="fold")
    return found


def as_text(parts: Iterable[Table | str]) -> str:
    """Returns tables and lines as text.

    >>> print(as_text(["tiles: 3"]))
    tiles: 3
    """
    console = Console(file=io.StringIO(), width=120, color_system=None)
    for part in parts:
        console.print(part, highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined]
