"""Modified weights of a layer against the modifier, applied by hand on each tile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain.chips._crossbar import modified

ROWS, COLUMNS = 12, 8
TYPES = {
    "add_normal": {"std_dev": 0.1},
    "mult_normal": {"std_dev": 0.1},
    "poly": {"std_dev": 1.0},
    "prog_noise": {"std_dev": 1.0},
    "pcm_noise": {"std_dev": 1.0, "pcm_t_inference": 100.0},
    "drop_connect": {"pdrop": 0.3},
    "discretize": {"res": 1 / 30},
    "discretize_add_normal": {"res": 1 / 30, "std_dev": 0.1},
    "dorefa": {"res": 1 / 30},
}


ACTUAL = [(kind, False) for kind in TYPES]
ASSUMED = [
    (kind, True) for kind in TYPES if kind not in ("mult_normal", "drop_connect")
]


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("kind", "assumed", "limits"),
    [
        (kind, assumed, limits)
        for kind, assumed in ACTUAL + ASSUMED
        for limits in ([(5, 8)] if assumed else [(None, None), (4, 4), (5, 8)])
    ],
)
def test_weights_are_modified_in_units_of_the_crossbar(kind, assumed, limits):
    options = {"rel_to_actual_wmax": False, "assumed_wmax": 0.7} if assumed else {}
    modifier = hw.WeightModifierParameter(type=kind, **TYPES[kind], **options)
    chip = hw.Hardware(
        modifier=modifier,
        forward=hw.IOParameters(inp_bits=8),
        mapping=hw.MappingParameter(
            max_input_size=limits[0],
            max_output_size=limits[1],
            weight_scaling_omega=0.6,
        ),
    )
    x = jnp.ones((1, ROWS))
    model = hw.analogize(nn.Dense(COLUMNS), chip)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    weight = hw.plan(model, params, x)["kernel"]
    kernel, key = params["kernel"], jax.random.key(1)

    # By hand: s of each tile by its largest weight, and draws of the whole array.
    row_edges, column_edges = (
        np.cumsum(weight.row_sizes),
        np.cumsum(weight.column_sizes),
    )
    scale = np.zeros_like(kernel)
    for rows in np.split(np.arange(ROWS), row_edges[:-1]):
        for columns in np.split(np.arange(COLUMNS), column_edges[:-1]):
            tile = np.ix_(rows, columns)
            scale[tile] = np.abs(kernel[tile]).max() / np.float32(0.6)
    w_max = jnp.full((1, 1), 0.6)
    by_hand = scale * modifier(key, kernel / scale, w_max)

    found = jax.jit(lambda kernel: modified(weight, kernel, None, key))(kernel)
    assert not np.allclose(found, kernel, rtol=1e-3)
    np.testing.assert_allclose(found, by_hand, rtol=2e-5, atol=2e-6)
