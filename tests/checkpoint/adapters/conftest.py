"""Checkpoints for the adapters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._arrays.windows import Window
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Digital, Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import export, load
from hwtrain.devices import (
    BitSlicedConductanceConverter,
    GlobalDriftCompensationWithExactReference,
    NPairConductanceConverter,
    PCMLikeNoiseModel,
    PerColumnDriftCompensation,
    SingleDeviceConductanceConverter,
    SinglePairConductanceConverter,
)
from hwtrain.periphery import InputRangeParameter, IOParameters
from hwtrain.weights import MappingParameter, MismatchParameter

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
    "sliced": Hardware(
        mapping=TILES, converter=BitSlicedConductanceConverter(bits=(2, 3))
    ),
    "converted": Hardware(
        mapping=TILES,
        input_range=InputRangeParameter(),
        forward=IOParameters(inp_bits=8, out_bits=6, out_bound=3.0),
        converter=SinglePairConductanceConverter(g_max=20.0, g_min=0.5),
    ),
    "conv": Hardware(
        mapping=TILES,
        input_range=InputRangeParameter(),
        converter=SinglePairConductanceConverter(g_max=20.0),
    ),
    "grouped": Hardware(
        mapping=TILES,
        input_range=InputRangeParameter(),
        converter=SinglePairConductanceConverter(g_max=20.0),
    ),
    "scaled": Hardware(
        mapping=MappingParameter(
            max_input_size=4,
            max_output_size=3,
            weight_scaling_omega=1.0,
            learn_out_scaling=True,
            out_scaling_columnwise=True,
        ),
        converter=SinglePairConductanceConverter(g_max=20.0),
    ),
    "device": Hardware(converter=SingleDeviceConductanceConverter()),
    # The factor of the first is not 1 after programming, nor that of the second after
    # the read through a noisy periphery.
    "compensated": Hardware(
        mapping=TILES,
        input_range=InputRangeParameter(),
        forward=IOParameters(inp_bits=8, out_bits=6, out_bound=3.0),
        converter=SinglePairConductanceConverter(g_max=25.0),
        noise_model=PCMLikeNoiseModel(prog_noise_scale=3.0),
        drift_compensation=GlobalDriftCompensationWithExactReference(),
    ),
    "columnwise": Hardware(
        mapping=TILES,
        forward=IOParameters(out_bits=6, out_bound=3.0, out_noise=0.2),
        converter=SinglePairConductanceConverter(g_max=25.0),
        noise_model=PCMLikeNoiseModel(),
        drift_compensation=PerColumnDriftCompensation(),
    ),
    "ideal_read": Hardware(
        mapping=TILES,
        converter=SinglePairConductanceConverter(g_max=25.0),
        noise_model=PCMLikeNoiseModel(prog_noise_scale=3.0),
        drift_compensation=GlobalDriftCompensationWithExactReference(),
    ),
}
COMPENSATED = ("compensated", "columnwise", "ideal_read")


# Convolutions: shape of the kernel and the window.
WINDOWS = {
    "conv": ((2, 2, 3, 5), Window.of((2, 2))),
    "grouped": ((2, 2, 2, 6), Window.of((2, 2), groups=2)),
}


def _weight(name, stack):
    shape, window = WINDOWS.get(name, ((*stack, 6, 5), None))
    axes = len(shape)
    return AnalogWeight(
        path=f"{name}/kernel",
        kind="dense" if window is None else "conv",
        layer="Dense" if window is None else "Conv",
        shape=shape,
        # Of a window the channels come first, and of each channel its taps.
        rows=(axes - 2,) if window is None else (axes - 2, *range(axes - 2)),
        columns=(axes - 1,),
        hardware=CHIPS[name],
        rule="Rule('.*')",
        ranged=CHIPS[name].ranged,
        window=window,
    )


@pytest.fixture(scope="session")
def make(tmp_path_factory):
    """Returns a function that exports a model of some of the layers of `CHIPS`."""

    @functools.cache
    def checkpoint(*names, stack=(), seed=None, norm=True):
        weights = tuple(_weight(name, stack) for name in names)
        params = {}
        for number, name in enumerate(names):
            weight = weights[number]
            rng = np.random.default_rng(number)
            kernel = rng.normal(size=weight.shape).astype(np.float32)
            kernel[..., 0, :2] = [0.0, -0.0]
            bias = np.linspace(-1.0, 1.0, weight.shape[-1], dtype=np.float32)
            bias = np.broadcast_to(bias, (*stack, weight.shape[-1]))
            params[name] = {"kernel": kernel, "bias": bias}
            if CHIPS[name].scales_outputs:
                scale = 0.5 + np.arange(10, dtype=np.float32).reshape(2, 5)
                params[name]["output_scale"] = scale
            if CHIPS[name].ranged:
                shape = (*weight.stack, *weight.tiles)
                ranges = 1 + np.arange(np.prod(weight.tiles), dtype=np.float32) / 2
                ranges = np.broadcast_to(ranges.reshape(weight.tiles), shape)
                params[name]["input_range"] = ranges
                params[name]["probe"] = np.zeros((*shape, 6), np.float32)
        digital = ()
        if norm:
            digital = (Digital(path="norm/scale", reason="normalisation is digital"),)
            params["norm"] = {"scale": np.arange(5).astype(jnp.bfloat16)}
        params = jax.tree.map(jnp.asarray, params)
        path = tmp_path_factory.mktemp("adapters") / "checkpoint"
        return load(export(path, params, Plan(weights, digital), chip_seed=seed))

    return checkpoint


@pytest.fixture
def out(tmp_path):
    """Where the adapter shall write."""
    return tmp_path / "folder" / "out"


@pytest.fixture
def matrices():
    """Returns a function: kernel and bias of a convolution, of each group."""

    def of(params, name):
        (*_, outputs), window = WINDOWS[name]
        kernel = np.moveaxis(np.asarray(params[name]["kernel"]), -2, 0)
        kernel = kernel.reshape(-1, outputs)
        bias = np.asarray(params[name]["bias"])
        if window.groups == 1:
            return {name: (kernel, bias)}
        kernels = np.split(kernel, window.groups, axis=1)
        biases = np.split(bias, window.groups)
        return {f"{name}/{g}": pair for g, pair in enumerate(zip(kernels, biases))}

    return of


@pytest.fixture(params=COMPENSATED)
def compensated(request, make):
    """Returns a chip with drift compensation, its layer, and its crossbars' weights.

    They are those of its devices alone, by their place in the matrix.
    """
    name = request.param
    checkpoint = make(name, norm=False, seed=8)
    found = np.zeros((6, 5), np.float32)
    for i, row in enumerate(checkpoint.conductances(f"{name}/kernel", 8)):
        for j, tile in enumerate(row):
            g = [tile.programmed[x].g_prog for x in ("g_pos", "g_neg")]
            place = slice(3 * i, 3 * i + 3), slice(3 * j, 3 * j + 3)
            found[place] = (g[0] - g[1]) / tile.scale_ratio
    return checkpoint, name, found


@pytest.fixture
def scaled():
    """Returns the kernel of "scaled" with its output scales, of each row tile."""

    def of(checkpoint):
        scale = np.repeat(0.5 + np.arange(10.0).reshape(2, 5), 3, axis=0)
        return np.asarray(checkpoint.params["scaled"]["kernel"]) * scale

    return of
