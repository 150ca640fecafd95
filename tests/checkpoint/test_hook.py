"""Exports from a callback, also of a resumed run."""

import jax
import pytest

from hwtrain.checkpoint import ExportHook, HardwareCheckpointError, load


def test_exports_every_so_many_steps(tmp_path, variables, plan):
    hook = ExportHook(directory=tmp_path, plan=plan, every=2, chip_seeds=[7])
    for step in range(5):
        hook(step, variables)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000000",
        "00000002",
        "00000004",
    ]
    assert load(tmp_path / "00000002").chip_seeds == (7,)


def test_a_resumed_run_continues(tmp_path, variables, plan):
    hook = ExportHook(directory=tmp_path, plan=plan)
    path = hook(3, variables)
    before = (path / "manifest.json").stat().st_mtime_ns
    assert hook(3, variables) == path
    assert (path / "manifest.json").stat().st_mtime_ns == before
    hook(4, variables)


@pytest.mark.parametrize("change", ["values", "chips", "leaves"])
def test_another_run_is_an_error(tmp_path, variables, plan, change):
    ExportHook(directory=tmp_path, plan=plan)(3, variables)
    seeds = [7] if change == "chips" else []
    if change == "values":
        variables["params"] = jax.tree.map(lambda leaf: leaf + 1, variables["params"])
    elif change == "leaves":
        del variables["batch_stats"]
    hook = ExportHook(directory=tmp_path, plan=plan, chip_seeds=seeds)
    with pytest.raises(HardwareCheckpointError, match="another model, plan or chips"):
        hook(3, variables)


def test_every_must_be_positive(plan):
    with pytest.raises(HardwareCheckpointError, match="at least 1 step, got 0"):
        ExportHook(directory="runs", plan=plan, every=0)
