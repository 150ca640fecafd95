import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._parts.fields import from_dict, to_dict
from hwtrain.devices import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
    drift_compensation,
)

EVERY = {
    "global": GlobalDriftCompensation(),
    "global_exact_reference": GlobalDriftCompensationWithExactReference(),
    "per_column": PerColumnDriftCompensation(),
}


@pytest.mark.parametrize("name", EVERY)
def test_factors_agree_with_the_reference(name, golden):
    case, model = golden("aihwkit_weights")["drift_compensation"][name], EVERY[name]
    programmed = jnp.float32(case["programmed"]).T
    target = jnp.float32(case["reference"]).T
    baseline = model.baseline(programmed, target)
    np.testing.assert_allclose(
        baseline, np.ravel(case["baseline"]).squeeze(), rtol=1e-5
    )
    assert len(case["rows"]) >= 2
    for row in case["rows"]:
        y = jnp.float32(row["drifted_tile_weights"]).T
        alpha = model.factor(baseline, y)
        np.testing.assert_allclose(alpha, np.float32(row["alpha"]).squeeze(), rtol=1e-5)
        y_eye = np.float32(row["y_eye"]).T
        np.testing.assert_allclose(alpha * y, y_eye, atol=1e-5)


@pytest.mark.parametrize("model", EVERY.values(), ids=repr)
def test_a_uniform_drift_is_undone_exactly(model):
    w = jnp.linspace(-1.0, 1.0, 24).reshape(2, 4, 3)
    alpha = model.factor(model.baseline(w, w), 0.7 * w)
    assert alpha.shape == ((2, 3) if model.type == "per_column" else (2,))
    np.testing.assert_allclose(alpha, np.full(alpha.shape, 1 / 0.7), rtol=1e-5)


def test_only_columns_undo_a_drift_of_one_column():
    w = jnp.ones((4, 3))
    drifted = w * jnp.float32([1.0, 0.5, 1.0])
    alpha = PerColumnDriftCompensation().factor(jnp.ones(3), drifted)
    np.testing.assert_allclose(alpha, [1.0, 2.0, 1.0], rtol=1e-6)
    alpha = GlobalDriftCompensation().factor(jnp.float32(1.0), drifted)
    np.testing.assert_allclose(alpha, 1 / (2.5 / 3), rtol=1e-6)


def test_zeros_are_finite():
    zeros = jnp.zeros((4, 3))
    assert drift_compensation.gain(drift_compensation.response(zeros), 1e-4) == 1
    for model in EVERY.values():
        alpha = model.factor(model.baseline(zeros, zeros), zeros)
        np.testing.assert_array_equal(alpha, np.ones(alpha.shape))


@pytest.mark.parametrize("model", EVERY.values(), ids=repr)
def test_round_trip(model):
    assert from_dict(type(model), to_dict(model)) == model
