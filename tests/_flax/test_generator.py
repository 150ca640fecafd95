"""The generator of the step's key makes all draws of a step, in both frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain
from hwtrain._arrays.random import stable_hash
from hwtrain._flax.read_keys import _generator, generator_of

X = jnp.linspace(-1, 1, 10).reshape(2, 5)
HARDWARE = {
    "weights": hwtrain.Hardware(
        modifier=hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1)
    ),
    "outputs": hwtrain.Hardware(forward=hwtrain.IOParameters(out_noise=0.1)),
}


def linen_and_nnx(hardware, impl):
    linen = hwtrain.analogize(nn.Dense(4), hardware)
    variables = jax.jit(linen.init)(jax.random.key(0), X)
    key = jax.random.key(1, impl=impl)
    # An NNX stream folds its count into its key.
    rngs = {"mismatch": jax.random.fold_in(key, 0)}
    model = nnx.Linear(5, 4, rngs=nnx.Rngs(0))
    model.kernel[...] = variables["params"]["kernel"]
    model = hwtrain.analogize(model, hardware, rngs=nnx.Rngs(mismatch=key))
    call = nnx.jit(lambda model, x: model(x))
    return jax.jit(linen.apply)(variables, X, rngs=rngs), call(model, X)


@pytest.mark.parametrize("effect", HARDWARE)
def test_the_key_names_the_generator_in_both_frameworks(effect):
    drawn = {
        generator: linen_and_nnx(HARDWARE[effect], generator)
        for generator in (None, hwtrain.fast_prng, hwtrain.threefry_prng)
    }
    for linen, model in drawn.values():
        np.testing.assert_allclose(linen, model, atol=1e-6)
    default, fast, exact = (np.asarray(linen) for linen, _ in drawn.values())
    np.testing.assert_array_equal(default, fast)
    # The words of all keys are the same: only the generator tells them apart.
    assert not np.isclose(exact, fast, atol=1e-4).any()


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_reads_of_other_generators_draw_with_threefry(impl):
    """Of the first two words of their key data, whatever was drawn before."""
    analog = hwtrain.analogize(nn.Dense(4), HARDWARE["outputs"])
    variables = analog.init(jax.random.key(0), X)

    def outputs(key):
        return analog.apply(variables, X, rngs={"mismatch": key})

    fast = jax.random.key(1, impl=hwtrain.fast_prng)
    drawn = [outputs(jax.random.key(1, impl=impl)) for _ in (outputs(fast), None)]
    np.testing.assert_array_equal(*drawn)
    with generator_of(fast):
        inside = outputs(jax.random.key(1, impl=impl))
    np.testing.assert_array_equal(inside, drawn[0])
    with generator_of(jax.random.key(1, impl=impl)):
        assert _generator.get() == hwtrain.threefry_prng


def test_threefry_draws_the_numbers_of_jax():
    std = HARDWARE["weights"].modifier.std_dev
    kernel = jnp.linspace(-1, 1, 20).reshape(5, 4)
    analog = hwtrain.analogize(nn.Dense(4, use_bias=False), HARDWARE["weights"])

    def weights(key):
        variables = {"params": {"kernel": kernel}}
        return analog.apply(variables, jnp.eye(5), rngs={"mismatch": key})

    own = jax.random.fold_in(jax.random.key(7), stable_hash("kernel#weight_noise#0"))
    expected = kernel + std * jax.random.normal(own, kernel.shape)
    key = jax.random.key(7, impl=hwtrain.threefry_prng)
    np.testing.assert_allclose(weights(key), expected, atol=1e-6)
    assert not np.isclose(weights(jax.random.key(7)), expected, atol=1e-4).any()


def test_raw_key_data_draw_as_the_default():
    analog = hwtrain.analogize(nn.Dense(4), HARDWARE["outputs"])
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    typed, raw = jax.random.key(3), jax.random.PRNGKey(3)
    np.testing.assert_array_equal(
        analog.apply(variables, X, rngs={"mismatch": typed}),
        analog.apply(variables, X, rngs={"mismatch": raw}),
    )
