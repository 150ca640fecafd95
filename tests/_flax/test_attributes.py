"""All attributes that hwtrain sets on foreign objects are named in one file."""

import ast
import functools
from pathlib import Path

import pytest

import hwtrain
from hwtrain._flax.attributes import OF_FLAX, ON_CLASSES, ON_OBJECTS

PACKAGE = Path(hwtrain.__file__).parent
NAMED = {**ON_CLASSES, **ON_OBJECTS, **OF_FLAX}
PREFIXES = ("_hwtrain_", "hwtrain_", "analog_", "hardware_mode")


def is_ours(name):
    return isinstance(name, str) and name.isidentifier() and name.startswith(PREFIXES)


def set_in(tree):
    """Yields the names that a program sets on objects, or gives a class it makes."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name, ctx=ast.Store()) if is_ours(name):
                yield name
            case ast.Subscript(
                value=of, slice=ast.Constant(value=name), ctx=ast.Store()
            ):
                if ast.unparse(of).startswith("vars(") and is_ours(name):
                    yield name
            case ast.Call(func=function, args=[*_, ast.Constant(value=name), _]):
                written = ast.unparse(function).endswith(("setattr", "setdefault"))
                if written and is_ours(name):
                    yield name
            case ast.ClassDef(body=body):
                for part in body:
                    if isinstance(part, ast.Assign):
                        names = [getattr(target, "id", None) for target in part.targets]
                        yield from filter(is_ours, names)
            case ast.Dict(keys=keys):
                names = [getattr(key, "value", None) for key in keys]
                if "__module__" in names:  # of a class
                    yield from filter(is_ours, names)


@functools.cache
def all_set():
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for name in set_in(ast.parse(file.read_text())):
            found.setdefault(name, []).append(str(file.relative_to(PACKAGE)))
    return found


def test_all_that_is_set_is_named():
    unnamed = {name: files for name, files in all_set().items() if name not in NAMED}
    assert not unnamed


@pytest.mark.parametrize("name", NAMED)
def test_what_is_named_is_set(name):
    assert name in all_set()


@pytest.mark.parametrize(
    "line",
    [
        "module.analog_thing = 1",
        "setattr(module, 'analog_thing', 1)",
        "vars(layer).setdefault('analog_thing', 1)",
        "namespace = {'__module__': '', '_hwtrain_thing': 1}",
        "scope.hwtrain_thing = 1",
        "class Cell: _hwtrain_thing = 1",
        "vars(function)['hwtrain_thing'] = 1",
    ],
)
def test_what_sets_one_is_found(line):
    assert list(set_in(ast.parse(line)))
