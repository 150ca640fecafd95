"""A user's parts state their own cost, by the interface of the built-in ones."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain.evaluate import cost

NOTHING = hw.CostParameter(source="the parts' own fields")


@hw.register("stage", "test_sampler", inside="adc", outside="output_noise")
class Sampler(hw.Part):
    """Samples outputs before they are converted; its constants are its fields."""

    energy_fj: float = 3.0
    time_ns: float = 0.5
    area_um2: float = 7.0

    def cost(self, ctx):
        counts = ctx.counts
        return hw.Cost(
            energy_fj=self.energy_fj * counts.conversions,
            latency_ns=self.time_ns * counts.steps * counts.passes,
            area_um2=self.area_um2 * counts.adcs,
            notes=("its clock is not counted",),
        )


@hw.register("stage", "test_wrong_cost", inside="adc", outside="output_noise")
class Wrong(hw.Part):
    def cost(self, ctx):
        return 1.0


@hw.register("converter", "test_costly")
class Costly(hw.ConductanceConverter):
    """Devices that cost more the more bits are read."""

    g_max: float = 20.0

    def convert_to_conductances(self, weights):
        largest = jnp.max(jnp.abs(weights)).reshape((1,) * jnp.ndim(weights))
        params = {"scale_ratio": self.g_max / jnp.where(largest > 0, largest, 1)}
        return self.convert_by_scale(weights, params), params

    def convert_by_scale(self, weights, params):
        return [jnp.abs(weights) * params["scale_ratio"]]

    def convert_back_to_weights(self, conductances, params):
        return conductances[0] / params["scale_ratio"]

    def cost(self, ctx):
        energy = ctx.counts.weight_reads * ctx.out_bits * self.g_max
        return hw.Cost(energy_fj=energy, area_um2=float(ctx.counts.places))


@hw.register("noise_model", "test_refreshed")
class Refreshed(hw.NoiseModel):
    """Devices that are refreshed, which takes energy for each of them."""

    g_max: float = 20.0

    def programming_sigma(self, g):
        return 0.1

    def cost(self, ctx):
        return hw.Cost(energy_fj=11.0 * ctx.counts.places)


def found_for(hardware, constants=NOTHING):
    analog = hw.analogize(nn.Dense(5), hardware)
    x = jax.ShapeDtypeStruct((2, 7, 3), jnp.float32)
    variables = jax.eval_shape(analog.init, jax.random.key(0), x)
    return cost(analog, variables, x, constants=constants)


def test_a_stage_of_ones_own_brings_its_constants():
    io = hw.IOParameters(out_bits=6, out_bound=10.0, stages=(Sampler(energy_fj=4.0),))
    found = found_for(hw.Hardware(forward=io))
    part = found.parts["test_sampler"]
    # Seven vectors for each example, five outputs, one ADC for each output.
    assert part.energy_fj == 4.0 * 7 * 5
    assert part.latency_ns == 0.5 * 7
    assert part.area_um2 == 7.0 * 5
    assert found.total == part
    assert "kernel: its clock is not counted" in found.notes
    assert "test_sampler" in str(found)


def test_devices_of_ones_own_bring_their_constants():
    io = hw.IOParameters(out_bits=6, out_bound=10.0)
    chip = hw.Hardware(forward=io, converter=Costly(), noise_model=Refreshed())
    found = found_for(chip)
    assert found.parts["cells"].energy_fj == pytest.approx(7 * 3 * 5 * 6 * 20.0)
    assert found.parts["cells"].area_um2 == 15.0
    assert found.parts["test_refreshed"].energy_fj == 11.0 * 15
    assert found.devices == 15


def test_a_part_without_a_cost_adds_nothing():
    def part(io):
        constants = hw.CostParameter(source="ours", conversion_energy_fj=1.0)
        return found_for(hw.Hardware(forward=io), constants).total

    plain = hw.IOParameters(out_bits=6, out_bound=10.0)
    noisy = hw.IOParameters(out_bits=6, out_bound=10.0, out_noise=0.1, ir_drop=1.0)
    assert part(plain) == part(noisy)


def test_another_result_is_refused_by_name():
    io = hw.IOParameters(stages=(Wrong(),))
    with pytest.raises(ValueError, match="kernel: expected cost of Wrong to return a"):
        found_for(hw.Hardware(forward=io))
