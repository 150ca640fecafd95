"""Fixtures of all tests."""

import json
import pathlib

import jax
import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """Loads a file of golden numbers by name; `golden/README.md` says whose."""
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    # They would pile up to gigabytes over the suite.
    yield
    jax.clear_caches()
