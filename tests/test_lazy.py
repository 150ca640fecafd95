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


def renaming(monkeypatch, renamed):
    package = types.ModuleType("hwtrain.example")
    vars(package).update(__all__=["chip_key"], __path__=[])
    monkeypatch.setitem(sys.modules, "hwtrain.example", package)
    monkeypatch.setitem(sys.modules, "hwtrain.example.home", hwtrain.chips)
    homes = {"home": ["chip_key"]}
    _lazy.make_lazy("hwtrain.example", homes, rooms=(), renamed=renamed)


def test_importing_an_old_name_warns_once(monkeypatch):
    renaming(monkeypatch, {"older": "old", "old": "chip_key"})
    with pytest.warns(DeprecationWarning) as warned:
        from hwtrain.example import older  # pyright: ignore[reportMissingImports]
    assert older is hwtrain.chip_key
    (warning,) = warned
    assert warning.filename == __file__
    assert str(warning.message).startswith(
        "hwtrain.example.older is now hwtrain.example.chip_key; "
    )


@pytest.mark.parametrize(
    ("renamed", "names"),
    [
        ({"old": "old"}, "old -> old"),
        ({"a": "b", "b": "c", "c": "b", "d": "chip_key"}, "a -> b -> c -> b"),
    ],
)
def test_names_that_are_renamed_in_a_circle_are_refused(monkeypatch, renamed, names):
    with pytest.raises(ImportError, match=f"^{names}: expected a new name"):
        renaming(monkeypatch, renamed)
