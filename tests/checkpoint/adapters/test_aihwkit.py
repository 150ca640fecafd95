"""The tensors for aihwkit, read with NumPy alone, and by aihwkit itself."""

import json
import runpy

import jax
import numpy as np
import pytest
from flax import linen as nn

import hwtrain
from hwtrain.checkpoint.adapters import to_aihwkit

NAMES = ("first", "second", "pairs")


def weights(file, name):
    """Returns the weights `[in, out]` of a layer, from its tiles and scales."""
    matrix = np.zeros_like(file[f"{name}/weight"])
    sizes = file[f"{name}/tile_sizes"].tolist()
    outputs, inputs = matrix.shape
    row = column = 0
    for number, (height, width) in enumerate(sizes):
        place = slice(row, row + height), slice(column, column + width)
        scale = file[f"{name}/tile/{number}/mapping_scale"]
        matrix[place] = file[f"{name}/weight"][place] * scale.reshape(-1, 1)
        row += height
        if row == outputs:
            row, column = 0, column + width
    assert column == inputs
    return matrix.T


@pytest.mark.parametrize("stack, chip", [((2,), None), ((), 8)])
def test_weights_come_back(make, out, stack, chip):
    checkpoint = make(*NAMES, stack=stack, seed=chip)
    to_aihwkit(checkpoint, out, chip=chip)
    params = checkpoint.params if chip is None else checkpoint.chip(chip)
    with np.load(out / "tensors.npz") as file:
        for name in NAMES:
            kernel, bias = (np.asarray(params[name][x]) for x in ("kernel", "bias"))
            for index in np.ndindex(*stack):
                full = "/".join([name, *map(str, index)])
                np.testing.assert_allclose(
                    weights(file, full), kernel[index], atol=1e-6 * abs(kernel).max()
                )
                np.testing.assert_array_equal(file[f"{full}/bias"], bias[index])
            assert json.loads((out / "layers.json").read_text())["chip"] == chip
        full = "/".join(["first", *["0"] * len(stack)])
        assert abs(file[f"{full}/weight"]).max() == pytest.approx(1, rel=0.2)
        ranges = [file[f"{full}/tile/{n}/input_range"].item() for n in range(4)]
        assert ranges == [1.0, 1.5, 2.0, 2.5]
        assert (f"{full}/tile/0/nu/g_pos" in file) == (chip is not None)


@pytest.mark.parametrize("name", ["conv", "grouped"])
def test_convolutions(make, out, matrices, name):
    checkpoint = make("conv", "grouped")
    to_aihwkit(checkpoint, out)
    with np.load(out / "tensors.npz") as file:
        for full, (kernel, bias) in matrices(checkpoint.params, name).items():
            found = weights(file, full)
            atol = 1e-6 * abs(kernel).max()
            np.testing.assert_allclose(found, kernel, rtol=0, atol=atol)
            np.testing.assert_array_equal(file[f"{full}/bias"], bias)


def test_learned_output_scales(make, out, scaled):
    checkpoint = make("scaled", norm=False)
    to_aihwkit(checkpoint, out)
    kernel = scaled(checkpoint)
    with np.load(out / "tensors.npz") as file:
        found = weights(file, "scaled")
        # The crossbars hold the weights without them.
        assert abs(file["scaled/weight"]).max() == 1.0
    np.testing.assert_allclose(found, kernel, rtol=0, atol=1e-6 * abs(kernel).max())


def test_the_drift_compensation_is_behind_the_adc(compensated, out):
    checkpoint, name, crossbars = compensated
    to_aihwkit(checkpoint, out, chip=8)
    kernel = np.asarray(checkpoint.chip(8)[name]["kernel"])
    with np.load(out / "tensors.npz") as file:
        found, held = weights(file, name), file[f"{name}/weight"].T
    np.testing.assert_allclose(found, kernel, rtol=0, atol=1e-6 * abs(kernel).max())
    np.testing.assert_allclose(held, crossbars, rtol=0, atol=2e-6)


def test_a_tile_of_one_scale_has_one_number(make, out):
    to_aihwkit(make("converted", "conv"), out)
    with np.load(out / "tensors.npz") as file:
        scales = [file[name] for name in file if name.endswith("/mapping_scale")]
    assert len(scales) > 2 and {scale.shape for scale in scales} == {(1,)}


