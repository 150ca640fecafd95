"""Checkpoints for the adapters."""

import functools

import jax
import jax.numpy as jnp
import pytest

from hwtrain.checkpoint import export, load
from hwtrain.hardware import (
    Hardware,
    InputRangeParameter,
    IOParameters,
    MappingParameter,
    MismatchParameter,
    NPairConductanceConverter,
    PCMLikeNoiseModel,
    SingleDeviceConductanceConverter,
    SinglePairConductanceConverter,
)
from hwtrain.plan import AnalogWeight, Digital, Plan

TILES = MappingParameter(max_input_size=4, max_output_size=3, weight_scaling_omega=1.0)
CHIPS = {
    "first": Hardware(
        mapping=TILES,
        input_range=InputRangeParameter(),
        forward=IOParameters(inp_bits=8, out_bits=6, out_bound=3.0),
        converter=SinglePairConductanceConverter(g_max=25.0, per_column=True),
        noise_model=PCMLikeNoiseModel(),
    ),
    "second": Hardware(
        converter=SinglePairConductanceConverter(g_max=40.0),
        mismatch=MismatchParameter(type="mult_normal", std_dev=0.1),
    ),
    "pairs": Hardware(
        mapping=TILES, converter=NPairConductanceConverter(f_lst=(1.0, 0.25))
    ),
    "converted": Hardware(
        mapping=TILES,
        input_range=InputRangeParameter(),
        forward=IOParameters(inp_bits=8, out_bits=6, out_bound=3.0),
        converter=SinglePairConductanceConverter(g_max=20.0, g_min=0.5),
    ),
    "device": Hardware(converter=SingleDeviceConductanceConverter()),
}


def _weight(name, shape):
    return AnalogWeight(
        path=f"{name}/kernel",
        kind="dense",
        layer="Dense",
        shape=shape,
        rows=(len(shape) - 2,),
        columns=(len(shape) - 1,),
        hardware=CHIPS[name],
        rule="Rule('.*')",
        ranged=CHIPS[name].ranged,
    )


@pytest.fixture(scope="session")
def make(tmp_path_factory):
    """Returns a function that exports a model of some of the layers of `CHIPS`."""

    @functools.cache
    def checkpoint(*names, stack=(), seed=None, norm=True):
        weights = tuple(_weight(name, (*stack, 6, 5)) for name in names)
        params = {}
        for number, name in enumerate(names):
            kernel = jax.random.normal(jax.random.key(number), (*stack, 6, 5))
            kernel = kernel.at[..., 0, :2].set(jnp.array([0.0, -0.0]))
            bias = jnp.linspace(-1.0, 1.0, 5) * jnp.ones((*stack, 1))
            params[name] = {"kernel": kernel, "bias": bias}
            if CHIPS[name].ranged:
                tiles = weights[number].tiles
                ranges = 1.0 + jnp.arange(4.0).reshape(tiles) / 2
                params[name]["input_range"] = jnp.broadcast_to(ranges, (*stack, *tiles))
                params[name]["probe"] = jnp.zeros((*stack, *tiles, 6))
        digital = ()
        if norm:
            digital = (Digital(path="norm/scale", reason="normalisation is digital"),)
            params["norm"] = {"scale": jnp.arange(5, dtype=jnp.bfloat16)}
        path = tmp_path_factory.mktemp("adapters") / "checkpoint"
        return load(export(path, params, Plan(weights, digital), chip_seed=seed))

    return checkpoint


@pytest.fixture
def out(tmp_path):
    """Where the adapter shall write."""
    return tmp_path / "folder" / "out"
