"""A page of HTML in one file, which opens without a network."""

import base64
import dataclasses
import html
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from hwtrain.checkpoint._disk import complete

_STYLE = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
       background: #fff; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.875rem; }
caption { text-align: left; color: #555; padding-bottom: 0.3rem; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid #ddd; text-align: left;
         vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; }
pre { background: #f5f5f5; padding: 0.8rem; overflow-x: auto; font-size: 0.8rem; }
nav a { margin-right: 1rem; }
@media print { nav { display: none; } h2 { break-after: avoid; } }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
      title: its heading.
      text: a paragraph under it.
      tables: tables as rich draws them, and notes between them.
      plots: pairs of a description, for those who do not see it, and a function that
        draws a plot into a file.
      code: text of a file.
    """

    title: str
    text: str = ""
    tables: Sequence[Table | str] = ()
    plots: Sequence[tuple[str, Callable[[Path], None]]] = ()
    code: str = ""


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Writes a page, or none at all.

    Args:
      path: the HTML file.
      title: its title.
      sections: its parts.
    """
    links = " ".join(
        f'<a href="#section-{number}">{html.escape(section.title)}</a>'
        for number, section in enumerate(sections)
    )
    parts = "\n".join(
        f'<h2 id="section-{number}">{html.escape(section.title)}</h2>\n{_of(section)}'
        for number, section in enumerate(sections)
    )
    text = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{html.escape(title)}</h1>\n<nav>{links}</nav>\n{parts}\n"
        "</body>\n</html>\n"
    )
    with complete(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _of(section: Section) -> str:
    parts = [f"<p>{html.escape(section.text)}</p>"] if section.text else []
    parts += [_image(said, draw) for said, draw in section.plots]
    parts += [_table(table) for table in section.tables]
    if section.code:
        parts.append(f"<pre>{html.escape(section.code)}</pre>")
    return "\n".join(parts)


def _image(said: str, draw: Callable[[Path], None]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plot.svg"
        draw(file)
        # As an image of its own, because the parts of a drawing are numbered.
        data = base64.b64encode(file.read_bytes()).decode("ascii")
    source = f"data:image/svg+xml;base64,{data}"
    return f'<p><img src="{source}" alt="{html.escape(said, quote=True)}"></p>'


def _table(table: Table | str) -> str:
    if isinstance(table, str):
        return f"<p>{_plain(table)}</p>"
    kinds = [
        ' class="number"' if column.justify == "right" else ""
        for column in table.columns
    ]
    head = ""
    if table.show_header:
        cells = zip((_plain(column.header) for column in table.columns), kinds)
        head = "".join(f"<th{kind}>{cell}</th>" for cell, kind in cells)
        head = f"<thead><tr>{head}</tr></thead>"
    rows = zip(*(column.cells for column in table.columns))
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{kind}>{_plain(cell)}</td>" for cell, kind in zip(row, kinds))
        + "</tr>"
        for row in rows
    )
    said = [text for text in (table.title, table.caption) if text]
    caption = f"<caption>{'; '.join(map(_plain, said))}</caption>" if said else ""
    return (
        f'<div class="wide"><table>{caption}{head}\n<tbody>{body}</tbody></table></div>'
    )


def _plain(cell: object) -> str:
    """Returns a cell as HTML; one of text may have rich's markup."""
    text = cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
    return html.escape(text).replace("\n", "<br>")
