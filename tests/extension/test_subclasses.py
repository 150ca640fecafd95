"""A part of one's own may inherit from a built-in one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._parts import registry
from hwtrain._parts.fields import from_dict, to_dict

X = jax.random.normal(jax.random.key(0), (4, 16))


@pytest.fixture
def worn():
    """A phase-change memory with more programming noise, by cycles."""

    @hw.register("noise_model", "worn_pcm")
    class Worn(hw.PCMLikeNoiseModel):
        cycles: float = 100.0
        """How often it was written. One is as its parent."""

        def programming_sigma(self, g):
            return self.cycles**0.1 * super().programming_sigma(g)

        proof = hw.DriftingNoiseModel.proof

    yield Worn
    registry.forget("noise_model", "worn_pcm")


def test_it_has_its_own_name_and_no_field_of_that_name(worn):
    model = worn(g_max=20.0, cycles=50.0)
    assert model.type == "worn_pcm"
    assert "type" not in {field.name for field in dataclasses.fields(model)}
    assert hw.PCMLikeNoiseModel().type == "pcm_like"
    with pytest.raises(ValueError, match="type"):
        worn(type="pcm_like")


def test_assert_active_measures_what_it_overrides(worn):
    converter = hw.SinglePairConductanceConverter(g_max=25.0)
    hardware = hw.Hardware(noise_model=worn(), converter=converter)
    analog = hw.analogize(nn.Dense(16), hardware)
    variables = analog.init(jax.random.key(1), X)
    measured = str(hw.assert_active(analog, variables, X))
    assert "programming noise: 1.0" in measured or "programming noise: 0.9" in measured


def test_it_goes_through_configurations_and_checkpoints(worn, tmp_path):
    model = worn(g_max=20.0, cycles=50.0)
    converter = hw.SinglePairConductanceConverter(g_max=20.0)
    hardware = hw.Hardware(noise_model=model, converter=converter)
    data = json.loads(json.dumps(to_dict(hardware)))
    assert data["noise_model"]["type"] == "worn_pcm"
    assert from_dict(hw.Hardware, data) == hardware
    analog = hw.analogize(nn.Dense(4), hardware)
    variables = analog.init(jax.random.key(1), X)
    plan = hw.plan(analog, variables, X)
    hw.export(tmp_path / "chip", variables, plan, chip_seed=0)
    found = hw.load(tmp_path / "chip").plan.weights[0].hardware.noise_model
    assert found == model and type(found) is worn


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_it_acts(worn, framework):
    converter = hw.SinglePairConductanceConverter(g_max=25.0)

    def spread(model):
        hardware = hw.Hardware(noise_model=model, converter=converter)
        if framework == "linen":
            analog = hw.analogize(nn.Dense(64), hardware)
            params = analog.init(jax.random.key(1), X)["params"]
            plan = hw.plan(analog, params, X)
        else:
            layer = nnx.Linear(16, 64, rngs=nnx.Rngs(0))
            analog = hw.analogize(layer, hardware, rngs=nnx.Rngs(mismatch=0))
            plan, params = hw.plan(analog), nnx.to_pure_dict(nnx.state(analog))
        chip = hw.program_chip(params, plan, hw.chip_key(0))
        error = chip.weights["kernel"].devices[0]
        return float(jnp.std(error.g_prog - error.g_target))

    ratio = spread(worn()) / spread(hw.PCMLikeNoiseModel())
    assert abs(ratio - 100**0.1) < 0.1
