"""User-defined parts, from a file with public names only, in the whole workflow."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
import hwtrain.train
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain.cli import _command_line as command_line
from hwtrain.devices._programmed import Programmed

from . import devices

X = jax.random.normal(jax.random.key(0), (4, 6, 2))
KEY = jax.random.key(3)
FRAMEWORKS = ["linen", "nnx"]


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3,), name="a")(x)).reshape(len(x), -1)
        return nn.Dense(3, name="b")(x)


class OfNnx(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Conv(2, 4, (3,), rngs=rngs)
        self.b = nnx.Linear(24, 3, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.relu(self.a(x)).reshape(len(x), -1))


def made(framework, hardware):
    """Returns an analog model, and the arguments that name its parameters."""
    if framework == "linen":
        analog = hw.analogize(Linen(), hardware)
        return analog, (jax.jit(analog.init)(jax.random.key(0), X), X)
    model = OfNnx(nnx.Rngs(0))
    return hw.analogize(model, hardware, rngs=nnx.Rngs(mismatch=0)), ()


def called(stages, layer=None, x=None, **options):
    """Returns what a layer without bias gives with stages around its tile."""
    layer = layer or nn.Dense(5, use_bias=False)
    io = hw.IOParameters(stages=tuple(stages), **options)
    analog = hw.analogize(layer, hw.Hardware(forward=io))
    x = jax.random.normal(jax.random.key(1), (7, 8)) if x is None else x
    variables = analog.init(jax.random.key(0), x)
    call = jax.jit(lambda key: analog.apply(variables, x, rngs={"mismatch": key}))
    return call, np.asarray(x), np.asarray(variables["params"]["kernel"])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_part_acts_in_training_and_on_the_chip(framework):
    analog, given = made(framework, devices.hardware())
    example = given or (None, X)
    found = {row[1] for row in hw.assert_active(analog, *example).rows}
    assert {
        "modifier",
        "telegraph",
        "telegraph draws",
        "converter",
        "noise_model",
        "drift",
        "drift_compensation",
    } <= found


def idle(self, inner, x, ctx):
    return inner(x)


def frozen(self, inner, x, ctx):
    return inner(x) + self.sigma * jnp.sin(jnp.arange(x.shape[0])).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("part", "method", "change", "message"),
    [
        (devices.Telegraph, "around", idle, "telegraph: the outputs are the same"),
        (devices.Telegraph, "around", frozen, "telegraph draws: .*several step keys"),
        (devices.LogNormal, "on_weight", lambda s, w, c: w, "modifier: .*nominal"),
        (devices.LargestRow, "factor", lambda s, b, y: jnp.ones_like(b), "is 1 for"),
        (devices.Flash, "drift_mean", lambda s, g: 0 * g, "drift"),
    ],
)
def test_a_part_that_does_nothing_is_an_error(
    part, method, change, message, monkeypatch
):
    monkeypatch.setattr(part, method, change)
    if part is devices.Flash:
        monkeypatch.setattr(part, "drift_std", change)
    jax.clear_caches()
    analog = hw.analogize(nn.Dense(16), devices.hardware())
    x = jnp.ones((2, 24))
    variables = analog.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=message):
        hw.assert_active(analog, variables, x)
    jax.clear_caches()


TILES = hw.MappingParameter(
    max_input_size=10,
    max_output_size=6,
    weight_scaling_omega=0.7,
    weight_scaling_columnwise=True,
    learn_out_scaling=True,
)


def strengths(mapping=None):
    """Returns the strengths that were measured, by effect; of a model that is right."""
    hardware = hw.Hardware(
        modifier=devices.LogNormal(sigma=0.5),
        mapping=mapping,
        forward=hw.IOParameters(
            out_bits=8, out_bound=10.0, stages=(devices.Telegraph(sigma=0.2),)
        ),
    )
    analog = hw.analogize(nn.Dense(16), hardware)
    x = jnp.ones((2, 24))
    variables = analog.init(jax.random.key(0), x)
    if mapping is not None:
        scales = variables["params"]["output_scale"]
        factors = jnp.linspace(0.5, 3, scales.size).reshape(scales.shape)
        params = {**variables["params"], "output_scale": factors}
        variables = {**variables, "params": params}
    rows = hw.assert_active(analog, variables, x).rows
    return {
        effect: float(amount.split()[0])
        for _, effect, amount in rows
        if "configured deviation" in amount
    }


@pytest.mark.parametrize("mapping", [None, TILES], ids=["one tile", "unequal tiles"])
def test_the_strength_that_a_part_says_is_measured(mapping):
    found = strengths(mapping)
    assert found.keys() == {"modifier", "telegraph"}
    # Of 8 steps with 16 x 24 weights, and of 8 with 6 vectors and 16 columns.
    assert abs(found["modifier"] - 1) < 5 / np.sqrt(2 * 8 * 16 * 24) + 0.05
    assert abs(found["telegraph"] - 1) < 5 / np.sqrt(2 * 8 * 6 * 16)


def half_of_the_weights(on_weight):
    return lambda self, w, ctx: (on_weight(self, w, ctx) + w) / 2


def half_of_the_outputs(around):
    def weaker(self, inner, x, ctx):
        return (around(self, inner, x, ctx) + around(self, inner, x, Silent(ctx))) / 2

    return weaker


class Silent:
    """What a stage knows, without draws."""

    def __init__(self, ctx):
        self._ctx = ctx

    def __getattr__(self, name):
        return getattr(self._ctx, name)

    def normal(self, effect, shape):
        return 0.0


@pytest.mark.parametrize(
    ("part", "method", "half", "effect"),
    [
        (devices.Telegraph, "around", half_of_the_outputs, "telegraph"),
        (devices.LogNormal, "on_weight", half_of_the_weights, "modifier"),
    ],
)
def test_a_part_of_half_its_strength_is_an_error(
    part, method, half, effect, monkeypatch
):
    monkeypatch.setattr(part, method, half(getattr(part, method)))
    jax.clear_caches()
    with pytest.raises(ValueError, match=f"kernel: {effect}: the noise has 0.[45]"):
        strengths()
    jax.clear_caches()


@hw.register("stage", "test_driver", inside="management", outside="dac")
class Driver(hw.Part):
    """A DAC of a user."""

    bound: float = 1.0
    steps: int = 4
    whole = True

    def rounded(self, x):
        return jnp.round(x * self.steps / self.bound) * self.bound / self.steps

    def clipped(self, x):
        return jnp.clip(x, -self.bound, self.bound)

    def around(self, inner, x, ctx):
        return inner(self.clipped(self.rounded(x)))

    def describe_in(self, ctx):
        rows = ctx.weight.row_sizes[0]
        return {ctx.column: f"drivers of {rows} rows", "bits": "driver 3"}

    def proof(self, ctx):
        super().proof(ctx)
        ctx.rounds(self.bound / self.steps)
        ctx.clips(self.bound)


DRIVER = {
    None: None,
    "rounded": "test_driver levels: the inputs are not rounded to its steps",
    "clipped": "test_driver clips: inputs beyond its bound are not clipped",
}


@pytest.mark.parametrize("off", DRIVER)
def test_the_steps_and_the_bound_that_a_stage_says_are_measured(off, monkeypatch):
    if off:
        monkeypatch.setattr(Driver, off, lambda self, x: x)
    jax.clear_caches()
    io = hw.IOParameters(out_noise=0.01, stages=(Driver(),))
    analog = hw.analogize(nn.Dense(5), hw.Hardware(forward=io))
    x = jnp.ones((2, 7))
    variables = analog.init(jax.random.key(0), x)
    if off:
        with pytest.raises(ValueError, match=DRIVER[off]):
            hw.assert_active(analog, variables, x)
    else:
        rows = {row[1] for row in hw.assert_active(analog, variables, x).rows}
        assert {"test_driver", "test_driver levels", "test_driver clips"} <= rows
    jax.clear_caches()


@hw.register("stage", "test_weak_side", inside="adc")
class WeakSide(hw.Part):
    """Outputs below zero are too small."""

    share: float = 0.4

    def around(self, inner, x, ctx):
        y = inner(x)
        return jnp.where(y < 0, (1 - self.share) * y, y)

    def proof(self, ctx):
        super().proof(ctx)

        def expected(x, tile):
            y = tile.multiply(x)
            return np.where(y < 0, (1 - self.share) * y, y)

        ctx.responds(expected)


@hw.register("modifier", "test_coarse")
class Coarse(hw.WeightModifier):
    """Levels of a user."""

    step: float = 0.1

    def on_weight(self, w, ctx):
        return self.step * ctx.w_max * jnp.round(w / (self.step * ctx.w_max))

    def proof(self, ctx):
        ctx.becomes(
            lambda rng, w, w_max: self.step * w_max * np.rint(w / (self.step * w_max))
        )


@hw.register("clip", "test_quantile")
class Quantile(hw.WeightClip):
    """A clip at three quarters of the largest weight of a tile."""

    def largest(self, w, row_sizes):
        ends = np.cumsum(row_sizes)[:-1]
        tiles = jnp.split(jnp.abs(w), ends, axis=-2)
        each = [tile.max(axis=(-2, -1), keepdims=True) for tile in tiles]
        return 0.75 * jnp.concatenate(each, axis=-2)

    def proof(self, ctx):
        super().proof(ctx)
        ctx.clips_to(lambda w: 0.75 * np.abs(w).max())


def halved(method):
    return lambda self, *args, **options: method(self, *args, **options) / 2


OF_NUMPY = {
    "test_weak_side": (
        WeakSide,
        "around",
        lambda f: lambda self, inner, x, ctx: (f(self, inner, x, ctx) + inner(x)) / 2,
        {"forward": hw.IOParameters(stages=(WeakSide(),))},
    ),
    "modifier": (
        Coarse,
        "on_weight",
        lambda f: lambda self, w, ctx: (f(self, w, ctx) + w) / 2,
        {"modifier": Coarse()},
    ),
    "clip": (Quantile, "largest", halved, {"clip": Quantile()}),
}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("effect", OF_NUMPY)
def test_what_a_part_says_in_numpy_is_measured(effect, half, monkeypatch):
    part, method, change, options = OF_NUMPY[effect]
    if half:
        monkeypatch.setattr(part, method, change(getattr(part, method)))
    jax.clear_caches()
    analog = hw.analogize(nn.Dense(6), hw.Hardware(**options))
    x = jnp.ones((2, 8))
    variables = analog.init(jax.random.key(0), x)
    if half:
        with pytest.raises(ValueError, match=f"kernel: {effect}: "):
            hw.assert_active(analog, variables, x)
    else:
        assert effect in {row[1] for row in hw.assert_active(analog, variables, x).rows}
    jax.clear_caches()


def test_a_part_says_more_where_it_knows_the_weight():
    io = hw.IOParameters(out_bits=8, out_bound=5.0, stages=(Driver(),))
    analog = hw.analogize(nn.Dense(5), hw.Hardware(forward=io))
    x = jnp.ones((2, 7))
    (row,) = hw.inspect(analog, analog.init(jax.random.key(0), x), x).rows
    assert row["periphery"] == "out_bound 5, out_bits 8, drivers of 7 rows"
    assert set(row["bits"].split(", ")) == {"driver 3", "ADC 8"}


@hw.register("stage", "test_own_adc", inside="test_driver", outside="input_asymmetry")
class OwnAdc(hw.Part):
    """A coarse ADC of a user, through which small effects are not seen."""

    step: float | None = None

    @property
    def unrounded(self):
        return dataclasses.replace(self, step=None)

    def around(self, inner, x, ctx):
        y = inner(x)
        return y if self.step is None else self.step * jnp.round(y / self.step)


def test_small_effects_are_measured_behind_a_stage_that_rounds():
    io = hw.IOParameters(out_asymmetry=1e-3, stages=(OwnAdc(step=0.5),))
    analog = hw.analogize(nn.Dense(5), hw.Hardware(forward=io))
    x = jnp.ones((2, 7))
    found = hw.assert_active(analog, analog.init(jax.random.key(0), x), x)
    assert {row[1] for row in found.rows} == {"test_own_adc", "out_asymmetry"}


@pytest.mark.parametrize("silent", [0.3, 0.0])
def test_of_two_stages_of_a_class_each_is_measured(silent):
    stages = devices.InputOffset(offset=0.2), devices.InputOffset(offset=silent)
    io = hw.IOParameters(stages=stages)
    analog = hw.analogize(nn.Dense(5), hw.Hardware(forward=io))
    x = jnp.ones((2, 7))
    variables = analog.init(jax.random.key(0), x)
    if silent:
        rows = {row[1] for row in hw.assert_active(analog, variables, x).rows}
        assert rows == {"input_offset", "input_offset #2"}
    else:
        with pytest.raises(ValueError, match="input_offset #2: the outputs are"):
            hw.assert_active(analog, variables, x)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_inspect_describes_them(framework):
    analog, given = made(framework, devices.hardware())
    text = str(hw.inspect(analog, *given))
    for part in (
        "telegraph noise 0.05",
        "log-normal 0.1",
        "offset_device",
        "flash, 2%",
    ):
        assert part in text


@pytest.mark.parametrize("layer", ["dense", "conv", "tiles"])
def test_a_stage_of_noise_has_the_deviation_that_numpy_says(layer):
    sigma, reads = 0.3, 4000
    mapping = hw.MappingParameter(max_input_size=3) if layer == "tiles" else None
    io = hw.IOParameters(stages=(devices.Telegraph(sigma=sigma),))
    kind = nn.Conv(3, (2,), padding="VALID", use_bias=False)
    kind = kind if layer == "conv" else nn.Dense(3, use_bias=False)
    analog = hw.analogize(kind, hw.Hardware(forward=io, mapping=mapping))
    x = jax.random.normal(jax.random.key(1), (1, 5, 4) if layer == "conv" else (1, 8))
    variables = analog.init(jax.random.key(0), x)
    keys = jax.random.split(jax.random.key(2), reads)
    call = lambda key: analog.apply(variables, x, rngs={"mismatch": key})  # noqa: E731
    y = np.float64(jax.jit(jax.lax.map, static_argnums=0)(call, keys)).squeeze(1)
    w = np.float64(variables["params"]["kernel"])
    rows = np.asarray(x)[0]
    if layer == "conv":
        rows = np.stack([rows[i : i + 2].ravel() for i in range(4)])
        w = w.reshape(-1, 3)
    np.testing.assert_allclose(
        y.mean(0), rows @ w, atol=5 * y.std(0).max() / reads**0.5
    )
    expected = sigma * np.sqrt(rows**2 @ w**2)
    np.testing.assert_allclose(y.std(0), expected, rtol=5 / np.sqrt(2 * reads))


@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_a_stage_of_inputs_acts_before_the_dac_has_rounded_them(layer):
    kind = nn.Conv(5, (2,), padding="VALID", use_bias=False)
    x = jax.random.normal(jax.random.key(1), (2, 6, 8)) / 3
    layers = (kind, x) if layer == "conv" else (None, x[0])
    stage = devices.InputOffset(offset=0.07)
    call, x, w = called([stage], *layers, inp_bits=4)
    rows = x
    if layer == "conv":
        rows = np.stack([x[:, i : i + 2].reshape(2, -1) for i in range(5)], axis=1)
        w = w.reshape(-1, 5)
    # It stands inside of the DAC: what the tile gets is rounded, then moved.
    levels = np.clip(np.round(rows * 7) / 7, -1, 1) + 0.07
    np.testing.assert_allclose(call(KEY), levels @ w, rtol=1e-5, atol=1e-5)


def test_split_reads_are_two_reads_with_noise_of_their_own():
    call, x, w = called([devices.SplitReads()], out_noise=0.2)
    y = np.stack([np.float64(call(key)) for key in jax.random.split(KEY, 400)])
    error = 5 * 0.2 * np.sqrt(2) / np.sqrt(y.size)
    assert abs(y.std(0).mean() - 0.2 * np.sqrt(2)) < error
    np.testing.assert_allclose(y.mean(0), x @ w, atol=6 * 0.2 * np.sqrt(2 / 400))
    # And through an ADC, each is rounded by itself.
    call, x, w = called([devices.SplitReads()], out_bits=4, out_bound=2.0)
    rounded = [
        np.clip(np.round(part @ w / 2 * 7) / 7 * 2, -2, 2)
        for part in (np.maximum(x, 0), np.minimum(x, 0))
    ]
    np.testing.assert_allclose(call(KEY), sum(rounded), rtol=1e-5, atol=1e-5)


def test_a_stage_inside_bound_management_is_read_anew_in_each_round():
    # Without noise beyond the bound, managed outputs are exact: none was clipped.
    stage = devices.Telegraph(sigma=0.02)
    options = {"noise_management": "abs_max", "bound_management": "iterative"}
    call, x, w = called([stage], out_bound=0.5, **options)
    y = np.stack([np.float64(call(key)) for key in jax.random.split(KEY, 50)])
    assert (np.abs(x @ w) > 0.5).any()
    sigma = 0.02 * np.sqrt(x**2 @ w**2)
    # A reduced input has less noise, and the scale gives it back.
    np.testing.assert_allclose(y.mean(0), x @ w, atol=6 * sigma.max() / np.sqrt(50))
    np.testing.assert_allclose(y.std(0).mean(), sigma.mean(), rtol=0.15)


def test_a_modifier_multiplies_by_log_normal_numbers():
    analog = hw.analogize(
        nn.Dense(200, use_bias=False),
        hw.Hardware(modifier=devices.LogNormal(sigma=0.2)),
    )
    x = jnp.eye(50)
    variables = analog.init(jax.random.key(0), x)
    y = analog.apply(variables, x, rngs={"mismatch": KEY})
    ratio = np.log(np.float64(y / variables["params"]["kernel"]))
    assert abs(ratio.mean()) < 5 * 0.2 / np.sqrt(ratio.size)
    assert abs(ratio.std() / 0.2 - 1) < 5 / np.sqrt(2 * ratio.size)
    loss = lambda v: analog.apply(v, x, rngs={"mismatch": KEY}).sum()  # noqa: E731
    gradient = jax.grad(loss)(variables)["params"]["kernel"]
    np.testing.assert_allclose(gradient, 1.0)  # straight through


class Pair(hw.WeightModifier):
    """Noise that is drawn twice by one name."""

    draws = "step"

    def on_weight(self, w, ctx):
        return w + ctx.normal("n", w.shape) + ctx.normal("n", w.shape)


class Unsaid(Pair):
    draws = "none"


hw.register("modifier", "pair")(Pair)
hw.register("modifier", "unsaid")(Unsaid)


@pytest.mark.parametrize("tiles", [None, 25])
def test_draws_of_a_modifier_are_independent_on_tiles_too(tiles):
    hardware = hw.Hardware(
        modifier=Pair(),
        mapping=hw.MappingParameter(max_input_size=tiles),
        forward=hw.IOParameters(inp_bound=1.0),
    )
    analog = hw.analogize(nn.Dense(200, use_bias=False), hardware)
    variables = analog.init(jax.random.key(0), jnp.eye(50))
    y = analog.apply(variables, jnp.eye(50), rngs={"mismatch": KEY})
    noise = np.float64(y - variables["params"]["kernel"])
    assert abs(noise.std() / 2**0.5 - 1) < 5 / np.sqrt(2 * noise.size)


def test_a_modifier_that_draws_without_saying_so_is_refused():
    analog = hw.analogize(nn.Dense(2), hw.Hardware(modifier=Unsaid()))
    variables = analog.init(jax.random.key(0), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match='Unsaid draws at each step, .*draws = "step"'):
        analog.apply(variables, jnp.ones((1, 3)), rngs={"mismatch": KEY})


def test_a_readout_that_is_none_is_refused():
    with pytest.raises(ValueError, match="'periphery' or 'exact'"):
        devices.LargestRow(readout="exakt")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_chip_is_programmed_by_the_users_equations(framework, tmp_path):
    hardware = hw.Hardware(
        converter=devices.OffsetDevice(g_max=20.0),
        noise_model=devices.Flash(g_max=20.0, error=0.0, leak=0.0),
    )
    analog, given = made(framework, hardware)
    if framework == "linen":
        hw.export(tmp_path / "c", given[0], hw.plan(analog, *given), chip_seeds=[0])
        kernel = given[0]["params"]["b"]["kernel"]
    else:
        hw.export(tmp_path / "c", analog, chip_seeds=[0])
        kernel = analog.b.kernel[...]
    loaded = hw.load(tmp_path / "c")
    assert loaded.plan.weights[0].hardware == hardware
    manifest = json.loads((tmp_path / "c/manifest.json").read_text())
    chip = manifest["layers"][0]["weight"]["hardware"]
    assert chip["noise_model"]["type"] == "flash"
    assert chip["noise_model"]["of"].endswith("devices:Flash")
    ((tile,),) = loaded.conductances("b/kernel")
    w = np.float64(kernel)
    expected = 10.0 * (1 + w / np.abs(w).max())
    np.testing.assert_allclose(tile.conductances["g"], expected, rtol=1e-5, atol=1e-5)
    hw.checkpoint.verify(tmp_path / "c")
    np.testing.assert_allclose(
        loaded.chip(0)["b"]["kernel"], kernel, rtol=1e-4, atol=1e-5
    )


def last_of(value):
    return value[..., 0]


MISSHAPEN = {
    "programming_sigma": ("programming_sigma", lambda self, g: jnp.ones((2, 2, 2))),
    "drift_mean": ("drift_mean", lambda self, g: last_of(0.03 * g)),
    "drift_std": ("drift_std", lambda self, g: last_of(0.03 * g)[None]),
    "a sum": ("mean_at", lambda self, device, t_s: jnp.sum(device.g_prog)),
    "too few": ("mean_at", lambda self, device, t_s: last_of(device.g_prog)),
    "too many": ("mean_at", lambda self, device, t_s: device.g_prog[None]),
    "read_sigma": ("read_sigma", lambda self, device, t_s: last_of(device.g_prog)),
    "at": ("at", lambda self, key, device, t_s: last_of(device.g_prog)),
    "nu": (
        "program",
        lambda self, key, g: Programmed(g_target=g, g_prog=g, nu=last_of(g)),
    ),
    "g_prog": (
        "program",
        lambda self, key, g: Programmed(g_target=g, g_prog=g.ravel()),
    ),
    "an array": ("program", lambda self, key, g: g),
}


@pytest.mark.parametrize("case", MISSHAPEN)
@pytest.mark.parametrize("layer", [nn.Dense(3), nn.Conv(3, (3,))])
def test_a_noise_model_of_another_shape_is_an_error(case, layer):
    method, function = MISSHAPEN[case]
    kind = type("Misshapen", (devices.Flash,), {method: function})
    kind = hw.register("noise_model", "misshapen")(kind)
    try:
        chip = hw.Hardware(
            converter=hw.SinglePairConductanceConverter(g_max=20.0),
            noise_model=kind(g_max=20.0),
        )
        x = jnp.ones((1, 5, 2))
        analog = hw.analogize(layer, chip)
        variables = analog.init(jax.random.key(0), x)
        plan = hw.plan(analog, variables, x)
        kernel = tuple(map(str, variables["params"]["kernel"].shape))
        shape = "a Programmed" if case == "an array" else rf".*\({', '.join(kernel)}\)"
        message = f"Misshapen.{method} should return {shape}.*got"
        with pytest.raises(ValueError, match=message):
            programmed = hw.program_chip(variables["params"], plan, hw.chip_key(0))
            programmed.at(1.0, key=jax.random.key(1))
    finally:
        hw._parts.registry.forget("noise_model", "misshapen")


def test_rows_of_a_chip_have_gains_of_their_own(tmp_path):
    hardware = hw.Hardware(mismatch=devices.PerRow(sigma=0.2))
    analog = hw.analogize(nn.Dense(3, use_bias=False), hardware)
    x = jnp.ones((1, 400))
    variables = analog.init(jax.random.key(0), x)
    plan = hw.plan(analog, variables, x)
    kernel = variables["params"]["kernel"]
    chips = [
        hw.apply_mismatch(variables["params"], plan, hw.chip_key(seed))["kernel"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(chips[0], chips[1])
    gains = np.float64(chips[0] / kernel)
    np.testing.assert_allclose(gains, gains[:, :1] * np.ones(3), rtol=1e-5)
    assert abs((gains[:, 0] - 1).std() / 0.2 - 1) < 5 / np.sqrt(2 * 400)
    other = np.float64(chips[2] / kernel)[:, 0]
    assert abs(np.corrcoef(gains[:, 0], other)[0, 1]) < 5 / np.sqrt(400)
    assert "gains of rows, 0.2" in str(hw.inspect(analog, variables, x))
    hw.assert_active(analog, variables, x)
    hw.export(tmp_path / "c", variables, plan, chip_seeds=[1])
    loaded = hw.load(tmp_path / "c").chip(1)["kernel"]
    np.testing.assert_allclose(loaded, chips[2], rtol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("omega", [0.0, 1.0])
def test_a_clip_bounds_every_update(framework, omega):
    hardware = hw.Hardware(
        clip=devices.Quantile(share=0.8),
        mapping=hw.MappingParameter(weight_scaling_omega=omega),
    )
    if framework == "linen":
        analog = hw.analogize(nn.Dense(10), hardware)
        x = jnp.ones((1, 20))
        params = analog.init(jax.random.key(0), x)["params"]
        plan = hw.plan(analog, {"params": params}, x)
        tx = hw.optim.hardware_aware(optax.sgd(1.0), plan)
        gradient = jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), params)
        updates, _ = tx.update(gradient, tx.init(params), params)
        before, after = params["kernel"], optax.apply_updates(params, updates)["kernel"]
    else:
        analog = hw.analogize(nnx.Linear(20, 10, rngs=nnx.Rngs(0)), hardware)
        before = np.asarray(analog.kernel[...])
        tx = hw.optim.hardware_aware(optax.sgd(1.0), hw.plan(analog))
        optimizer = nnx.Optimizer(analog, tx, wrt=nnx.Param)
        state = nnx.state(analog, nnx.Param)
        gradient = jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), state)
        optimizer.update(analog, gradient)
        after = analog.kernel[...]
    moved = np.asarray(before) - 0.1
    bound = np.quantile(np.abs(moved), 0.8)
    np.testing.assert_allclose(after, np.clip(moved, -bound, bound), rtol=1e-5)


def test_an_objective_is_minimised_by_its_name():
    objective = from_dict(
        hw.train.TrainingParameter,
        {"steps": 1, "objective": {"type": "smoothed", "size": 0.1}},
    ).objective
    assert objective == devices.Smoothed(size=0.1)
    loss = lambda params, key: jnp.sum(params["w"] ** 2)  # noqa: E731
    smoothed = hw.objectives.robust(loss, hw.Plan(()), objective)
    keys = jax.random.split(KEY, 4000)
    found = jax.vmap(smoothed, (None, 0))({"w": jnp.ones(3)}, keys)
    # The mean of (1 + s z)^2 is 1 + s^2; its deviation about 2 s.
    error = 5 * 2 * 0.1 * np.sqrt(3) / np.sqrt(4000)
    assert abs(float(found.mean()) - 3 * (1 + 0.1**2)) < error


def test_an_adapter_writes_what_it_was_registered_for(tmp_path, capsys):
    hardware = hw.Hardware(converter=devices.OffsetDevice(g_max=20.0))
    analog, given = made("linen", hardware)
    hw.export(tmp_path / "c", given[0], hw.plan(analog, *given))
    words = ["convert", str(tmp_path / "c"), "--to", "largest-csv"]
    assert command_line.main([*words, "--out", str(tmp_path / "out.csv")]) == 0
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["a/kernel", "b/kernel"]
    assert all(0 < float(line.split(",")[1]) <= 20 for line in lines)


@pytest.mark.parametrize("target", ["aihwkit", "crosssim", "npz", "fusion-csv"])
def test_other_programs_say_what_they_do_not_have(target, tmp_path, capsys):
    analog, given = made("linen", devices.hardware(mismatch=devices.PerRow()))
    hw.export(tmp_path / "c", given[0], hw.plan(analog, *given))
    words = ["convert", str(tmp_path / "c"), "--to", target, "--out"]
    status = command_line.main([*words, str(tmp_path / "out")])
    said = capsys.readouterr().err
    if status:
        assert said.count("\n") == 1 and "hwtrain: error: " in said
        assert target in ("crosssim", "fusion-csv")  # which want pairs of devices
    elif target == "aihwkit":
        lost = (tmp_path / "out" / "rpu_config.py").read_text()
        for part in ("log-normal", "gains of rows", "telegraph noise", "largest_row"):
            assert part in lost


def test_a_checkpoint_of_another_version_of_a_package_is_read(tmp_path, monkeypatch):
    analog, given = made("linen", devices.hardware())
    for version in ("1.0", "2.0"):
        monkeypatch.setattr("hwtrain._parts.slot._version", lambda _, v=version: v)
        if version == "1.0":
            hw.export(tmp_path / "c", given[0], hw.plan(analog, *given))
        loaded = hw.load(tmp_path / "c")
        assert loaded.plan.weights[0].hardware == devices.hardware()
    manifest = (tmp_path / "c/manifest.json").read_text()
    assert '"version": "1.0"' in manifest and '"version": "2.0"' not in manifest


def test_configurations_and_their_errors():
    hardware = devices.hardware()
    data = json.loads(json.dumps(to_dict(hardware)))
    assert from_dict(hw.Hardware, data) == hardware
    assert data["modifier"]["type"] == "log_normal" and data["modifier"]["sigma"] == 0.1
    for change, message in (
        ({"type": "telegraf"}, "to be one of .*telegraph"),
        ({"type": "telegraph", "sigma": "much"}, r"stages\.0\.sigma"),
        ({"type": "telegraph", "size": 1.0}, r"stages\.0\.size"),
        (
            {"type": "gone", "of": "my_chip:Gone", "version": "2"},
            "my_chip:Gone 2, which",
        ),
        (
            {"type": "telegraph", "of": "other:Telegraph"},
            "here, but was other:Telegraph",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            from_dict(hw.Hardware, {"forward": {"stages": [change]}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "telegraph"}, "is .*Telegraph already"),
        ({"name": "new", "inside": "nothing"}, "'nothing', which is not registered"),
        ({"name": "new", "inside": "adc", "outside": "dac"}, "cannot be placed there"),
        ({"kind": "thing", "name": "new"}, "expected a kind of"),
    ],
)
def test_a_registration_that_is_wrong_is_refused(options, message):
    options = {"kind": "stage", **options}
    with pytest.raises(ValueError, match=message):

        @hw.register(options.pop("kind"), options.pop("name"), **options)
        class Mine(hw.Part):
            pass


def test_a_field_of_a_name_that_parts_have_is_refused():
    with pytest.raises(ValueError, match="a field cannot be called version"):

        @hw.register("stage", "versioned")
        class Versioned(hw.Part):
            version: int = 1


@pytest.mark.parametrize(
    ("kind", "base", "misspelt", "meant"),
    [
        ("noise_model", hw.NoiseModel, "read_sigm", "read_sigma"),
        ("noise_model", hw.NoiseModel, "programing_sigma", "programming_sigma"),
        ("noise_model", hw.PCMLikeNoiseModel, "must_drifts", "must_drift"),
        ("stage", hw.Part, "arround", "around"),
    ],
)
def test_a_method_that_nothing_calls_is_refused(kind, base, misspelt, meant):
    """The parent's method would act in its place, which no measurement can tell."""

    def method(self, *args):
        return args[0]

    match = f"nothing calls {misspelt}; did you mean {meant}?.*underscore"
    with pytest.raises(ValueError, match=match):
        hw.register(kind, "misspelt")(type("Mine", (base,), {misspelt: method}))
    # A function of its own beside the method, or of another name, is none.
    names = {misspelt: method, meant: method, "_read_sigm": method, "fitted": method}
    try:
        hw.register(kind, "misspelt")(type("Mine", (base,), names))
    finally:
        hw._parts.registry.forget(kind, "misspelt")


