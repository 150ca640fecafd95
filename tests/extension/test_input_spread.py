"""Frozen numbers of each row of each tile, by a stage of offsets of row drivers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._flax.functional import as_function

KEY = jax.random.key(3)
FRAMEWORKS = ("linen", "nnx")
TILES = hw.MappingParameter(max_input_size=3, max_output_size=2)


@hw.register("stage", "test_row_offset", outside="input_asymmetry", inside="dac")
class RowOffset(hw.Part):
    """Each row driver has an offset of its own."""

    size: float = 0.5
    draws = "chip"

    def around(self, inner, x, ctx):
        return inner(x + ctx.input_spread(self.size, "offset"))


@hw.register("stage", "test_whole_offset", outside="input_asymmetry", inside="dac")
class WholeOffset(RowOffset):
    """It does not treat all inputs alike, and says so."""

    where: str = "before"
    whole = True

    def around(self, inner, x, ctx):
        if self.where == "before":
            return super().around(inner, x, ctx)
        return inner(x) + ctx.input_spread(self.size, "offset").sum()


@hw.register("stage", "test_shy_offset", outside="input_asymmetry", inside="dac")
class ShyOffset(RowOffset):
    draws = "none"


@hw.register("stage", "test_both", outside="input_asymmetry", inside="dac")
class Both(hw.Part):
    """Numbers of inputs and outputs under one name, twice each."""

    first: str = "inputs"
    draws = "chip"

    def around(self, inner, x, ctx):
        c = ctx.spread(1.0, "n") if self.first == "outputs" else None
        a, b = ctx.input_spread(1.0, "n"), ctx.input_spread(1.0, "n")
        c = ctx.spread(1.0, "n") if c is None else c
        return inner(x * 0 + a + 10.0 * b) + 100.0 * c


def chip_of(*stages, mapping=None, **parts):
    return hw.Hardware(forward=hw.IOParameters(stages=stages), mapping=mapping, **parts)


def layer_of(framework, kind, width):
    if framework == "linen":
        return {
            "dense": nn.Dense(5, use_bias=False),
            "wide": nn.Dense(width, use_bias=False),
            "conv": nn.Conv(6, (2,), use_bias=False),
            "groups": nn.Conv(6, (2,), feature_group_count=2, use_bias=False),
        }[kind]
    options = {"use_bias": False, "rngs": nnx.Rngs(0)}
    if kind in ("dense", "wide"):
        return nnx.Linear(width, 5 if kind == "dense" else width, **options)
    groups = 2 if kind == "groups" else 1
    return nnx.Conv(width, 6, (2,), feature_group_count=groups, **options)


class Made:
    """A layer on hardware, as a function of its kernel, inputs and chip."""

    def __init__(self, framework, hardware, kind, shape):
        plain, x = layer_of(framework, kind, shape[-1]), jnp.zeros(shape)
        streams = {"rngs": nnx.Rngs(mismatch=0)} if framework == "nnx" else {}
        self.analog = hw.analogize(plain, hardware, **streams)
        if framework == "linen":
            self.params = self.analog.init(KEY, x)["params"]
            self.plan = hw.plan(self.analog, {"params": self.params}, x)
        else:
            self.params = nnx.to_pure_dict(nnx.state(self.analog, nnx.Param))
            self.plan = hw.plan(self.analog)
        self.shape = self.params["kernel"].shape

    def of_chip(self, kernel, seed):
        given = {**self.params, "kernel": jnp.asarray(kernel, jnp.float32)}
        return hw.apply_mismatch(given, self.plan, hw.chip_key(seed))

    def call(self, params, x, mode="chip", key=KEY):
        function, variables = as_function(self.analog, mode, self.params)
        return np.float64(jax.jit(function)({**variables, "params": params}, key, x))

    def offsets(self, x, seed=7):
        """Returns the outputs at zero inputs for a kernel of one row each."""
        count, width = np.prod(self.shape[:-1]), self.shape[-1]
        rows = []
        for row in range(count):
            kernel = np.zeros((count, width))
            kernel[row] = 1
            params = self.of_chip(kernel.reshape(self.shape), seed)
            rows.append(self.call(params, jnp.zeros_like(x)))
        return np.stack(rows)


def test_they_are_normal_independent_and_of_the_chip():
    made = Made("linen", chip_of(RowOffset(size=0.5)), "wide", (1, 2000))
    unit = [
        made.call(made.of_chip(np.eye(2000), seed), jnp.zeros((3, 2000))) / 0.5
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(unit[0], unit[1])
    np.testing.assert_array_equal(unit[0], np.broadcast_to(unit[0][0], (3, 2000)))
    for z in (unit[0][0], unit[2][0]):
        assert abs(z.mean()) < 4 / np.sqrt(2000)
        assert abs(z.std() - 1) < 4 / np.sqrt(2 * 2000)
        assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / 2000)
        assert abs((z[1:] * z[:-1]).mean()) < 4 / np.sqrt(2000)
    assert abs((unit[0][0] * unit[2][0]).mean()) < 4 / np.sqrt(2000)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["dense", "conv", "groups"])
@pytest.mark.parametrize("mapping", [None, TILES])
def test_each_row_of_each_physical_tile_has_its_own(framework, kind, mapping):
    shape = (2, 7) if kind == "dense" else (2, 5, 4)
    x = jax.random.normal(jax.random.key(1), shape)
    made = Made(framework, chip_of(RowOffset(), mapping=mapping), kind, shape)
    found = made.offsets(x)
    # The same at each vector and each position: the border is driven too.
    each = found.reshape(len(found), -1, found.shape[-1])
    np.testing.assert_allclose(
        each, np.broadcast_to(each[:, :1], each.shape), atol=1e-6
    )
    each = each[:, 0]
    groups = 2 if kind == "groups" else 1
    width = each.shape[1] // groups
    # Tiles of 2 columns, the larger ones first, in each group.
    count = -(-width // 2) if mapping else 1
    parts = np.array_split(np.arange(width), count)
    starts = np.array([g * width + part[0] for g in range(groups) for part in parts])
    owner = np.searchsorted(starts, np.arange(each.shape[1]), side="right") - 1
    for column, first in enumerate(starts[owner]):
        np.testing.assert_allclose(each[:, column], each[:, first], atol=1e-6)
    numbers = np.round(each[:, starts], 5).ravel()
    assert len(set(numbers)) == len(numbers), "two rows or two tiles share a number"
    # Any kernel multiplies inputs and offsets alike.
    kernel = jax.random.normal(jax.random.key(2), made.shape)
    chip = made.of_chip(kernel, 7)
    plain = layer_of("linen", kind, shape[-1]).apply({"params": {"kernel": kernel}}, x)
    added = np.sum(each * np.reshape(kernel, each.shape), axis=0)
    np.testing.assert_allclose(made.call(chip, x), plain + added, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_step_draws_them_anew_and_eval_mode_has_none(framework):
    made = Made(framework, chip_of(RowOffset(), mapping=TILES), "dense", (2, 7))
    x = jax.random.normal(jax.random.key(1), (2, 7))
    first, again, other = (
        made.call(made.params, x, "train", jax.random.key(k)) for k in (0, 0, 1)
    )
    plain = np.float64(x @ made.params["kernel"])
    np.testing.assert_array_equal(first, again)
    assert np.all(np.abs(first - other) > 1e-4)
    np.testing.assert_allclose(made.call(made.params, x, "eval"), plain, rtol=1e-5)


def test_every_layer_of_a_stack_has_its_own():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x, nn.Dense(4, use_bias=False, name="dense")(0 * x)

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            scanned = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return scanned(name="blocks")(x, None)[1]

    x = jnp.ones((1, 4))
    analog = hw.analogize(Stack(), chip_of(RowOffset()))
    params = analog.init(KEY, x)["params"]
    params = jax.tree.map(lambda w: jnp.broadcast_to(jnp.eye(4), w.shape), params)
    plan = hw.plan(analog, {"params": params}, x)
    chip = hw.apply_mismatch(params, plan, hw.chip_key(0))
    y = hw.chip_mode(analog).apply({"params": chip}, x, rngs={"mismatch": KEY})
    assert len(set(np.round(np.ravel(y), 5))) == 12


def test_draws_of_inputs_and_outputs_are_independent():
    ys = []
    for first in ("inputs", "outputs"):
        made = Made("linen", chip_of(Both(first=first)), "wide", (1, 2000))
        ys.append(made.call(made.of_chip(np.eye(2000), 0), jnp.zeros((1, 2000)))[0])
    np.testing.assert_allclose(*ys, rtol=1e-5, atol=1e-4)
    y = ys[0]
    # a + 10 b + 100 c, all of variance 1: shared numbers would add up to more.
    assert abs(y.var() / (1 + 100 + 10_000) - 1) < 5 * np.sqrt(2 / 2000)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_exported_chip_is_the_evaluated_one(framework, tmp_path):
    mismatch = hw.MismatchParameter(type="mult_normal", std_dev=0.1)
    hardware = chip_of(RowOffset(), mapping=TILES, mismatch=mismatch)
    made = Made(framework, hardware, "dense", (2, 7))
    x = jax.random.normal(jax.random.key(1), (2, 7))
    hw.export(tmp_path / "out", {"params": made.params}, made.plan, chip_seeds=[4])
    stored = made.call(hw.load(tmp_path / "out").chip(4), x)
    drawn = made.call(made.of_chip(made.params["kernel"], 4), x)
    np.testing.assert_allclose(stored, drawn, rtol=1e-5, atol=1e-6)
    result = hw.evaluate.population(
        made.analog,
        {"params": made.params},
        [(x,)],
        lambda y: y.sum(-1),
        chips=[3, 4],
        key=KEY,
    )
    np.testing.assert_allclose(result.values[1], stored.sum(-1).mean(), rtol=1e-4)
    assert abs(result.values[0] - result.values[1]) > 1e-3


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_compensation_reads_through_them(framework, tmp_path):
    """By the mean response of rows driven by 1, with the same offsets at both times."""
    hardware = chip_of(
        RowOffset(size=2.0),
        converter=hw.SinglePairConductanceConverter(g_max=25.0),
        noise_model=hw.PCMLikeNoiseModel(prog_noise_scale=0.0),
        drift_compensation=hw.GlobalDriftCompensation(),
    )
    made = Made(framework, hardware, "dense", (2, 7))
    # A few large weights, whose drift is not the mean one.
    kernel = jax.random.normal(jax.random.key(2), (7, 5)) ** 3
    made.params = {**made.params, "kernel": kernel}
    chip = hw.program_chip(made.params, made.plan, hw.chip_key(7))
    fresh, after = (
        np.float64(chip.at(t)["kernel"] / chip.at(t)["mapping_scale"])
        for t in (0.0, 1e6)
    )
    zero = jnp.zeros((1, 7))
    offset = []
    for row in range(7):
        kernel = np.zeros((7, 5), np.float32)
        kernel[row] = 1
        one = {**made.of_chip(kernel, 7), "mapping_scale": jnp.ones((1, 1))}
        offset.append(made.call(one, zero)[0, 0])
    offset = np.array(offset)
    assert offset.std() > 0.05
    driven = np.eye(7) + offset
    expected = np.abs(driven @ fresh).mean() / np.abs(driven @ after).mean()
    found = chip.at(1e6)["mapping_scale"] / chip.at(0.0)["mapping_scale"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    without = np.abs(fresh).mean() / np.abs(after).mean()
    assert abs(expected / without - 1) > 5e-3


def test_assert_active_sees_them():
    x = jax.random.normal(jax.random.key(1), (4, 7))
    analog = hw.analogize(nn.Dense(5), chip_of(RowOffset(), mapping=TILES))
    hw.assert_active(analog, analog.init(KEY, x), x)


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("mode", [hw.train_mode, hw.chip_mode, hw.eval_mode])
def test_a_whole_convolution_has_no_rows(where, mode):
    x = jnp.ones((1, 6, 3))
    analog = mode(hw.analogize(nn.Conv(4, (3,)), chip_of(WholeOffset(where=where))))
    with pytest.raises(ValueError, match="WholeOffset asks for input_spread.*whole"):
        analog.apply(analog.init(KEY, x), x, rngs={"mismatch": KEY})


def test_a_stage_that_does_not_say_that_it_draws_is_refused():
    x = jnp.ones((1, 6))
    analog = hw.analogize(nn.Dense(4), chip_of(ShyOffset()))
    with pytest.raises(ValueError, match="ShyOffset draws at each chip"):
        analog.apply(analog.init(KEY, x), x, rngs={"mismatch": KEY})
