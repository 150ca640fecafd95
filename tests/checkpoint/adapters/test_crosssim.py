"""The matrices for CrossSim, read with NumPy and json alone, and by CrossSim itself."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain.checkpoint import HardwareCheckpointError
from hwtrain.checkpoint.adapters import to_crosssim

NAMES = ("first", "second", "pairs")


def weights(matrices, entry, shape):
    """Returns the weights `[in, out]` that the cores of a layer stand for."""
    total = np.zeros(shape)
    for core in entry["cores"]:
        matrix = matrices[core["matrix"]]
        assert core["parameters"]["core"]["cols_max"] == matrix.shape[0]
        row, column = core["first_input"], core["first_output"]
        place = slice(row, row + matrix.shape[1]), slice(column, column + len(matrix))
        scale = np.array(core["output_scale"]) / (core["input_scale"] or 1)
        total[place] += matrix.T * scale
    return total


@pytest.mark.parametrize("stack, chip", [((2,), None), ((), 8)])
def test_weights_come_back(make, out, stack, chip):
    checkpoint = make(*NAMES, stack=stack, seed=chip)
    to_crosssim(checkpoint, out, chip=chip)
    params = checkpoint.params if chip is None else checkpoint.chip(chip)
    entries = json.loads((out / "crosssim.json").read_text())["layers"]
    entries = {entry["name"]: entry for entry in entries}
    with np.load(out / "matrices.npz") as matrices:
        for name in NAMES:
            kernel, bias = (np.asarray(params[name][x]) for x in ("kernel", "bias"))
            for index in np.ndindex(*stack):
                entry = entries["/".join([name, *map(str, index)])]
                found = weights(matrices, entry, kernel[index].shape)
                np.testing.assert_allclose(
                    found, kernel[index], rtol=0, atol=1e-6 * abs(kernel).max()
                )
                np.testing.assert_array_equal(np.float32(entry["bias"]), bias[index])


@pytest.mark.parametrize("name", ["conv", "grouped"])
def test_convolutions(make, out, matrices, name):
    checkpoint = make("conv", "grouped")
    to_crosssim(checkpoint, out)
    entries = json.loads((out / "crosssim.json").read_text())["layers"]
    entries = {entry["name"]: entry for entry in entries}
    with np.load(out / "matrices.npz") as file:
        for full, (kernel, bias) in matrices(checkpoint.params, name).items():
            found = weights(file, entries[full], kernel.shape)
            atol = 1e-6 * abs(kernel).max()
            np.testing.assert_allclose(found, kernel, rtol=0, atol=atol)
            np.testing.assert_array_equal(np.float32(entries[full]["bias"]), bias)


def test_slices_of_bits_are_cores_with_their_factors(make, out):
    checkpoint = make("sliced", norm=False)
    to_crosssim(checkpoint, out)
    (entry,) = json.loads((out / "crosssim.json").read_text())["layers"]
    rounded = checkpoint.reconstruct("sliced/kernel")
    assert {core["pair"] for core in entry["cores"]} == {0, 1}
    with np.load(out / "matrices.npz") as file:
        found = weights(file, entry, rounded.shape)
    np.testing.assert_allclose(found, rounded, rtol=0, atol=1e-6 * abs(rounded).max())


def test_learned_output_scales(make, out, scaled):
    checkpoint = make("scaled", norm=False)
    to_crosssim(checkpoint, out)
    (entry,) = json.loads((out / "crosssim.json").read_text())["layers"]
    kernel = scaled(checkpoint)
    with np.load(out / "matrices.npz") as file:
        found = weights(file, entry, kernel.shape)
    np.testing.assert_allclose(found, kernel, rtol=0, atol=1e-6 * abs(kernel).max())


def test_the_drift_compensation_is_behind_the_adc(compensated, out):
    checkpoint, name, crossbars = compensated
    to_crosssim(checkpoint, out, chip=8)
    (entry,) = json.loads((out / "crosssim.json").read_text())["layers"]
    kernel = np.asarray(checkpoint.chip(8)[name]["kernel"])
    held = np.zeros_like(kernel)
    with np.load(out / "matrices.npz") as file:
        found = weights(file, entry, kernel.shape)
        for core in entry["cores"]:
            matrix = file[core["matrix"]]
            row, column = core["first_input"], core["first_output"]
            place = slice(row, row + matrix.shape[1]), slice(column, column + 3)
            held[place] = matrix.T
    np.testing.assert_allclose(found, kernel, rtol=0, atol=1e-6 * abs(kernel).max())
    # The largest weight of each tile is one, so full conductance, before programming.
    np.testing.assert_allclose(held, crossbars, rtol=0, atol=2e-6)


def test_what_cannot_be_said_is_listed(make, out):
    to_crosssim(make(*NAMES, stack=(2,), seed=None), out)
    layers = json.loads((out / "crosssim.json").read_text())["layers"]
    lost = {entry["name"]: entry["lost"] for entry in layers}
    first, second = lost["first/0"], lost["second/1"]
    assert [line.partition(":")[0] for line in first] == [
        "the ADC",
        "noise_model 'pcm_like'",
    ]
    assert [line.partition(" ")[0] for line in second] == ["mismatch"]


@pytest.mark.parametrize(
    "model, said",
    [
        (hw.PCMLikeNoiseModel(), "PCMJoshi"),
        (hw.PCMLikeNoiseModel(drift_scale=0.0), "PCMJoshi"),
        (hw.PCMLikeNoiseModel(prog_coeff_g_max_reference=25.0), "PCMJoshi"),
        (hw.PCMLikeNoiseModel(prog_coeff=(1.0, 0.5)), "prog_coeff"),
        (hw.PCMLikeNoiseModel(prog_noise_scale=2.0), "prog_noise_scale"),
        (hw.PCMLikeNoiseModel(g_max=20.0), "0 to 20 µS"),
        (hw.ReRamWan2022NoiseModel(), "0 to 40 µS"),
        (hw.ReRamWan2022NoiseModel(g_max=39.2), "RRAMWan"),
        (hw.ReRamMiloNoiseModel(), "RRAMMilo"),
        (hw.ReRamMiloNoiseModel(prog_coeff=(5.0, 0.0)), "prog_coeff"),
        (hw.SonosNoiseModel(), "SONOS"),
        (hw.SonosNoiseModel(read_noise_scale=2.0), "read_noise_scale"),
    ],
)
def test_devices_of_crosssim_are_named_only_where_they_are_the_same(
    model, said, tmp_path
):
    low = 50.0 if model.type == "reram_milo" else 0.0
    converter = hw.SinglePairConductanceConverter(g_max=model.g_max, g_min=low)
    chip = hw.Hardware(noise_model=model, converter=converter)
    x = jnp.ones((2, 4))
    analog = hw.analogize(nn.Dense(3), chip)
    variables = analog.init(jax.random.key(0), x)
    hw.export(tmp_path / "chip", variables, hw.plan(analog, variables, x))
    to_crosssim(hw.load(tmp_path / "chip"), tmp_path / "out")
    text = json.loads((tmp_path / "out" / "crosssim.json").read_text())
    (line,) = text["layers"][0]["lost"]
    assert said in line
    same = said in ("PCMJoshi", "RRAMWan", "RRAMMilo", "SONOS")
    assert ("'NormalIndependentDevice'" in line) == (not same or said == "PCMJoshi")
    assert same or not any(f"'{x}'" in line for x in ("PCMJoshi", "RRAMMilo", "SONOS"))


@pytest.mark.parametrize(
    "name, chip, lost",
    [
        ("second", None, ["programming_error"]),
        ("second", 8, []),
        ("first", None, ["programming_error", "read_noise"]),
    ],
)
def test_the_advice_runs(make, out, name, chip, lost):
    to_crosssim(make(name, "conv", seed=8), out, chip=chip)
    entry = json.loads((out / "crosssim.json").read_text())["layers"][0]
    parameters = entry["cores"][0]["parameters"]
    advice = re.findall(r"parameters\['xbar'\]\S+ = {[^}]*}", " ".join(entry["lost"]))
    for line in advice:
        exec(line, {"parameters": parameters})
    device = parameters["xbar"]["device"]
    assert [effect for effect in device if isinstance(device[effect], dict)] == lost
    # CrossSim's names of a device's errors.
    assert set(lost) <= {"read_noise", "programming_error", "drift_error"}
    simulator = pytest.importorskip("simulator", reason="CrossSim is not installed")
    core = simulator.AnalogCore(
        np.load(out / "matrices.npz")[entry["cores"][0]["matrix"]],
        simulator.CrossSimParameters(**parameters),
    )
    x = np.ones(core.shape[1])
    assert np.isfinite(core @ x).all()


def test_layers_through_from_torch(make, out):
    simulator = pytest.importorskip("simulator", reason="CrossSim is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from simulator.algorithms.dnn.torch.convert import from_torch

    checkpoint = make("second")
    to_crosssim(checkpoint, out)
    (entry,) = json.loads((out / "crosssim.json").read_text())["layers"]
    (core,) = entry["cores"]
    parameters, scale = core["parameters"], core["output_scale"][0]
    limits = parameters["core"]["mapping"]["weights"]
    limits["min"], limits["max"] = limits["min"] * scale, limits["max"] * scale
    kernel, bias = (
        np.asarray(checkpoint.params["second"][x]) for x in ("kernel", "bias")
    )
    model = torch.nn.Sequential(torch.nn.Linear(*kernel.shape))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(kernel.T.copy()))
        model[0].bias.copy_(torch.tensor(bias))
    analog = from_torch(model, [simulator.CrossSimParameters(**parameters)])
    assert type(analog[0]).__name__ == "AnalogLinear"
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    y = analog(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(y, x @ kernel + bias, atol=1e-5)


def test_a_single_device_is_refused(make, out):
    with pytest.raises(HardwareCheckpointError, match="device/kernel: a balanced core"):
        to_crosssim(make("second", "device"), out)
    assert not out.parent.exists()


@pytest.mark.parametrize("name", ["converted", "compensated", "first", "pairs"])
@pytest.mark.parametrize("chip", [None, 8])
def test_crosssim_computes_the_same(make, out, name, chip):
    simulator = pytest.importorskip("simulator", reason="CrossSim is not installed")
    checkpoint = make(name, "second", seed=chip)
    to_crosssim(checkpoint, out, chip=chip)
    matrices = np.load(out / "matrices.npz")
    (entry, _) = json.loads((out / "crosssim.json").read_text())["layers"]
    params = checkpoint.params if chip is None else checkpoint.chip(chip)
    kernel, bias = (np.asarray(params[name][x]) for x in ("kernel", "bias"))
    x = np.random.default_rng(0).normal(0, 1.5, 6)
    y, expected = np.array(entry["bias"]), bias.astype(float)
    for core in entry["cores"]:
        matrix = matrices[core["matrix"]]
        r = core["input_scale"]
        row, column = core["first_input"], core["first_output"]
        part = x[row : row + matrix.shape[1]]
        part = part if r is None else np.clip(part / r, -1, 1)
        parameters = simulator.CrossSimParameters(**core["parameters"])
        analog = simulator.AnalogCore(matrix, parameters)
        span = slice(column, column + len(matrix))
        y[span] += (analog @ part) * core["output_scale"]
        device = parameters.xbar.device
        if name == "converted":
            assert 1e6 / device.Rmin == pytest.approx(20)
            assert 1e6 / device.Rmax == pytest.approx(0.5)
        if core["pair"] == 0:
            rows = slice(row, row + matrix.shape[1])
            weight = kernel[rows, span]
            if name != "pairs":
                # An 8-bit DAC: 127 steps on each side of zero.
                part = np.round(part * 127) / 127
            scale = 1.0
            if name in ("converted", "compensated"):
                # A 6-bit ADC up to 3 on weights whose largest is 1.
                nominal = np.asarray(checkpoint.params[name]["kernel"])[rows, span]
                scale = abs(nominal).max()
            if name == "compensated" and chip is not None:
                # The factor of the drift compensation follows the ADC.
                places = row // 3, column // 3
                factor = params[name]["mapping_scale"][places] / scale
                assert abs(factor - 1) > 0.001
                scale = scale * factor
            out_ = part @ (weight / scale)
            if name in ("converted", "compensated"):
                out_ = np.clip(np.round(out_ * 31 / 3) * 3 / 31, -3, 3)
            expected[span] += out_ * scale * (r or 1)
    np.testing.assert_allclose(y, expected, atol=2e-6)