def test_functions_beside_fields_and_of_bases_are_no_misspelt_methods():
    def method(self, *args):
        return args[0]

    class Mixin:
        helper_one = method

    names = {
        "prog_noise_scale_at": method,  # beside the field prog_noise_scale
        "helper_onee": method,
        "g_maxs": property(method),
    }
    try:
        cls = type("Mine", (Mixin, hw.PCMLikeNoiseModel), names)
        hw.register("noise_model", "beside")(cls)
    finally:
        hw._parts.registry.forget("noise_model", "beside")
    # A base that is not registered itself.
    base = type("Base", (hw.PCMLikeNoiseModel,), {"read_sigmas": method})
    with pytest.raises(ValueError, match="nothing calls read_sigmas"):
        hw.register("noise_model", "beside")(type("Of", (base,), {}))


def test_a_class_that_is_not_registered_is_refused():
    class Mine(hw.Part):
        pass

    with pytest.raises(ValueError, match="expected a registered stage"):
        hw.IOParameters(stages=(Mine(),))


def test_a_stage_that_draws_without_saying_so_is_refused():
    class Silent(devices.Telegraph):
        draws = "none"

    hw.register("stage", "silent", inside="adc")(Silent)
    analog = hw.analogize(
        nn.Dense(2), hw.Hardware(forward=hw.IOParameters(stages=(Silent(),)))
    )
    variables = analog.init(jax.random.key(0), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match='Write draws = "read" in its class'):
        analog.apply(variables, jnp.ones((1, 3)))


