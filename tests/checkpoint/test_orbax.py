"""The checkpoint as an item of an Orbax `CheckpointManager`."""

import dataclasses
import functools
import os
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from hwtrain.checkpoint import (
    HardwareCheckpointError,
    HardwareRestore,
    HardwareSave,
    export,
    load,
)


def both(variables, plan, seeds=(7,)):
    return ocp.args.Composite(
        state=ocp.args.StandardSave(variables["params"]),
        hardware=HardwareSave(variables, plan, chip_seeds=seeds),
    )


def restore(manager, step):
    args = ocp.args.Composite(hardware=HardwareRestore())
    return manager.restore(step, args=args)["hardware"]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def options(request):
    return ocp.CheckpointManagerOptions(
        enable_async_checkpointing=request.param, max_to_keep=2
    )


def test_save_and_restore(tmp_path, options, variables, plan):
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        assert manager.save(0, args=both(variables, plan))
        manager.wait_until_finished()
        checkpoint = restore(manager, 0)
    chex.assert_trees_all_equal(checkpoint.variables, variables)
    assert checkpoint.plan == plan
    assert checkpoint.chip_seeds == (7,)


def test_a_fresh_manager_restores(tmp_path, options, variables, plan):
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        manager.save(3, args=both(variables, plan))
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        chex.assert_trees_all_equal(restore(manager, 3).params, variables["params"])
        state = manager.restore(
            3, args=ocp.args.Composite(state=ocp.args.StandardRestore())
        )["state"]
        chex.assert_trees_all_equal(state["norm"], variables["params"]["norm"])


def test_the_item_is_the_artifact(tmp_path, options, variables, plan):
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        manager.save(0, args=both(variables, plan))
    item, direct = tmp_path / "run/0/hardware", tmp_path / "direct"
    export(direct, variables, plan, chip_seed=7)
    for path in direct.rglob("*.*"):
        assert (item / path.relative_to(direct)).read_bytes() == path.read_bytes()
    assert load(item).plan == plan


def test_old_steps_are_removed(tmp_path, options, variables, plan):
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        for step in range(4):
            manager.save(step, args=both(variables, plan, seeds=()))
        manager.wait_until_finished()
        assert manager.all_steps() == [2, 3]
        restore(manager, 3)


def test_best_steps_are_kept(tmp_path, variables, plan):
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, best_fn=lambda metrics: metrics["accuracy"]
    )
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        for step, accuracy in enumerate([0.8, 0.9, 0.7]):
            args = both(variables, plan)
            manager.save(step, args=args, metrics={"accuracy": accuracy})
        manager.wait_until_finished()
        assert manager.best_step() == 1
        assert restore(manager, 1).chip_seeds == (7,)


def test_every_so_many_steps(tmp_path, options, variables, plan):
    options = dataclasses.replace(options, save_interval_steps=2, max_to_keep=None)
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        for step in range(5):
            saved = manager.save(step, args=both(variables, plan, seeds=()))
            assert saved == (step % 2 == 0)
        manager.wait_until_finished()
        assert manager.all_steps() == [0, 2, 4]
    assert load(tmp_path / "run/2/hardware").plan == plan
    assert not (tmp_path / "run/3").exists()


def test_the_best_two_are_kept_and_hold_their_own_model(tmp_path, options, plan):
    weight = plan["cell/w_rec"]
    options = dataclasses.replace(
        options, max_to_keep=2, best_fn=lambda metrics: metrics["accuracy"]
    )
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        for step, accuracy in enumerate([0.8, 0.9, 0.7, 0.95, 0.6]):
            params = {"cell": {"w_rec": jnp.full((4, 4), float(step))}}
            hardware = HardwareSave(params, type(plan)((weight,)), chip_seeds=[7])
            args = ocp.args.Composite(hardware=hardware)
            manager.save(step, args=args, metrics={"accuracy": accuracy})
        manager.wait_until_finished()
        assert sorted(manager.all_steps()) == [1, 3]
        for step in (1, 3):
            found = restore(manager, step)
            assert (found.params["cell"]["w_rec"] == step).all()
            assert found.chip_seeds == (7,)


