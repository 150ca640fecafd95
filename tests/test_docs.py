"""The pages' code runs as it stands there."""

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def names_after(page):
    """Returns the names after the page's only example has run."""
    text = (DOCS / page).read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    return names


def test_the_example_of_the_physics_page_runs():
    assert names_after("physics.md")["chip_type"].stores_scale


def test_the_example_of_the_optimisation_page_runs():
    names = names_after("optimisation.md")
    assert names["step"]._cache_size() == 1
    assert names["value"] > 0


@pytest.mark.full
@pytest.mark.parametrize(("script", "plots"), [("plots", 5), ("optimisation_plots", 3)])
def test_every_plot_is_drawn(script, plots, tmp_path):
    runpy.run_path(str(DOCS / f"{script}.py"))["main"](tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == plots
