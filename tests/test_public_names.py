"""Public names are what their modules define, and load when they are asked for."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import hwtrain

PACKAGE = Path(hwtrain.__file__).parent


def as_type_checkers_see_it():
    """Returns by public name the module that `__init__` imports it from."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (typed,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    )
    found = {}
    for node in typed.body:
        for alias in node.names:
            assert alias.name == alias.asname, "not re-exported"
            found[alias.name] = node.module
    return found


HOMES = as_type_checkers_see_it()
# In a process of its own, because it imports hwtrain anew for each order.
ORDERS = """
import importlib, json, sys, types

homes, firsts = json.loads(sys.argv[1])
for first in firsts:
    for name in [name for name in sys.modules if name.split(".")[0] == "hwtrain"]:
        del sys.modules[name]
    importlib.import_module(first)
    package = sys.modules["hwtrain"]
    for again in range(2):
        for name, home in homes.items():
            if home == "hwtrain":
                expected = importlib.import_module(f"hwtrain.{name}")
            else:
                expected = vars(importlib.import_module(home))[name]
            assert getattr(package, name) is expected, (first, again, name)
    assert isinstance(package.plan, types.FunctionType), first
print("equal")
"""
# One process for all that starts with nothing imported, in the order of what it loads.
IMPORTS = """
import sys

def loaded():
    return {*sys.modules}

def forget():
    for name in [name for name in sys.modules if name.split(".")[0] == "hwtrain"]:
        del sys.modules[name]

import hwtrain
print(*loaded())

star = {}
exec("from hwtrain import *", star)
print(*(name for name in sorted(star) if not name.startswith("_")))
print(*loaded())

forget()
import hwtrain.plan
from hwtrain import plan
from hwtrain.transforms import plan as expected
from hwtrain.plan import Plan
print(hwtrain.plan is plan is expected and hwtrain.Plan is Plan)

forget()
import hwtrain
inner = {"hardware", "mismatch", "paths", "physics", "programming", "transforms"}
print(all(getattr(hwtrain, name).__file__ for name in inner))
"""


def process(code, *words):
    """Returns what Python prints in a new process."""
    run = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_users_see_the_names_that_type_checkers_see():
    assert hwtrain.__all__ == sorted(HOMES)
    assert {*HOMES, "__version__", "__doc__"} <= {*dir(hwtrain)}


@pytest.mark.parametrize("name", HOMES)
def test_a_name_is_what_its_module_defines(name):
    home = importlib.import_module(HOMES[name])
    assert getattr(hwtrain, name) is getattr(home, name)


# Modules that are called as a public name.
NAMESAKES = {"plan", "transforms.calibrate", "transforms.inspect", "cli.export"}


def parts():
    """Returns the package and its parts, by name."""
    found = {file.relative_to(PACKAGE).parts[0] for file in PACKAGE.rglob("*.py")}
    found = {part.removesuffix(".py") for part in found} - {"__init__", "__main__"}
    return ["hwtrain", *(f"hwtrain.{part}" for part in sorted(found | NAMESAKES))]


@pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.nightly)]
)
def test_names_do_not_depend_on_what_is_imported_first(every):
    firsts = parts() if every else [f"hwtrain.{name}" for name in sorted(NAMESAKES)]
    assert process(ORDERS, json.dumps([HOMES, firsts])) == "equal"


@pytest.fixture(scope="module")
def imports():
    names = ("package", "stars", "all", "plan", "inner")
    return dict(zip(names, process(IMPORTS).splitlines(), strict=True))


def test_the_function_plan_is_not_hidden_by_its_module(imports):
    assert imports["plan"] == "True"


def test_parts_that_are_not_public_are_reached_as_well(imports):
    assert imports["inner"] == "True"


def test_an_unknown_name_is_an_error_that_says_which():
    with pytest.raises(AttributeError, match="module 'hwtrain' has no attribute 'x'"):
        hwtrain.x  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'x' from 'hwtrain'"):
        from hwtrain import x  # noqa: F401


def test_a_name_can_be_replaced(monkeypatch):
    monkeypatch.setattr(hwtrain, "plan", 1)
    assert hwtrain.plan == 1


def test_an_import_loads_nothing_that_is_slow(imports):
    slow = {"jax", "numpy", "flax", "optax", "orbax", "pydantic", "rich", "scipy"}
    assert not slow & {*imports["package"].split()}


def test_a_star_imports_all_names_and_loads_no_more_than_they_need(imports):
    assert imports["stars"].split() == sorted(HOMES)
    slow = {"scipy", "matplotlib", "sklearn", "nir", "hwtrain.training", "hwtrain.cli"}
    assert not slow & {*imports["all"].split()}
