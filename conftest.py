"""Fixtures of the examples in the package's docstrings."""

import importlib

import pytest

# All modules that register parts, such that an example adds no others.
_WITH_PARTS = ("_plan.hardware", "objectives", "checkpoint.adapters")


@pytest.fixture(autouse=True)
def _forget_parts_of_examples(request):
    """Restores the registry of parts after an example, which may register its own."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    for module in _WITH_PARTS:
        importlib.import_module(f"hwtrain.{module}")
    registry = importlib.import_module("hwtrain._parts.registry")
    before = {kind: registry.names(kind) for kind in registry.KINDS}
    yield
    for kind, names in before.items():
        for name in {*registry.names(kind)} - {*names}:
            registry.forget(kind, name)