def test_a_resumed_run_continues_exporting(tmp_path, options, variables, plan):
    def grown(step):
        grow = functools.partial(jnp.add, step)
        hidden = jax.tree.map(grow, variables["params"]["hidden"])
        return {"params": {**variables["params"], "hidden": hidden}}

    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        for step in (0, 1):
            manager.save(step, args=both(grown(step), plan, seeds=()))
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        assert manager.latest_step() == 1
        last = restore(manager, 1)
        manager.save(2, args=both(grown(2), last.plan, seeds=()))
        manager.wait_until_finished()
        assert manager.all_steps() == [1, 2]
        found = restore(manager, 2).params["hidden"]["kernel"]
        expected = grown(2)["params"]["hidden"]["kernel"]
        chex.assert_trees_all_equal(found, expected)


def test_the_model_may_change_while_it_is_written(tmp_path, variables, plan):
    @jax.jit
    def double(params):
        return jax.tree.map(lambda leaf: 2 * leaf, params)

    donate = jax.jit(double, donate_argnums=0)
    expected = jax.tree.map(jnp.copy, variables["params"])
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(0, args=both({"params": variables["params"]}, plan))
        donate(variables["params"])
        manager.wait_until_finished()
        chex.assert_trees_all_equal(restore(manager, 0).params, expected)


def test_a_plan_that_does_not_fit_fails_before_orbax_starts(variables, plan):
    del variables["params"]["cell"]
    with pytest.raises(HardwareCheckpointError, match="names cell/w_rec"):
        HardwareSave(variables, plan)


def test_a_failed_write_is_no_step(tmp_path, options, variables, plan):
    hidden = variables["params"]["hidden"]
    hidden["kernel"] = hidden["kernel"].at[0, 0].set(jnp.nan)
    manager = ocp.CheckpointManager(tmp_path / "run", options=options)
    with pytest.raises(HardwareCheckpointError, match="hidden/kernel: 1 of 70"):
        manager.save(0, args=both(variables, plan))
        manager.wait_until_finished()
    manager.close()
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        assert manager.all_steps() == []


def test_a_flipped_bit_is_found(tmp_path, variables, plan):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(0, args=both(variables, plan))
        manager.wait_until_finished()
        path = tmp_path / "run/0/hardware/tensors/0001.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(HardwareCheckpointError, match="should have SHA-256"):
            restore(manager, 0)


@pytest.mark.nightly
def test_sharded_over_eight_devices(tmp_path):
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        import jax
        import numpy as np
        import orbax.checkpoint as ocp
        from hwtrain.checkpoint import HardwareRestore, HardwareSave, export
        from hwtrain import (
            Hardware, MappingParameter, MismatchParameter, Plan,
            SinglePairConductanceConverter)
        from hwtrain._plan.weight import AnalogWeight
        hardware = Hardware(
            mapping=MappingParameter(max_input_size=6, weight_scaling_omega=1.0),
            mismatch=MismatchParameter(type="add_normal", std_dev=0.1),
            converter=SinglePairConductanceConverter())
        plan = Plan((AnalogWeight(
            path="dense/kernel", kind="dense", layer="Dense", shape=(16, 8),
            rows=(0,), columns=(1,), hardware=hardware, rule="", ranged=False),))
        kernel = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
        auto = (jax.sharding.AxisType.Auto,) * 2
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=auto)
        sharding = jax.NamedSharding(mesh, jax.P("x", "y"))
        sharded = {"dense": {"kernel": jax.device_put(kernel, sharding)}}
        assert len(sharded["dense"]["kernel"].addressable_shards) == 8
        folder = Path(sys.argv[1])
        export(folder / "single", {"dense": {"kernel": kernel}}, plan, chip_seed=7)
        with ocp.CheckpointManager(folder / "run") as manager:
            manager.save(0, args=ocp.args.Composite(
                state=ocp.args.StandardSave(sharded),
                hardware=HardwareSave(sharded, plan, chip_seeds=[7])))
            manager.wait_until_finished()
            restored = manager.restore(
                0, args=ocp.args.Composite(hardware=HardwareRestore()))["hardware"]
        np.testing.assert_array_equal(restored.params["dense"]["kernel"], kernel)
        for path in (folder / "single").rglob("*.*"):
            item = folder / "run/0/hardware" / path.relative_to(folder / "single")
            assert item.read_bytes() == path.read_bytes()
    """)
    eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, **eight, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
