"""The generator of the step's key makes all draws of a step, in both frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain

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
def test_a_fast_key_draws_other_numbers_and_the_same_in_both(effect):
    exact = linen_and_nnx(HARDWARE[effect], None)
    fast = linen_and_nnx(HARDWARE[effect], hwtrain.fast_prng)
    for linen, model in (exact, fast):
        np.testing.assert_allclose(linen, model, atol=1e-6)
    # The words of both keys are the same: only the generator tells them apart.
    assert not np.isclose(exact[0], fast[0], atol=1e-4).any()
