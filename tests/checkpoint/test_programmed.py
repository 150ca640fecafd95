"""Programmed chips in a checkpoint: what is stored, read back, and verified."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain._arrays.random import draw_key
from hwtrain.checkpoint import HardwareCheckpointError, verify
from hwtrain.checkpoint import _crossbars as crossbars
from hwtrain.checkpoint import _reads as reads
from hwtrain.devices import GlobalDriftCompensation, PerColumnDriftCompensation
from hwtrain.evaluate import population

DAY = 86_400.0
X = jax.random.normal(jax.random.key(1), (6, 10))
TILES = hw.MappingParameter(
    max_input_size=4, max_output_size=3, weight_scaling_omega=1.0
)
MISMATCH = hw.MismatchParameter(type="mult_normal", std_dev=0.05)
CHIPS = {
    "pcm": dataclasses.replace(
        hw.presets.pcm(),
        drift_compensation=PerColumnDriftCompensation(),
        mapping=TILES,
        mismatch=MISMATCH,
    ),
    "n_pair": dataclasses.replace(
        hw.presets.pcm(),
        converter=hw.NPairConductanceConverter(
            f_lst=(1.0, 3.0), g_min=0.5, per_column=True
        ),
        drift_compensation=GlobalDriftCompensation(),
        mapping=TILES,
    ),
    "reram_cmo": dataclasses.replace(hw.presets.reram_cmo(), mapping=TILES),
    "reram_wan": hw.presets.reram_wan2022(),
}


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.vmap(
            nn.Dense,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=2,
        )
        y = layers(7, name="layers", param_dtype=jnp.bfloat16)(x)
        return nn.Dense(3, name="head")(y.mean(0))


SHORT = ("pcm", "reram_wan")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in SHORT else pytest.mark.nightly)
        for name in CHIPS
    ],
)
def case(request, tmp_path_factory):
    chip = CHIPS[request.param]
    analog = hw.analogize(Stack(), chip)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    plan = hw.plan(analog, variables, X)
    path = tmp_path_factory.mktemp("export") / "model"
    hw.export(path, variables, plan, chip_seeds=[2, 5])
    return chip, analog, variables, plan, path


def test_a_chip_s_file_holds_every_device_and_its_draws(case):
    chip, _, _, plan, path = case
    checkpoint = hw.load(path)
    draw = "nu" if chip.noise_model.type == "pcm_like" else "xi"
    for seed in (2, 5):
        for name in plan:
            for row in checkpoint.conductances(name, seed):
                for tile in row:
                    assert list(tile.programmed) == list(chip.converter.devices)
                    for device, found in tile.programmed.items():
                        target = tile.conductances[device]
                        np.testing.assert_array_equal(found.g_target, target)
                        assert found.g_prog.shape == target.shape
                        assert (found.g_prog != target).mean() > 0.4
                        assert getattr(found, draw).std() > 0
    manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    units = manifest["files"]["chips/0005/0000.safetensors"]
    device = f"tile/0/0/{chip.converter.devices[0]}"
    assert units[f"{device}/g_prog"]["unit"] == "µS"
    assert units[f"{device}/{draw}"]["unit"] == "1"
    # The nominal model has targets only.
    assert not checkpoint.conductances("head/kernel")[0][0].programmed


@pytest.fixture(scope="module")
def programmed(case):
    """Returns `f(time, key)`: chip 5 at a time, as it is read, and without noise."""
    _, _, variables, plan, _ = case

    @jax.jit
    def at(t_s, key):
        chip = hw.program_chip(variables["params"], plan, hw.chip_key(5))
        return chip.at(t_s, key), chip.at(t_s)

    return at


@pytest.mark.sampled
@pytest.mark.parametrize("t_s", [None, 0.0, DAY])
def test_a_read_chip_is_the_programmed_one(case, programmed, t_s):
    _, _, variables, plan, path = case
    key = jax.random.key(9)
    found = hw.load(path).chip(5, t_s=t_s, key=key)
    expected, quiet = programmed(t_s or 0.0, key)
    for layer, atol in (("layers", 2**-8), ("head", 2e-6)):
        kernel, again = (np.float32(p[layer]["kernel"]) for p in (found, expected))
        np.testing.assert_allclose(kernel, again, atol=atol * np.abs(again).max())
        assert (
            found[layer]["kernel"].dtype == variables["params"][layer]["kernel"].dtype
        )
        np.testing.assert_array_equal(found[layer]["bias"], expected[layer]["bias"])
    without = hw.load(path).chip(5, t_s=t_s)["head"]["kernel"]
    np.testing.assert_allclose(without, quiet["head"]["kernel"], atol=1e-6)


def test_the_population_s_chip_is_the_exported_one(case):
    _, analog, variables, _, path = case
    key, times = jax.random.key(3), (0.0, DAY)

    def metric(y):
        return jnp.square(y).sum(-1)

    result = population(
        analog, variables, [(X,)], metric, chips=[5], key=key, times_s=times
    )
    step = jax.random.fold_in(jax.random.fold_in(key, 0), 5)
    call = jax.jit(hw.eval_mode(analog).apply)
    for number, t_s in enumerate(times):
        time = int(np.float32(t_s).view(np.uint32))
        read = jax.random.fold_in(draw_key(step, "", "read"), time)
        params = hw.load(path).chip(5, t_s=t_s, key=read)
        y = call({"params": params}, X)
        # The kernels of the stack are bfloat16: 8 bits.
        np.testing.assert_allclose(
            result.values[0, number], metric(y).mean(), rtol=0.02
        )


def test_the_certificate(case):
    _, _, _, _, path = case
    for report in verify(path)["weights"].values():
        assert report["chips"] == {"2": 0.0, "5": 0.0}


def test_exporting_again_gives_the_same_bytes(case, tmp_path):
    _, _, _, _, path = case
    checkpoint = hw.load(path)
    again = hw.export(
        tmp_path / "again", checkpoint.variables, checkpoint.plan, chip_seeds=[2, 5]
    )
    for file in path.rglob("*.*"):
        assert file.read_bytes() == (again / file.relative_to(path)).read_bytes()


@pytest.mark.parametrize("noise", [True, False])
def test_weights_of_one_shape_share_a_compilation_but_no_draw(tmp_path, noise):
    """Each layer has the hardware of the one before, and a name of its own."""
    chip = dataclasses.replace(
        CHIPS["pcm"],
        forward=hw.IOParameters(
            inp_bits=6, out_bits=6, out_bound=10.0, v_offset_std=0.02
        ),
        input_range=hw.InputRangeParameter(),
        drift_compensation=GlobalDriftCompensation(),
    )
    model = nn.Sequential([nn.Dense(10) for _ in range(3)])
    analog = hw.analogize(model, chip)
    params = jax.jit(analog.init)(jax.random.key(0), X)["params"]
    layers = dict.fromkeys(params, params["layers_0"])  # of the same values
    plan = hw.plan(analog, layers, X)
    for compiled in (crossbars._programmed, reads._kernel_at):
        compiled.clear_cache()
    checkpoint = hw.load(hw.export(tmp_path / "m", layers, plan, chip_seed=3))
    key = jax.random.key(7) if noise else None
    found = checkpoint.chip(3, t_s=DAY, key=key)
    assert crossbars._programmed._cache_size() == reads._kernel_at._cache_size() == 1
    programmed = hw.program_chip(layers, plan, hw.chip_key(3))
    expected = jax.jit(programmed.at)(DAY, key)
    for path in layers:
        kernel = found[path]["kernel"]
        np.testing.assert_allclose(kernel, expected[path]["kernel"], atol=1e-6)
        others = (found[other]["kernel"] for other in layers if other != path)
        assert all((kernel != other).mean() > 0.9 for other in others)


def test_a_time_that_nothing_would_feel_is_an_error(tmp_path, case):
    _, _, _, _, path = case
    with pytest.raises(HardwareCheckpointError, match="at least 0.*got -1"):
        hw.load(path).chip(5, t_s=-1.0)
    hardware = hw.Hardware(mismatch=MISMATCH)
    analog = hw.analogize(nn.Dense(3), hardware)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    plan = hw.plan(analog, variables, X)
    plain = hw.load(hw.export(tmp_path / "plain", variables, plan, chip_seed=1))
    for options in ({"t_s": 0.0}, {"key": jax.random.key(0)}):
        with pytest.raises(HardwareCheckpointError, match="would change nothing"):
            plain.chip(1, **options)
