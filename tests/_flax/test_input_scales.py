"""Input scales other than a learned range, through `analogize`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._flax.functional import as_function
from hwtrain.optim._leaves import ranged
from hwtrain.periphery import IOParameters

ROWS, COLUMNS = 6, 4
MAPPING = hw.MappingParameter(max_input_size=3, max_output_size=2)
AVERAGE = hw.Hardware(
    forward=IOParameters(inp_bits=4, noise_management="average_abs_max", nm_decay=0.25),
    mapping=MAPPING,
)
DYNAMIC = hw.Hardware(
    forward=IOParameters(inp_bits=4),
    input_range=hw.InputRangeParameter(dynamic=True),
    mapping=MAPPING,
)
both = pytest.mark.parametrize("framework", ["linen", "nnx"])


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(COLUMNS, use_bias=False, name="a")(x)


class NnxLayer(nnx.Module):
    def __init__(self):
        self.a = nnx.Linear(ROWS, COLUMNS, use_bias=False, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.a(x)


def inputs(seed, batch=8):
    return jax.random.normal(jax.random.key(seed), (batch, ROWS))


@functools.cache
def model(framework, hardware, mode="train"):
    """Returns `f(params, x)`, jitted, the parameters, and the plan."""
    if framework == "linen":
        analog = hw.analogize(LinenLayer(), hardware)
        variables = jax.jit(analog.init)(jax.random.key(0), inputs(0))
        plan = hw.plan(analog, variables, inputs(0))
    else:
        analog = hw.analogize(NnxLayer(), hardware, rngs=nnx.Rngs(mismatch=0))
        variables, plan = None, hw.plan(analog)
    function, tree = as_function(analog, mode, variables)

    def call(params, x):
        return function({**tree, "params": params}, jax.random.key(0), x)

    return jax.jit(call), tree["params"], plan


def expected(x, w, scale, steps=14):
    """What two row tiles give whose inputs are rounded to `2 scale / steps`."""
    y = 0
    for tile in (slice(0, 3), slice(3, 6)):
        s = scale(x[:, tile])
        rounded = np.round(x[:, tile] / s * steps / 2) * 2 / steps
        y = y + np.clip(rounded, -1, 1) * s @ w[tile]
    return y


def of_tile(averages, _):
    return next(averages)


@both
@pytest.mark.parametrize("mode", ["train", "chip", "eval"])
def test_a_dynamic_range_is_each_vectors_maximum(framework, mode):
    call, params, plan = model(framework, DYNAMIC, mode)
    assert list(params["a"]) == ["kernel"]
    assert ranged(plan) == []
    x = np.array(inputs(1))
    x[0] = 0  # its range is zero, its output too
    w = np.asarray(params["a"]["kernel"])

    def largest(tile):
        return np.maximum(np.abs(tile).max(-1, keepdims=True), 1e-30)

    y = call(params, x)
    np.testing.assert_allclose(y, expected(x, w, largest), rtol=1e-5, atol=1e-6)
    assert np.abs(y - x @ w).max() > 1e-2
    np.testing.assert_array_equal(y[0], 0)


def test_a_dynamic_range_of_the_reference(golden):
    case = golden("aihwkit_mvm")["lightning_layer"]["ir/dynamic/inp_res6"]
    w = np.array(case["W"], np.float32).T
    chip = hw.Hardware(
        forward=IOParameters(inp_res=case["inp_res"]),
        input_range=hw.InputRangeParameter(dynamic=True),
    )
    analog = hw.analogize(nn.Dense(w.shape[1], use_bias=False), chip)

    def loss(w, x):
        y = analog.apply({"params": {"kernel": w}}, x)
        return jnp.sum(y * jnp.array(case["grad_y"])), y

    x = jnp.array(case["x"])
    (_, y), (d_w, d_x) = jax.value_and_grad(loss, (0, 1), has_aux=True)(w, x)
    np.testing.assert_allclose(y, case["y"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_x, case["grad_x"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_w.T, case["grad_W"], rtol=1e-5, atol=1e-6)


@both
def test_an_average_divides_inputs_and_follows_the_data(framework):
    call, params, plan = model(framework, AVERAGE)
    tx = hw.optim.hardware_aware(optax.sgd(0.0), plan)
    state, average = tx.init(params), None
    w = np.asarray(params["a"]["kernel"])
    gradient = jax.jit(jax.grad(lambda p, x: call(p, x).sum()))
    for seed in range(4):
        x = np.asarray(inputs(seed)) * (1 + seed)
        if average is not None:
            y = call(params, x)
            scale = functools.partial(of_tile, iter(average))
            np.testing.assert_allclose(y, expected(x, w, scale), rtol=1e-5, atol=1e-5)
        mean = np.stack([np.abs(x[:, t]).max(1).mean() for t in np.split(np.r_[:6], 2)])
        average = mean if average is None else average + 0.25 * (mean - average)
        updates, state = tx.update(gradient(params, x), state, params)
        params = optax.apply_updates(params, updates)
        stored = params["a"]["input_range"]
        np.testing.assert_allclose(stored, average[:, None] * [[1, 1]], rtol=1e-5)
    np.testing.assert_array_equal(params["a"]["kernel"], w)


@both
def test_an_average_stays_without_data(framework):
    call, params, plan = model(framework, AVERAGE)
    tx = hw.optim.input_range_learning(plan, 0.1)
    for x in (jnp.zeros((8, ROWS)), None):
        gradient = jax.tree.map(jnp.zeros_like, params)
        if x is not None:
            gradient = jax.grad(lambda p, x=x: call(p, x).sum())(params)
        updates, state = tx.update(gradient, tx.init(params), params)
        np.testing.assert_array_equal(updates["a"]["input_range"], 0)
        assert (state.initialized == 0).all()


@both
@pytest.mark.parametrize("init_from_data", [0, 2])
def test_a_static_range_is_set_from_data_at_most(framework, init_from_data):
    ranged = hw.InputRangeParameter(
        learn_input_range=False, init_value=0.5, init_from_data=init_from_data
    )
    call, params, plan = model(framework, hw.Hardware(input_range=ranged))
    tx = hw.optim.hardware_aware(optax.sgd(1.0), plan)
    state, seen = tx.init(params), []
    for seed in range(4):
        gradient = jax.grad(lambda p, x: call(p, x).sum())(params, inputs(seed))
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(params["a"]["input_range"][0, 0]))
    spreads = [3 * np.std(np.asarray(inputs(seed))) for seed in range(init_from_data)]
    means = np.cumsum(spreads) / np.arange(1, init_from_data + 1)
    last = means[-1] if init_from_data else 0.5
    np.testing.assert_allclose(seen, [*means, *[last] * (4 - init_from_data)], 1e-5)


def test_inspect_says_what_scales_the_inputs():
    for hardware, words in ((DYNAMIC, "dynamic"), (AVERAGE, "not initialised")):
        row = hw.inspect(hw.analogize(NnxLayer(), hardware)).rows[0]
        assert words in row["input range"]
    analog = hw.analogize(NnxLayer(), AVERAGE)
    analog.a.input_range[...] = 2.5 * analog.a.input_range[...]
    assert hw.inspect(analog).rows[0]["input range"] == "average of max|x| 2.5"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"input_range": hw.InputRangeParameter(dynamic=True)}, "without a DAC"),
        (
            {
                "input_range": hw.InputRangeParameter(dynamic=True),
                "forward": IOParameters(inp_bits=8, noise_management="abs_max"),
            },
            "leave one of them out",
        ),
        (
            {
                "input_range": hw.InputRangeParameter(),
                "forward": IOParameters(inp_bits=8, noise_management="average_abs_max"),
            },
            "could not be learned",
        ),
    ],
)
def test_scales_that_contradict_each_other_are_an_error(parts, message):
    with pytest.raises(ValueError, match=message):
        hw.Hardware(**parts)


def test_options_that_a_scale_does_not_feel_are_an_error():
    with pytest.raises(ValueError, match="init_value=2.0.*dynamic=True"):
        hw.InputRangeParameter(dynamic=True, init_value=2.0)
    hw.InputRangeParameter(dynamic=True, learn_input_range=False)
    with pytest.raises(ValueError, match='nm_decay.*"average_abs_max"'):
        IOParameters(inp_bits=8, nm_decay=0.1)
