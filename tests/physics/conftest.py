import json
import pathlib

import pytest

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "aihwkit_weights.json"


@pytest.fixture(scope="session")
def golden_weights():
    return json.loads(_GOLDEN.read_text())
