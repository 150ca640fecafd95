"""The reference value of a relative mismatch, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain.chips import chip_key

ROWS, CHIPS, STD = 100, 40, 0.1
SIZES = {"max_input_size": ROWS, "max_output_size": 2}
KERNEL = np.random.default_rng(0).normal(size=(2 * ROWS, 4)).astype(np.float32)
KERNEL *= np.array([1.0, 0.1, 3.0, 0.2]) * np.repeat([[1.0], [5.0]], ROWS, axis=0)
LARGEST = np.abs(KERNEL).reshape(2, ROWS, 2, 2).max(axis=1)  # row tiles, tiles, columns
OF_ROW_TILE = np.broadcast_to(LARGEST.max(axis=(1, 2), keepdims=True), LARGEST.shape)
OF_TILE = np.broadcast_to(LARGEST.max(axis=2, keepdims=True), LARGEST.shape)
CASES = {
    "unscaled": ({}, {}, OF_ROW_TILE),
    "unscaled, by column": ({}, {"per_column": True}, LARGEST),
    "unscaled, absolute": ({}, {"rel_to_actual_wmax": False}, np.ones_like(LARGEST)),
    "scaled": ({"weight_scaling_omega": 0.7}, {}, OF_TILE),
    "scaled by column": (
        {"weight_scaling_omega": 0.7, "weight_scaling_columnwise": True},
        {},
        LARGEST,
    ),
    "scaled, absolute": (
        {"weight_scaling_omega": 0.5},
        {"rel_to_actual_wmax": False},
        OF_TILE / 0.5,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_additive_mismatch_is_relative_to_the_largest_weight_of_what(name):
    mapping, fields, largest = CASES[name]
    chip = hw.Hardware(
        mapping=hw.MappingParameter(**SIZES, **mapping),
        mismatch=hw.MismatchParameter(type="add_normal", std_dev=STD, **fields),
    )
    analog = hw.analogize(nn.Dense(4, use_bias=False), chip)
    x = jnp.ones((1, 2 * ROWS))
    params = {"params": {"kernel": jnp.asarray(KERNEL, jnp.float32)}}
    plan = hw.plan(analog, params, x)
    on_chips = jax.vmap(
        lambda seed: hw.apply_mismatch(params["params"], plan, chip_key(seed))
    )(jnp.arange(CHIPS, dtype=jnp.uint32))
    deviations = np.asarray(on_chips["kernel"]) - np.float32(KERNEL)
    spread = deviations.reshape(CHIPS, 2, ROWS, 2, 2).std(axis=(0, 2))
    # The error of a standard deviation of N draws is 1 / sqrt(2 N).
    tolerance = 5 / np.sqrt(2 * CHIPS * ROWS)
    np.testing.assert_allclose(spread, STD * largest, rtol=tolerance)
