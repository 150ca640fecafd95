"""The pages' code runs as it stands there."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest
from flax import nnx

import hwtrain
from hwtrain import paths

DOCS = Path(__file__).parents[1] / "docs"


def names_after(page):
    """Returns the names after the page's only example has run."""
    text = (DOCS / page).read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    return names


def test_the_examples_of_the_randomness_page_run():
    text = (DOCS / "randomness.md").read_text("utf-8")
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), {})


def test_the_example_of_the_physics_page_runs():
    assert names_after("physics.md")["chip_type"].stores_scale


def test_the_examples_of_the_optimisation_page_run():
    text = (DOCS / "optimisation.md").read_text("utf-8")
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    assert names["step"]._cache_size() == 1
    assert names["value"] > 0
    # Only the head moves, with its range: no norm, no statistics, no other bias.
    fresh = hwtrain.analogize(names["NnxNet"](nnx.Rngs(0)), names["rules"])
    of_nnx = [
        nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState)))
        for model in (fresh, names["nnx_net"])
    ]
    for pair in ((names["whole"], names["trained"]), of_nnx):
        before, after = map(paths.leaves, pair)
        moved = {path for path in before if (before[path] != after[path]).any()}
        layers, leaves = zip(*(path.rsplit("/", 2)[-2:] for path in moved))
        assert set(layers) == {"head"}
        assert set(leaves) == {"bias", "input_range", "kernel"}


def test_the_example_of_the_mixed_signal_page_says_what_the_page_says():
    page = (DOCS / "mixed_signal.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(code, names)
    stated = re.search(r"`print\(generate\)`.*?\*(.*?)\*", page, re.DOTALL)
    assert " ".join(stated[1].split()) in repr(names["generate"])
    assert (names["chip"]["w_in"]["kernel"] != 1).all()


def test_the_example_of_the_deployment_page_runs():
    names = names_after("deployment.md")
    kernel = names["params"]["hidden"]["kernel"]
    assert abs(names["kernel"] - kernel).max() < 1e-6


def test_the_deployment_page_has_every_adapter():
    from hwtrain.checkpoint.adapters import ADAPTERS

    page = (DOCS / "deployment.md").read_text("utf-8")
    for name, adapter in ADAPTERS.items():
        assert f"| `{name}` | `{adapter.__name__}` |" in page


def shown():
    page = (DOCS / "physics.md").read_text("utf-8")
    return set(re.findall(r"\(images/(\w+\.png)\)", page))


def test_the_page_shows_every_plot_that_there_is():
    figures = runpy.run_path(str(DOCS / "plots.py"))["FIGURES"]
    assert {f"{figure.__name__}.png" for figure in figures} == shown()


@pytest.mark.full
def test_every_plot_is_drawn(tmp_path):
    runpy.run_path(str(DOCS / "plots.py"))["main"](tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == shown() and len(drawn) > 10


@pytest.mark.full
def test_every_plot_of_the_optimisation_page_is_drawn(tmp_path):
    runpy.run_path(str(DOCS / "optimisation_plots.py"))["main"](tmp_path)
    page = (DOCS / "optimisation.md").read_text("utf-8")
    shown = set(re.findall(r"\(images/(\w+\.png)\)", page))
    assert {path.name for path in tmp_path.glob("*.png")} == shown


def test_the_example_of_a_whole_model_runs_and_its_chips_are_one():
    text = (DOCS / "worked_model.md").read_text("utf-8")
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    for logits, chips in (("logits", "chips"), ("nnx_logits", "nnx_chips")):
        of_chip_0 = names["correct"](names[logits], names["labels"]).mean()
        assert abs(of_chip_0 - names[chips].values[0]) < 1e-6
        assert names[chips].mean > 0.7


def test_the_configuration_page_is_what_its_program_writes():
    written = runpy.run_path(str(DOCS / "configuration.py"))["page"]()
    assert (DOCS / "configuration.md").read_text("utf-8") == written


@pytest.mark.parametrize("path", sorted((DOCS.parent / "configs").glob("*.toml")))
def test_the_configuration_page_has_every_key_of_the_configurations(path):
    page = (DOCS / "configuration.md").read_text("utf-8")
    tables = {}
    for section in page.split("\n## ")[1:]:
        found = re.match(r"`\[([\w.]+)\]`", section)
        name = found[1] if found else ""
        tables[name] = tables.get(name, "") + section

    def check(where, data):
        for name, value in data.items():
            assert f"| `{name}` |" in tables[where], (where, name)
            if isinstance(value, dict):
                check(f"{where}.{name}".strip("."), value)

    check("", tomllib.loads(path.read_text("utf-8")))
