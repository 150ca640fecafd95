"""What a policy of `jax.checkpoint` finds to save in analog layers."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from jax.extend.core import jaxprs_in_params

import hwtrain as hw

LAYERS = 2
POLICIES = jax.checkpoint_policies
NOISE = {"type": "add_normal", "std_dev": 0.1}
CONVERTERS = hw.IOParameters(inp_bits=8, out_bits=8, out_bound=10.0, out_noise=0.02)
RANGE = hw.InputRangeParameter(init_value=0.5)
CHIPS = {
    "noise": hw.Hardware(modifier=hw.WeightModifierParameter(**NOISE)),
    "redraw": hw.Hardware(modifier=hw.WeightModifierParameter(**NOISE, redraw=True)),
    "range": hw.Hardware(input_range=RANGE),
    "converters": hw.Hardware(input_range=RANGE, forward=CONVERTERS),
    "all, redraw": hw.Hardware(
        modifier=hw.WeightModifierParameter(**NOISE, redraw=True),
        input_range=RANGE,
        forward=CONVERTERS,
    ),
    "tiles": hw.Hardware(
        input_range=RANGE,
        forward=CONVERTERS,
        mapping=hw.MappingParameter(max_input_size=8, max_output_size=8),
    ),
}
DENSE, CONV = ("dot_general", (4, 16)), ("conv_general_dilated", (2, 6, 6, 4))
CASES = [(name, DENSE) for name in CHIPS]
CASES += [(name, CONV) for name in ("noise", "range", "converters")]


class Net(nn.Module):
    convolution: bool

    @nn.compact
    def __call__(self, x):
        for _ in range(LAYERS):
            width = x.shape[-1]
            x = nn.Conv(width, (3, 3))(x) if self.convolution else nn.Dense(width)(x)
            x = nn.tanh(x)
        return x


class NnxNet(nnx.Module):
    def __init__(self, convolution, width, rngs):
        layers = [
            nnx.Conv(width, width, (3, 3), rngs=rngs)
            if convolution
            else nnx.Linear(width, width, rngs=rngs)
            for _ in range(LAYERS)
        ]
        self.layers = nnx.List(layers)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.tanh(layer(x))
        return x


def number_of(primitive, jaxpr):
    """Returns how often a primitive stands in a program."""
    here = sum(equation.primitive.name == primitive for equation in jaxpr.eqns)
    inner = (j for e in jaxpr.eqns for j in jaxprs_in_params(e.params))
    return here + sum(number_of(primitive, j) for j in inner)


def linen_loss(chip, primitive, x):
    model = hw.analogize(Net(primitive != "dot_general"), chip)
    params = model.init(jax.random.key(0), x)["params"]

    def loss(params, x, key):
        return model.apply({"params": params}, x, rngs={"mismatch": key}).sum()

    return loss, params


def nnx_loss(chip, primitive, x):
    model = NnxNet(primitive != "dot_general", x.shape[-1], nnx.Rngs(0))
    model = hw.analogize(model, chip, rngs=nnx.Rngs(mismatch=1))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, x, key):
        del key
        return nnx.merge(graph, params, rest, copy=True)(x).sum()

    return loss, params


@pytest.mark.parametrize("loss_of", [linen_loss, nnx_loss])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_policy_that_saves_products_saves_those_of_all_layers(loss_of, name, kind):
    primitive, shape = kind
    x, key = jax.random.normal(jax.random.key(1), shape), jax.random.key(2)
    loss, params = loss_of(CHIPS[name], primitive, x)

    def gradient(policy):
        return jax.grad(jax.checkpoint(loss, policy=policy), argnums=(0, 1))

    def products(policy):
        program = jax.make_jaxpr(gradient(policy))(params, x, key)
        return number_of(primitive, program.jaxpr)

    none, dots = POLICIES.nothing_saveable, POLICIES.dots_saveable
    assert products(none) - products(dots) == LAYERS

    saved, again = gradient(dots)(params, x, key), gradient(none)(params, x, key)
    for one, other in zip(jax.tree.leaves(saved), jax.tree.leaves(again)):
        assert jnp.abs(one).max() > 0
        assert jnp.allclose(one, other, rtol=1e-5, atol=1e-6)
