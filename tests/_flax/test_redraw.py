"""Weights that are drawn again in the backward pass instead of being kept."""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.periphery import IOParameters
from hwtrain.weights import WeightModifierParameter as Modifier

# A correct estimator leaves 4.5 standard errors once in 150,000 keys.
Z = 4.5
ROWS, COLUMNS = 6, 3
KEY = jax.random.key(3, impl=hw.threefry_prng)
X = np.asarray(jax.random.normal(jax.random.key(5), (4, ROWS)))
NOISE = Modifier(type="add_normal", std_dev=0.2, redraw=True)
EXACT = {"rtol": 1e-5, "atol": 1e-6}


class Stack(nn.Module):
    """Two layers, one of them called twice."""

    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(ROWS, use_bias=False, name="shared")
        return nn.Dense(COLUMNS, use_bias=False, name="last")(shared(shared(x)))


def hashed(name):
    return int.from_bytes(
        hashlib.blake2s(name.encode(), digest_size=4).digest(), "little"
    )


def by_hand(w, path, key=KEY, std=0.2):
    """Returns the noisy weights of a layer, by what names its key."""
    key = jax.random.fold_in(key, hashed(f"{path}#periphery#0"))
    key = jax.random.fold_in(key, hashed("#weight_noise#0"))
    return w + std * np.abs(w).max() * np.asarray(jax.random.normal(key, w.shape))


@functools.cache
def model(modifier=NOISE, **parts):
    analog = hw.analogize(Stack(), hw.Hardware(modifier=modifier, **parts))
    return analog, jax.jit(analog.init)(jax.random.key(0), X)["params"]


def test_outputs_and_gradients_are_those_of_weights_drawn_by_hand():
    analog, params = model()
    a, b = (np.asarray(params[name]["kernel"]) for name in ("shared", "last"))
    call = lambda p, x: analog.apply({"params": p}, x, rngs={"mismatch": KEY})  # noqa: E731
    d = np.asarray(jax.random.normal(jax.random.key(6), (4, COLUMNS)))
    y, back = jax.jit(lambda p, x: jax.vjp(call, p, x))(params, X)
    d_params, d_x = back(d)
    noisy_a, noisy_b = by_hand(a, "shared"), by_hand(b, "last")
    first = X @ noisy_a
    second = first @ noisy_a
    np.testing.assert_allclose(y, second @ noisy_b, **EXACT)
    d_second = d @ noisy_b.T
    d_first = d_second @ noisy_a.T
    np.testing.assert_allclose(d_x, d_first @ noisy_a.T, **EXACT)
    np.testing.assert_allclose(d_params["last"]["kernel"], second.T @ d, **EXACT)
    twice = first.T @ d_second + X.T @ d_first
    np.testing.assert_allclose(d_params["shared"]["kernel"], twice, **EXACT)


def test_the_noise_has_its_moments_and_is_fresh_for_each_key_and_layer():
    layer = hw.analogize(nn.Dense(100, use_bias=False), hw.Hardware(modifier=NOISE))
    params = jax.jit(layer.init)(KEY, np.eye(100))
    draw = jax.jit(lambda key: layer.apply(params, np.eye(100), rngs={"mismatch": key}))
    w = np.asarray(params["params"]["kernel"])
    one, other = (np.asarray(draw(jax.random.key(seed))) - w for seed in (0, 1))
    sigma, n = 0.2 * np.abs(w).max(), w.size
    for noise in (one, other):
        assert abs(noise.mean()) < Z * sigma / np.sqrt(n)
        assert abs(noise.std() - sigma) < Z * sigma / np.sqrt(2 * n)
    assert abs((one * other).mean()) < Z * sigma**2 / np.sqrt(n)


def test_both_frameworks_draw_the_same_and_only_when_they_should():
    hardware = hw.Hardware(modifier=NOISE)
    plain = nnx.Linear(ROWS, COLUMNS, use_bias=False, rngs=nnx.Rngs(0))
    w = np.asarray(plain.kernel[...])
    found = hw.analogize(plain, hardware, rngs=nnx.Rngs(mismatch=1))
    y = found(X)
    assert float(np.abs(y - X @ w).max()) > 0.05
    np.testing.assert_allclose(found.eval() or found(X), X @ w, **EXACT)
    layer = hw.analogize(nn.Dense(COLUMNS, use_bias=False), hardware)
    params = {"params": {"kernel": w}}
    key = nnx.Rngs(mismatch=1)["mismatch"]()
    np.testing.assert_allclose(
        layer.apply(params, X, rngs={"mismatch": key}), y, **EXACT
    )
    np.testing.assert_allclose(hw.chip_mode(layer).apply(params, X), X @ w, **EXACT)
    (row,) = hw.inspect(found).rows
    assert row["weight noise"] == "add_normal 0.2, redrawn (train)"
    hw.assert_active(layer, params, X)


