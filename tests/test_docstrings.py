"""Every public name has a docstring."""

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from pathlib import Path

import pytest

import hwtrain
from hwtrain.objectives import Objective

BASES = [
    hwtrain.ConductanceConverter,
    hwtrain.DriftCompensation,
    hwtrain.DriftingNoiseModel,
    hwtrain.Mismatch,
    hwtrain.NoiseModel,
    hwtrain.Part,
    hwtrain.WeightClip,
    hwtrain.WeightModifier,
    Objective,
]


def public_modules():
    names = ["hwtrain"]
    names += [m.name for m in pkgutil.walk_packages(hwtrain.__path__, "hwtrain.")]
    return [importlib.import_module(name) for name in names]


def without_docstrings(module):
    """Yields the names of a module, and the module itself, that say nothing."""
    if not inspect.getdoc(module):
        yield module.__name__
    for key, value in vars(module).items():
        own = getattr(value, "__module__", "").startswith("hwtrain")
        if key.startswith("_") or not own:
            continue
        name = f"{module.__name__}.{key}"
        if inspect.isclass(value) or inspect.isfunction(value):
            if not value.__doc__:
                yield name
        if inspect.isclass(value):
            for member, attribute in vars(value).items():
                attribute = getattr(attribute, "fget", attribute)
                if inspect.isfunction(attribute) and not member.startswith("_"):
                    if not attribute.__doc__:
                        yield f"{name}.{member}"


def test_public_names_have_docstrings():
    modules = public_modules()
    assert len(modules) > 100  # an empty walk would find nothing
    found = [name for module in modules for name in without_docstrings(module)]
    assert not found, "no docstring: " + ", ".join(found)


def test_no_docstring_describes_an_argument_twice():
    found = []
    for path in sorted(Path(hwtrain.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            _, _, behind = (ast.get_docstring(node) or "").partition("\nArgs:\n")
            section = re.match(r"(?:  .*(?:\n|$)|\n)*", behind)[0]
            names = re.findall(r"^  (\w+):", section, re.MULTILINE)
            found += [
                f"{path.name}: {node.name}: {n}"
                for n in set(names)
                if names.count(n) > 1
            ]
    assert not found, "described twice: " + ", ".join(found)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_the_attributes_of_a_base_class_have_docstrings(base):
    """A subclass may set them, or has to leave them: their docstrings say which."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
    for node, below in zip(tree.body, [*tree.body[1:], None]):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            text = getattr(getattr(below, "value", None), "value", None)
            assert isinstance(text, str), f"{base.__name__}: {ast.unparse(node)}"