def test_conductances_are_those_of_the_checkpoint(make, out):
    checkpoint = make(*NAMES, stack=(2,), seed=None)
    to_aihwkit(checkpoint, out)
    tile = checkpoint.conductances("pairs/kernel")[1][0]
    with np.load(out / "tensors.npz") as file:
        g = file["pairs/1/tile/2/g/g_neg_1"]
    np.testing.assert_array_equal(g.T, tile.conductances["g_neg_1"][1])


def _model(rpu_config, names):
    ai = pytest.importorskip("aihwkit.nn", reason="aihwkit is not installed")
    model = ai.AnalogSequential()
    for name in names:
        model.add_module(name, ai.AnalogLinear(6, 5, rpu_config=rpu_config()))
    return model.eval()


def _config():
    from aihwkit.inference import GlobalDriftCompensation, PCMLikeNoiseModel
    from aihwkit.simulator.configs import InferenceRPUConfig

    config = InferenceRPUConfig()
    config.forward.is_perfect = True
    config.mapping.max_input_size, config.mapping.max_output_size = 4, 3
    config.pre_post.input_range.enable = True
    config.noise_model = PCMLikeNoiseModel(g_max=25.0, read_noise_scale=0.0)
    config.drift_compensation = GlobalDriftCompensation()
    return config


@pytest.mark.parametrize("chip", [None, 8])
def test_aihwkit_loads_it_and_computes_the_same(make, out, chip):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("aihwkit", reason="aihwkit is not installed")
    checkpoint = make("first", norm=False, seed=chip)
    to_aihwkit(checkpoint, out, chip=chip)
    model = _model(_config, ["first"])
    load = runpy.run_path(str(out / "load.py"))["load"]
    load(model, out)
    params = checkpoint.params if chip is None else checkpoint.chip(chip)
    kernel, bias = (np.asarray(params["first"][x]) for x in ("kernel", "bias"))
    found, found_bias = model.first.get_weights()
    np.testing.assert_allclose(found.T, kernel, atol=1e-6 * abs(kernel).max())
    np.testing.assert_array_equal(found_bias, bias)
    x = np.random.default_rng(0).normal(0, 1.5, (3, 6)).astype(np.float32)
    # Each tile clips its inputs to its own range.
    bounds = np.repeat(np.repeat([[1.0, 1.5], [2.0, 2.5]], 3, 0), (3, 2), 1)
    clipped = np.clip(x[:, :, None], -bounds, bounds)
    expected = (clipped * kernel).sum(1) + bias
    y = model(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(y, expected, atol=1e-5)
    if chip is not None:
        tile = next(iter(model.first.analog_tiles()))
        tile.drift_weights(1e5)
        assert abs(tile.tile.get_weights()).sum() < abs(tile.programmed_weights).sum()


def test_the_configuration_and_what_aihwkit_saves(make, out, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("aihwkit", reason="aihwkit is not installed")
    checkpoint = make("converted", norm=False)
    to_aihwkit(checkpoint, out)
    config = runpy.run_path(str(out / "rpu_config.py"))["RPU_CONFIGS"]["converted"]
    model, fresh = _model(config, ["converted"]), _model(config, ["converted"])
    runpy.run_path(str(out / "load.py"))["load"](model, out)
    torch.save(model.state_dict(), tmp_path / "model.th")
    fresh.load_state_dict(torch.load(tmp_path / "model.th", weights_only=False))
    found, bias = fresh.converted.get_weights()
    kernel = np.asarray(checkpoint.params["converted"]["kernel"])
    np.testing.assert_allclose(found.T, kernel, atol=1e-6 * abs(kernel).max())
    np.testing.assert_array_equal(bias, checkpoint.params["converted"]["bias"])
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 6)).astype("float32"))
    np.testing.assert_array_equal(fresh(x).detach(), model(x).detach())