UNREGISTERED = """
import hwtrain
try:
    hwtrain.load({path!r})
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.nightly
def test_load_names_what_to_import_and_runs_no_code(tmp_path):
    analog, given = made("linen", devices.hardware())
    hw.export(tmp_path / "c", given[0], hw.plan(analog, *given))
    run = subprocess.run(
        [sys.executable, "-c", UNREGISTERED.format(path=str(tmp_path / "c"))],
        capture_output=True,
        text=True,
        cwd=Path(hw.__file__).parents[1],
        check=True,
    )
    assert "devices:LogNormal" in run.stdout and "not imported" in run.stdout
    assert "HardwareCheckpointError" in run.stdout


CONFIG = """
parts = ["chip.py"]
model = "chip.py:model"
data = "chip.py:data"

[training]
steps = 3
batch_size = 8

[hardware.modifier]
type = "log_normal"
sigma = 0.05

[hardware.converter]
type = "offset_device"
g_max = 20.0

[hardware.noise_model]
type = "flash"
g_max = 20.0

[hardware.forward]
out_bits = 8
out_bound = 10.0
stages = [{type = "telegraph", sigma = 0.05}]

[evaluation]
chips = 2
"""

RECIPE = """

def model():
    from flax import linen as nn
    return nn.Dense(3)


