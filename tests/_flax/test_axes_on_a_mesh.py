"""Layers of several row or column axes, and stacks, on a mesh of explicit axes."""

import pytest

BEGIN = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from flax import linen as nn, nnx
import hwtrain as hw

mesh = jax.make_mesh(
    (4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)

def noise(**fields):
    return hw.WeightModifierParameter(type="add_normal", std_dev=0.1, **fields)

tiles = hw.MappingParameter(
    weight_scaling_omega=1.0, max_input_size=5, max_output_size=5)
converters = hw.IOParameters(inp_bits=8, out_bits=8, out_bound=10.0)
ranged = hw.InputRangeParameter(init_from_data=0)
CHIPS = {
    "converters": hw.Hardware(forward=converters, input_range=ranged),
    "tiles": hw.Hardware(forward=converters, mapping=tiles, modifier=noise()),
    "example": hw.Hardware(modifier=noise(per_batch_sample=True), mapping=tiles),
    "redrawn": hw.Hardware(modifier=noise(redraw=True), mapping=tiles),
    "noise": hw.Hardware(modifier=noise()),
    "outputs": hw.Hardware(forward=hw.IOParameters(out_noise=0.1, out_noise_std=0.1)),
    "scaled": hw.Hardware(
        modifier=noise(), mapping=hw.MappingParameter(weight_scaling_omega=1.0)),
}

def linen(model, hardware, x):
    analog = hw.analogize(model, hardware)
    params = analog.init(jax.random.key(1), x)["params"]
    def apply(params, x):
        return analog.apply({"params": params}, x, rngs={"mismatch": jax.random.key(5)})
    return apply, params

def of_nnx(model, hardware, x):
    analog = hw.analogize(model, hardware, rngs=nnx.Rngs(mismatch=5))
    graph, params, rest = nnx.split(analog, nnx.Param, ...)
    return lambda params, x: nnx.merge(graph, params, rest, copy=True)(x), params

def same(apply, params, x, spec):
    def placed(array, spec):
        return jax.device_put(array, NamedSharding(mesh, spec))
    def place(path, leaf):
        return placed(leaf, spec(jax.tree_util.keystr(path), leaf.ndim))
    @jax.jit
    def gradient(params, x):
        def loss(params, x):
            y = apply(params, x)
            return jnp.square(y - 0.3).mean(), y
        return jax.grad(loss, (0, 1), has_aux=True)(params, x)
    expected = gradient(params, x)
    found = gradient(
        jax.tree_util.tree_map_with_path(place, params), placed(x, P("data")))
    for one, many in zip(jax.tree.leaves(expected), jax.tree.leaves(found)):
        atol = 1e-4 * np.abs(one).max() + 1e-7
        np.testing.assert_allclose(many, one, rtol=1e-4, atol=atol)
"""

JOINED = (
    BEGIN
    + """
x = jax.random.normal(jax.random.key(0), (16, 4, 6))
rngs = nnx.Rngs(0)
MODELS = {
    "dense": (linen, nn.DenseGeneral((4, 8), axis=(-2, -1))),
    "einsum": (linen, nn.Einsum((4, 4, 6, 8), "bji,hjio->bho")),
    "rows last": (linen, nn.Einsum((4, 4, 6, 8), "bji,ojih->bho")),
    "linear": (of_nnx, nnx.LinearGeneral((4, 6), (4, 8), axis=(-2, -1), rngs=rngs)),
    "nnx einsum": (of_nnx, nnx.Einsum("bji,jiho->bho", (4, 6, 4, 8), rngs=rngs)),
}
models, chips = (words.split(",") for words in sys.argv[1:3])
for name in models:
    for chip in chips:
        start, model = MODELS[name]
        apply, params = start(model, CHIPS[chip], x)
        for axis in range(-4, 0) if len(sys.argv) > 3 else (-1,):
            def spec(path, rank):
                axes = [None] * rank
                if "kernel" in path:
                    axes[axis] = "model"
                return P(*axes)
            same(apply, params, x, spec)
print("equal")
"""
)

STACKED = (
    BEGIN
    + """
class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})
        return dense(8, name="d")(x)

class Layers(nnx.Module):
    def __init__(self):
        @nnx.vmap
        def create(key):
            return nnx.Linear(6, 8, rngs=nnx.Rngs(key))
        self.d = create(jax.random.split(jax.random.key(0), 4))

    def __call__(self, x):
        return nnx.vmap(lambda layer, x: layer(x))(self.d, x)

x = jax.random.normal(jax.random.key(0), (4, 3, 6))
for chip in sys.argv[1].split(","):
    for start, model in ((linen, Stack()), (of_nnx, Layers())):
        apply, params = start(model, CHIPS[chip], x)
        same(apply, params, x, lambda path, rank: P("data"))
print("equal")
"""
)


def test_the_last_of_several_column_axes_is_spread(on_devices):
    on_devices(8, JOINED, "dense", "converters")


@pytest.mark.nightly
def test_each_of_several_axes_is_spread(on_devices):
    models = "dense,einsum,rows last,linear,nnx einsum"
    on_devices(8, JOINED, models, "converters,tiles,example,redrawn", "each axis")


def test_a_stack_is_spread_with_noise(on_devices):
    on_devices(8, STACKED, "outputs")


@pytest.mark.nightly
def test_a_stack_is_spread_with_each_effect(on_devices):
    on_devices(8, STACKED, "noise,scaled,tiles,example,redrawn,converters")
