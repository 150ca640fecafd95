"""What every process calls together: the same numbers as in one process."""

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

import hwtrain
from hwtrain.evaluate import assert_active, population

pytestmark = [pytest.mark.nightly, pytest.mark.optimised]

MODEL = """
CHIP = hwtrain.Hardware(
    modifier=hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1),
    clip=hwtrain.WeightClipParameter(type="layer_gaussian", sigma=2.0),
    input_range=hwtrain.InputRangeParameter(init_from_data=0),
    mapping=hwtrain.MappingParameter(max_input_size=8, weight_scaling_omega=1.0),
    mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.1),
    converter=hwtrain.SinglePairConductanceConverter(),
    noise_model=hwtrain.PCMLikeNoiseModel(),
    forward=hwtrain.IOParameters(inp_bits=8, out_noise=0.02))

class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16, name="hidden")(x))
        return nn.Dense(8, name="head")(x)

x = np.random.default_rng(0).normal(size=(64, 12)).astype(np.float32)
analog = hwtrain.analogize(Model(), CHIP)
variables = jax.device_get(analog.init(jax.random.key(1), x))
metric = lambda y: (y**2).mean(-1)
"""

SPREAD = """
from hwtrain._arrays.processes import require_same
mesh = mesh_of(4, 2)
shared = jax.tree_util.tree_map_with_path(lambda path, leaf: spread(
    leaf, mesh, *((None, "model") if path[-1].key == "kernel" else ())), variables)
split = spread(x, mesh, "data")
plan = hwtrain.plan(analog, shared, split)

def keep(name, tree):
    # The same on both processes; the test compares it with one process.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = {jax.tree_util.keystr(keys): gathered([leaf])[0] for keys, leaf in leaves}
    require_same(name, {key: leaf.tolist() for key, leaf in found.items()})
    np.savez(f"{sys.argv[3]}/{name}-{me}.npz", **found)
"""


def of_one():
    names = {"hwtrain": hwtrain, "nn": nn, "np": np, "jax": jax}
    exec(MODEL, names)
    return names


def assert_kept(folder, name, tree, **close):
    kept = np.load(folder / f"{name}-0.npz")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    expected = {jax.tree_util.keystr(keys): np.asarray(leaf) for keys, leaf in leaves}
    assert expected.keys() == {*kept}
    for key, value in expected.items():
        np.testing.assert_allclose(kept[key], value, err_msg=key, **close)


def test_leaves_and_ranges(in_processes, tmp_path):
    in_processes(
        MODEL
        + SPREAD
        + """
plain = hwtrain.strip(shared["params"], plan)
assert sorted(plain["head"]) == ["bias", "kernel"]
again = hwtrain.adopt(analog, plain, split)
assert jax.tree.structure(again) == jax.tree.structure(shared["params"])
assert all(not leaf.is_fully_addressable for leaf in jax.tree.leaves(again))
keep("adopted", again)
for method in ("max", "moving_std", "moving_quantile", "cache_quantile"):
    found = hwtrain.calibrate(analog, shared, [split, split * 2], method=method)
    leaf = found["params"]["head"]["input_range"]
    assert leaf.sharding == shared["params"]["head"]["input_range"].sharding
    keep(f"calibrated-{method}", found)
""",
        tmp_path,
    )
    one = of_one()
    analog, variables, x = one["analog"], one["variables"], one["x"]
    plan = hwtrain.plan(analog, variables, x)
    plain = hwtrain.strip(variables["params"], plan)
    assert_kept(tmp_path, "adopted", hwtrain.adopt(analog, plain, x), rtol=0)
    for method in ("max", "moving_std", "moving_quantile", "cache_quantile"):
        found = hwtrain.calibrate(analog, variables, [x, x * 2], method=method)
        assert_kept(tmp_path, f"calibrated-{method}", found, rtol=1e-5)