LSTM = nn.RNN(nn.OptimizedLSTMCell(4))
LAYERS = {
    "general": (nn.DenseGeneral((2, 3)), (4, 5)),
    "einsum": (nn.Einsum((2, 4, 3), "bne,neh->bnh"), (3, 2, 4)),
    "conv": (nn.Conv(4, (3, 3), feature_group_count=2, strides=2), (2, 5, 5, 4)),
    "transposed": (nn.ConvTranspose(4, (3,)), (2, 5, 4)),
    "attention": (nn.MultiHeadDotProductAttention(2), (2, 3, 4)),
    "recurrent": (LSTM, (2, 3, 4)),
    "vmapped": (
        nn.vmap(
            nn.Dense,
            variable_axes={"params": 0},
            split_rngs={"params": True, "mismatch": True},
            in_axes=0,
        )(3),
        (2, 3, 4),
    ),
    "remat": (nn.remat(nn.Dense)(3), (3, 4)),
}


# The rest multiplies by the same function.
SOME = ("general", "conv", "vmapped")


@pytest.mark.sampled(1)
@pytest.mark.optimised
@pytest.mark.parametrize(
    ("name", "ranged"),
    [
        *(
            pytest.param(name, False, marks=[] if name in SOME else pytest.mark.nightly)
            for name in LAYERS
        ),
        pytest.param("conv", True, marks=pytest.mark.nightly),
        pytest.param("recurrent", True, marks=pytest.mark.nightly),
    ],
)
def test_every_layer_uses_the_same_weights_forward_and_backward(name, ranged):
    # A gradient at other weights than those of the outputs would differ.
    layer, shape = LAYERS[name]
    parts = {"input_range": hw.InputRangeParameter(init_value=100.0)} if ranged else {}
    rng = np.random.default_rng(5)
    x = rng.normal(size=shape).astype(np.float32)
    analog = hw.analogize(layer, hw.Hardware(modifier=NOISE, **parts))
    variables = jax.jit(analog.init)(jax.random.key(0), x)

    def loss(x, key):
        return jnp.sum(jnp.sin(analog.apply(variables, x, rngs={"mismatch": key})))

    ways = 2e-3 * rng.normal(size=(3, *shape)).astype(np.float32)
    slope = np.asarray(jax.jit(jax.grad(loss))(x, KEY))
    loss = jax.jit(loss)
    for way in ways:
        along = (float(loss(x + way, KEY)) - float(loss(x - way, KEY))) / 2
        np.testing.assert_allclose(np.vdot(slope, way), along, rtol=2e-2, atol=2e-5)
    assert abs(float(loss(x, jax.random.key(4))) - float(loss(x, KEY))) > 1e-3


def test_a_stack_in_a_scan_draws_for_each_layer():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(ROWS, use_bias=False, name="dense")(x), None

    scanned = nn.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )()
    analog = hw.analogize(scanned, hw.Hardware(modifier=NOISE))
    params = jax.jit(analog.init)(jax.random.key(0), X)["params"]
    equal = jax.tree.map(lambda w: jnp.broadcast_to(w[:1], w.shape), params)

    def outputs(x):
        y, _ = analog.apply({"params": equal}, x, rngs={"mismatch": KEY})
        return y

    w, y = equal["dense"]["kernel"], X
    for index in range(3):
        key = jax.random.fold_in(KEY, hashed("dense#periphery#0"))
        key = jax.random.fold_in(
            jax.random.fold_in(key, index), hashed("#weight_noise#0")
        )
        noise = 0.2 * jnp.abs(w[0]).max() * jax.random.normal(key, w[0].shape)
        y = y @ (w[0] + noise)
    np.testing.assert_allclose(jax.jit(outputs)(X), y, rtol=1e-4, atol=1e-5)


def test_lora_draws_for_each_of_its_factors():
    plain = nnx.LoRA(ROWS, 2, COLUMNS, rngs=nnx.Rngs(0))
    plain.lora_b[...] = jnp.ones((2, COLUMNS))
    a, b = np.asarray(plain.lora_a[...]), np.ones((2, COLUMNS), np.float32)
    found = hw.analogize(
        plain, hw.Hardware(modifier=NOISE), rngs=nnx.Rngs(mismatch=KEY)
    )
    key = nnx.Rngs(mismatch=KEY)["mismatch"]()
    noisy_a, noisy_b = by_hand(a, "lora_a", key), by_hand(b, "lora_b", key)
    np.testing.assert_allclose(found(X), X @ noisy_a @ noisy_b, **EXACT)


