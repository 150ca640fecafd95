"""A chip at a time, as the page on checkpoints reads it with NumPy alone."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain.checkpoint import HardwareCheckpointError

PAGE = Path(__file__).parents[2] / "docs/checkpoint.md"
X = jax.random.normal(jax.random.key(3), (5, 12))
TIMES = [0.0, 60.0, 86_400.0, 31_536_000.0]
BAND = {"relative_std": 0.05, "f_min_hz": 1e-3, "f_max_hz": 10.0}


def reader():
    text = PAGE.read_text("utf-8").partition("## A reader without hwtrain")[2]
    text = text.partition("\n## ")[0]
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    return names["read_weight"]


def exported(folder, devices, **hardware):
    """Returns an export of chips 3 and 8, on tiles of 5 rows, and its model."""
    chip = hw.Hardware(
        noise_model=devices,
        converter=hw.SinglePairConductanceConverter(g_max=devices.g_max),
        mapping=hw.MappingParameter(max_input_size=5, max_output_size=4),
        **hardware,
    )
    analog = hw.analogize(nn.Dense(7), chip)
    variables = analog.init(jax.random.key(0), X)
    plan = hw.plan(analog, variables, X)
    path = hw.export(folder / "model", variables, plan, chip_seeds=[3, 8])
    return path, analog, variables


def pulses(within):
    fields = {"cycle_std": 0.3, "states": 9}
    return hw.WriteVerifyNoiseModel(noise_model=within, g_high=40.0, **fields)


QUIET = hw.PCMLikeNoiseModel(read_noise_scale=0.0, prog_noise_scale=0.0)
NESTS = {
    "flicker": hw.FlickerNoiseModel(noise_model=QUIET, **BAND),
    "outside of pulses": hw.FlickerNoiseModel(noise_model=pulses(QUIET), **BAND),
    "inside of pulses": pulses(hw.FlickerNoiseModel(noise_model=QUIET, **BAND)),
}


@pytest.mark.parametrize("devices", NESTS.values(), ids=NESTS)
def test_the_reader_finds_every_read_and_the_outputs(devices, tmp_path):
    stuck = hw.StuckParameter(at_g_min=0.05, at_g_max=0.05)
    path, analog, variables = exported(tmp_path, devices, stuck=stuck)
    checkpoint, read = hw.load(path), reader()
    for seed in (3, 8):
        for t_s in TIMES:
            quiet = checkpoint.chip(seed, t_s=t_s)["kernel"]
            noisy = checkpoint.chip(seed, t_s=t_s, key=jax.random.key(1))
            top = np.abs(quiet).max()
            found = read(path, "kernel", chip=seed, t_s=t_s)
            # Powers in float32: of a year, to 4 of its units.
            np.testing.assert_allclose(found, quiet, rtol=0, atol=1e-6 * top)
            rng = np.random.default_rng(0)
            found = read(path, "kernel", chip=seed, t_s=t_s, rng=rng)
            np.testing.assert_allclose(found, noisy["kernel"], rtol=0, atol=1e-6 * top)
            assert np.abs(noisy["kernel"] - quiet).max() > 0.02 * top
            expected = hw.eval_mode(analog).apply({"params": noisy}, X)
            bias = np.asarray(variables["params"]["bias"])
            np.testing.assert_allclose(
                np.asarray(X) @ found + bias, expected, atol=1e-5
            )


def test_the_reader_draws_read_noise_of_the_same_size(tmp_path):
    devices = hw.PCMLikeNoiseModel()
    path, analog, variables = exported(tmp_path, devices)
    plan, read = hw.plan(analog, variables, X), reader()
    chip = hw.program_chip(variables["params"], plan, hw.chip_key(3))
    t_s, draws = 86_400.0, 400
    keys = jax.random.split(jax.random.key(0), draws)
    ours = jax.jit(jax.vmap(lambda key: chip.at(t_s, key)["kernel"]))(keys)
    rng = np.random.default_rng(0)
    theirs = [read(path, "kernel", 3, t_s, rng) for _ in range(draws)]
    both = (np.asarray(x, np.float64) for x in (theirs, ours))
    ratio = np.mean(np.divide(*(np.var(x, 0) for x in both)))
    # Over 84 weights of one variance ratio each, two variances of `draws` samples.
    assert abs(ratio - 1) < 4.5 * np.sqrt(4 / draws / 84) + 2 / draws


def test_times_that_cannot_be_are_refused(tmp_path):
    path, analog, variables = exported(tmp_path, QUIET)
    checkpoint, plan = hw.load(path), hw.plan(analog, variables, X)
    chip = hw.program_chip(variables["params"], plan, hw.chip_key(3))
    for t_s in (-1.0, np.inf, np.nan, np.float32(-1), jnp.float32(-1)):
        with pytest.raises(HardwareCheckpointError, match="at least 0"):
            checkpoint.chip(3, t_s=t_s)
        with pytest.raises(ValueError, match="at least 0"):
            chip.at(t_s)
        with pytest.raises(ValueError, match="at least 0"):
            QUIET.mean_at(chip.weights["kernel"].devices[0], t_s)
