"""Gradients of a chip's outputs through the factor of its drift compensation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw

DAY_S = 86_400.0
LAYERS = {
    "dense": (nn.Dense(6), (8, 20)),
    "convolution": (nn.Conv(6, (3,), feature_group_count=2), (2, 7, 8)),
    "windows": (nn.Conv(6, (3,)), (2, 7, 8)),
}


def chip_type(compensation, **forward):
    return dataclasses.replace(
        hw.presets.pcm(),
        forward=hw.IOParameters(out_noise=0.3, **forward),
        mapping=hw.MappingParameter(
            weight_scaling_omega=1.0, max_input_size=12, max_output_size=4
        ),
        drift_compensation=compensation,
    )


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "compensation",
    [hw.GlobalDriftCompensation(), hw.PerColumnDriftCompensation(), None],
    ids=["global", "per column", "none"],
)
def test_a_gradient_passes_through_the_compensation(layer, compensation):
    """Noise behind the tile is amplified by the factor, which kernels do not show."""
    module, shape = LAYERS[layer]
    forward = {"inp_noise": 0.1} if layer == "windows" else {}
    x = jax.random.normal(jax.random.key(1), shape)
    analog = hw.chip_mode(hw.analogize(module, chip_type(compensation, **forward)))
    variables = analog.init(jax.random.key(0), x)
    plan = hw.plan(analog, variables, x)

    @jax.jit
    def loss(scale):
        constants = {"noise_model.drift_scale": scale}
        chip = hw.program_chip(
            variables["params"], hw.with_constants(plan, constants), hw.chip_key(0)
        )
        params = chip.at(DAY_S, key=jax.random.key(2))
        y = analog.apply({"params": params}, x, rngs={"mismatch": jax.random.key(3)})
        return jnp.sum(y * jnp.sin(jnp.arange(y.size)).reshape(y.shape))

    difference = (loss(1.02) - loss(0.98)) / 0.04
    assert abs(difference) > 0.01
    np.testing.assert_allclose(jax.grad(loss)(1.0), difference, rtol=0.01, atol=2e-3)


def test_the_scale_of_nominal_weights_stays_constant_to_gradients():
    module, shape = LAYERS["dense"]
    chip = dataclasses.replace(
        chip_type(None),
        remap=hw.WeightRemapParameter(type="channelwise_symmetric"),
        clip=hw.WeightClipParameter(type="fixed_value", fixed_value=1.0),
    )
    analog = hw.analogize(module, chip)
    x = jax.random.normal(jax.random.key(1), shape)
    variables = analog.init(jax.random.key(0), x)

    def loss(params):
        y = analog.apply({"params": params}, x, rngs={"mismatch": jax.random.key(3)})
        return jnp.sum(y**2)

    slopes = jax.grad(loss)(variables["params"])
    np.testing.assert_array_equal(slopes["mapping_scale"], 0)
    assert jnp.any(slopes["kernel"] != 0)
