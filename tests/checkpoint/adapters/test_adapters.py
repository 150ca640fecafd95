"""Properties that hold for every adapter."""

import errno

import pytest

from hwtrain.checkpoint import HardwareCheckpointError
from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint.adapters import ADAPTERS

every = pytest.mark.parametrize("name", ADAPTERS)


def contents(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(f.relative_to(path)): f.read_bytes() for f in files if f.is_file()}


@every
def test_equal_checkpoints_give_equal_bytes(name, make, out):
    checkpoint = make("second", norm=False)
    again = out.with_name("again")
    for path in (out, again):
        ADAPTERS[name](checkpoint, path, chip=None)
    assert contents(out) == contents(again)
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["again", "out"]


@every
def test_nothing_is_overwritten(name, make, out):
    out.parent.mkdir()
    out.write_text("mine")
    with pytest.raises(HardwareCheckpointError, match="never overwritten"):
        ADAPTERS[name](make("second", norm=False), out)
    assert out.read_text() == "mine"


@every
def test_full_disk_leaves_nothing(name, make, out, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    checkpoint = make("second", norm=False)
    monkeypatch.setattr(destination, "sync", full)
    with pytest.raises(HardwareCheckpointError, match="No space left"):
        ADAPTERS[name](checkpoint, out)
    assert not list(out.parent.iterdir())


@every
def test_an_interrupt_leaves_nothing(name, make, out, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    checkpoint = make("second", norm=False)
    monkeypatch.setattr(destination, "sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ADAPTERS[name](checkpoint, out)
    assert not list(out.parent.iterdir())


@every
def test_a_chip_that_is_not_there(name, make, out):
    with pytest.raises(HardwareCheckpointError, match=r"no chip 9|chip=9"):
        ADAPTERS[name](make("second", norm=False), out, chip=9)
    assert not out.parent.exists() or not list(out.parent.iterdir())
