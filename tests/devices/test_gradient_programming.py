"""Programming of whole tiles by the outputs that are measured."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.devices import NoiseModel
from hwtrain.periphery import ColumnErrors

X = jax.random.normal(jax.random.key(0), (16, 40))
SCALED = hw.MappingParameter(weight_scaling_omega=1.0, max_input_size=20)
PAIR = hw.SinglePairConductanceConverter(g_max=25.0)
SINGLE = hw.SingleDeviceConductanceConverter(g_max=25.0)
QUIET = hw.PCMLikeNoiseModel(prog_noise_scale=0.5, read_noise_scale=0.0)
LOUD = hw.PCMLikeNoiseModel(prog_noise_scale=3.0, read_noise_scale=0.0)
DAY_S = 86_400.0


def corrected(within=LOUD, **fields):
    return hw.GradientProgrammedNoiseModel(noise_model=within, **fields)


def programmed(noise_model, *, seed=3, features=24, converter=PAIR, **parts):
    """Returns a model, its parameters and those of a chip just after programming."""
    chip = hw.Hardware(
        noise_model=noise_model, converter=converter, mapping=SCALED, **parts
    )
    analog = hw.analogize(nn.Dense(features), chip)
    variables = analog.init(jax.random.key(1), X)
    plan = hw.plan(analog, variables, X)
    params = variables["params"]
    return analog, variables, hw.program_chip(params, plan, hw.chip_key(seed)).at(0.0)


def error_of(variables, chip):
    return np.asarray(chip["kernel"] - variables["params"]["kernel"], np.float64)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def after_one(number):
    """Returns the error before and after one correction of one chip."""
    errors = []
    # Single devices conduct half of their range for a weight of zero, so that few of
    # them would have to conduct less than nothing.
    for model in (QUIET, corrected(QUIET, iterations=1, examples=50, rate=1.0)):
        _, variables, chip = programmed(model, seed=number, converter=SINGLE)
        errors.append(error_of(variables, chip))
    return errors


def test_one_correction_takes_back_its_share():
    # In expectation over inputs, X'X = B sigma^2 on the diagonal, so that an error
    # becomes 1 - B / (sqrt(B) + sqrt(n))^2 of itself.
    pairs = [after_one(number) for number in range(6)]
    before, after = (np.concatenate([np.ravel(x[k]) for x in pairs]) for k in (0, 1))
    share = before @ after / (before @ before)
    expected = 1 - 50 / (50**0.5 + 20**0.5) ** 2
    # What is not in expectation is as large as the rows beside: B n terms of it.
    rest = after - share * before
    error = rms(rest) / rms(before) / np.sqrt(before.size)
    assert abs(share - expected) < 4.5 * error + 0.01
    assert 0.5 < expected < 0.8


def test_a_correction_is_what_numpy_computes():
    errors = after_one(0)
    # The inputs are drawn from the key of the correction; the rest is NumPy.
    from hwtrain._arrays.random import draw_key, fold_in

    key = draw_key(draw_key(hw.chip_key(0), "kernel", "programming", 0), "", "tile")
    key = fold_in(draw_key(key, "", "correction"), 0)
    inputs = np.asarray(
        2 * jax.random.uniform(draw_key(key, "", "inputs"), (50, 2, 20)) - 1, np.float64
    )
    expected = np.empty((40, 24))
    for tile in range(2):
        x = inputs[:, tile]
        error = errors[0][20 * tile : 20 * tile + 20]
        step = x.T @ (x @ error) / ((50**0.5 + 20**0.5) ** 2 / 3)
        expected[20 * tile : 20 * tile + 20] = error - step
    # The smallest weight of a tile conducts nothing, and cannot conduct less.
    agreed = np.abs(errors[1] - expected) < 1e-3 * rms(errors[0])
    assert agreed.mean() > 0.98


@pytest.mark.parametrize(
    "converter",
    [
        PAIR,
        hw.NPairConductanceConverter(f_lst=(1.0, 2.0), g_max=25.0),
        hw.SingleDeviceConductanceConverter(g_max=25.0),
    ],
    ids=lambda x: x.type,
)
def test_many_corrections_remove_what_devices_deviate(converter):
    rest = []
    for model in (LOUD, corrected(iterations=60, rate=1.0, examples=100)):
        _, variables, chip = programmed(model, converter=converter)
        rest.append(rms(error_of(variables, chip)))
    assert rest[1] < 0.03 * rest[0]


def test_corrections_compensate_the_errors_of_a_chips_columns():
    io = hw.IOParameters(stages=(ColumnErrors(gain_std=0.2),))
    outputs = []
    for model in (LOUD, corrected(iterations=60, rate=1.0, examples=100)):
        analog, variables, chip = programmed(model, forward=io)
        plan = hw.plan(analog, variables, X)
        params = hw.apply_mismatch(variables["params"], plan, hw.chip_key(3))
        params = {**params, **chip}
        found = hw.chip_mode(analog).apply(
            {"params": params}, X, rngs={"mismatch": jax.random.key(0)}
        )
        exact = nn.Dense(24).apply({"params": hw.strip(variables["params"])}, X)
        outputs.append(rms(found - exact) / rms(exact))
    assert outputs[0] > 0.15
    assert outputs[1] < 0.03


def test_noise_of_the_reads_limits_what_can_be_corrected():
    rest = []
    for level in (0.2, 0.8):
        io = hw.IOParameters(out_noise=level)
        model = corrected(QUIET, iterations=100, examples=200, rate=1.0)
        _, variables, chip = programmed(model, forward=io, converter=SINGLE)
        rest.append(rms(error_of(variables, chip)))
    # Of a linear loop, the noise floor is proportional to the noise of the outputs.
    assert 3.5 < rest[1] / rest[0] < 4.5


def test_stuck_devices_stay_and_their_partners_help():
    stuck = hw.StuckParameter(at_g_min=0.1)
    chips = [
        programmed(model, stuck=stuck) for model in (LOUD, corrected(iterations=60))
    ]
    plans = [hw.plan(analog, variables, X) for analog, variables, _ in chips]
    devices = [
        hw.program_chip(variables["params"], plan, hw.chip_key(3))
        .weights["kernel"]
        .devices[0]
        for plan, (_, variables, _) in zip(plans, chips, strict=True)
    ]
    np.testing.assert_array_equal(devices[0].stuck, devices[1].stuck)
    assert (np.asarray(devices[1].g_prog)[np.asarray(devices[1].stuck) == 1] == 0).all()
    rest = [rms(error_of(variables, chip)) for _, variables, chip in chips]
    assert rest[1] < rest[0]


def test_chips_are_proved_shown_exported_and_alike_in_both_frameworks(tmp_path):
    model = corrected(iterations=10)
    analog, variables, _ = programmed(model, features=8)
    hw.assert_active(analog, variables, X)
    assert "corrected 10 times" in str(hw.inspect(analog, variables, X))
    plan = hw.plan(analog, variables, X)
    hw.export(tmp_path / "chip", variables, plan, chip_seeds=[3])
    loaded = hw.load(tmp_path / "chip")
    assert loaded.plan["kernel"].hardware.noise_model == model
    hw.checkpoint.verify(tmp_path / "chip")
    chip = hw.program_chip(variables["params"], plan, hw.chip_key(3))
    expected = chip.at(DAY_S)["kernel"]
    found = loaded.chip(3, t_s=DAY_S)["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    layer = nnx.Linear(40, 8, rngs=nnx.Rngs(0))
    layer.kernel[...] = variables["params"]["kernel"]
    chip = plan["kernel"].hardware
    layer = hw.analogize(layer, chip, rngs=nnx.Rngs(mismatch=1))
    params = nnx.state(layer, nnx.Param)
    of_nnx = hw.program_chip(params, hw.plan(layer), hw.chip_key(3)).at(DAY_S)
    np.testing.assert_allclose(of_nnx["kernel"][...], expected, rtol=1e-5, atol=1e-6)


def test_stacks_and_convolutions_are_corrected():
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), feature_group_count=2, name="conv")(x)
            x = x.reshape(len(x), -1)
            stack = nn.vmap(
                nn.Dense,
                in_axes=None,
                out_axes=-1,
                axis_size=3,
                variable_axes={"params": 0},
                split_rngs={"params": True},
            )
            return stack(8, name="stack")(x)

    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    rest = {}
    for model in (LOUD, corrected(iterations=60)):
        chip = hw.Hardware(noise_model=model, converter=PAIR, mapping=SCALED)
        analog = hw.analogize(Both(), chip)
        variables = analog.init(jax.random.key(1), x)
        params = variables["params"]
        plan = hw.plan(analog, variables, x)
        found = hw.program_chip(params, plan, hw.chip_key(3)).at(0.0)
        for name in ("conv", "stack"):
            error = rms(found[name]["kernel"] - params[name]["kernel"])
            rest.setdefault(name, []).append(error)
    for before, after in rest.values():
        assert after < 0.2 * before


def test_devices_that_are_not_corrected_are_told(monkeypatch):
    analog, variables, _ = programmed(corrected(iterations=10))
    monkeypatch.setattr(hw.GradientProgrammedNoiseModel, "correct", NoiseModel.correct)
    jax.clear_caches()
    with pytest.raises(ValueError, match="as before any correction"):
        hw.assert_active(analog, variables, X)
    jax.clear_caches()


def test_a_model_around_another_one_keeps_its_corrections():
    inside = corrected(iterations=10)
    around = hw.AtTemperature(noise_model=inside, temperature_k=330.0, retention_ev=0.5)
    chips = []
    for model in (inside, around):
        analog, variables, chip = programmed(model)
        chips.append(chip["kernel"])
    np.testing.assert_array_equal(*chips)
    assert around.corrects and not LOUD.corrects
    hw.assert_active(analog, variables, X)
