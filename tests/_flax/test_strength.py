"""Noise schedules: traced strengths in both frameworks, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.periphery import analog_mvm
from hwtrain.periphery._read_keys import read_keys

X = jax.random.normal(jax.random.key(1), (5, 8))
KEY = jax.random.key(3)
Modifier = hw.WeightModifierParameter

WEIGHTS = hw.Hardware(modifier=Modifier(type="add_normal", std_dev=0.2))
PERIPHERY = hw.Hardware(
    forward=hw.IOParameters(
        inp_noise=0.1, out_noise=0.2, w_noise=0.1, w_noise_type="additive_constant"
    )
)
BOTH = hw.Hardware(modifier=WEIGHTS.modifier, forward=PERIPHERY.forward)


class Head(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(x)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(nn.Dense(6, name="hidden")(x))


class NnxHead(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(x)


class NnxMLP(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(8, 6, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(self.hidden(x))


def linen_outputs(chip, model):
    """Returns jitted outputs as a function of the strength, which may be `None`."""
    analog = hw.analogize(model, chip)
    variables = jax.jit(analog.init)(jax.random.key(0), X)

    def call(variables, x, key):
        return analog.apply(variables, x, rngs={"mismatch": key})

    return with_and_without(call, variables, X, KEY)


def nnx_outputs(chip, model):
    twin = {MLP: NnxMLP, Head: NnxHead}[type(model)]
    analog = hw.analogize(twin(nnx.Rngs(0)), chip, rngs=nnx.Rngs(mismatch=3))
    graph, state = nnx.split(analog)

    def call(state, x):
        return nnx.merge(graph, state)(x)

    return with_and_without(call, state, X)


def with_and_without(call, *args):
    def run(strength, args):
        if strength is None:
            return call(*args)
        with hw.noise_strength(strength):
            return call(*args)

    # The data are arguments: XLA folds constants with other roundings.
    compiled = jax.jit(run)

    def outputs(strength):
        return np.asarray(compiled(strength, args))

    outputs.compiled = compiled
    return outputs


FRAMEWORKS = {"linen": linen_outputs, "nnx": nnx_outputs}
EXACT = {"rtol": 1e-5, "atol": 2e-6}  # but for roundings of another program


@pytest.fixture(params=FRAMEWORKS)
def outputs(request):
    return FRAMEWORKS[request.param]


@pytest.mark.sampled
@pytest.mark.parametrize("chip", [WEIGHTS, PERIPHERY], ids=["weights", "periphery"])
def test_a_ramp_ends_at_the_clean_and_the_noisy_model_and_compiles_once(outputs, chip):
    scaled = outputs(chip, Head())
    ramp = optax.linear_schedule(0.0, 1.0, 4)
    values = [scaled(ramp(step)) for step in range(5)]
    assert scaled.compiled._cache_size() == 1
    np.testing.assert_allclose(values[4], scaled(None), **EXACT)
    np.testing.assert_allclose(values[0], outputs(hw.Hardware(), Head())(None), **EXACT)
    noise = values[4] - values[0]
    assert np.abs(noise).max() > 0.1
    if chip == WEIGHTS:  # linear in the strength; read noise depends on noisy inputs
        for value, strength in zip(values, (0, 0.25, 0.5, 0.75, 1.0)):
            np.testing.assert_allclose(value - values[0], strength * noise, atol=1e-5)
    else:
        assert len({value.tobytes() for value in values}) == 5


@pytest.mark.parametrize("way", ["per_vector", "per_batch_sample", "redraw"])
def test_noise_of_each_input_scales(way):
    modifier = Modifier(type="add_normal", std_dev=0.2, **{way: True})
    scaled = linen_outputs(hw.Hardware(modifier=modifier), Head())
    quiet, half, full = scaled(0.0), scaled(0.5), scaled(1.0)
    clean = linen_outputs(hw.Hardware(), Head())(None)
    np.testing.assert_allclose(quiet, clean, **EXACT)
    np.testing.assert_allclose(full, scaled(None), **EXACT)
    np.testing.assert_allclose(half - quiet, (full - quiet) / 2, atol=1e-5)
    assert np.abs(full - quiet).max() > 0.1


def test_the_periphery_is_exact_at_one_operation_by_operation():
    io = hw.IOParameters(
        inp_noise=0.1,
        out_noise=0.2,
        out_noise_std=0.3,
        w_noise=0.1,
        w_noise_type="additive_constant",
        out_bound=2.0,
        out_nonlinearity=0.5,
        out_nonlinearity_std=0.2,
        v_offset_std=0.1,
    )
    w = jax.random.normal(KEY, (8, 4))

    def multiply(**options):
        sizes = {"row_sizes": (8,), "column_sizes": (4,)}
        return np.asarray(analog_mvm(X, w, io.parts, **sizes, **options))

    keys = {"keys": read_keys(jax.random.key(1)), "chip_key": jax.random.key(2)}
    full = multiply(**keys)
    np.testing.assert_array_equal(multiply(strength=jnp.float32(1), **keys), full)
    quiet = multiply()
    np.testing.assert_array_equal(multiply(strength=jnp.float32(0), **keys), quiet)
    assert np.abs(full - quiet).max() > 0.1


EVERY_TYPE = {
    "add_normal": {"std_dev": 0.2},
    "mult_normal": {"std_dev": 0.2},
    "discretize_add_normal": {"std_dev": 0.2, "res": 16},
    "poly": {"std_dev": 1.0},
    "prog_noise": {"std_dev": 1.0},
    "drop_connect": {"pdrop": 0.3},
    "pcm_noise": {
        "std_dev": 1.0,
        "pcm_t_inference": 3600.0,
        "pcm_prob_at_reset": 0.1,
        "pcm_prob_at_random": 0.1,
    },
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", EVERY_TYPE)
def test_every_modifier_scales(kind, dtype):
    options = EVERY_TYPE[kind]
    modifier = Modifier(type=kind, **options)
    without = {name: 0.0 for name in options if name != "res"}
    silent = Modifier(type=kind, **{**options, **without})
    w = jax.random.normal(KEY, (30, 20)).astype(dtype)
    w_max = jnp.abs(w).max()

    def noisy(strength):
        return modifier(KEY, w, w_max, strength)

    full, quiet = modifier(KEY, w, w_max), silent(KEY, w, w_max)
    np.testing.assert_array_equal(noisy(jnp.float32(1.0)), full)
    np.testing.assert_array_equal(noisy(jnp.float32(0.0)), quiet)
    half = np.asarray(noisy(jnp.float32(0.5)), np.float32)
    assert (half != np.float32(full)).any() and (half != np.float32(quiet)).any()
    if kind == "drop_connect":
        share = np.mean(half == 0)  # 600 weights: one standard deviation is 0.015
        np.testing.assert_allclose(share, 0.15, atol=4 * 0.015)


def test_each_layer_has_the_product_of_what_matches_it(outputs):
    scaled = outputs(WEIGHTS, MLP())
    rules = [hw.Rule("hidden", hw.Hardware()), hw.Rule("head", WEIGHTS)]
    head_alone = outputs(rules, MLP())(None)
    found = scaled({"hidden": 0.0})
    np.testing.assert_allclose(found, head_alone, **EXACT)
    np.testing.assert_allclose(
        scaled({".*": 0.5, "head": 2.0}), scaled({"hidden": 0.5}), **EXACT
    )
    assert np.abs(scaled({"hidden": 0.5}) - scaled({"h.*": 0.5})).max() > 0.01


@pytest.mark.optimised
def test_a_stack_gets_its_strength_inside_scan():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.tanh(nn.Dense(8, name="dense")(x)), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                nn.remat(Block),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return scan(name="blocks")(x, None)[0]

    scaled = linen_outputs(BOTH, Stack())
    clean = linen_outputs(hw.Hardware(), Stack())(None)
    np.testing.assert_allclose(scaled(0.0), clean, **EXACT)
    assert np.abs(scaled(0.5) - clean).max() > 0.01


def test_a_convolution_scales_both_noises():
    class Convolution(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(3, (3,), name="conv")(x.reshape(5, 4, 2))

    scaled = linen_outputs(BOTH, Convolution())
    clean = linen_outputs(hw.Hardware(), Convolution())(None)
    np.testing.assert_allclose(scaled(0.0), clean, **EXACT)
    assert np.abs(scaled(0.5) - clean).max() > 0.05


def test_a_raw_parameter_goes_by_its_own_path():
    class Raw(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("w", nn.initializers.ones, (8, 4))

    scaled = linen_outputs([hw.Rule(params="w", hardware=WEIGHTS)], Raw())
    np.testing.assert_allclose(scaled({"w": 1.0}), scaled(None), **EXACT)
    np.testing.assert_allclose(scaled({"w": 0.0}), X @ np.ones((8, 4)), **EXACT)


def test_the_gradient_is_that_of_the_scaled_model():
    # Nothing flows into the strength or beside the parameters.
    analog = hw.analogize(Head(), WEIGHTS)
    params = jax.jit(analog.init)(jax.random.key(0), X)["params"]

    def loss(params, strength):
        with hw.noise_strength(strength):
            y = analog.apply({"params": params}, X, rngs={"mismatch": KEY})
        return jnp.square(y).sum()

    grads = jax.jit(jax.grad(loss))(params, 0.5)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    others = jax.jit(jax.grad(loss))(params, 1.0)
    assert (grads["head"]["kernel"] != others["head"]["kernel"]).any()


def test_a_number_from_outside_is_never_stale():
    analog = hw.analogize(Head(), WEIGHTS)
    params = jax.jit(analog.init)(jax.random.key(0), X)
    step = jax.jit(lambda: analog.apply(params, X, rngs={"mismatch": KEY}))
    noisy = step()
    with hw.noise_strength(0.0):
        quiet = step()
    with hw.noise_strength(0.5):
        half = step()
    with hw.noise_strength(0.0):  # compiled before: traced no more, and still right
        np.testing.assert_array_equal(step(), quiet)
    np.testing.assert_array_equal(step(), noisy)
    assert not np.array_equal(quiet, noisy) and not np.array_equal(half, quiet)
    np.testing.assert_allclose(quiet, Head().apply(params, X), **EXACT)


def test_what_would_do_nothing_is_an_error():
    analog = hw.analogize(MLP(), WEIGHTS)
    params = jax.jit(analog.init)(jax.random.key(0), X)

    def call(strength, model=analog):
        def run(params):
            with hw.noise_strength(strength):
                return model.apply(params, X, rngs={"mismatch": KEY})

        return jax.eval_shape(run, params)  # errors come before any arithmetic

    with pytest.raises(ValueError, match="'hidden/dense' matches no layer"):
        call({"hidden/dense": 0.1})
    with pytest.raises(ValueError, match="no analog model was called inside"):
        call(0.11, hw.eval_mode(analog))
    with pytest.raises(ValueError, match="no analog model was called inside"):
        call(0.11, MLP())
    rounding = hw.Hardware(modifier=Modifier(type="discretize", res=16, sto_round=True))
    with pytest.raises(ValueError, match="no analog model was called inside"):
        call(0.12, hw.analogize(MLP(), rounding))
    always = hw.Hardware(
        modifier=Modifier(type="add_normal", std_dev=0.1, enable_during_test=True)
    )
    with pytest.raises(ValueError, match="in chip_mode, which draws the noise of a"):
        call(0.1, hw.chip_mode(hw.analogize(MLP(), always)))
    for wrong in (-0.1, jnp.ones(3), float("nan")):
        with pytest.raises(ValueError, match="takes a scalar that is not negative"):
            call(wrong)
