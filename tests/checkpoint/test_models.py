"""Wrapped models compute the same from a loaded checkpoint, bit for bit."""

import chex
import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from hwtrain._flax.modes import analogize, plan
from hwtrain._plan.hardware import Hardware
from hwtrain.checkpoint import export, load, verify
from hwtrain.devices import SinglePairConductanceConverter
from hwtrain.periphery import InputRangeParameter
from hwtrain.weights import MappingParameter, MismatchParameter, WeightModifierParameter

pytestmark = pytest.mark.optimised
HARDWARE = Hardware(
    modifier=WeightModifierParameter(type="add_normal", std_dev=0.1),
    input_range=InputRangeParameter(),
    mapping=MappingParameter(max_input_size=4, weight_scaling_omega=1.0),
    mismatch=MismatchParameter(type="add_normal", std_dev=0.1),
    converter=SinglePairConductanceConverter(),
)


def test_linen(tmp_path):
    x = jax.random.normal(jax.random.key(1), (5, 6))
    analog = analogize(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)]), HARDWARE)
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    weights = plan(analog, variables, x)
    path = export(tmp_path / "model", variables, weights, chip_seed=7)
    checkpoint = load(path)
    assert checkpoint.plan == weights
    rngs = {"mismatch": jax.random.key(2)}
    call = jax.jit(lambda variables: analog.apply(variables, x, rngs=rngs))
    y = call(variables)
    chex.assert_trees_all_equal(call(checkpoint.variables), y)
    assert not np.allclose(call({"params": checkpoint.chip(7)}), y)
    assert verify(path)["weights"].keys() == set(weights)


def test_nnx(tmp_path):
    x = jax.random.normal(jax.random.key(1), (5, 6))
    rngs = nnx.Rngs(params=0, mismatch=1)
    analog = analogize(nnx.Linear(6, 3, rngs=rngs), HARDWARE, rngs=rngs)
    weights = plan(analog)
    state = nnx.state(analog)
    checkpoint = load(export(tmp_path / "model", state, weights, chip_seed=7))
    assert checkpoint.plan == weights
    params = nnx.to_pure_dict(nnx.filter_state(state, nnx.Param))
    assert jax.tree.structure(checkpoint.params) == jax.tree.structure(params)
    loaded = checkpoint.into(analog)
    chex.assert_trees_all_equal(loaded(x), analog(x))
