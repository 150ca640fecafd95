"""Fixtures of all tests."""

import json
import pathlib

import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """Loads a file of golden numbers by name; `golden/README.md` says whose."""
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text())
