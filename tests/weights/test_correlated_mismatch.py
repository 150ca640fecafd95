"""Correlated mismatch: covariances of many chips, proofs, export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.checkpoint import verify
from hwtrain.chips import chip_key
from hwtrain.weights.correlated_mismatch import CorrelatedMismatch, correlation_root

CHIPS, STD = 4000, 0.2
ROWS, COLUMNS = (4, 3), (3, 2)
CASES = {
    "tile": {"of_tile": 0.4},
    "rows": {"of_row": 0.7},
    "columns": {"of_column": 1.0},
    "all": {"of_tile": 0.2, "of_row": 0.3, "of_column": 0.1},
    "distance": {"length": 2.0},
    "distance and columns": {"length": 1.0, "of_column": 0.5},
}


def covariance(of_tile=0.0, of_row=0.0, of_column=0.0, length=0.0):
    """The covariance of the deviations of all weights, from the definition."""
    tile_of_row = np.repeat(np.arange(len(ROWS)), ROWS)
    tile_of_column = np.repeat(np.arange(len(COLUMNS)), COLUMNS)
    place = [(i, j) for i in range(sum(ROWS)) for j in range(sum(COLUMNS))]
    found = np.zeros((len(place), len(place)))
    for a, (i, j) in enumerate(place):
        for b, (k, m) in enumerate(place):
            if (
                tile_of_row[i] != tile_of_row[k]
                or tile_of_column[j] != tile_of_column[m]
            ):
                continue
            near = float((i, j) == (k, m))
            if length:
                near = np.exp(-(abs(i - k) + abs(j - m)) / length)
            rest = 1 - of_tile - of_row - of_column
            found[a, b] = of_tile + of_row * (i == k) + of_column * (j == m)
            found[a, b] += rest * near
    return STD**2 * found


def on_chips(module, kernel, mismatch, x, count=CHIPS):
    mapping = hw.MappingParameter(max_input_size=4, max_output_size=3)
    analog = hw.analogize(module, hw.Hardware(mapping=mapping, mismatch=mismatch))
    params = {"kernel": jnp.asarray(kernel, jnp.float32)}
    plan = hw.plan(analog, {"params": params}, x)
    chips = jax.vmap(lambda seed: hw.apply_mismatch(params, plan, chip_key(seed)))
    return np.asarray(chips(jnp.arange(count, dtype=jnp.uint32))["kernel"])


@pytest.mark.parametrize("kind", ["mult_normal", "add_normal"])
@pytest.mark.parametrize("name", CASES)
def test_deviations_have_the_covariance_of_the_equation(name, kind):
    rng = np.random.default_rng(0)
    kernel = rng.uniform(0.5, 1.5, (sum(ROWS), sum(COLUMNS))).astype(np.float32)
    mismatch = CorrelatedMismatch(std_dev=STD, kind=kind, **CASES[name])
    module = nn.Dense(sum(COLUMNS), use_bias=False)
    chips = on_chips(module, kernel, mismatch, jnp.ones((1, sum(ROWS))))
    amplitude = kernel
    if kind == "add_normal":
        largest = [kernel[:4].max(), kernel[4:].max()]
        amplitude = np.repeat(largest, ROWS)[:, None] * np.ones_like(kernel)
    deviations = ((chips - kernel) / amplitude).reshape(CHIPS, -1)
    found = deviations.T @ deviations / CHIPS
    expected = covariance(**CASES[name])
    # The variance of a product of two normal numbers of unit variance is at most 2.
    tolerance = 6 * STD**2 * np.sqrt(2 / CHIPS)
    assert np.max(np.abs(found - expected)) < tolerance
    assert np.max(np.abs(deviations.mean(0))) < 6 * STD / np.sqrt(CHIPS)


@pytest.mark.parametrize("length", [0.5, 3.0])
def test_the_root_of_a_correlation_is_one(length):
    root = np.asarray(correlation_root(7, length), np.float64)
    apart = np.abs(np.subtract.outer(np.arange(7), np.arange(7)))
    np.testing.assert_allclose(root @ root.T, np.exp(-apart / length), atol=1e-6)


def test_the_columns_of_a_grouped_convolution_are_those_of_its_matrices():
    module = nn.Conv(4, (2,), feature_group_count=2, use_bias=False)
    kernel = np.ones((2, 2, 4), np.float32)
    mismatch = CorrelatedMismatch(std_dev=STD, of_column=1.0)
    chips = on_chips(module, kernel, mismatch, jnp.ones((1, 5, 4)), count=3)
    # Rows of an output are its taps and channels; they fit on one tile.
    for chip in chips:
        of_columns = chip.reshape(4, 4)
        np.testing.assert_allclose(of_columns, of_columns[:1] * np.ones((4, 1)))
        assert len(np.unique(of_columns[0])) == 4


def test_it_is_proved_and_exported_and_the_same_in_both_frameworks(tmp_path):
    mismatch = CorrelatedMismatch(std_dev=STD, of_row=0.5, length=1.0)
    chip = hw.Hardware(mismatch=mismatch)
    x = jax.random.normal(jax.random.key(0), (4, 10))
    analog = hw.analogize(nn.Dense(6), chip)
    variables = analog.init(jax.random.key(1), x)
    hw.assert_active(analog, variables, x)
    assert "50% of a row" in str(hw.inspect(analog, variables, x))
    plan = hw.plan(analog, variables, x)
    hw.export(tmp_path / "chip", variables, plan, chip_seeds=[3])
    loaded = hw.load(tmp_path / "chip")
    expected = hw.apply_mismatch(variables["params"], plan, chip_key(3))
    # A sum over neighbours is rounded as its program does it.
    near = {"rtol": 1e-6, "atol": 1e-7}
    found = loaded.chip(3)["kernel"]
    np.testing.assert_allclose(found, expected["kernel"], **near)
    verify(tmp_path / "chip")
    assert loaded.plan.weights[0].hardware.mismatch == mismatch
    assert np.max(np.abs(expected["kernel"] - variables["params"]["kernel"])) > 1e-3

    model = nnx.Linear(10, 6, rngs=nnx.Rngs(0))
    model.kernel[...] = variables["params"]["kernel"]
    model = hw.analogize(model, chip, rngs=nnx.Rngs(mismatch=1))
    of_nnx = hw.apply_mismatch(nnx.state(model, nnx.Param), hw.plan(model), chip_key(3))
    np.testing.assert_allclose(of_nnx["kernel"][...], expected["kernel"], **near)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"of_tile": 0.6, "of_row": 0.6}, "add up to 1.2"),
        ({}, "nothing is shared"),
        ({"std_dev": 0.0, "of_row": 0.1}, "std_dev"),
    ],
)
def test_shares_that_cannot_be_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        CorrelatedMismatch(**{"std_dev": 0.1, **fields})
