"""Errors name the page of the docs about the matter."""

import ast
import importlib
import pickle
import pkgutil
import re
import traceback
from pathlib import Path

import pytest
from flax import linen as nn

import hwtrain
from hwtrain._errors import PAGES, InputError, page_of
from hwtrain.cli import main

ROOT = Path(__file__).parents[1]
# These are written beside an export, for machines without hwtrain.
LOADERS = sorted((ROOT / "hwtrain").rglob("*_loader.py"))
SOURCES = sorted({*(ROOT / "hwtrain").rglob("*.py")} - {*LOADERS})


def test_pages_and_modules_are_there():
    for module, page in PAGES.items():
        assert (ROOT / "docs" / page).exists()
        path = ROOT / "hwtrain" / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), module


def test_every_package_has_a_page():
    for folder in (ROOT / "hwtrain").iterdir():
        if folder.is_dir() and (folder / "__init__.py").exists():
            assert folder.name in PAGES


@pytest.mark.parametrize(
    ("wrong", "page"),
    [
        (lambda: hwtrain.presets.hermes(num_devices=3), "choosing"),
        (lambda: hwtrain.analogize(nn.Dense(2), "chip"), "training"),
        (lambda: hwtrain.load("nowhere"), "checkpoint"),
        (lambda: hwtrain.MismatchParameter(std_dev=-1.0), "physics"),
        (lambda: hwtrain.IOParameters(inp_bit=8), "periphery"),
    ],
)
def test_an_error_ends_with_its_page(wrong, page):
    with pytest.raises(ValueError) as error:
        wrong()
    assert error.value.__notes__ == [f"See docs/{page}.md"]
    shown = "".join(traceback.format_exception(error.value))
    assert shown.rstrip().endswith(f"See docs/{page}.md")


def test_the_page_is_that_of_where_it_is_raised():
    names = {"__name__": "hwtrain.optim._x", "InputError": InputError}
    with pytest.raises(InputError) as error:
        exec("raise InputError('wrong')", names)
    assert str(error.value) == "wrong"
    assert error.value.__notes__ == ["See docs/optimisation.md"]
    assert page_of("hwtrain.train._reading") == "docs/configuration.md"


def kinds_of_errors():
    for module in pkgutil.walk_packages(hwtrain.__path__, "hwtrain."):
        if not module.name.endswith(("__main__", "_loader")):
            importlib.import_module(module.name)
    kinds = [InputError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {x.__name__: x for x in kinds if x.__module__.startswith("hwtrain.")}


def test_errors_of_other_processes_arrive_as_they_were():
    kinds, given = kinds_of_errors(), {"EntryError": ("model", "none")}
    assert len(kinds) >= 7
    for name, kind in kinds.items():
        names = {"__name__": "hwtrain.optim._x", "kind": kind}
        arguments = given.get(name, ("\u2028" * 3999,))  # escaped, it is longer
        error = eval("kind(*arguments)", names | {"arguments": arguments})
        assert error.__notes__ == ["See docs/optimisation.md"]
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickle.dumps(error, protocol))
            assert type(again) is kind
            assert (str(again), vars(again)) == (str(error), vars(error))


@pytest.mark.parametrize("error", ["InputError", "HardwareCheckpointError"])
def test_an_initialiser_that_raises_is_where_it_is_raised(error):
    names = {"__name__": "hwtrain.dynapse._x", "InputError": InputError}
    names["HardwareCheckpointError"] = hwtrain.checkpoint.HardwareCheckpointError
    exec(f"class Part:\n    def __init__(self):\n        raise {error}('x')", names)
    with pytest.raises(InputError) as caught:
        names["Part"]()
    assert caught.value.__notes__ == ["See docs/mixed_signal.md"]


def test_a_command_ends_its_line_with_the_page(capsys):
    assert main(["train", "nowhere.toml"]) == 2
    line = capsys.readouterr().err
    assert line.endswith("got no such file (docs/configuration.md)\n")
    assert line.count("\n") == 1


def test_an_unknown_key_of_an_override_names_the_page_of_the_keys(capsys):
    config = ROOT / "configs" / "digits_mlp.toml"
    assert main(["train", str(config), "--set", "wrong.key=1"]) == 2
    line = capsys.readouterr().err
    assert "--set wrong.key=1: unknown key wrong; expected one of: cost, " in line
    assert line.endswith(" (docs/configuration.md)\n")


def test_the_example_of_the_page_prints_what_it_shows(capsys):
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    ((code, shown),) = re.findall(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL
    )
    exec(code, {})
    assert capsys.readouterr().out.split() == shown.split()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_error_is_without_a_page(path):
    text = path.read_text("utf-8")
    assert not re.search(r"^ *(raise|return) ValueError\b", text, re.MULTILINE)


def test_what_is_written_beside_an_export_does_not_need_hwtrain():
    assert len(LOADERS) == 2
    for path in LOADERS:
        tree = ast.parse(path.read_text("utf-8"))
        found = [
            x for x in ast.walk(tree) if isinstance(x, ast.Import | ast.ImportFrom)
        ]
        names = [x.module if isinstance(x, ast.ImportFrom) else "" for x in found]
        names += [x.name for y in found for x in y.names]
        assert not any("hwtrain" in name for name in names), path
