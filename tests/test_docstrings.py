"""Every public name says what it is."""

import importlib
import inspect
import pkgutil

import pytest

import hwtrain


def public_names():
    names = ["hwtrain"]
    for module in pkgutil.walk_packages(hwtrain.__path__, "hwtrain."):
        names.append(module.name)
    return [name for name in names if "._" not in name]


@pytest.mark.parametrize("name", public_names())
def test_public_names_have_docstrings(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module), f"{name} has no docstring"
    for key, value in vars(module).items():
        own = getattr(value, "__module__", "").startswith("hwtrain")
        if key.startswith("_") or not own:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{key} has no docstring"
        if inspect.isclass(value):
            for member, attribute in vars(value).items():
                attribute = getattr(attribute, "fget", attribute)
                if inspect.isfunction(attribute) and not member.startswith("_"):
                    assert attribute.__doc__, f"{name}.{key}.{member} has no docstring"
