"""Weight noise for each example and for each vector, through `analogize`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._flax import example_weights
from hwtrain.periphery import IOParameters
from hwtrain.periphery._range_gradient import PROBE_SCALE
from hwtrain.weights import WeightModifierParameter as Modifier

# A correct estimator leaves 4.5 standard errors once in 150,000 keys.
Z = 4.5
ROWS, COLUMNS = 6, 3
KEY = jax.random.key(3)
EVERY_TYPE = [
    {"type": "add_normal", "std_dev": 0.1},
    {"type": "add_normal", "std_dev": 0.1, "per_column": True},
    {"type": "mult_normal", "std_dev": 0.1},
    {"type": "discretize", "res": 4.0, "sto_round": True},
    {"type": "discretize_add_normal", "res": 4.0, "std_dev": 0.1},
    {"type": "dorefa", "res": 4.0, "sto_round": True},
    {"type": "poly", "std_dev": 1.0},
    {"type": "prog_noise", "std_dev": 1.0},
    {"type": "pcm_noise", "std_dev": 1.0},
    {"type": "drop_connect", "pdrop": 0.5},
    {"type": "copy", "pdrop": 0.5},
]


@functools.cache
def kernel():
    w = jax.random.normal(jax.random.key(0), (ROWS, COLUMNS))
    return w * jnp.array([1.0, 0.5, 2.0])


def linen(hardware, mode=hw.train_mode):
    """Returns `f(params, x, key)` of a Dense without bias, and its parameters."""
    analog = mode(hw.analogize(nn.Dense(COLUMNS, use_bias=False), hardware))
    params = hw.adopt(analog, {"kernel": kernel()}, jnp.ones((1, ROWS)))

    def call(params, x, key):
        return analog.apply({"params": params}, x, rngs={"mismatch": key})

    return jax.jit(call), params


def nnx_model(hardware):
    plain = nnx.Linear(ROWS, COLUMNS, use_bias=False, rngs=nnx.Rngs(0))
    plain.kernel[...] = kernel()
    return hw.analogize(plain, hardware, rngs=nnx.Rngs(mismatch=1))


call_nnx = nnx.jit(lambda model, x: model(x))


def weights_of(call, params, examples, key=KEY):
    """Reads the weights of every example, by identity matrices."""
    x = jnp.broadcast_to(jnp.eye(ROWS), (examples, ROWS, ROWS))
    return np.asarray(call(params, x, key))


# The other types use the same path, through the modifier's own call.
SOME = ("mult_normal", "discretize", "pcm_noise", "copy")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(o, marks=[] if o["type"] in SOME else pytest.mark.nightly)
        for o in EVERY_TYPE
    ],
    ids=lambda o: str(list(o.values())),
)
def test_every_type_draws_for_each_example(options):
    modifier = Modifier(**options, per_batch_sample=True)
    call, params = linen(hw.Hardware(modifier=modifier))
    drawn = weights_of(call, params, 3)
    assert not (drawn[0] == drawn[1]).all()
    assert not (drawn[1] == drawn[2]).all()
    # The draws have the distribution of the modifier on the whole matrix.
    values, kept = np.unique(drawn.round(4)), np.asarray(kernel())
    if "pdrop" in options:
        assert 0.0 in values
        assert set(values) <= {0.0, *np.unique(kept.round(4))}
    if options["type"] == "discretize":
        step = np.abs(kept).max() / 2
        np.testing.assert_allclose(drawn / step, np.round(drawn / step), atol=1e-5)
        assert (np.abs(drawn - kept) <= step * 1.0001).all()


def test_draws_of_examples_have_the_moments_of_the_modifier():
    modifier = Modifier(type="add_normal", std_dev=0.1, per_batch_sample=True)
    call, params = linen(hw.Hardware(modifier=modifier))
    examples = 2000
    noise = weights_of(call, params, examples) - np.asarray(kernel())
    sigma, n = 0.1 * np.abs(kernel()).max(), noise.size
    assert abs(noise.mean()) < Z * sigma / np.sqrt(n)
    assert abs(noise.std() - sigma) < Z * sigma / np.sqrt(2 * n)
    pairs = (noise[1:] * noise[:-1]).mean() / sigma**2
    assert abs(pairs) < Z / np.sqrt(n)


def test_chunks_change_neither_values_nor_gradients(retraced):
    modifier = Modifier(type="add_normal", std_dev=0.1, per_batch_sample=True)
    x = jax.random.normal(jax.random.key(5), (7, 2, ROWS))

    def loss_and_gradients():
        call, params = linen(hw.Hardware(modifier=modifier))
        loss = lambda p, x: (call(p, x, KEY) ** 2).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)

    whole = loss_and_gradients()
    retraced.setattr(example_weights, "LARGEST_CHUNK", 3 * ROWS * COLUMNS)
    jax.clear_caches()
    chunked = loss_and_gradients()
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_that_at_the_drawn_weights():
    modifier = Modifier(type="mult_normal", std_dev=0.3, per_batch_sample=True)
    call, params = linen(hw.Hardware(modifier=modifier))
    drawn = weights_of(call, params, 4)
    x = jax.random.normal(jax.random.key(5), (4, 2, ROWS))
    d = jax.random.normal(jax.random.key(6), (4, 2, COLUMNS))
    y, back = jax.vjp(lambda p, x: call(p, x, KEY), params, x)
    d_params, d_x = back(d)
    np.testing.assert_allclose(y, np.einsum("bti,bij->btj", x, drawn), rtol=1e-5)
    by_hand = np.einsum("btj,bij->bti", d, drawn)
    np.testing.assert_allclose(d_x, by_hand, rtol=1e-4, atol=1e-5)
    straight_through = np.einsum("bti,btj->ij", x, d)
    np.testing.assert_allclose(
        d_params["kernel"], straight_through, rtol=1e-4, atol=1e-5
    )


def test_an_example_keeps_its_weights_over_calls_of_a_step():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(COLUMNS, use_bias=False)
            return layer(x), layer(2 * x)

    modifier = Modifier(type="add_normal", std_dev=0.1, per_batch_sample=True)
    analog = hw.analogize(Twice(), hw.Hardware(modifier=modifier))
    x = jnp.ones((2, ROWS))
    variables = jax.jit(analog.init)(KEY, x)
    first, second = jax.jit(analog.apply)(variables, x, rngs={"mismatch": KEY})
    np.testing.assert_allclose(2 * first, second, rtol=1e-6)


@pytest.mark.parametrize("per", ["per_batch_sample", "per_vector"])
def test_both_frameworks_draw_the_same_and_only_when_they_should(per):
    modifier = Modifier(type="add_normal", std_dev=0.2, **{per: True})
    hardware = hw.Hardware(modifier=modifier)
    model = nnx_model(hardware)
    x = jax.random.normal(jax.random.key(5), (4, ROWS))
    y = call_nnx(model, x)
    clean = x @ kernel()
    assert float(jnp.abs(y - clean).max()) > 0.05
    call, params = linen(hardware)
    key = nnx.Rngs(mismatch=1)["mismatch"]()
    np.testing.assert_allclose(call(params, x, key), y, rtol=1e-5, atol=1e-6)
    for mode in (hw.chip_mode, hw.eval_mode):
        call, params = linen(hardware, mode)
        np.testing.assert_allclose(call(params, x, KEY), clean, rtol=1e-5, atol=1e-6)
    (row,) = hw.inspect(model).rows
    assert row["weight noise"] == f"add_normal 0.2, {per} (train)"


def test_chip_mode_draws_for_each_example_if_told():
    modifier = Modifier(
        type="add_normal", std_dev=0.1, per_batch_sample=True, enable_during_test=True
    )
    call, params = linen(hw.Hardware(modifier=modifier), hw.chip_mode)
    drawn = weights_of(call, params, 2)
    assert not (drawn[0] == drawn[1]).any()


def test_draws_for_each_example_go_through_range_tiles_and_converters():
    hardware = hw.Hardware(
        modifier=Modifier(type="add_normal", std_dev=0.1, per_batch_sample=True),
        input_range=hw.InputRangeParameter(init_value=1.0),
        forward=IOParameters(inp_bits=8, out_noise=0.01),
        mapping=hw.MappingParameter(max_input_size=4, weight_scaling_omega=1.0),
    )
    call, params = linen(hardware)
    x = jnp.broadcast_to(jnp.linspace(-2.0, 2.0, ROWS), (5, ROWS))
    grads, y = jax.jit(
        jax.grad(lambda p: (lambda y: (y.sum(), y))(call(p, x, KEY)), has_aux=True)
    )(params)
    # Equal inputs: the outputs differ by the draws of weights and of output noise.
    assert np.unique(np.asarray(y), axis=0).shape[0] == 5
    counts = np.asarray(grads["probe"])[..., :2] / PROBE_SCALE
    np.testing.assert_array_equal(counts[:, 0], [[15, 5], [15, 5]])


MAPPING = hw.MappingParameter(
    max_input_size=4, weight_scaling_omega=1.0, weight_scaling_columnwise=True
)


@pytest.mark.sampled
@pytest.mark.parametrize("mapping", [None, MAPPING], ids=["whole", "tiles"])
@pytest.mark.parametrize(
    "options",
    [
        {"type": "add_normal", "std_dev": 0.1},
        {"type": "add_normal", "std_dev": 0.1, "per_column": True},
        {"type": "mult_normal", "std_dev": 0.1},
        {"type": "poly", "std_dev": 0.5, "coeffs": (0.1, 0.2)},
        {
            "type": "add_normal",
            "std_dev": 0.1,
            "rel_to_actual_wmax": False,
            "assumed_wmax": 3.0,
        },
    ],
    ids=lambda o: str(list(o.values())),
)
def test_noise_per_vector_has_the_moments_of_drawn_weights(options, mapping):
    modifier = Modifier(**options, per_vector=True)
    call, params = linen(hw.Hardware(modifier=modifier, mapping=mapping))
    n = 4000
    x = np.linspace(-1.0, 2.0, ROWS, dtype=np.float32)
    noise = np.asarray(call(params, jnp.broadcast_to(x, (n, ROWS)), KEY)) - x @ kernel()
    variance = np.zeros(COLUMNS)
    w = np.asarray(kernel(), np.float64)
    for rows in [slice(0, 6)] if mapping is None else [slice(0, 3), slice(3, 6)]:
        # The scale divides a column by its largest weight.
        s = 1.0 if mapping is None else np.abs(w[rows]).max(0)
        v = w[rows] / s
        a = np.abs(v).max(0 if options.get("per_column") else None)
        a = options.get("assumed_wmax", a)
        sigma = {
            "add_normal": np.broadcast_to(a, v.shape),
            "mult_normal": np.abs(v),
            "poly": a * (0.1 + 0.2 * np.abs(v) / a),
        }[options["type"]]
        variance += (x[rows] ** 2) @ (options["std_dev"] * sigma * s) ** 2
    deviation = np.sqrt(variance)
    assert (np.abs(noise.mean(0)) < Z * deviation / np.sqrt(n)).all()
    assert (np.abs(noise.std(0) - deviation) < Z * deviation / np.sqrt(2 * n)).all()
    correlation = np.corrcoef(noise.T)[np.triu_indices(COLUMNS, 1)]
    assert (np.abs(correlation) < Z / np.sqrt(n)).all()


def test_the_gradient_of_noise_per_vector_is_the_conditional_mean():
    # Given the output, the noise of row i is x_i / |x| of it, in the mean.
    modifier = Modifier(type="add_normal", std_dev=0.2, per_vector=True)
    call, params = linen(hw.Hardware(modifier=modifier))
    x = jax.random.normal(jax.random.key(5), (4, ROWS)).at[0].set(0.0)
    d = jax.random.normal(jax.random.key(6), (4, COLUMNS))
    y, back = jax.vjp(lambda p, x: call(p, x, KEY), params, x)
    d_params, d_x = back(d)
    w, x = np.asarray(kernel()), np.asarray(x)
    length = np.maximum((x**2).sum(-1, keepdims=True), 1e-30)
    noise = np.asarray(y) - x @ w
    given_y = d @ w.T + (d * noise).sum(-1, keepdims=True) * x / length
    np.testing.assert_allclose(d_x, given_y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(d_params["kernel"], x.T @ d, rtol=1e-4, atol=1e-5)


def test_that_mean_is_the_mean_of_the_gradients_of_drawn_weights():
    # For a loss that is not linear, the gradients agree in the mean over draws.
    n = 4000
    x = jnp.broadcast_to(jnp.linspace(-1.0, 2.0, ROWS), (n, ROWS))
    means, errors = [], []
    for per in ("per_batch_sample", "per_vector"):
        modifier = Modifier(type="add_normal", std_dev=0.2, **{per: True})
        call, params = linen(hw.Hardware(modifier=modifier))
        y, back = jax.vjp(functools.partial(call, params, key=KEY), x)
        gradient = np.asarray(back(2 * y)[0])  # of the sum of squares
        means.append(gradient.mean(0))
        errors.append(gradient.std(0) / np.sqrt(n))
    assert (np.abs(means[0] - means[1]) < Z * np.hypot(*errors)).all()
    assert (errors[1] < errors[0]).all()


def test_a_parameter_that_a_rule_names_has_no_inputs():
    modifier = Modifier(type="add_normal", std_dev=0.1, per_vector=True)
    rule = hw.Rule(params="kernel", hardware=hw.Hardware(modifier=modifier))
    with pytest.raises(ValueError, match="only a layer can have"):
        hw.analogize(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), [rule])


@pytest.mark.parametrize("per_batch_sample", [False, True])
def test_the_last_input_is_copied_in_both_frameworks(per_batch_sample):
    modifier = Modifier(
        type="add_normal",
        std_dev=0.1,
        copy_last_column=True,
        per_batch_sample=per_batch_sample,
    )
    hardware = hw.Hardware(modifier=modifier)
    call, params = linen(hardware)
    x = jnp.eye(ROWS)[None]
    for w in (call(params, x, KEY)[0], call_nnx(nnx_model(hardware), x)[0]):
        np.testing.assert_allclose(w[-1], kernel()[-1], rtol=1e-6)
        assert (np.asarray(w[:-1]) != np.asarray(kernel()[:-1])).all()


@pytest.mark.parametrize("name", ["W45", "W_ASYM"])
def test_the_last_input_agrees_with_the_c_engine(name, golden):
    # Its step is A * res, half of ours, and it rounds half away from zero.
    cases = golden("aihwkit_weights")["modifier_cpp"]
    case = cases[f"discretize_res0.25_copy_last_column/{name}"]
    w, out = np.float32(case["w"]).T, np.float32(case["out"]).T
    modifier = Modifier(type="discretize", res=0.125, copy_last_column=True)
    plain = nnx.Linear(*w.shape, use_bias=False, rngs=nnx.Rngs(0))
    plain.kernel[...] = jnp.asarray(w)
    model = hw.analogize(plain, hw.Hardware(modifier=modifier))
    tie = np.abs(np.abs(w / (np.abs(w[:-1]).max() * 0.25)) % 1 - 0.5) < 1e-4
    tie[-1] = False
    ours = np.asarray(call_nnx(model, jnp.eye(len(w))))
    np.testing.assert_allclose(ours[~tie], out[~tie], atol=1e-6)


@pytest.mark.parametrize("per", ["per_batch_sample", "per_vector"])
def test_a_convolution_draws_for_each_example_or_each_position(per):
    modifier = Modifier(type="add_normal", std_dev=0.1, **{per: True})
    hardware = hw.Hardware(modifier=modifier)
    x = jnp.ones((4, 9, 3))
    plain = nnx.Conv(3, 2, (3,), padding="VALID", use_bias=False, rngs=nnx.Rngs(0))
    model = hw.analogize(plain, hardware, rngs=nnx.Rngs(mismatch=1))
    layer = nn.Conv(2, (3,), padding="VALID", use_bias=False)
    params = {"kernel": plain.kernel[...]}
    analog = hw.analogize(layer, hardware)
    clean = jax.jit(layer.apply)({"params": params}, x)
    noisy = jax.jit(analog.apply)({"params": params}, x, rngs={"mismatch": KEY})
    for y in (noisy, call_nnx(model, x)):
        noise = np.asarray(y - clean)
        assert (noise[0] != noise[1]).all()
        # All positions of these examples see the same vector.
        alike = np.isclose(noise, noise[:, :1], rtol=1e-4, atol=1e-6)
        assert alike.all() if per == "per_batch_sample" else not alike[:, 1:].any()
