"""A training step under `jax.shard_map`: ranges learn from the sum over the shards."""

from pathlib import Path

import pytest

import hwtrain

SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec as P
import hwtrain as hw
from hwtrain._arrays import paths

class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(6, name="head")(nn.relu(nn.Dense(5, name="hidden")(x)))

class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(-1, 4, 2)
        x = nn.Conv(4, (3,), feature_group_count=2)(x)
        return nn.Conv(2, (35,))(nn.relu(x)).mean(1)

ranged = {"input_range": hw.InputRangeParameter(init_value=0.6, init_from_data=0)}
io = {"forward": hw.IOParameters(inp_bits=8, out_bits=8, out_bound=2.0)}
tiles = {"mapping": hw.MappingParameter(
    weight_scaling_omega=1.0, max_input_size=3, max_output_size=4)}
learned = {"clip": hw.WeightClipParameter(type="learnable_per_channel")}

def noise(**fields):
    kind = hw.WeightModifierParameter(type="add_normal", std_dev=0.1, **fields)
    return {"modifier": kind}

def management(**fields):
    fields = {"inp_bits": 8, "out_bits": 8, "out_bound": 0.3, **fields}
    return {"forward": hw.IOParameters(**fields)}

CASES = {
    "range": (MLP(), ranged),
    "tiles": (MLP(), ranged | io | tiles | noise()),
    "learned clip": (MLP(), ranged | learned | noise()),
    "redraw": (MLP(), ranged | learned | io | noise(redraw=True)),
    "bound": (MLP(), ranged | tiles | management(bound_management="iterative")),
    "average": (MLP(), management(noise_management="average_abs_max")),
    "per_vector": (MLP(), ranged | io | noise(per_vector=True)),
    "convolution": (CNN(), ranged),
    "converted convolution": (CNN(), ranged | io | noise()),
}
mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
x = jax.random.normal(jax.random.key(1), (16, 8))
for name in sys.argv[1:]:
    model, parts = CASES[name]
    analog = hw.analogize(model, hw.Hardware(**parts))
    params = analog.init(jax.random.key(0), x)["params"]

    def gradients(params, x, key, mean=lambda loss: loss):
        def loss(params):
            y = analog.apply({"params": params}, x, rngs={"mismatch": key})
            return mean(jnp.square(y - 1).mean())
        return jax.grad(loss)(params)

    def of_shard(params, x, key, own):
        key = jax.random.fold_in(key, own * jax.lax.axis_index("d"))
        return gradients(params, x, key, lambda loss: jax.lax.pmean(loss, "d"))

    sharded = jax.jit(jax.shard_map(
        of_shard, mesh=mesh, in_specs=(P(), P("d"), P(), P()), out_specs=P()))
    key = jax.random.key(3)
    whole = jax.jit(gradients)(params, x, jax.random.fold_in(key, 0))
    found = paths.leaves(sharded(params, x, key, 0))
    for path, value in paths.leaves(whole).items():
        if name == "per_vector":  # each vector of a shard draws as one of the whole
            if path.endswith("probe"):
                np.testing.assert_array_equal(found[path][..., 0], value[..., 0])
            continue
        size = float(jnp.abs(value).max())
        np.testing.assert_allclose(
            found[path], value, rtol=1e-4, atol=1e-5 * size, err_msg=name + path)
    # Noise of its own on every device: the weights differ then.
    for path, value in paths.leaves(sharded(params, x, key, 1)).items():
        assert np.isfinite(value).all(), path
print("equal")
"""


def test_ranges_and_probes_are_those_of_the_whole_batch(on_devices):
    on_devices(4, SCRIPT, "range", "redraw")


@pytest.mark.nightly
def test_gradients_of_all_else_are_those_of_the_whole_batch(on_devices):
    on_devices(4, SCRIPT, "tiles", "learned clip", "bound", "average", "per_vector")
    on_devices(4, SCRIPT, "convolution", "converted convolution")


def test_every_derivative_of_its_own_is_of_operands_that_vary_alike():
    package = Path(hwtrain.__file__).parent
    bare = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if "jax.custom_vjp(" in file.read_text()
        or "@jax.custom_vjp" in file.read_text()
    }
    assert bare == {"_arrays/derivatives.py"}