def test_any_module_with_analog_layers_is_loaded(make, out):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    ai = pytest.importorskip("aihwkit.nn", reason="aihwkit is not installed")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.ModuleDict(
                {"first": self.layer(), "act": torch.nn.ReLU()}
            )
            self.wrapped = ai.AnalogSequential(self.layer())

        def layer(self):
            return ai.AnalogLinear(6, 5, rpu_config=_config())

    checkpoint = make("first", "converted")
    to_aihwkit(checkpoint, out)
    names, model = {"body.first": "first", "wrapped.0": "converted"}, Net()
    with pytest.warns(UserWarning, match="not in the files: norm;"):
        runpy.run_path(str(out / "load.py"))["load"](model, out, names)
    layers = dict(model.named_modules())
    for layer, name in names.items():
        kernel = np.asarray(checkpoint.params[name]["kernel"])
        found, _ = layers[layer].get_weights()
        np.testing.assert_allclose(found.T, kernel, atol=1e-6 * abs(kernel).max())


@pytest.mark.parametrize("chip", [None, 8])
def test_aihwkit_computes_what_a_compensated_chip_computes(tmp_path, chip):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("aihwkit", reason="aihwkit is not installed")
    analog, variables, x = compensated_model(tmp_path)
    checkpoint = hwtrain.load(tmp_path / "chip")
    to_aihwkit(checkpoint, tmp_path / "out", chip=chip)
    params = checkpoint.params if chip is None else checkpoint.chip(chip)
    expected = hwtrain.eval_mode(analog).apply({"params": params}, x)
    config = runpy.run_path(str(tmp_path / "out" / "rpu_config.py"))["RPU_CONFIGS"]
    model = _model(config["layer"], ["layer"])
    runpy.run_path(str(tmp_path / "out" / "load.py"))["load"](model, tmp_path / "out")
    y = model(torch.tensor(np.array(x))).detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)


def compensated_model(path):
    """Exports a layer with a DAC, an ADC and a chip whose factors are not 1."""
    converters = hwtrain.IOParameters(inp_bits=7, out_bits=6, out_bound=2.0)
    hardware = hwtrain.Hardware(
        forward=converters,
        input_range=hwtrain.InputRangeParameter(init_value=2.0),
        mapping=hwtrain.MappingParameter(
            max_input_size=4, max_output_size=3, weight_scaling_omega=1.0
        ),
        converter=hwtrain.SinglePairConductanceConverter(),
        noise_model=hwtrain.PCMLikeNoiseModel(prog_noise_scale=3.0),
        drift_compensation=hwtrain.GlobalDriftCompensationWithExactReference(),
    )
    analog = hwtrain.analogize(Layer(), hardware)
    x = jax.random.normal(jax.random.key(1), (64, 6))
    variables = analog.init(jax.random.key(0), x)
    plan = hwtrain.plan(analog, variables, x)
    hwtrain.export(path / "chip", variables, plan, chip_seed=8)
    return analog, variables, x


class Layer(nn.Module):
    """One layer with a name."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="layer")(x)


def test_aihwkit_loads_a_convolution(make, out):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    ai = pytest.importorskip("aihwkit.nn", reason="aihwkit is not installed")
    checkpoint = make("conv", norm=False)
    to_aihwkit(checkpoint, out)
    model = ai.AnalogSequential()
    model.add_module("conv", ai.AnalogConv2dMapped(3, 5, 2, rpu_config=_config()))
    model = model.eval()
    runpy.run_path(str(out / "load.py"))["load"](model, out)
    kernel, bias = (
        np.asarray(checkpoint.params["conv"][x]) for x in ("kernel", "bias")
    )
    # Inputs within every range, so that no tile clips them.
    x = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)
    taps = [
        x[:, i : i + 3, j : j + 3] @ kernel[i, j] for i in range(2) for j in range(2)
    ]
    y = model(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).detach().numpy()
    np.testing.assert_allclose(np.moveaxis(y, 1, -1), sum(taps) + bias, atol=1e-5)


def test_a_model_that_does_not_fit_is_refused(make, out):
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("aihwkit", reason="aihwkit is not installed")
    to_aihwkit(make("first"), out)
    load = runpy.run_path(str(out / "load.py"))["load"]
    with pytest.raises(ValueError, match="no weights are left for 'other'"):
        load(_model(_config, ["other"]), out)

    def one_tile():
        config = _config()
        config.mapping.max_input_size = 512
        return config

    with pytest.raises(ValueError, match="'first' should have tiles"):
        load(_model(one_tile, ["first"]), out)
    with pytest.raises(ValueError, match="no layer for first"):
        load(_model(_config, []), out)
