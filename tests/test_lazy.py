"""The package's names are imported when they are asked for, old ones with a warning."""

import sys
import types

import pytest

import hwtrain
from hwtrain import _lazy


def test_an_old_name_is_the_new_one_and_says_so(monkeypatch):
    package = types.ModuleType("hwtrain.example")
    monkeypatch.setitem(sys.modules, "hwtrain.example", package)
    monkeypatch.setitem(sys.modules, "hwtrain.example.home", hwtrain.chips)
    vars(package)["__all__"] = ["chip_key"]
    _lazy.make_lazy(
        "hwtrain.example", {"home": ["chip_key"]}, rooms=(), renamed={"old": "chip_key"}
    )
    said = "hwtrain.example.old is now hwtrain.example.chip_key"
    with pytest.warns(DeprecationWarning, match=said) as warned:
        assert package.old is hwtrain.chip_key
    assert warned[0].filename == __file__
    assert package.chip_key is hwtrain.chip_key  # without a warning
    assert "old" not in dir(package)
    with pytest.raises(AttributeError, match="no attribute 'older'"):
        _ = package.older
