"""Extreme matrices: zeros, constants, one element, narrow dtypes, infinities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import statistics
from hwtrain.devices import (
    ReRamCMONoiseModel,
    SingleDeviceConductanceConverter,
    SinglePairConductanceConverter,
)
from hwtrain.evaluate import population
from hwtrain.weights import (
    DriftParameter,
    WeightClipParameter,
    WeightModifierParameter,
    WeightRemapParameter,
)
from hwtrain.weights.learned_bound import learned_clip

KEY = jax.random.key(2)
ZERO_COLUMN = np.float32([[0.5, 0.0], [-1.0, 0.0], [0.25, 0.0]])
CASES = {
    "zeros": np.zeros((3, 2), np.float32),
    "a column of zeros": ZERO_COLUMN,
    "constant": np.full((3, 2), 0.5, np.float32),
    "one element": np.full((1, 1), -0.5, np.float32),
    "bfloat16": ZERO_COLUMN.astype(jnp.bfloat16),
}
MODIFIERS = [
    {"type": "add_normal", "std_dev": 0.1},
    {"type": "mult_normal", "std_dev": 0.1},
    {"type": "discretize_add_normal", "res": 4.0, "std_dev": 0.1, "sto_round": True},
    {"type": "dorefa", "res": 4.0},
    {"type": "poly", "std_dev": 1.0},
    {"type": "prog_noise", "std_dev": 1.0},
    {"type": "pcm_noise", "std_dev": 1.0, "pcm_t_inference": 10.0},
    {"type": "drop_connect", "pdrop": 0.5},
]
CONVERTERS = [
    SinglePairConductanceConverter(g_min=1.0, per_column=True),
    SingleDeviceConductanceConverter(),
]


@jax.jit
def everything(w):
    """Returns a matrix under every effect, and the gradient of the sum of each."""
    results, back = jax.vjp(effects, w)
    zeros = jax.tree.map(jnp.zeros_like, results)
    return results, {
        name: back({**zeros, name: jnp.ones_like(y)})[0] for name, y in results.items()
    }


def effects(w):
    rows, results = (w.shape[0],), {}
    w_max = statistics.absolute_maximum(w, rows, per_column=True)
    for options in MODIFIERS:
        results[options["type"]] = WeightModifierParameter(**options)(KEY, w, w_max)
    # No bound of a spread that is none; what matters is what it makes of the weights.
    for kind in ("layer_gaussian", "average_channel_max"):
        bound = WeightClipParameter(type=kind).bound(w, rows)
        results[kind] = jnp.clip(w, -bound, bound)
    largest = statistics.absolute_maximum(w, rows, per_column=True)
    bound = jnp.where(largest > 0, largest, 1).astype(jnp.float32)
    results["learned clip"] = learned_clip(w, bound, rows, 6)
    for kind in ("layerwise_symmetric", "channelwise_symmetric"):
        scale = WeightRemapParameter(type=kind).scale(w, jnp.ones((1, 2)), rows, (2,))
        results[kind] = w / scale.astype(w.dtype)
    drift = DriftParameter(nu=0.1, nu_k=0.01, w_noise_std=0.01)
    results["drift"], _ = drift.step(drift.begin(w, KEY), w, 10.0, KEY)
    for converter in CONVERTERS:
        g, params = converter.convert_to_conductances(w)
        results[converter.type] = converter.convert_back_to_weights(g, params)
    g, params = CONVERTERS[1].convert_to_conductances(w)
    model = ReRamCMONoiseModel()
    for t_s in (0.0, 1e5):
        read = model.at(KEY, model.program(KEY, g[0]), t_s)
        results[f"at {t_s}"] = CONVERTERS[1].convert_back_to_weights([read], params)
    return results


SELDOM = ("bfloat16", "one element")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.nightly if n in SELDOM else []) for n in CASES],
)
def test_every_effect_is_finite_in_value_and_gradient(name):
    w = jnp.asarray(CASES[name])
    results, gradients = everything(w)
    for effect in results:
        assert np.isfinite(np.float32(results[effect])).all(), effect
        assert np.isfinite(np.float32(gradients[effect])).all(), effect
    for effect in (*[options["type"] for options in MODIFIERS], "learned clip"):
        assert results[effect].dtype == w.dtype, effect


def test_zeros_stay_zeros_where_noise_is_relative():
    results, _ = everything(jnp.zeros((3, 2)))
    for name in ("add_normal", "mult_normal", "drop_connect", "pcm_noise", "dorefa"):
        np.testing.assert_array_equal(results[name], np.zeros((3, 2)), name)
    for name in ("layerwise_symmetric", "single_pair", "single_device"):
        np.testing.assert_array_equal(results[name], np.zeros((3, 2)), name)
    column = everything(jnp.asarray(ZERO_COLUMN))[0]["add_normal"]
    assert (column[:, 0] != ZERO_COLUMN[:, 0]).all() and not column[:, 1].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named_at_every_eager_boundary(bad, tmp_path):
    hardware = hw.Hardware(
        input_range=hw.InputRangeParameter(), converter=CONVERTERS[0]
    )
    x = jnp.ones((2, 3))
    linen = hw.analogize(nn.Dense(2), hardware)
    params = jax.jit(linen.init)(KEY, x)["params"]
    params = {**params, "kernel": params["kernel"].at[1, 1].set(bad)}
    variables, plan = {"params": params}, hw.plan(linen, params, x)
    model = hw.analogize(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), hardware)
    model.kernel[1, 1] = bad
    message = "kernel: 1 of 6 weights are NaN or infinite"
    for boundary in (
        lambda: hw.inspect(linen, variables, x),
        lambda: hw.inspect(model),
        lambda: hw.calibrate(linen, variables, [x]),
        lambda: hw.calibrate(model, None, [x]),
        lambda: hw.export(tmp_path / "model", variables, plan),
        lambda: population(linen, variables, [(x,)], jnp.sum, chips=1, key=KEY),
        lambda: population(model, None, [(x,)], jnp.sum, chips=1, key=KEY),
    ):
        with pytest.raises(ValueError, match=message):
            boundary()
    assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match="1 are NaN or infinite"):
        CONVERTERS[0].convert_to_conductances(params["kernel"])
    traced, _ = jax.jit(CONVERTERS[0].convert_to_conductances)(params["kernel"])
    assert not np.isfinite(np.asarray(traced[0])).all()