def data():
    import numpy as np
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 6)).astype(np.float32), rng.integers(0, 3, 32)
    return (x, y), (x, y)
"""


@pytest.mark.nightly
def test_a_configuration_names_parts_of_a_file_beside_it(tmp_path):
    """In a process of its own each: the file registers them, nothing else does."""
    source = Path(devices.__file__).read_text()
    (tmp_path / "chip.py").write_text(source + RECIPE)
    (tmp_path / "chip.toml").write_text(CONFIG)
    for command in (
        ["train", "chip.toml", "--out", "run"],
        ["evaluate", "run", "--chips", "2"],
        ["inspect", "run", "--active"],
        ["export", "run", "exported"],
        ["verify", "run/export/seed_0"],
        ["inspect", "run/export/seed_0"],
        ["convert", "run/export/seed_0", "--to", "npz", "--out", "chip.npz"],
        ["convert", "run/export/seed_0", "--to", "largest-csv", "--out", "g.csv"],
        ["verify", "exported", "--parts", "chip.py"],
    ):
        run = subprocess.run(
            [sys.executable, "-m", "hwtrain", *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(hw.__file__).parents[1])},
        )
        assert run.returncode == 0, run.stdout + run.stderr
    written = {path.name for path in tmp_path.iterdir()}
    assert {"exported", "chip.npz", "g.csv"} <= written


@hw.register("modifier", "switched")
class Switched(devices.LogNormal):
    """Acts only if a field says so."""

    on: bool = True

    @property
    def acts(self):
        return self.on


@pytest.mark.parametrize("on", [True, False])
def test_a_modifier_that_does_not_act_is_not_shown(on):
    analog = hw.analogize(nn.Dense(2), hw.Hardware(modifier=Switched(on=on)))
    x = jnp.ones((1, 3))
    variables = analog.init(jax.random.key(0), x)
    y = analog.apply(variables, x, rngs={"mismatch": jax.random.key(1)})
    plain = nn.Dense(2).apply(variables, x)
    assert bool((y != plain).any()) == on
    assert ("log-normal" in str(hw.inspect(analog, variables, x))) == on
