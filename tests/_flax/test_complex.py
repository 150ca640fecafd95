"""Complex weights are refused by name at planning, because conductances are real."""

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


@pytest.mark.sampled
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


@pytest.mark.sampled
@pytest.mark.parametrize("mode", [hw.train_mode, hw.eval_mode])
@pytest.mark.parametrize(
    "chip",
    [
        CHIPS["converters"],
        hw.Hardware(forward=hw.IOParameters(noise_management="abs_max", inp_bits=8)),
        hw.Hardware(input_range=hw.InputRangeParameter()),
        hw.Hardware(
            modifier=hw.WeightModifierParameter(
                type="add_normal", std_dev=0.1, per_vector=True
            )
        ),
    ],
)
@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_complex_inputs_of_real_weights_are_refused(layer, chip, mode):
    message = r"inputs are complex64.* Rule\('', None\)"
    x, rngs = X + 1j, {"mismatch": jax.random.key(0)}
    linen = {"dense": nn.Dense(4), "conv": nn.Conv(4, (2,))}[layer]
    analog = mode(hw.analogize(linen, chip))
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    with pytest.raises(ValueError, match=message):
        analog.apply(variables, x, rngs=rngs)
    twin = {"dense": nnx.Linear(3, 4, rngs=nnx.Rngs(0))}
    twin["conv"] = nnx.Conv(3, 4, (2,), rngs=nnx.Rngs(0))
    model = mode(hw.analogize(twin[layer], chip, rngs=nnx.Rngs(mismatch=0)))
    with pytest.raises(ValueError, match=message):
        model(x)


def test_weights_alone_may_meet_complex_inputs():
    layer = nn.Dense(4)
    analog = hw.eval_mode(hw.analogize(layer, CHIPS["noise"]))
    variables = analog.init(jax.random.key(0), X)
    found, plain = (model.apply(variables, X + 1j) for model in (analog, layer))
    assert jnp.allclose(found, plain) and jnp.iscomplexobj(found)


def test_digital_ones_stay():
    analog = hw.analogize(LINEN["dense"](), [hw.Rule("", None)])
    variables = analog.init(jax.random.key(0), X)
    assert analog.apply(variables, X).dtype == jnp.complex64
