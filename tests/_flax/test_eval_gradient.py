"""`eval_mode` has the same gradients to inputs as training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain

# Below, at, above and beyond the range of 3.
X = np.float32([[1.0, 3.0, -3.0, 3.5, -4.0, 0.0]])


def dense():
    return nn.Dense(2), nnx.Linear(6, 2, rngs=nnx.Rngs(0)), X


def convolution():
    kernel = nnx.Conv(1, 2, (3,), padding="VALID", rngs=nnx.Rngs(0))
    return nn.Conv(2, (3,), padding="VALID"), kernel, X[..., None]


def gradients(framework, layer, hardware, mode):
    linen, of_nnx, x = layer()
    if framework == "linen":
        analog = hwtrain.analogize(linen, hardware)
        variables = analog.init(jax.random.key(0), x)
        model = mode(analog)
        return jax.grad(lambda x: model.apply(variables, x).sum())(jnp.asarray(x))
    model = mode(hwtrain.analogize(of_nnx, hardware, rngs=nnx.Rngs(mismatch=0)))
    return jax.grad(lambda x: model(x).sum())(jnp.asarray(x))


@pytest.mark.sampled
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("forward", [None, hwtrain.IOParameters(out_bound=100.0)])
@pytest.mark.parametrize("layer", [dense, convolution])
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_gradients_to_inputs_are_those_of_training(framework, layer, forward, through):
    hardware = hwtrain.Hardware(
        input_range=hwtrain.InputRangeParameter(
            init_value=3.0, straight_through=through
        ),
        forward=forward,
    )
    plain = hwtrain.Hardware()
    exact = gradients(framework, layer, plain, hwtrain.eval_mode)
    inside = 1.0 if through else np.abs(X.reshape(exact.shape)) <= 3.0
    for mode in (hwtrain.train_mode, hwtrain.eval_mode):
        found = gradients(framework, layer, hardware, mode)
        np.testing.assert_allclose(found, exact * inside, rtol=1e-6)
