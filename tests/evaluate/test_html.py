"""Pages of HTML: one file, escaped, complete, with every cell of its tables."""

import base64
import html.parser
import re

import numpy as np
import pytest
from rich.table import Table
from rich.text import Text

from hwtrain.evaluate import Population
from hwtrain.evaluate import _plots as plots
from hwtrain.evaluate._html import Section, write_page


class Reader(html.parser.HTMLParser):
    """Checks that tags are closed, and collects texts and addresses."""

    void = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.addresses, self.anchors = [], [], [], set()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors.add(given.get("id"))
        self.addresses += [given[x] for x in ("src", "href") if x in given]
        if tag == "img":
            assert given["alt"]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert not reader.open
    return reader


@pytest.fixture
def page(tmp_path):
    table = Table("layer", title="a < b", caption="the end")
    table.add_column("µS", justify="right")
    table.add_row("x/<y>", Text("1 & 2"))
    table.add_row("[bold]z[/bold]", "3")
    chips = Population(values=np.ones((4, 2)), seeds=(0, 1, 2, 3), times_s=(0.0, 60.0))

    def draw(path):
        plots.plot_over_time(chips, path, metric="accuracy", title="over time")

    path = tmp_path / "page.html"
    sections = [
        Section("First & foremost", "A <script>alert(1)</script>", tables=[table]),
        Section("Plots", plots=[('said "so"', draw)], code="a = <b>\n"),
    ]
    write_page(path, "run <1>", sections)
    return path


def test_the_page_is_well_formed_and_escaped(page):
    reader = read(page)
    text = " ".join(reader.texts)
    for expected in ("A <script>alert(1)</script>", "x/<y>", "1 & 2", "z", "a = <b>"):
        assert expected in text
    assert "<script" not in page.read_text()
    assert "[bold]" not in text and "a < b; the end" in text


def test_the_page_needs_no_network(page):
    reader = read(page)
    for address in reader.addresses:
        assert address.startswith(("#", "data:image/svg+xml;base64,"))
    links = [address[1:] for address in reader.addresses if address.startswith("#")]
    assert len(links) == 2 and set(links) <= reader.anchors
    assert "url(" not in page.read_text() and "@import" not in page.read_text()


def test_plots_are_drawings_of_their_own(page):
    (data,) = re.findall(r"svg\+xml;base64,([^\"]+)", page.read_text())
    drawing = base64.b64decode(data).decode("utf-8")
    assert drawing.startswith("<?xml") and "</svg>" in drawing
    assert 'href="http' not in drawing


def test_equal_pages_are_equal_bytes(tmp_path):
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, "t", [Section("s", "text")])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_page_that_cannot_be_made_leaves_nothing(tmp_path):
    def draw(path):
        raise ValueError("no numbers")

    with pytest.raises(ValueError, match="no numbers"):
        write_page(tmp_path / "a.html", "t", [Section("s", plots=[("p", draw)])])
    assert not list(tmp_path.iterdir())
