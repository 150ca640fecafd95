"""The periphery through `analogize`, in Linen and NNX."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain.periphery import IOParameters
from hwtrain.periphery._range_gradient import PROBE_SCALE

BATCH, WIDTH = 32, 8
MAPPING = hw.MappingParameter(
    max_input_size=5, max_output_size=3, weight_scaling_omega=1.0
)
OUT_NOISE = IOParameters(out_noise=0.1)


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="b")(nn.tanh(nn.Dense(WIDTH, name="a")(x)))


class NnxMLP(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.b = nnx.Linear(WIDTH, 4, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.tanh(self.a(x)))


def inputs(seed=0, batch=BATCH):
    x = np.random.default_rng(seed).normal(size=(batch, WIDTH))
    return jnp.asarray(x, jnp.float32)


def largest(difference):
    return float(np.abs(np.asarray(difference)).max())


@functools.cache
def plain_params():
    return jax.jit(LinenMLP().init)(jax.random.key(7), inputs())["params"]


@functools.cache
def linen_function(hardware, mode):
    """Returns `f(params, x, key)`, jitted, and the parameters of the Linen model."""
    analog = hw.analogize(LinenMLP(), hardware)
    params = hw.adopt(analog, plain_params(), inputs())
    change = {"train": hw.train_mode, "chip": hw.chip_mode, "eval": hw.eval_mode}[mode]
    model = change(analog)

    def call(params, x, key):
        return model.apply({"params": params}, x, rngs={"mismatch": key})

    return jax.jit(call), params


@functools.cache
def nnx_function(hardware, mode):
    """The same for the NNX model, with the same parameters."""
    model = NnxMLP(nnx.Rngs(0))
    for name in ("a", "b"):
        layer = getattr(model, name)
        layer.kernel[...] = plain_params()[name]["kernel"]
    analog = hw.analogize(model, hardware, rngs=nnx.Rngs(mismatch=0))
    change = {"train": hw.train_mode, "chip": hw.chip_mode, "eval": hw.eval_mode}[mode]
    graphdef, state, rest = nnx.split(change(analog), nnx.Param, ...)

    def call(params, x, key):
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, params)
        model = nnx.merge(graphdef, filled, rest)
        model.analog_stream = nnx.RngStream(key, tag="mismatch")
        return model(x)

    return jax.jit(call), nnx.to_pure_dict(state)


FRAMEWORKS = {"linen": linen_function, "nnx": nnx_function}
both = pytest.mark.parametrize("framework", FRAMEWORKS)

DETERMINISTIC = {
    "inp_bits": IOParameters(inp_bits=3),
    "inp_bound": IOParameters(inp_bound=0.5),
    "inp_asymmetry": IOParameters(inp_asymmetry=0.1),
    "out_bits": IOParameters(out_bits=4, out_bound=2.0),
    "out_bound": IOParameters(out_bound=0.5),
    "out_asymmetry": IOParameters(out_asymmetry=0.1),
    "out_scale": IOParameters(out_scale=1.1),
    "constant": IOParameters(inp_bits=3, noise_management="constant", nm_thres=2.0),
    "abs_max": IOParameters(inp_bits=3, noise_management="abs_max"),
    "abs_max_threshold": IOParameters(
        inp_bits=3, noise_management="abs_max", nm_thres=0.5
    ),
    "max": IOParameters(inp_bits=3, noise_management="max"),
    "abs_max_np_sum": IOParameters(
        inp_bits=3, noise_management="abs_max_np_sum", out_bound=0.3
    ),
    "ir_drop": IOParameters(ir_drop=1.0, ir_drop_g_ratio=50.0),
    "out_nonlinearity": IOParameters(out_nonlinearity=0.5, out_bound=4.0),
    "slope_calibration": IOParameters(
        out_nonlinearity=0.5, out_bound=4.0, slope_calibration=0.5
    ),
    "r_series": IOParameters(r_series=0.1),
    "v_offset_w_min": IOParameters(r_series=0.1, v_offset_w_min=0.0),
    "shift": IOParameters(out_bound=0.5, bound_management="shift"),
}
DRAWN = {
    "inp_noise": IOParameters(inp_noise=0.1),
    "inp_sto_round": IOParameters(inp_bits=3, inp_sto_round=True, inp_bound=4.0),
    "out_noise": OUT_NOISE,
    "out_sto_round": IOParameters(out_bits=3, out_bound=4.0, out_sto_round=True),
    "additive_constant": IOParameters(w_noise=0.1, w_noise_type="additive_constant"),
    "pcm_read": IOParameters(w_noise=0.1, w_noise_type="pcm_read"),
}
MANAGED = {
    "iterative": ("out_bound", {"bound_management": "iterative"}),
    "iterative_worst_case": (
        "out_bound",
        {"bound_management": "iterative_worst_case"},
    ),
}


def chip(io, **parts):
    return hw.Hardware(forward=io, mapping=MAPPING, **parts)


def rms(values):
    return np.sqrt(np.mean(np.square(values)))


def deviation_of_columns(w, columns):
    """Of the noise of each output, with s = max |w| of each of the tiles in 2 rows."""
    variance = 0
    for rows in (slice(0, 4), slice(4, None)):
        tiles = np.split(np.abs(w[rows]), np.cumsum(columns)[:-1], axis=1)
        scale = [np.full(tile.shape[1], tile.max()) for tile in tiles]
        variance = variance + (0.1 * np.concatenate(scale)) ** 2
    return np.sqrt(variance)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("effect", DETERMINISTIC)
def test_every_effect_that_is_not_drawn_is_on_and_equal_in_both_frameworks(effect):
    x, key = inputs(), jax.random.key(0)
    ideal, params = linen_function(chip(None), "train")
    clean = ideal(params, x, key)
    linen, params = linen_function(chip(DETERMINISTIC[effect]), "train")
    y = linen(params, x, key)
    assert largest(np.asarray(y) - np.asarray(clean)) > 1e-3
    # Nothing is drawn, so that the modes agree too.
    other, params = nnx_function(chip(DETERMINISTIC[effect]), "eval")
    np.testing.assert_allclose(other(params, x, key), y, rtol=1e-5, atol=1e-6)


@pytest.mark.sampled
@both
@pytest.mark.parametrize("effect", MANAGED)
def test_bound_management_undoes_what_the_bound_does(framework, effect):
    other, options = MANAGED[effect]
    x, key = inputs(), jax.random.key(0)
    ideal, params = FRAMEWORKS[framework](chip(None), "train")
    io = dataclasses.replace(DETERMINISTIC[other], **options)
    call, _ = FRAMEWORKS[framework](chip(io), "train")
    np.testing.assert_allclose(
        call(params, x, key), ideal(params, x, key), rtol=1e-4, atol=1e-5
    )


ITERATIVE = IOParameters(inp_bits=6, out_bound=0.05, bound_management="iterative")
CHANGED = {
    "max_bm_factor": (ITERATIVE, 2.0),
    "max_bm_res": (ITERATIVE, 0.02),
    "nm_assumed_wmax": (DETERMINISTIC["abs_max_np_sum"], 3.0),
    "ir_drop_g_ratio": (DETERMINISTIC["ir_drop"], 10.0),
}


@pytest.mark.parametrize("option", CHANGED)
def test_options_of_an_effect_change_it_in_both_frameworks(option):
    io, value = CHANGED[option]
    x, key = inputs(), jax.random.key(0)
    outputs = []
    for build in FRAMEWORKS.values():
        for hardware in (chip(io), chip(dataclasses.replace(io, **{option: value}))):
            call, params = build(hardware, "eval")
            outputs.append(np.asarray(call(params, x, key)))
    before, after, *of_nnx = outputs
    assert largest(before - after) > 1e-3
    np.testing.assert_allclose(of_nnx, [before, after], rtol=1e-5, atol=1e-6)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("effect", DRAWN)
def test_drawn_effects_are_fresh_and_agree_in_moments(effect):
    count, x = 400, inputs(batch=4)
    keys = jax.random.split(jax.random.key(0), count)
    moments = []
    for function in FRAMEWORKS.values():
        call, params = function(chip(DRAWN[effect]), "train")
        of_all = jax.jit(jax.vmap(call, (None, None, 0)))
        y, again = (np.asarray(of_all(params, x, keys)) for _ in range(2))
        np.testing.assert_array_equal(y, again)
        moments.append((y.mean(0), y.std(0)))
    (mean, std), (other_mean, other_std) = moments
    assert float(std.min()) > 1e-3
    # Standard errors of the difference of two means, and of two deviations.
    np.testing.assert_array_less(abs(mean - other_mean), 5 * std * np.sqrt(2 / count))
    np.testing.assert_array_less(abs(std - other_std), 5 * std / np.sqrt(count) + 1e-4)


@both
def test_chip_mode_draws_anew_and_eval_mode_draws_nothing(framework):
    x, y = inputs(), {}
    hardware = chip(IOParameters(inp_noise=0.1, out_noise=0.1))
    for mode in ("chip", "eval"):
        call, params = FRAMEWORKS[framework](hardware, mode)
        y[mode] = [call(params, x, jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(y["chip"][0], y["chip"][1])
    assert np.std(np.asarray(y["chip"][0]) - np.asarray(y["chip"][2])) > 1e-3
    np.testing.assert_array_equal(y["eval"][0], y["eval"][2])


@both
def test_the_noise_of_a_layer_has_the_configured_deviation(framework):
    # One layer, linear, with r = 2.
    io = IOParameters(out_noise=0.1)
    ranged = hw.InputRangeParameter(init_value=2.0)
    call, params = FRAMEWORKS[framework](chip(io, input_range=ranged), "chip")
    count, x = 2000, inputs(batch=2)
    keys = jax.random.split(jax.random.key(3), count)
    small = np.float32(1e-3) * np.asarray(params["a"]["kernel"])
    flat = {**params, "a": {**params["a"], "kernel": small}}
    y = np.asarray(jax.jit(jax.vmap(call, (None, None, 0)))(flat, x, keys))
    sigma = 2.0 * deviation_of_columns(np.asarray(params["b"]["kernel"]), (2, 2))
    # The first layer's noise reaches the second's input at a thousandth.
    sigma = np.broadcast_to(sigma, y.shape[1:])
    np.testing.assert_allclose(y.std(0), sigma, rtol=5 / np.sqrt(2 * count) + 0.01)


@pytest.mark.parametrize(
    "framework", ["linen", pytest.param("nnx", marks=pytest.mark.nightly)]
)
def test_gradients_are_finite_and_those_of_the_users_parameters_only(framework):
    io = IOParameters(
        inp_bits=6,
        out_bits=8,
        out_bound=3.0,
        out_noise=0.05,
        inp_noise=0.01,
        w_noise=0.02,
        w_noise_type="pcm_read",
        ir_drop=1.0,
        bound_management="iterative",
    )
    noise = hw.WeightModifierParameter(type="add_normal", std_dev=0.05)
    hardware = chip(io, modifier=noise, input_range=hw.InputRangeParameter())
    call, params = FRAMEWORKS[framework](hardware, "train")
    loss = jax.jit(jax.grad(lambda p: call(p, inputs(), jax.random.key(0)).sum()))
    gradient = loss(params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    for path, leaf in paths.leaves(gradient).items():
        assert np.isfinite(np.asarray(leaf)).all(), path
        assert not path.endswith(("noise_key", "mapping_scale"))
        # The ranges may have clipped nothing.
        assert largest(leaf) > 0 or path.endswith("input_range"), path


@both
def test_the_scale_is_that_of_the_nominal_kernel(framework):
    # With noise on the weights, an ADC step of 2 s b res must stay where it is.
    noise = hw.WeightModifierParameter(type="add_normal", std_dev=0.5)
    io = IOParameters(out_res=64.0, out_bound=4.0)
    call, params = FRAMEWORKS[framework](
        hw.Hardware(
            modifier=noise,
            forward=io,
            mapping=hw.MappingParameter(weight_scaling_omega=1.0),
        ),
        "train",
    )
    y = np.asarray(call(params, inputs(), jax.random.key(0)))
    step = 2 * 4.0 / 64 * largest(params["b"]["kernel"])
    level = (y - np.asarray(params["b"]["bias"])) / step
    np.testing.assert_allclose(level, np.round(level), atol=1e-3)


@both
def test_output_clipping_reaches_the_optimiser(framework):
    ranged = hw.InputRangeParameter(
        init_value=0.5, manage_output_clipping=True, init_from_data=0, decay=0.0
    )
    hardware = chip(IOParameters(out_bound=0.3), input_range=ranged)
    call, params = FRAMEWORKS[framework](hardware, "train")
    loss = jax.jit(jax.grad(lambda p: call(p, inputs(), jax.random.key(0)).sum()))
    gradient = jax.tree.map(np.asarray, loss(params))
    sums = gradient["a"]["probe"] / PROBE_SCALE
    np.testing.assert_array_equal(
        sums[..., 4], BATCH * np.array([[3, 3, 2], [3, 3, 2]])
    )
    inside = sums[..., 5] / sums[..., 4]
    assert ((inside > 0) & (inside < 0.95)).all()

    analog = hw.analogize(LinenMLP(), hardware)
    tx = hw.optim.input_range_learning(hw.plan(analog, params, inputs()), 0.1)
    updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    r, g = np.asarray(params["a"]["input_range"]), gradient["a"]["input_range"]
    expected = -0.1 * (g - (1 - inside) * r)
    np.testing.assert_allclose(
        updates["a"]["input_range"], np.maximum(expected, -r / 2), rtol=1e-5
    )


@both
def test_nothing_recompiles_at_the_second_step(framework):
    hardware = chip(OUT_NOISE, input_range=hw.InputRangeParameter())
    call, params = FRAMEWORKS[framework](hardware, "train")
    tx = optax.sgd(0.1)
    traces = []

    @jax.jit
    def step(params, state, x, key):
        traces.append(1)
        gradient = jax.grad(lambda p: jnp.square(call(p, x, key)).mean())(params)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for seed in range(3):
        params, state = step(params, state, inputs(seed), jax.random.key(seed))
    assert len(traces) == 1


@both
def test_eval_mode_works_in_forward_mode(framework):
    io = IOParameters(
        inp_bits=6, out_bits=8, out_bound=0.5, bound_management="iterative"
    )
    hardware = chip(io, input_range=hw.InputRangeParameter())
    call, params = FRAMEWORKS[framework](hardware, "eval")
    x = inputs()
    key = jax.random.key(0)
    tangent = np.asarray(jax.jit(jax.jacfwd(lambda t: call(params, x + t, key)))(0.0))
    assert np.isfinite(tangent).all() and largest(tangent) > 0


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_two_calls_of_one_layer_draw_two_noises(framework):
    class LinenTwice(nn.Module):
        def setup(self):
            self.layer = nn.Dense(WIDTH, use_bias=False)

        def __call__(self, x):
            return self.layer(x) - self.layer(x)

    class NnxTwice(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs)

        def __call__(self, x):
            return self.layer(x) - self.layer(x)

    x = inputs(batch=500)
    if framework == "linen":
        analog = hw.analogize(LinenTwice(), hw.Hardware(forward=OUT_NOISE))
        variables = jax.jit(analog.init)(jax.random.key(0), x)
        y = jax.jit(analog.apply)(variables, x, rngs={"mismatch": jax.random.key(1)})
    else:
        analog = hw.analogize(
            NnxTwice(nnx.Rngs(0)),
            hw.Hardware(forward=OUT_NOISE),
            rngs=nnx.Rngs(mismatch=1),
        )
        y = nnx.jit(lambda model, x: model(x))(analog, x)
    sigma = 0.1 * np.sqrt(2)
    assert abs(np.asarray(y).std() - sigma) < 5 * sigma / np.sqrt(2 * y.size)


class Stack(nn.Module):
    """Layers of a stack, each sown with what it does to the same input."""

    remat: bool = False

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return x, nn.Dense(WIDTH)(x)

        block = nn.remat(Block) if self.remat else Block
        stack = nn.scan(
            block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return stack(name="layers")(x, None)[1]


def linen_noise(analog, variables, x):
    """Returns what a call in training adds to the one in eval mode."""

    @jax.jit
    def difference(variables, x):
        noisy = analog.apply(variables, x, rngs={"mismatch": jax.random.key(1)})
        return noisy - hw.eval_mode(analog).apply(variables, x)

    return np.asarray(difference(variables, x))


def nnx_noise(analog, x):
    """The same, for NNX."""
    call = nnx.jit(lambda model, x: model(x))
    noisy = np.asarray(call(analog, x))
    return noisy - np.asarray(call(hw.eval_mode(analog), x))


@pytest.mark.sampled(1)
@pytest.mark.optimised
@pytest.mark.parametrize("remat", [False, True])
def test_the_layers_of_a_linen_stack_draw_uncorrelated_noise(remat):
    x = inputs(batch=500)
    analog = hw.analogize(Stack(remat), hw.Hardware(forward=OUT_NOISE, mapping=MAPPING))
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    noise = linen_noise(analog, variables, x).reshape(3, -1)
    correlation = np.corrcoef(noise) - np.eye(3)
    assert abs(correlation).max() < 5 / np.sqrt(noise.shape[1])
    # Each layer of the stack has scales of its own.
    kernels = np.asarray(variables["params"]["layers"]["Dense_0"]["kernel"])
    sigma = [rms(deviation_of_columns(w, (3, 3, 2))) for w in kernels]
    np.testing.assert_allclose(
        noise.std(1), sigma, rtol=5 / np.sqrt(2 * noise.shape[1])
    )
    gradient = jax.jit(
        jax.grad(
            lambda v: analog.apply(v, x, rngs={"mismatch": jax.random.key(1)}).sum()
        )
    )(variables)
    gradient = map(np.asarray, jax.tree.leaves(gradient))
    assert all(np.isfinite(leaf).all() for leaf in gradient)


def test_the_layers_of_an_nnx_stack_draw_uncorrelated_noise():
    class Blocks(nnx.Module):
        def __init__(self, rngs):
            @nnx.vmap(in_axes=0, out_axes=0)
            def make(rngs):
                return nnx.Linear(WIDTH, WIDTH, rngs=rngs)

            self.layers = make(rngs.split(3))

        def __call__(self, x):
            @nnx.scan(in_axes=(0, None), out_axes=0)
            def each(layer, x):
                return layer(x)

            return each(self.layers, x)

    x = inputs(batch=500)
    hardware = hw.Hardware(forward=OUT_NOISE, mapping=MAPPING)
    analog = hw.analogize(Blocks(nnx.Rngs(0)), hardware, rngs=nnx.Rngs(mismatch=1))
    noise = nnx_noise(analog, x).reshape(3, -1)
    correlation = np.corrcoef(noise) - np.eye(3)
    assert abs(correlation).max() < 5 / np.sqrt(noise.shape[1])
    kernels = np.asarray(analog.layers.kernel[...])
    sigma = [rms(deviation_of_columns(w, (3, 3, 2))) for w in kernels]
    np.testing.assert_allclose(
        noise.std(1), sigma, rtol=5 / np.sqrt(2 * noise.shape[1])
    )


class Cell(nn.RNNCellBase):
    """A cell whose state is all that passes through its layer but the input."""

    @nn.compact
    def __call__(self, carry, x):
        return carry, nn.Dense(WIDTH)(x)

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros(input_shape[:-1] + (1,))

    @property
    def num_feature_axes(self):
        return 1


def test_a_linen_body_looped_over_time_draws_noise_at_every_step():
    x = jax.random.normal(jax.random.key(0), (200, 5, WIDTH))
    analog = hw.analogize(nn.RNN(Cell()), hw.Hardware(forward=OUT_NOISE))
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    _uncorrelated_over_time(linen_noise(analog, variables, x))


def test_an_nnx_body_looped_over_time_draws_noise_at_every_step():
    class OverTime(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        def __call__(self, x):
            @nnx.scan(in_axes=(None, 1), out_axes=1)
            def each(layer, x):
                return layer(x)

            return each(self.layer, x)

    x = jax.random.normal(jax.random.key(0), (200, 5, WIDTH))
    analog = hw.analogize(
        OverTime(nnx.Rngs(0)), hw.Hardware(forward=OUT_NOISE), rngs=nnx.Rngs(mismatch=1)
    )
    _uncorrelated_over_time(nnx_noise(analog, x))


def _uncorrelated_over_time(noise):
    steps = np.moveaxis(noise, 1, 0).reshape(noise.shape[1], -1)
    correlation = np.corrcoef(steps) - np.eye(len(steps))
    assert abs(correlation).max() < 5 / np.sqrt(steps.shape[1])
    np.testing.assert_allclose(steps.std(1), 0.1, rtol=5 / np.sqrt(2 * steps.shape[1]))


@both
def test_a_drawing_periphery_without_a_stream_is_an_error(framework):
    hardware = hw.Hardware(forward=OUT_NOISE)
    if framework == "linen":
        analog = hw.analogize(LinenMLP(), hardware)
        variables = jax.jit(analog.init)(jax.random.key(0), inputs())
        with pytest.raises(ValueError, match="mismatch"):
            analog.apply(variables, inputs())
    else:
        analog = hw.analogize(NnxMLP(nnx.Rngs(0)), hardware)
        with pytest.raises(ValueError, match="mismatch"):
            analog(inputs())


@both
def test_the_modifier_stays_off_in_chip_mode_while_the_periphery_draws(framework):
    noise = hw.WeightModifierParameter(type="add_normal", std_dev=10.0)
    call, params = FRAMEWORKS[framework](chip(OUT_NOISE, modifier=noise), "chip")
    clean, _ = FRAMEWORKS[framework](chip(OUT_NOISE, modifier=noise), "eval")
    key = jax.random.key(0)
    y, z = (np.asarray(f(params, inputs(), key)) for f in (call, clean))
    assert 1e-3 < float((y - z).std()) < 1.0


OFFSET = hw.Hardware(forward=IOParameters(v_offset_std=0.3, v_offset_w_min=0.0))


def _evaluate(framework, hardware, chips, key):
    if framework == "linen":
        analog = hw.analogize(LinenMLP(), hardware)
        variables = {"params": hw.adopt(analog, plain_params(), inputs())}
    else:
        analog = hw.analogize(NnxMLP(nnx.Rngs(0)), hardware)
        for name in ("a", "b"):
            getattr(analog, name).kernel[...] = plain_params()[name]["kernel"]
        variables = None
    batches = [(inputs(seed),) for seed in (0, 0)]
    return hw.evaluate.population(
        analog,
        variables,
        batches,
        lambda y: y.mean(-1),
        chips=chips,
        key=jax.random.key(key),
    ).values


def test_a_chip_keeps_its_periphery_over_reads_and_frameworks():
    values = _evaluate("linen", OFFSET, 8, key=0)
    np.testing.assert_array_equal(values, _evaluate("linen", OFFSET, 8, key=1))
    assert len(np.unique(values)) == 8
    np.testing.assert_allclose(_evaluate("nnx", OFFSET, 8, key=2), values, rtol=1e-5)


@both
def test_training_sees_a_new_chip_at_every_step_and_chip_mode_chip_zero(framework):
    x = inputs()
    call, params = FRAMEWORKS[framework](OFFSET, "train")
    y = [np.asarray(call(params, x, jax.random.key(seed))) for seed in (0, 1)]
    assert largest(y[0] - y[1]) > 1e-3
    call, params = FRAMEWORKS[framework](OFFSET, "chip")
    y = [np.asarray(call(params, x, jax.random.key(seed))) for seed in (0, 1)]
    np.testing.assert_array_equal(*y)
    (value,) = _evaluate(framework, OFFSET, [0], key=0)
    np.testing.assert_allclose(y[0].mean(), value, rtol=1e-5)


def test_inspect_names_what_is_not_ideal():
    io = IOParameters(inp_bits=8, out_noise=0.04, noise_management="abs_max")
    analog = hw.analogize(NnxMLP(nnx.Rngs(0)), chip(io))
    row = hw.inspect(analog).rows[0]
    assert row["periphery"] == "inp_bits 8, out_noise 0.04, noise_management abs_max"
    plain = hw.analogize(NnxMLP(nnx.Rngs(0)), hw.Hardware())
    assert hw.inspect(plain).rows[0]["periphery"] == "none"
