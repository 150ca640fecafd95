"""Tiles of a kernel spread over a mesh of explicit axes equal those on one device."""

import pytest

SCRIPT = """
import sys, tempfile
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec as P
from flax import linen as nn
import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain.evaluate import population

class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, name="o")(nn.relu(nn.Dense(16, name="h")(x)))

class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3,), name="a")(x.reshape(x.shape[0], -1, 4)))
        return nn.Conv(4, (2,), feature_group_count=2, name="b")(x).mean(1)

def chip(size, **parts):
    tiles = hw.MappingParameter(
        weight_scaling_omega=1.0, max_input_size=size, max_output_size=size)
    ranged = hw.InputRangeParameter(init_from_data=0)
    io = hw.IOParameters(inp_bits=8, out_bits=8, out_bound=10.0)
    noise = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
    fields = {"mapping": tiles, "input_range": ranged, "forward": io, "modifier": noise}
    return hw.Hardware(**{**fields, **parts})

device = {
    "converter": hw.SinglePairConductanceConverter(g_max=25.0),
    "noise_model": hw.PCMLikeNoiseModel(),
    "mismatch": hw.MismatchParameter(type="add_normal", std_dev=0.1),
}
clip = hw.WeightClipParameter(type="learnable_per_channel")
CASES = {
    "even": (MLP(), chip(4)),
    "odd": (MLP(), chip(3)),
    "learned": (MLP(), chip(3, clip=clip, modifier=None, forward=None)),
    "chips": (MLP(), chip(3, modifier=None, **device)),
    "convolution": (CNN(), chip(4)),
}
mesh = jax.make_mesh(
    (4, 2), ("d", "m"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
x = jax.random.normal(jax.random.key(0), (16, 8))
spread_x = jax.device_put(x, NamedSharding(mesh, P("d")))
for name in sys.argv[1:]:
    model, hardware = CASES[name]
    analog = hw.analogize(model, hardware)
    params = analog.init(jax.random.key(1), x)["params"]
    plan = hw.plan(analog, params, x)
    tx = hw.optim.hardware_aware(optax.sgd(0.1), plan)

    @jax.jit
    def step(params, x):
        def loss(params):
            rngs = {"mismatch": jax.random.key(5)}
            return jnp.square(analog.apply({"params": params}, x, rngs=rngs) - 1).mean()
        gradients = jax.grad(loss)(params)
        updates, _ = tx.update(gradients, tx.init(params), params)
        return {"after": optax.apply_updates(params, updates), "gradient": gradients}

    def same(found, expected):
        for path, value in paths.leaves(expected).items():
            np.testing.assert_allclose(
                paths.leaves(found)[path], value, rtol=1e-4, atol=1e-5, err_msg=path)

    def chips(params, x):
        metric = lambda y: jnp.abs(y).mean(-1)
        values = population(
            analog, {"params": params}, [(x,)], metric, chips=2, key=jax.random.key(0)
        ).values
        with tempfile.TemporaryDirectory() as folder:
            made = hw.export(folder + "/chip", {"params": params}, plan, chip_seed=0)
            return {"values": values, "chip": hw.load(made).chip(0)}

    for axis in (-2, -1):
        def place(path, leaf):
            axes = [None] * leaf.ndim
            if path.endswith("kernel"):
                axes[axis] = "m"
            return jax.device_put(leaf, NamedSharding(mesh, P(*axes)))
        spread = paths.map_leaves(place, params)
        same(step(spread, spread_x), step(params, x))
        if name == "chips":
            same(chips(spread, spread_x), chips(params, x))
print("equal")
"""


@pytest.mark.nightly
def test_tiles_of_rows_and_of_columns(on_devices):
    on_devices(8, SCRIPT, "even", "odd")


@pytest.mark.nightly
def test_learned_clips_chips_and_convolutions(on_devices):
    on_devices(8, SCRIPT, "learned", "chips", "convolution")


FORWARD_MODE = """
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn
import hwtrain as hw

tiles = hw.MappingParameter(max_input_size=4, max_output_size=4)
ranged = hw.InputRangeParameter()
converters = hw.IOParameters(inp_bits=8, out_bits=8, out_bound=10.0)
for io in (None, converters):
    chip = hw.Hardware(mapping=tiles, input_range=ranged, forward=io)
    model = hw.eval_mode(hw.analogize(nn.Dense(8), chip))
    x = jax.random.normal(jax.random.key(0), (2, 8))
    params = model.init(jax.random.key(1), x)["params"]
    f = lambda kernel: model.apply({"params": {**params, "kernel": kernel}}, x).sum()
    kernel, gradient = params["kernel"], jax.grad(f)(params["kernel"])
    slope = jax.jvp(f, (kernel,), (kernel,))[1]
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(slope, jnp.vdot(gradient, kernel), rtol=1e-5)
print("equal")
"""


def test_tiles_have_derivatives_in_forward_mode_where_there_are_several_devices(
    on_devices,
):
    on_devices(8, FORWARD_MODE)
