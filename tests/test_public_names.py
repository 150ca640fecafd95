"""Public names are defined by their modules and are loaded on first use."""

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

"""


def process(code, *words):
    """Returns what Python prints in a new process."""
    run = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_first_use_may_place_a_stage_beside_built_in_ones():
    code = """
import hwtrain

@hwtrain.register("stage", "first", inside="adc", outside="weight_noise")
class First(hwtrain.Part):
    pass

print(First().type)
"""
    assert process(code) == "first"


def test_users_see_the_names_that_type_checkers_see():
    assert hwtrain.__all__ == sorted(HOMES)
    assert {*HOMES, "__version__", "__doc__"} <= {*dir(hwtrain)}


@pytest.mark.parametrize("name", HOMES)
def test_a_name_is_what_its_module_defines(name):
    home = importlib.import_module(HOMES[name])
    assert getattr(hwtrain, name) is getattr(home, name)


def parts():
    """Returns the package and its parts, by name."""
    found = {file.relative_to(PACKAGE).parts[0] for file in PACKAGE.rglob("*.py")}
    found = {part.removesuffix(".py") for part in found} - {"__init__", "__main__"}
    return ["hwtrain", *(f"hwtrain.{part}" for part in sorted(found))]


@pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.nightly)]
)
def test_names_do_not_depend_on_what_is_imported_first(every):
    firsts = parts() if every else ["hwtrain._plan.plan", "hwtrain.cli"]
    assert process(ORDERS, json.dumps([HOMES, firsts])) == "equal"


@pytest.fixture(scope="module")
def imports():
    names = ("package", "stars", "all")
    return dict(zip(names, process(IMPORTS).splitlines(), strict=True))


def test_what_users_import_has_no_underscore_and_no_function_its_modules_name():
    for file in PACKAGE.rglob("*.py"):
        named = {
            node.name
            for node in ast.parse(file.read_text()).body
            if hasattr(node, "name")
        }
        assert file.stem not in named, file
    open_rooms = {name.partition(".")[2].partition(".")[0] for name in HOMES.values()}
    folders = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    # Folders that are not public sub-packages are private, and so are loose modules.
    private = {name for name in folders if name[0] == "_"}
    assert folders - private <= open_rooms | {name for name in HOMES} | {"cli", "train"}
    loose = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert {name for name in loose if name[0] != "_"} == {"presets"}


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
    slow = {"scipy", "matplotlib", "sklearn", "nir", "hwtrain.train", "hwtrain.cli"}
    assert not slow & {*imports["all"].split()}
