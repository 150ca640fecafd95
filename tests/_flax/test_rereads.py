"""Iterative bound management of an analog layer draws new noise in every round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain

READS = 40_000
X = jnp.ones((READS, 1))
HARDWARE = hwtrain.Hardware(
    forward=hwtrain.IOParameters(
        inp_bound=1.0,
        out_bound=1.0,
        out_noise=0.06,
        noise_management="abs_max",
        bound_management="iterative",
    )
)


def linen():
    model = hwtrain.chip_mode(hwtrain.analogize(nn.Dense(1, use_bias=False), HARDWARE))
    params = {"kernel": jnp.ones((1, 1))}
    rngs = {"mismatch": jax.random.key(0)}
    return jax.jit(model.apply)({"params": params}, X, rngs=rngs)


def of_nnx():
    layer = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.ones((1, 1))
    model = hwtrain.analogize(layer, HARDWARE, rngs=nnx.Rngs(mismatch=0))
    return nnx.jit(lambda model: hwtrain.chip_mode(model)(X))(model)


@pytest.mark.parametrize("outputs", [linen, of_nnx])
def test_a_read_that_is_clipped_is_read_again_with_new_noise(outputs):
    # Of aihwkit 1.2.0, as many reads; the same noise in every round gives 1.0239.
    mean, std = 0.9758, 0.0915
    y = np.float64(outputs())
    error = np.sqrt(2 / READS) * std  # of the difference of two means
    assert abs(y.mean() - mean) < 4 * error + 5e-5, y.mean()
    # The kurtosis is below 9.
    assert abs(y.std() - std) < 4 * np.sqrt(2) * error + 5e-5, y.std()
