"""The pages' code runs as it stands there."""

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_example_of_the_physics_page_runs():
    (code,) = re.findall(
        r"```python\n(.*?)```", (DOCS / "physics.md").read_text("utf-8"), re.DOTALL
    )
    names = {}
    exec(code, names)
    assert names["chip_type"].stores_scale


@pytest.mark.full
def test_every_plot_is_drawn(tmp_path):
    runpy.run_path(str(DOCS / "plots.py"))["main"](tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 5
