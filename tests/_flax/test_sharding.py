"""Draws and statistics do not depend on the mesh: eight simulated devices."""

import pytest

SCRIPT = """
import functools
import jax, jax.numpy as jnp, numpy as np, optax
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec as P
import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain._flax import example_weights
from hwtrain._arrays.random import draw_key, normal
from hwtrain._flax.weight_side import step_weights

assert jax.device_count() == 8

class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, name="head")(nn.relu(nn.Dense(16, name="hidden")(x)))

chip = hw.Hardware(
    modifier=hw.WeightModifierParameter(
        type="add_normal", std_dev=0.1, per_column=True
    ),
    input_range=hw.InputRangeParameter(init_value=1.0, init_from_data=0, decay=0.1),
    clip=hw.WeightClipParameter(type="layer_gaussian", sigma=1.5),
)
x = jax.random.normal(jax.random.key(1), (64, 12))
analog = hw.analogize(MLP(), chip)
params = analog.init(jax.random.key(0), x)["params"]
plan = hw.plan(analog, params, x)
tx = hw.optim.hardware_aware(optax.sgd(0.1), plan)

@jax.jit
def noisy(params, key):
    return step_weights(params, plan, "train", key)[0]

@jax.jit
def step(params, state, x, key):
    def loss(params):
        y = analog.apply({"params": params}, x, rngs={"mismatch": key})
        return jnp.square(y).mean()
    grads = jax.grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), grads

mesh = jax.make_mesh((4, 2), ("data", "model"))
def place(path, leaf):
    spec = P(None, "model") if path.endswith("kernel") else P()
    return jax.device_put(leaf, NamedSharding(mesh, spec))

sharded = paths.map_leaves(place, params)
key = jax.random.key(7)
for spec in (P("data", "model"), P("model"), P(None, "data")):
    sharding = NamedSharding(mesh, spec)
    draw = lambda key: normal(draw_key(key, "hidden/kernel", "weight_noise"), (16, 24))
    on_mesh = jax.jit(draw, out_shardings=sharding)(key)
    np.testing.assert_array_equal(np.asarray(on_mesh), np.asarray(jax.jit(draw)(key)))

for path, value in paths.leaves(noisy(params, key)).items():
    # The draws are bit-equal; what is added to them is compiled for another shape, with
    # or without a fused multiply-add, which is one rounding.
    other = paths.leaves(noisy(sharded, key))[path]
    np.testing.assert_allclose(value, other, rtol=0, atol=2.0**-22, err_msg=path)

text = noisy.lower(sharded, key).compile().as_text()
assert "all-gather" not in text, "drawing noise must not communicate"

split = jax.device_put(x, NamedSharding(mesh, P("data")))
one = step(params, tx.init(params), x, key)
many = step(sharded, tx.init(sharded), split, key)
for whole, parts in zip(jax.tree.leaves(one), jax.tree.leaves(many)):
    np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-6)
ranges = [v for p, v in paths.leaves(one[0]).items() if p.endswith("input_range")]
assert all((r != 1.0).all() for r in ranges)

# Draws of an example or a vector do not depend on the mesh either, also in chunks.
example_weights.LARGEST_CHUNK = 12 * 8 * 16
for per in ("per_batch_sample", "per_vector", "redraw"):
    noise = hw.WeightModifierParameter(type="add_normal", std_dev=0.1, **{per: True})
    layer = hw.analogize(nn.Dense(8), hw.Hardware(modifier=noise))
    weights = layer.init(jax.random.key(0), x)
    call = jax.jit(lambda w, x: layer.apply(w, x, rngs={"mismatch": key}))
    np.testing.assert_allclose(
        call(weights, x), call(weights, split), rtol=1e-5, atol=1e-5
    )

# Sums of neighbours, also where they lie on several devices.
converters = hw.IOParameters(inp_bits=8, out_bits=8, out_bound=10.0)
layer = hw.analogize(nn.Dense(8), hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
    clip=chip.clip, input_range=chip.input_range, forward=converters,
    mapping=hw.MappingParameter(max_input_size=6),
))
few = x[:16]
start = layer.init(jax.random.key(0), few)["params"]
own = hw.optim.hardware_aware(optax.sgd(0.1), hw.plan(layer, start, few))

@jax.jit
def small_step(params, x):
    def loss(params):
        y = layer.apply({"params": params}, x, rngs={"mismatch": key})
        return jnp.square(y).mean()
    updates, _ = own.update(jax.grad(loss)(params), own.init(params), params)
    return optax.apply_updates(params, updates)

alone = small_step(start, few)
for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
    other = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    columns = NamedSharding(other, P(None, "model"))
    weights = {**start, "kernel": jax.device_put(start["kernel"], columns)}
    split = jax.device_put(few, NamedSharding(other, P("data")))
    found = small_step(weights, split)
    for path, value in paths.leaves(alone).items():
        np.testing.assert_allclose(
            paths.leaves(found)[path], value, rtol=1e-5, atol=1e-6, err_msg=path
        )

# Of a batch that is spread no activation is exchanged: sums alone.
data = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
for shape in ((8, 64, 12), (16, 8, 12), (24, 8, 12), (32, 8, 12), (64, 12)):
    batch = jax.device_put(jnp.ones(shape), NamedSharding(data, P("data")))
    weights = jax.device_put(start, NamedSharding(data, P()))
    text = small_step.lower(weights, batch).compile().as_text()
    for word in ("collective-permute", "all-gather", "all-to-all"):
        assert word not in text, (shape, word)

# Gradients that four devices average by themselves give the same update.
four = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))

@jax.jit
@functools.partial(
    jax.shard_map, mesh=four, in_specs=(P(), P("data"), P()), out_specs=P(),
    check_vma=False,
)
def averaged(params, x, key):
    def loss(params):
        y = analog.apply({"params": params}, x, rngs={"mismatch": key})
        return jnp.square(y).mean()
    return jax.lax.pmean(jax.grad(loss)(params), "data")

updates, _ = jax.jit(tx.update)(averaged(params, x, key), tx.init(params), params)
after = paths.leaves(optax.apply_updates(params, updates))
for path, value in paths.leaves(one[0]).items():
    np.testing.assert_allclose(after[path], value, rtol=1e-5, atol=1e-6, err_msg=path)

# The state lies where the weights lie, and stays there.
adam = hw.optim.hardware_aware(optax.adam(0.1), plan)
state = adam.init(sharded)
_, new = jax.jit(adam.update)(many[1], state, sharded)
for place in (state, new):
    moment = place.base[0].mu["hidden"]["kernel"]
    assert moment.sharding.is_equivalent_to(sharded["hidden"]["kernel"].sharding, 2)
print("equal")
"""


@pytest.mark.nightly
def test_noise_ranges_and_clips_are_equal_on_a_mesh(on_devices):
    on_devices(8, SCRIPT)