def losses(modifier, **parts):
    analog, params = model(modifier, **parts)
    params = {
        name: {**leaves, "kernel": 0.1 * leaves["kernel"]}
        for name, leaves in params.items()
    }
    loss = lambda p: jnp.sum(  # noqa: E731
        jnp.sin(analog.apply({"params": p}, X, rngs={"mismatch": KEY}))
    )
    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    "learned", [pytest.param(False, marks=pytest.mark.nightly), True]
)
def test_without_a_draw_of_moment_it_is_the_kept_policy(learned):
    # With noise of 1e-7, only levels, scales, ranges, bounds and converters remain.
    options = {"type": "add_normal", "std_dev": 1e-7}
    parts = {
        "input_range": hw.InputRangeParameter(init_value=1.0),
        "forward": IOParameters(inp_bits=8, out_bits=8, out_bound=10.0),
        "mapping": hw.MappingParameter(max_input_size=4, weight_scaling_omega=1.0),
    }
    if learned:
        options = {
            "type": "discretize_add_normal",
            "res": 8.0,
            "std_dev": 1e-7,
            "per_column": True,
        }
        parts = {"clip": hw.WeightClipParameter(type="learnable_per_channel")}
    kept = losses(Modifier(**options), **parts)
    again = losses(Modifier(**options, redraw=True), **parts)
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_noise_of_the_periphery_comes_on_top():
    hardware = hw.Hardware(modifier=NOISE, forward=IOParameters(out_noise=0.1))
    analog = hw.analogize(nn.Dense(COLUMNS, use_bias=False), hardware)
    w = np.asarray(jax.random.normal(jax.random.key(0), (ROWS, COLUMNS)))
    params = {"params": {"kernel": w}}
    call = lambda x: analog.apply(params, x, rngs={"mismatch": KEY})  # noqa: E731
    y, d_x = jax.jit(lambda x: (call(x), jax.grad(lambda x: call(x).sum())(x)))(X)
    noisy = by_hand(w, "")
    rest = np.asarray(y - X @ noisy)
    assert 0.05 < rest.std() < 0.2  # 12 draws of a deviation of 0.1
    np.testing.assert_allclose(d_x, np.ones_like(y) @ noisy.T, **EXACT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "none"}, 'redraw=True does nothing with type="none"'),
        ({"type": "discretize", "res": 4.0}, "because this modifier draws nothing"),
        (
            {"type": "add_normal", "std_dev": 0.1, "per_batch_sample": True},
            "redraw=True does nothing with per_batch_sample=True",
        ),
        (
            {"type": "add_normal", "std_dev": 0.1, "per_vector": True},
            "redraw=True does nothing with per_vector=True",
        ),
    ],
)
def test_where_it_does_nothing_it_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Modifier(**options, redraw=True)


def test_what_has_no_product_refuses_it():
    chip = hw.Hardware(modifier=NOISE)
    rule = hw.Rule(params="kernel", hardware=chip)
    with pytest.raises(ValueError, match="redraw, which only a layer can have"):
        hw.analogize(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), [rule])
    embed = nnx.Embed(4, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="redraw, which an Embed cannot have"):
        hw.analogize(embed, [hw.Rule(".*", chip)])
    mask = np.ones((3, 2, 2)) * np.array([1, 0, 1])[:, None, None]
    masked = nnx.Conv(2, 2, (3,), mask=mask, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="the mask of this Conv leaves out"):
        hw.analogize(masked, chip)


@pytest.mark.optimised
def test_a_step_needs_less_memory_than_with_weights_that_are_kept():
    class Squares(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(4):
                x = nn.Dense(128, use_bias=False)(x)
            return x

    def temporary(modifier):
        analog = hw.analogize(Squares(), hw.Hardware(modifier=modifier))
        x = jnp.ones((4, 128))
        params = jax.eval_shape(analog.init, jax.random.key(0), x)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(params, x, key):
            loss = lambda p: jnp.sum(analog.apply(p, x, rngs={"mismatch": key}) ** 2)  # noqa: E731
            grads = jax.grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

        compiled = step.lower(params, x, KEY).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    kept = temporary(Modifier(type="add_normal", std_dev=0.2))
    copy = 128 * 128 * 4
    assert kept > 3 * copy  # otherwise nothing is kept that could be saved
    assert temporary(NOISE) < kept - copy
