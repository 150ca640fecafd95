"""Fields of user-defined parts as traced values, with public names only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain

from . import devices

X = jax.random.normal(jax.random.key(1), (6, 5))
KEY = jax.random.key(2)


def chip(*stages, **parts):
    forward = hwtrain.IOParameters(out_bits=8, out_bound=20.0, stages=stages)
    return hwtrain.Hardware(forward=forward, **parts)


CASES = {
    "forward.stages.telegraph.sigma": (
        lambda value: chip(devices.Telegraph(sigma=value)),
        0.1,
        0.4,
    ),
    "forward.stages.0.offset": (
        lambda value: chip(devices.InputOffset(offset=value), devices.Telegraph()),
        0.1,
        -0.3,
    ),
    "modifier.sigma": (
        lambda value: hwtrain.Hardware(modifier=devices.LogNormal(sigma=value)),
        0.1,
        0.4,
    ),
}


def run(hardware, framework, constants, shape=None):
    """Returns outputs of a layer, dense or a convolution."""
    x = X if shape is None else jax.random.normal(KEY, shape)
    if framework == "nnx":
        layer = nnx.Linear(5, 3, kernel_init=nn.initializers.ones, rngs=nnx.Rngs(0))
        model = hwtrain.analogize(layer, hardware, rngs=nnx.Rngs(mismatch=KEY))
        model = hwtrain.with_constants(model, constants) if constants else model
        return model(x)
    ones = {"kernel_init": nn.initializers.ones}
    layer = nn.Dense(3, **ones) if shape is None else nn.Conv(3, (2,), **ones)
    model = hwtrain.analogize(layer, hardware)
    variables = model.init(jax.random.key(0), x)
    model = hwtrain.with_constants(model, constants) if constants else model
    return model.apply(variables, x, rngs={"mismatch": KEY})


@pytest.mark.parametrize("path", CASES)
@pytest.mark.parametrize("framework", ["linen", "nnx", "convolution"])
def test_a_field_of_an_own_part_is_traced(path, framework):
    make, value, other = CASES[path]
    shape = (2, 6, 2) if framework == "convolution" else None
    static = run(make(other), framework, {}, shape)

    @jax.jit
    def traced(value):
        return run(make(0.1), framework, {path: value}, shape)

    np.testing.assert_allclose(traced(other), static, rtol=2e-5, atol=2e-6)
    assert np.abs(static - traced(value)).max() > 1e-3


def test_the_gradient_to_telegraph_noise_is_its_closed_form():
    # y = xW + sigma sqrt(x^2 W^2) xi, so that dy/dsigma is (y - xW) / sigma.
    hardware = hwtrain.Hardware(
        forward=hwtrain.IOParameters(stages=(devices.Telegraph(),))
    )
    path = "forward.stages.telegraph.sigma"

    def total(sigma):
        return jnp.sum(run(hardware, "linen", {path: sigma}) ** 2)

    y = run(hardware, "linen", {path: 0.2})
    plain = jnp.sum(X, axis=1, keepdims=True)
    np.testing.assert_allclose(
        jax.grad(total)(0.2), jnp.sum(2 * y * (y - plain) / 0.2), rtol=1e-4
    )


def test_the_gradient_to_an_own_modifier_leaves_that_to_weights():
    hardware = hwtrain.Hardware(modifier=devices.LogNormal(sigma=0.3))
    model = hwtrain.analogize(nn.Dense(3), hardware)
    variables = model.init(jax.random.key(0), X)

    def total(variables, sigma):
        traced = hwtrain.with_constants(model, {"modifier.sigma": sigma})
        y = traced.apply(variables, X, rngs={"mismatch": KEY})
        return jnp.sum(y * jnp.cos(jnp.arange(18.0)).reshape(6, 3))

    to_weights, to_sigma = jax.grad(total, argnums=(0, 1))(variables, 0.3)
    step = 1e-3
    up, down = (total(variables, 0.3 + by) for by in (step, -step))
    np.testing.assert_allclose(to_sigma, (up - down) / (2 * step), rtol=5e-3)
    straight = X.T @ jnp.cos(jnp.arange(18.0)).reshape(6, 3)
    np.testing.assert_allclose(to_weights["params"]["kernel"], straight, rtol=1e-4)


def test_own_devices_are_traced_on_chips():
    flash, offset = devices.Flash(), devices.OffsetDevice()
    hardware = hwtrain.Hardware(
        noise_model=flash, converter=offset, mismatch=devices.PerRow()
    )

    def kernel(hardware, constants):
        model = hwtrain.analogize(nn.Dense(3), hardware)
        params = model.init(jax.random.key(0), X)["params"]
        plan = hwtrain.plan(model, params, X)
        plan = hwtrain.with_constants(plan, constants) if constants else plan
        return hwtrain.program_chip(params, plan, hwtrain.chip_key(1)).at(1e3)["kernel"]

    static = dataclasses.replace(
        hardware,
        noise_model=devices.Flash(error=0.1, leak=0.1),
        mismatch=devices.PerRow(sigma=0.2),
    )
    constants = {"noise_model.error": 0.1, "noise_model.leak": 0.1}
    constants |= {"mismatch.sigma": 0.2}
    found = jax.jit(lambda constants: kernel(hardware, constants))(constants)
    np.testing.assert_allclose(found, kernel(static, {}), rtol=1e-4, atol=1e-6)


@hwtrain.register("stage", "by_hand", inside="adc")
class ByHand(hwtrain.Part):
    """Asks a number to be one of Python's."""

    sigma: float = 0.1

    def around(self, inner, x, ctx):
        return inner(x) * float(self.sigma)


def test_a_part_that_needs_a_number_of_python_is_named():
    with pytest.raises(TypeError, match="forward.stages.by_hand.sigma.*jnp.sqrt"):
        run(chip(ByHand()), "linen", {"forward.stages.by_hand.sigma": 0.2})
    with pytest.raises(ValueError, match="2 stages are called 'telegraph'; name one"):
        twice = chip(devices.Telegraph(), devices.Telegraph())
        run(twice, "linen", {"forward.stages.telegraph.sigma": 0.2})
