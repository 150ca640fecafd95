"""Complex weights: conductances are real, so planning refuses them by name."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

X = jnp.ones((2, 5, 3))
OPTIONS = {"dtype": jnp.complex64, "param_dtype": jnp.complex64}
CHIPS = {
    "noise": hw.Hardware(
        modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
    ),
    "converters": hw.Hardware(forward=hw.IOParameters(out_bits=6, out_bound=4.0)),
}
LINEN = {
    "dense": lambda: nn.Dense(4, **OPTIONS),
    "conv": lambda: nn.Conv(4, (2,), **OPTIONS),
}
NNX = {
    "dense": lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0), **OPTIONS),
    "conv": lambda: nnx.Conv(3, 4, (2,), rngs=nnx.Rngs(0), **OPTIONS),
}
MESSAGE = r"kernel is complex64, .* Rule\('', None\)"


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("layer", LINEN)
def test_linen_refuses_them(layer, chip):
    analog = hw.analogize(LINEN[layer](), CHIPS[chip])
    with pytest.raises(ValueError, match=MESSAGE):
        analog.init(jax.random.key(0), X)
    variables = LINEN[layer]().init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=MESSAGE):
        hw.plan(analog, variables, X)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("layer", NNX)
def test_nnx_refuses_them(layer, chip):
    with pytest.raises(ValueError, match=MESSAGE):
        hw.analogize(NNX[layer](), CHIPS[chip])


def test_digital_ones_stay():
    analog = hw.analogize(LINEN["dense"](), [hw.Rule("", None)])
    variables = analog.init(jax.random.key(0), X)
    assert analog.apply(variables, X).dtype == jnp.complex64