def test_chips_and_populations(in_processes, tmp_path):
    in_processes(
        MODEL
        + SPREAD
        + """
from hwtrain.evaluate import population
key = hwtrain.chip_key(7)
keep("mismatch", hwtrain.apply_mismatch(shared["params"], plan, key))
chip = hwtrain.program_chip(shared["params"], plan, key)
keep("programmed", chip.at(3600.0, jax.random.key(5)))
found = population(analog, shared, [(split,)], metric, chips=3, key=jax.random.key(4))
keep("population", {"values": found.values})
""",
        tmp_path,
    )
    one = of_one()
    analog, variables, x = one["analog"], one["variables"], one["x"]
    plan = hwtrain.plan(analog, variables, x)
    key = hwtrain.chip_key(7)
    chip = hwtrain.apply_mismatch(variables["params"], plan, key)
    # Two programs may fuse a draw's product and sum differently.
    assert_kept(tmp_path, "mismatch", chip, rtol=2e-6, atol=1e-7)
    chip = hwtrain.program_chip(variables["params"], plan, key)
    read = chip.at(3600.0, jax.random.key(5))
    assert_kept(tmp_path, "programmed", read, rtol=1e-4, atol=1e-6)
    found = population(
        analog, variables, [(x,)], one["metric"], chips=3, key=jax.random.key(4)
    )
    assert_kept(tmp_path, "population", {"values": found.values}, rtol=1e-4)


def test_steps(in_processes, tmp_path):
    program = """
import optax
def stepped(variables, plan, x):
    optimizer = hwtrain.optim.hardware_aware(optax.sgd(1e-2), plan)
    @jax.jit
    def step(params, state, x, key):
        def loss(params):
            y = analog.apply({"params": params}, x, rngs={"mismatch": key})
            return (y**2).mean()
        gradients = jax.grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state
    params = variables["params"]
    state = optimizer.init(params)
    for number in range(3):
        key = jax.random.fold_in(jax.random.key(2), number)
        params, state = step(params, state, x, key)
    return params
"""
    in_processes(
        MODEL + SPREAD + program + 'keep("stepped", stepped(shared, plan, split))\n',
        tmp_path,
    )
    one = {**of_one(), "optax": optax}
    exec(program, one)
    plan = hwtrain.plan(one["analog"], one["variables"], one["x"])
    found = one["stepped"](one["variables"], plan, one["x"])
    found = jax.tree.map(np.asarray, found)
    kept = np.load(tmp_path / "stepped-0.npz")
    for keys, value in jax.tree_util.tree_leaves_with_path(found):
        if keys[-1].key != "probe":
            name = jax.tree_util.keystr(keys)
            np.testing.assert_allclose(
                kept[name], value, rtol=1e-3, atol=1e-4, err_msg=name
            )


def test_calibration_fails_on_all(in_processes, tmp_path):
    in_processes(
        MODEL
        + SPREAD
        + """
said = refused(lambda: hwtrain.calibrate(analog, shared, [split * 0]))
assert "are zero or constant" in said, said
said = refused(lambda: hwtrain.calibrate(analog, shared, [split, split * np.nan]))
assert "hold NaN" in said, said
said = refused(lambda: hwtrain.calibrate(analog, shared, [split] * (2 - me)))
assert "process 1 has 1 batches, and process 0 has more" in said, said
def broken():
    yield split
    if me == 1:
        raise RuntimeError("no more files")
    yield split
try:
    hwtrain.calibrate(analog, shared, broken())
except (RuntimeError, ValueError) as error:
    assert str(error) == ("process 1 of 2: " if me == 0 else "") + "no more files"
""",
        tmp_path,
    )


def test_assert_active(in_processes, tmp_path):
    program = """
CHIP = hwtrain.Hardware(
    modifier=hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1),
    mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.1),
    converter=hwtrain.SinglePairConductanceConverter())

def model(tied):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(16, name="hidden")(x)
            y = nn.Dense(8, name="head")(y)
            return y * 0 if tied else y
    return hwtrain.analogize(Model(), CHIP)

x = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
analog = model(tied=False)
variables = jax.device_get(analog.init(jax.random.key(1), x))
"""
    in_processes(
        program
        + SPREAD
        + """
from hwtrain.evaluate import assert_active
found = assert_active(analog, shared, split)
require_same("rows", found.rows)
with open(f"{sys.argv[3]}/rows-{me}.txt", "w") as file:
    file.write(str(found))
said = refused(lambda: assert_active(model(tied=True), shared, split))
assert "the outputs are the same at every step key" in said, said
""",
        tmp_path,
    )
    names = {"hwtrain": hwtrain, "nn": nn, "np": np, "jax": jax}
    exec(program, names)
    expected = assert_active(names["analog"], names["variables"], names["x"])
    said = (tmp_path / "rows-1.txt").read_text().splitlines()
    # The amounts are measured on two meshes, the rows are the same.
    assert [line.split(": ")[:2] for line in said] == [
        list(row[:2]) for row in expected.rows
    ]
