"""Steps of a `CheckpointManager` in two processes: state and hardware item together."""

import filecmp

import pytest

pytestmark = pytest.mark.nightly

RUN = """
import optax
import orbax.checkpoint as ocp
from pathlib import Path
from hwtrain.checkpoint import HardwareRestore, HardwareSave, load

CHIP = hwtrain.Hardware(
    modifier=hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1),
    clip=hwtrain.WeightClipParameter(type="layer_gaussian", sigma=2.0),
    mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.1),
    converter=hwtrain.SinglePairConductanceConverter(),
)

class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, name="head")(nn.relu(nn.Dense(16, name="hidden")(x)))

folder = Path(sys.argv[3])
mesh = mesh_of(4, 2)
x = np.random.default_rng(0).normal(size=(32, 12)).astype(np.float32)
analog = hwtrain.analogize(Model(), CHIP)
shapes = jax.eval_shape(analog.init, jax.random.key(1), x)["params"]
plan = hwtrain.plan(analog, shapes, x)
optimizer = hwtrain.optim.hardware_aware(optax.adam(1e-2), plan)

def state_of(key):
    params = analog.init(key, x)["params"]
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.int32(0)}

def shardings(mesh):
    def place(path, leaf):
        columns = leaf.ndim == 2 and leaf.shape[1] in (8, 16)
        return NamedSharding(mesh, P(None, "model") if columns else P())
    found = jax.eval_shape(state_of, jax.random.key(1))
    return jax.tree_util.tree_map_with_path(place, found)

def targets(mesh):
    found = jax.eval_shape(state_of, jax.random.key(1))
    return jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=to), found, shardings(mesh))

@jax.jit
def step(state, batch):
    key = jax.random.fold_in(jax.random.key(2), state["step"])
    def loss(params):
        y = analog.apply({"params": params}, batch, rngs={"mismatch": key})
        return jnp.mean((y - 1.0) ** 2)
    gradients = jax.grad(loss)(state["params"])
    updates, opt_state = optimizer.update(
        gradients, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}

def batch_of(number, mesh):
    # Each process makes its own share of the examples.
    rows = np.split(x + np.float32(number), jax.process_count())[jax.process_index()]
    return jax.make_array_from_process_local_data(
        NamedSharding(mesh, P("data")), rows, x.shape)

def args_of(state):
    return ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        hardware=HardwareSave({"params": state["params"]}, plan, chip_seeds=[7]))

def equal(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(*gathered([a, b]))
"""


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_resumed_run_equals_the_uninterrupted_one(in_processes, tmp_path, kind):
    in_processes(
        RUN
        + """
options = ocp.CheckpointManagerOptions(
    enable_async_checkpointing=sys.argv[4] == "async", save_interval_steps=2)
state = jax.jit(state_of, out_shardings=shardings(mesh))(jax.random.key(1))
run = folder / "run"
copied = []
from hwtrain.checkpoint import _items as items
usual = items.Item.on_host
def counted(self, reader=None):
    found = usual(self, reader)
    copied.append(found is not self)
    return found
items.Item.on_host = counted
with ocp.CheckpointManager(run, options=options) as manager:
    for number in range(6):
        state = step(state, batch_of(number, mesh))
        manager.save(number + 1, args=args_of(state))
    manager.wait_until_finished()
    assert manager.all_steps() == [1, 2, 4, 6]
# Each process held one of two layers at every save, not the model.
assert len(copied) == 8 and sum(copied) == 4, copied
items.Item.on_host = usual
with ocp.CheckpointManager(run, options=options) as manager:
    found = manager.restore(4, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(targets(mesh)),
        hardware=HardwareRestore({"params": targets(mesh)["params"]})))
    equal(found["state"]["params"], found["hardware"].params)
    resumed = found["state"]
    for number in range(4, 6):
        resumed = step(resumed, batch_of(number, mesh))
    equal(resumed, state)
    # On another mesh: to the rounding of sums over the batch.
    other = mesh_of(2, 4)
    found = manager.restore(4, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(targets(other)),
        hardware=HardwareRestore(NamedSharding(other, P()))))
    assert found["hardware"].chip_seeds == (7,)
    moved = found["state"]
    for number in range(4, 6):
        moved = step(moved, batch_of(number, other))
    for a, b in zip(*map(jax.tree.leaves, (moved["params"], state["params"]))):
        np.testing.assert_allclose(*gathered([a, b]), rtol=1e-4, atol=1e-5)
# The item is what export writes.
hwtrain.export(folder / "direct", {"params": state["params"]}, plan, chip_seed=7)
""",
        tmp_path,
        kind,
    )
    item, direct = tmp_path / "run/6/hardware", tmp_path / "direct"
    names = [str(path.relative_to(direct)) for path in direct.rglob("*.*")]
    assert filecmp.cmpfiles(item, direct, names, shallow=False)[0] == names
    assert not list(item.glob("share-*"))


def test_a_value_that_cannot_be_exported_fails_on_all(in_processes, tmp_path):
    in_processes(
        RUN
        + """
state = jax.jit(state_of, out_shardings=shardings(mesh))(jax.random.key(1))
state["params"]["head"]["bias"] = spread(np.full(8, np.inf, np.float32), mesh)
def save(manager, args):
    manager.save(0, args=args)
    manager.wait_until_finished()
for kind in (False, True):
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=kind)
    manager = ocp.CheckpointManager(folder / str(kind), options=options)
    said = refused(lambda: save(manager, args_of(state)))
    assert "head/bias: 8 of 8 numbers are NaN or infinite" in said, said
    manager.close()
    assert ocp.CheckpointManager(folder / str(kind)).all_steps() == []
manager = ocp.CheckpointManager(folder / "seeds")
args = HardwareSave({"params": state["params"]}, plan, chip_seeds=[me])
said = refused(lambda: save(manager, ocp.args.Composite(hardware=args)))
assert "chip seeds should be the same" in said, said
manager.close()
""",
        tmp_path,
    )


def test_sigterm_to_one_process_saves_on_all_and_ends(in_processes, tmp_path):
    """As a scheduler preempts one host: all stop after the same step."""
    in_processes(
        RUN
        + """
import signal, time
options = ocp.CheckpointManagerOptions(save_interval_steps=1000)
state = jax.jit(state_of, out_shardings=shardings(mesh))(jax.random.key(1))
with ocp.CheckpointManager(folder / "run", options=options) as manager:
    for number in range(1, 500):
        state = step(state, batch_of(number, mesh))
        jax.block_until_ready(state)
        if number == 20 and me == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.02)
        if manager.should_save(number):
            manager.save(number, args=args_of(state))
        if manager.reached_preemption(number):
            break
    manager.wait_until_finished()
    assert 20 <= number < 499, number
    assert manager.all_steps()[-1] == number
equal(load(folder / f"run/{number}/hardware", sharding=NamedSharding(mesh, P())).params,
      state["params"])
""",
        tmp_path,
    )
