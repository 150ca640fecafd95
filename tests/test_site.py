"""The pages of the site run, and list what there is."""

import json
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain
import hwtrain.checkpoint.adapters  # an attribute once it is imported

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("quickstart", "life_cycle", "choosing", *(
    f"coming_from/{name}"
    for name in ("aihwkit", "aihwkit_lightning", "rockpool", "crosssim")
))  # fmt: skip
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
ROOMS = (
    hwtrain.checkpoint,
    hwtrain.chips,
    hwtrain.devices,
    hwtrain.dynapse,
    hwtrain.evaluate,
    hwtrain.objectives,
    hwtrain.optim,
    hwtrain.periphery,
    hwtrain.sockets,
    hwtrain.weights,
)


def code_of(page):
    text = (DOCS / f"{page}.md").read_text("utf-8")
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code_of(page), page, "exec"), names)
    assert len(names) > 3


def test_the_life_of_a_chip_is_as_the_page_says(capsys):
    exec(code_of("life_cycle"), {})
    printed = re.findall(r"[\d.]+%", capsys.readouterr().out)
    text = (DOCS / "life_cycle.md").read_text("utf-8")
    (said,) = re.findall(r"It prints ([\d.]+) %, ([\d.]+) % and ([\d.]+) %", text)
    assert printed == [f"{number}%" for number in said]


def test_the_ten_lines_of_the_first_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class NnxModel(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.layer(x)

    names = {"hwtrain": hwtrain, "jax": jax, "optax": optax, "nnx": nnx}
    names |= {"MyModel": lambda: nn.Dense(2), "MyNnxModel": NnxModel}
    names |= {"x": jnp.ones((3, 4)), "my_loss": lambda y: jnp.mean(y**2)}
    text = (DOCS / "index.md").read_text("utf-8")
    linen, nnx_code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for code in (linen, nnx_code):
        assert len(code.splitlines()) <= 11
        exec(code.replace("200", "2"), names)
    assert (tmp_path / "my_chip/manifest.json").exists()
    assert (tmp_path / "my_nnx_chip/manifest.json").exists()


def test_the_api_page_lists_every_public_name():
    text = (DOCS / "api.md").read_text("utf-8")
    listed = set()
    for module, names in re.findall(
        r"currentmodule:: (\S+)\n.*?toctree: generated\n\n(.*?)```", text, re.DOTALL
    ):
        for name in names.split():
            listed.add(id(_named(f"{module}.{name}")))
    public = [
        (f"{room.__name__}.{name}", getattr(room, name))
        for room in (hwtrain, *ROOMS)
        for name in getattr(room, "__all__", None) or vars(room)
        if not name.startswith("_")
    ]
    missing = [
        name
        for name, value in public
        if callable(value)
        and getattr(value, "__module__", "").startswith("hwtrain")
        and id(value) not in listed
    ]
    assert not missing


def _named(path):
    value = hwtrain
    for name in path.split(".")[1:]:
        value = getattr(value, name)
    return value


def test_the_list_of_errors_knows_every_room_and_message():
    errors = runpy.run_path(str(DOCS / "errors.py"))
    places = list(errors["raised"]())
    rooms = {place.file.split("/")[1].removesuffix(".py") for place in places}
    assert rooms - {"_lazy"} <= {*errors["ROOMS"]}
    place = next(x for x in places if x.file == "hwtrain/periphery/column_errors.py")
    assert place.message.startswith("columns without spread do nothing: write gain_std")
    listed = errors["page"]()
    assert listed.count("\n- ") > 600 and "columns without spread do nothing" in listed


def test_errors_that_nobody_provoked_are_found(tmp_path):
    errors = runpy.run_path(str(DOCS / "errors.py"))
    first, second, *_ = (x for x in errors["raised"]() if x.here)
    assert errors["not_raised"](tmp_path)[:2] == [first, second]
    seen = {first.file: [first.lines[1]]}
    (tmp_path / "1.json").write_text(json.dumps(seen))
    left = errors["not_raised"](tmp_path)
    assert first not in left and second in left


def test_the_table_of_presets_has_every_one():
    text = (DOCS / "choosing.md").read_text("utf-8")
    functions = {
        name
        for name, value in vars(hwtrain.presets).items()
        if getattr(value, "__module__", "") == "hwtrain.presets"
    }
    assert functions and functions == {
        name for name in functions if f"`{name}()`" in text
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None
    assert len(cells) > 5


@pytest.mark.nightly
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_of_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    cells = json.loads(path.read_text("utf-8"))["cells"]
    codes = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    exec(compile("\n\n".join(codes), path.name, "exec"), {"__name__": "notebook"})
