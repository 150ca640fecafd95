"""Analog convolutions in both frameworks, against Flax and hand calculations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._flax.functional import as_function
from hwtrain.periphery._range_gradient import PROBE_SCALE

# All stages are on, but ideal except for rounding.
NEAR = hw.Hardware(
    input_range=hw.InputRangeParameter(init_value=64.0),
    forward=hw.IOParameters(out_noise=1e-9),
    mapping=hw.MappingParameter(
        max_input_size=7,
        max_output_size=3,
        weight_scaling_omega=1.0,
        weight_scaling_columnwise=True,
    ),
)
# No converter between the clipping and the multiplication.
RANGED = hw.Hardware(input_range=hw.InputRangeParameter(init_value=64.0))

MASK = (np.arange(2 * 3 * 4).reshape(2, 3, 4) % 3 > 0).astype(np.float32)

CONV = {
    "1d": ((2, 8, 3), 4, 3, {}),
    "2d strided": ((2, 6, 5, 3), 4, (3, 2), {"strides": (2, 1), "padding": "VALID"}),
    "3d": ((1, 3, 4, 3, 2), 3, (2, 1, 2), {"padding": ((1, 0), (0, 0), (0, 1))}),
    "circular": ((2, 5, 4, 3), 4, (3, 4), {"padding": "CIRCULAR", "strides": 2}),
    "causal": ((2, 8, 3), 4, (3,), {"padding": "CAUSAL", "kernel_dilation": 2}),
    "reflect": ((2, 6, 5, 3), 4, (3, 3), {"padding": "REFLECT"}),
    "groups": ((2, 5, 5, 6), 8, (3, 3), {"feature_group_count": 2}),
    "depthwise": ((2, 6, 4), 8, (3,), {"feature_group_count": 4, "strides": 2}),
    "dilated": (
        (2, 5, 4, 2),
        3,
        (2, 2),
        {"input_dilation": (2, 1), "kernel_dilation": (1, 2), "padding": 1},
    ),
    "masked": ((2, 6, 3), 4, (2,), {"mask": MASK, "use_bias": False}),
    "unbatched": ((6, 5, 3), 4, (3, 3), {}),
    "batches": ((2, 3, 6, 3), 4, (3,), {"padding": [2]}),
}
TRANSPOSE = {
    "same": ((2, 5, 3), 4, (3,), {"strides": (2,)}),
    "valid": ((2, 4, 3, 3), 4, (2, 3), {"padding": "VALID", "strides": (1, 2)}),
    "flipped": ((2, 5, 3), 4, (4,), {"transpose_kernel": True, "strides": (3,)}),
    "circular": (
        (2, 4, 3, 3),
        4,
        (3, 5),
        {"padding": "CIRCULAR", "strides": (2, 2), "transpose_kernel": True},
    ),
    "wrapped": ((1, 4, 2), 3, (6,), {"padding": "CIRCULAR", "strides": (3,)}),
    "padded": ((5, 3), 4, (3,), {"padding": ((2, 1),), "kernel_dilation": (2,)}),
}
LOCAL = {
    "1d": ((2, 6, 3), 4, (3,), {"strides": 2}),
    "2d": ((2, 4, 4, 2), 3, (2, 2), {"padding": "CIRCULAR", "use_bias": False}),
    "unbatched": ((5, 2), 3, (2,), {"kernel_dilation": 2, "padding": "VALID"}),
    "masked": (
        (2, 3, 2),
        2,
        (2,),
        {"padding": "VALID", "mask": MASK.ravel()[:16].reshape(2, 4, 2)},
    ),
}
LAYERS = {
    **{f"Conv {name}": case for name, case in CONV.items()},
    **{f"ConvTranspose {name}": case for name, case in TRANSPOSE.items()},
    **{f"ConvLocal {name}": case for name, case in LOCAL.items()},
}
CASES = [
    (framework, name)
    for name in LAYERS
    for framework in ("linen", "nnx")
    if not (framework == "nnx" and name.startswith("ConvLocal"))
]
# Both frameworks share the arithmetic: what differs is how each is asked.
SHORT = [
    ("linen", "Conv 1d"),
    ("nnx", "Conv 2d strided"),
    ("linen", "Conv 3d"),
    ("nnx", "Conv circular"),
    ("linen", "Conv causal"),
    ("linen", "Conv reflect"),
    ("nnx", "Conv groups"),
    ("linen", "Conv depthwise"),
    ("nnx", "Conv dilated"),
    ("linen", "Conv masked"),
    ("nnx", "Conv masked"),
    ("nnx", "Conv unbatched"),
    ("linen", "Conv batches"),
    ("linen", "ConvTranspose same"),
    ("nnx", "ConvTranspose valid"),
    ("nnx", "ConvTranspose flipped"),
    ("linen", "ConvTranspose circular"),
    ("linen", "ConvTranspose padded"),
    ("linen", "ConvLocal 2d"),
    ("linen", "ConvLocal unbatched"),
    ("linen", "ConvLocal masked"),
]
PARITY = [
    pytest.param(*case, marks=() if case in SHORT else pytest.mark.nightly)
    for case in CASES
]


def build(framework, name, **more):
    """Returns a plain layer, its parameters and an input."""
    shape, features, sizes, options = LAYERS[name]
    options = {**options, **more}
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    kind = name.split()[0]
    if framework == "linen":
        layer = getattr(nn, kind)(features, sizes, **options)
        return layer, jax.jit(layer.init)(jax.random.key(1), x)["params"], x
    layer = getattr(nnx, kind)(shape[-1], features, sizes, rngs=nnx.Rngs(1), **options)
    return layer, nnx.to_pure_dict(nnx.state(layer, nnx.Param)), x


def function(layer, params, hardware=None, mode="train", x=None):
    """Returns the layer as `f(params, x, key)`, plain or analog, and its parameters."""
    if hardware is None:
        if isinstance(layer, nn.Module):
            return lambda p, x, key: layer.apply({"params": p}, x), params
        graph, state = nnx.split(layer)

        def plain(p, x, key):
            filled = jax.tree.map(lambda leaf: leaf, state)
            nnx.replace_by_pure_dict(filled, p)
            return nnx.merge(graph, filled)(x)

        return plain, params
    analog = hw.analogize(layer, hardware)
    if isinstance(layer, nn.Module):
        params = hw.adopt(analog, params, x)
    run, variables = as_function(
        analog, mode, params if isinstance(layer, nn.Module) else None
    )
    rest = {k: v for k, v in variables.items() if k != "params"}
    return (lambda p, x, key: run({"params": p, **rest}, key, x)), variables["params"]


def loss(run):
    def value(params, x, key):
        y = run(params, x, key).astype(jnp.float32)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

    return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("framework", "name"), PARITY)
def test_a_nearly_ideal_layer_is_the_plain_one(framework, name):
    layer, params, x = build(framework, name)
    key = jax.random.key(2)
    plain, _ = function(layer, params)
    run, more = function(layer, params, NEAR, x=x)
    assert more.keys() - params.keys() == {"input_range", "probe"}
    both = jax.jit(lambda p, q, x, key: (plain(p, x, key), run(q, x, key)))
    expected, y = both(params, more, x, key)
    assert y.shape == expected.shape and y.dtype == expected.dtype
    top = float(np.abs(expected).max())
    np.testing.assert_allclose(y, expected, atol=4e-6 * top)


GRADIENTS = [
    ("linen", "Conv depthwise"),
    ("nnx", "ConvTranspose flipped"),
    ("linen", "ConvLocal 1d"),
]


@pytest.mark.parametrize(
    ("framework", "name"),
    [
        pytest.param(*case, marks=() if case in GRADIENTS else pytest.mark.nightly)
        for case in CASES
    ],
)
def test_gradients_of_a_nearly_ideal_layer_are_the_plain_ones(framework, name):
    layer, params, x = build(framework, name)
    plain, _ = function(layer, params)
    _, (d_params, d_x) = loss(plain)(params, x, None)
    run, more = function(layer, params, NEAR, x=x)
    _, (ours, ours_x) = loss(run)(more, x, jax.random.key(2))
    top = float(np.abs(d_x).max())
    np.testing.assert_allclose(ours_x, d_x, atol=1e-5 * top)
    for leaf, d in d_params.items():
        top = float(np.abs(d).max())
        np.testing.assert_allclose(ours[leaf], d, atol=1e-5 * top, err_msg=leaf)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("Conv circular", "train"),
        ("Conv groups", "eval"),
        ("ConvTranspose flipped", "eval"),
        ("ConvLocal 1d", "train"),
    ],
)
def test_a_wide_range_alone_changes_nothing(name, mode):
    layer, params, x = build("linen", name)
    plain, _ = function(layer, params)
    run, more = function(layer, params, RANGED, mode, x=x)
    both = jax.jit(lambda p, q, x, key: (plain(p, x, None), run(q, x, key)))
    expected, y = both(params, more, x, jax.random.key(2))
    top = float(np.abs(expected).max())
    np.testing.assert_allclose(y, expected, atol=4e-6 * top)


@pytest.mark.parametrize(
    ("framework", "name"), [("linen", "ConvTranspose same"), ("nnx", "Conv groups")]
)
def test_bfloat16_stays_bfloat16(framework, name):
    layer, params, x = build(framework, name, dtype=jnp.bfloat16)
    plain, _ = function(layer, params)
    run, more = function(layer, params, NEAR, x=x)
    (_, expected), (d_params, _) = loss(plain)(params, x, None)
    (_, y), (ours, _) = loss(run)(more, x, jax.random.key(2))
    run_shape = jax.eval_shape(run, more, x, jax.random.key(2))
    assert run_shape.dtype == jnp.bfloat16
    # A bfloat16 has 8 bits; both round the inputs, the weights and the result.
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(y, expected, atol=3 * 2**-8 * scale)
    for leaf, d in d_params.items():
        assert ours[leaf].dtype == d.dtype == jnp.float32


def test_bfloat16_sums_of_tiles_are_rounded_once():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 32))
    layer = nn.Conv(16, (3, 3), dtype=jnp.bfloat16)
    outputs = []
    for rows in (None, 96, 48):
        tiles = hw.MappingParameter(max_input_size=rows, max_output_size=None)
        wide = hw.InputRangeParameter(init_value=100.0, init_from_data=0)
        analog = hw.analogize(layer, hw.Hardware(mapping=tiles, input_range=wide))
        variables = analog.init(jax.random.key(1), x)
        outputs.append(np.asarray(hw.eval_mode(analog).apply(variables, x), np.float32))
    for tiled in outputs[1:]:  # half of the numbers would differ otherwise
        assert (tiled != outputs[0]).mean() < 0.02


# --- Numbers by hand ---------------------------------------------------------------


def split(size, limit):
    pieces = -(-size // limit)
    sizes = [size // pieces + (i < size % pieces) for i in range(pieces)]
    return np.split(np.arange(size), np.cumsum(sizes)[:-1])


def rounded(x, bound, res):
    step = 2 * bound * res
    return np.clip(np.round(x / step) * step, -bound, bound)


def crossbar(x, w, limits, r, io):
    """One vector through the tiles of one matrix: DAC, multiplication, ADC."""
    y = np.zeros(w.shape[1])
    for j, columns in enumerate(split(w.shape[1], limits[1])):
        for i, rows in enumerate(split(w.shape[0], limits[0])):
            tile = w[np.ix_(rows, columns)]
            scale = np.abs(w[rows]).max(0)[columns]  # of each column, omega 1
            inputs = np.clip(x[rows], -r[i, j], r[i, j]) / r[i, j]
            inputs = rounded(inputs, 1.0, io.inp_res)
            outputs = rounded(inputs @ (tile / scale), io.out_bound, io.out_res)
            y[columns] += outputs * scale * r[i, j]
    return y


IO = hw.IOParameters(inp_bound=1.0, inp_res=1 / 14, out_bound=3.0, out_res=1 / 62)
CONVERTERS = hw.Hardware(
    input_range=hw.InputRangeParameter(init_value=0.9),
    forward=IO,
    mapping=hw.MappingParameter(
        max_input_size=5,
        max_output_size=2,
        weight_scaling_omega=1.0,
        weight_scaling_columnwise=True,
    ),
)


@pytest.mark.parametrize(
    ("framework", "mode"), [("linen", "train"), ("nnx", "chip"), ("nnx", "eval")]
)
def test_converters_see_each_window_on_each_tile(framework, mode):
    # Two groups of 2 channels and 3 outputs; window of 2x2; stride 2; zeros around.
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    options = {"strides": 2, "padding": ((1, 0), (1, 1)), "feature_group_count": 2}
    if framework == "linen":
        layer = nn.Conv(6, (2, 2), **options)
        params = jax.jit(layer.init)(jax.random.key(1), x)["params"]
    else:
        layer = nnx.Conv(4, 6, (2, 2), rngs=nnx.Rngs(1), **options)
        params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    run, params = function(layer, params, CONVERTERS, mode, x=x)
    r = rng.uniform(0.5, 1.2, params["input_range"].shape).astype(np.float32)
    assert r.shape == (2, 2, 2)  # groups, row tiles of 8 rows, column tiles of 3
    params = {**params, "input_range": jnp.asarray(r)}
    y = jax.jit(run)(params, x, jax.random.key(2))

    kernel = np.asarray(params["kernel"], np.float64)  # [2, 2, 2, 6]
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 0), (1, 1), (0, 0)))
    expected = np.zeros((2, 2, 3, 6))
    for n, i, j, g in np.ndindex(2, 2, 3, 2):
        window = padded[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, 2 * g : 2 * g + 2]
        vector = window.transpose(2, 0, 1).ravel()  # channels first, then taps
        matrix = kernel[..., 3 * g : 3 * g + 3].transpose(2, 0, 1, 3).reshape(8, 3)
        out = crossbar(vector, matrix, (5, 2), r[g].astype(np.float64), IO)
        expected[n, i, j, 3 * g : 3 * g + 3] = out
    np.testing.assert_allclose(y, expected + np.asarray(params["bias"]), atol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("limit", [512, 4])
@pytest.mark.parametrize("name", ["Conv depthwise", "Conv 2d strided"])
def test_statistics_count_what_the_rows_see(name, limit):
    hardware = hw.Hardware(
        input_range=hw.InputRangeParameter(init_value=0.7),
        mapping=hw.MappingParameter(max_input_size=limit),
    )
    layer, params, x = build("linen", name)
    run, params = function(layer, params, hardware, x=x)
    (_, y), (d_params, d_x) = loss(run)(params, x, jax.random.key(2))

    # By hand: every window of every output position, with the zeros it sees.
    shape, features, sizes, options = LAYERS[name]
    groups = options.get("feature_group_count", 1)
    strides = np.broadcast_to(options["strides"], len(sizes))
    kernel = np.asarray(params["kernel"], np.float64)
    x = np.asarray(x, np.float64)
    if "padding" not in options:  # SAME
        total = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, s, k in zip(shape[1:-1], strides, sizes)
        ]
        around = [(t // 2, t - t // 2) for t in total]
        x = np.pad(x, ((0, 0), *around, (0, 0)))
    d_y = np.cos(np.arange(y.size)).reshape(y.shape)
    d_y = d_y.reshape(*y.shape[:-1], groups, -1)
    width = kernel.shape[-2]
    sums = np.zeros(params["probe"].shape)
    d_range = np.zeros(params["input_range"].shape)
    for n, *at, g in np.ndindex(*y.shape[:-1], groups):
        box = tuple(slice(i * s, i * s + k) for i, s, k in zip(at, strides, sizes))
        window = x[(n, *box)][..., g * width : (g + 1) * width]
        vector = np.moveaxis(window, -1, 0).ravel()
        matrix = kernel.reshape(*kernel.shape[:-1], groups, -1)[..., g, :]
        matrix = np.moveaxis(matrix, -2, 0).reshape(vector.size, -1)
        d = matrix @ d_y[(n, *at, g)]
        for i, rows in enumerate(split(vector.size, limit)):
            v, d_v = vector[rows], d[rows]
            place = (g, i, 0) if groups > 1 else (i, 0)
            inside = np.abs(v) < 0.7
            sums[place][:4] += [
                v.size,
                inside.sum(),
                v.sum() / 0.7,
                (v**2).sum() / 0.49,
            ]
            d_range[place] += 0.7 * np.minimum(d_v[v >= 0.7], 0).sum()
            d_range[place] -= 0.7 * np.maximum(d_v[v <= -0.7], 0).sum()
    np.testing.assert_allclose(d_params["probe"] / PROBE_SCALE, sums, atol=2e-4)
    np.testing.assert_allclose(d_params["input_range"], d_range, rtol=2e-5, atol=1e-5)
    assert (d_range < 0).any()


@pytest.mark.parametrize("limit", [512, 5])
@pytest.mark.parametrize("name", ["Conv circular", "Conv causal", "Conv reflect"])
def test_statistics_count_a_border_once(name, limit):
    hardware = hw.Hardware(
        input_range=hw.InputRangeParameter(init_value=0.7),
        mapping=hw.MappingParameter(max_input_size=limit),
    )
    layer, params, x = build("linen", name)
    run, params = function(layer, params, hardware, x=x)
    (_, y), (d_params, _) = loss(run)(params, x, jax.random.key(2))

    # The same windows, over an input that has been extended by hand.
    _, features, sizes, options = LAYERS[name]
    steps = np.broadcast_to(options.get("kernel_dilation", 1), len(sizes))
    spans = [(size - 1) * step for size, step in zip(sizes, steps)]
    mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}.get(options["padding"])
    ends = [(n // 2, n - n // 2) if mode else (n, 0) for n in spans]
    wide = jnp.pad(x, ((0, 0), *ends, (0, 0)), mode=mode or "constant")
    valid = nn.Conv(features, sizes, **{**options, "padding": "VALID"})
    run, _ = function(valid, params, hardware, x=wide)
    (_, expected), (wanted, _) = loss(run)(params, wide, jax.random.key(2))
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for leaf in ("probe", "input_range"):
        top = float(np.abs(wanted[leaf]).max())
        np.testing.assert_allclose(d_params[leaf], wanted[leaf], atol=1e-5 * top)
    counts = np.asarray(d_params["probe"])[..., 0].sum() / PROBE_SCALE
    rows = np.prod(params["kernel"].shape[:-1])
    assert counts == y.size // features * rows


# --- Draws -------------------------------------------------------------------------

NOISY = hw.Hardware(
    modifier=hw.WeightModifierParameter(
        type="add_normal", std_dev=0.1, per_column=True
    ),
    input_range=hw.InputRangeParameter(init_value=1.5),
    forward=hw.IOParameters(out_noise=0.05, w_noise=0.02, w_noise_type="pcm_read"),
    mapping=hw.MappingParameter(max_input_size=8, weight_scaling_omega=1.0),
)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("framework", "name"),
    [
        ("nnx", "Conv groups"),
        ("linen", "ConvTranspose same"),
        ("linen", "ConvLocal 1d"),
    ],
)
def test_noise_is_fresh_for_each_key_and_gradients_are_finite(framework, name):
    layer, params, x = build(framework, name)
    run, params = function(layer, params, NOISY, x=x)
    step = loss(run)
    keys = jax.random.split(jax.random.key(5), 3)
    (_, first), grads = step(params, x, keys[0])
    (_, again), _ = step(params, x, keys[0])
    (_, other), _ = step(params, x, keys[1])
    np.testing.assert_array_equal(first, again)
    assert np.mean(np.asarray(first) != np.asarray(other)) > 0.99
    for d in jax.tree.leaves(grads):
        assert np.isfinite(np.asarray(d)).all()
    clean, _ = function(layer, params, NOISY, "eval", x=x)
    y = np.asarray(jax.jit(clean)(params, x, keys[0]))
    assert np.abs(y - np.asarray(first)).max() > 1e-3


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv(6, (1,), feature_group_count=3, use_bias=False),
        nn.ConvLocal(2, (1,), use_bias=False),
    ],
    ids=["groups", "positions"],
)
def test_groups_and_positions_draw_their_own(layer):
    # Inputs and weights are equal everywhere, so all differences are noise.
    x = jnp.ones((16, 5, 3))
    analog = hw.analogize(layer, hw.Hardware(forward=hw.IOParameters(out_noise=0.1)))
    params = jax.tree.map(jnp.ones_like, jax.jit(analog.init)(jax.random.key(0), x))
    key = jax.random.key(1)
    y = jax.jit(lambda p: analog.apply(p, x, rngs={"mismatch": key}))(params)
    clean = jax.jit(hw.eval_mode(analog).apply)(params, x)
    assert len(np.unique(clean)) == 1 and len(np.unique(y)) > 0.99 * y.size
    # The standard deviation of N draws is off by sigma / sqrt(2 N).
    noise = np.ravel(y - clean)
    assert abs(noise.std() - 0.1) < 4 * 0.1 / np.sqrt(2 * noise.size)


def test_linen_and_nnx_draw_the_same_weights():
    hardware = hw.Hardware(modifier=NOISY.modifier, mapping=NOISY.mapping)
    layer, params, x = build("linen", "Conv groups")
    ours, _ = function(layer, params, hardware, x=x)
    other, _, _ = build("nnx", "Conv groups")
    theirs, _ = function(other, params, hardware)
    key = jax.random.key(7)
    y = jax.jit(ours)(params, x, key)
    np.testing.assert_allclose(y, jax.jit(theirs)(params, x, key), atol=1e-6)
    clean = jax.jit(layer.apply)({"params": params}, x)
    assert np.abs(np.asarray(y) - np.asarray(clean)).max() > 1e-2


# --- Stacks ------------------------------------------------------------------------


class Stack(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        def body(block, x, _):
            return x + block(x), None

        scan = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        block = nn.Conv(4, (3,), feature_group_count=2, name="block")
        return scan(block, x, None)[0]


def test_every_layer_of_a_scanned_stack_has_its_own_tiles_and_noise():
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    analog = hw.analogize(Stack(3), NOISY)
    params = jax.jit(analog.init)(jax.random.key(1), x)["params"]
    (weight,) = hw.plan(analog, params, x).weights
    assert weight.stack == (3, 2) and weight.parallel == (2,)
    assert params["block"]["input_range"].shape == (3, 2, 1, 1)
    (_, y), grads = loss(
        lambda p, x, key: analog.apply({"params": p}, x, rngs={"mismatch": key})
    )(params, x, jax.random.key(2))
    grads = jax.tree.map(np.asarray, grads)
    for d in jax.tree.leaves(grads):
        assert np.isfinite(d).all()
    assert (grads[0]["block"]["probe"][..., 0] > 0).all()
    same = jax.tree.map(lambda leaf: np.broadcast_to(leaf[:1], leaf.shape), params)
    call = jax.jit(hw.eval_mode(analog).apply)
    one, own = (np.asarray(call({"params": p}, x)) for p in (same, params))
    assert np.abs(one - own).max() > 0.1


class Vmapped(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return nnx.Conv(4, 6, (3,), feature_group_count=2, rngs=rngs)

        self.members = make(rngs)

    def __call__(self, x):
        return nnx.vmap(lambda member, x: member(x), in_axes=(0, None))(self.members, x)


def test_members_of_an_nnx_ensemble_are_the_plain_ones():
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    model = Vmapped(nnx.Rngs(1))
    analog = hw.analogize(model, NEAR, rngs=nnx.Rngs(mismatch=2))
    assert analog.members.input_range.shape == (3, 2, 1, 1)
    call = nnx.jit(lambda model, x: model(x))
    np.testing.assert_allclose(call(analog, x), call(model, x), atol=1e-5)


# --- What stays digital, and why ---------------------------------------------------


def test_what_cannot_be_analog_says_why():
    x = jnp.ones((1, 4, 2))

    class Wrapped(nn.Module):
        inner: nn.Module

        def __call__(self, x):
            return self.inner(x)

    half = np.full((3, 2, 2), 0.5)
    for conv, why in (
        (nn.Conv(2, (3,), mask=half), "other values than 0 and 1"),
        (nn.Conv(2, (3,), conv_general_dilated=jax.lax.conv_general_dilated), "own"),
    ):
        model = Wrapped(conv)
        params = jax.jit(model.init)(jax.random.key(0), x)["params"]
        analog = hw.analogize(model, hw.Hardware(forward=IO))
        with pytest.raises(ValueError, match=why):
            hw.plan(analog, params, x)
    with pytest.raises(ValueError, match="own"):
        hw.analogize(
            nnx.Conv(2, 2, (3,), conv_general_dilated=lambda *a: a, rngs=nnx.Rngs(0)),
            hw.Hardware(forward=IO),
        )


# --- Around the layer --------------------------------------------------------------


def test_calibration_gives_each_group_its_range():
    layer, params, x = build("linen", "Conv groups")
    x = x * jnp.array([1, 1, 1, 5, 5, 5])
    analog = hw.analogize(layer, RANGED)
    found = hw.calibrate(analog, hw.adopt(analog, params, x), [x], method="max")
    expected = [jnp.abs(x[..., :3]).max(), jnp.abs(x[..., 3:]).max()]
    np.testing.assert_allclose(found["input_range"].ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["2d strided", "groups", "depthwise", "dilated"])
@pytest.mark.parametrize("mode", [hw.eval_mode, hw.chip_mode, hw.train_mode])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("converts", [False, True])
def test_gradients_pass_through_clipped_inputs(name, mode, tiled, converts):
    """They are those of Flax's layer at the clipped inputs."""
    shape, features, kernel, options = CONV[name]
    chip = hw.Hardware(
        input_range=hw.InputRangeParameter(init_value=0.7, straight_through=True),
        mapping=hw.MappingParameter(max_input_size=5 if tiled else 512),
        # A constant of 1 divides nothing, but is a stage.
        forward=hw.IOParameters(noise_management="constant") if converts else None,
    )
    x = jax.random.normal(jax.random.key(1), shape)
    plain = nn.Conv(features, kernel, use_bias=False, **options)
    analog = mode(hw.analogize(plain, chip))
    params = analog.init(jax.random.key(0), x)

    def outputs(layer, params, x):
        y = layer.apply(params, x)
        return y, jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y**2)

    clipped = jnp.clip(x, -0.7, 0.7)
    assert (clipped != x).mean() > 0.2
    weights = {"params": {"kernel": params["params"]["kernel"]}}
    y, _ = outputs(plain, weights, clipped)
    expected = jax.grad(lambda x: outputs(plain, weights, x)[1])(clipped)
    for wrap in (lambda f: f, jax.jit):
        found = wrap(jax.grad(lambda x: outputs(analog, params, x)[1]))(x)
        np.testing.assert_allclose(outputs(analog, params, x)[0], y, atol=1e-5)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_clip_and_remap_act_on_each_group():
    chip = hw.Hardware(
        clip=hw.WeightClipParameter(type="layer_gaussian", sigma=1.0),
        remap=hw.WeightRemapParameter(type="channelwise_symmetric"),
    )
    layer, params, x = build("linen", "Conv groups")
    analog = hw.analogize(layer, chip)
    factor = np.repeat(np.float32([1, 9]), 4)
    params = {**params, "kernel": np.asarray(params["kernel"]) * factor}
    params = hw.adopt(analog, params, x)
    plan = hw.plan(analog, params, x)
    tx = optax.chain(hw.optim.keep_weights_clipped(plan), hw.optim.remap_weights(plan))

    @jax.jit
    def step(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(zeros, tx.init(params), params)
        return optax.apply_updates(params, updates)

    after = step(params)
    kernel, scales = np.asarray(params["kernel"]), np.asarray(after["mapping_scale"])
    assert scales.shape == (2, 1, 4)
    for group in range(2):
        w = kernel[..., 4 * group : 4 * group + 4]
        bound = w.std(ddof=1)
        kept = np.asarray(after["kernel"])[..., 4 * group : 4 * group + 4]
        np.testing.assert_allclose(kept, np.clip(w, -bound, bound), rtol=1e-5)
        np.testing.assert_allclose(
            scales[group, 0], abs(kept).max((0, 1, 2)), rtol=1e-5
        )


def test_a_masked_weight_takes_no_part_in_a_scale():
    mapping = hw.MappingParameter(weight_scaling_omega=1.0)
    clip = hw.WeightClipParameter(type="fixed_value", fixed_value=1.0)
    chip = hw.Hardware(mapping=mapping, clip=clip)
    layer, params, x = build("linen", "Conv masked")
    params = {"kernel": jnp.where(MASK > 0, params["kernel"], 100.0)}
    params = hw.adopt(hw.analogize(layer, chip), params, x)
    top = jnp.abs(params["kernel"] * MASK).max()
    np.testing.assert_allclose(params["mapping_scale"], [[top]], rtol=1e-6)


def test_a_traced_mask_of_an_nnx_layer_stays_the_planned_one():
    layer, _, x = build("nnx", "Conv masked", mask=jnp.asarray(MASK))
    analog = hw.analogize(layer, NEAR, rngs=nnx.Rngs(mismatch=1))
    call = nnx.jit(lambda model, x: model(x))
    np.testing.assert_allclose(call(analog, x), call(layer, x), atol=1e-5)


def test_inspect_says_how_the_window_moves():
    layer, params, x = build("linen", "Conv groups", strides=2)
    analog = hw.analogize(layer, NEAR)
    found = hw.inspect(analog, hw.adopt(analog, params, x), x)
    (row,) = found.rows
    assert row["layer"] == "Conv 3x3, stride 2x2, padding SAME, 2 groups"
    assert row["tiles"] == "2 x 4x2 of 7x2, 64% of the limit of 7x3"
    assert found.totals["tiles"] == 16


def test_the_gates_of_a_convolutional_lstm_are_convolutions():
    model = nn.RNN(nn.ConvLSTMCell(features=2, kernel_size=(2, 2)))
    x = jax.random.normal(jax.random.key(0), (1, 3, 3, 3, 2))
    params = jax.jit(model.init)(jax.random.key(1), x)
    analog = hw.analogize(model, NEAR)
    adopted = hw.adopt(analog, params, x)
    assert set(hw.plan(analog, adopted, x)) == {"cell/ih/kernel", "cell/hh/kernel"}
    key = {"mismatch": jax.random.key(2)}
    noise = hw.Hardware(forward=hw.IOParameters(out_noise=0.1))
    noisy = hw.analogize(model, [hw.Rule("cell/ih", noise)])

    @jax.jit
    def outputs(params, adopted):
        return (
            model.apply(params, x),
            analog.apply(adopted, x, rngs=key),
            noisy.apply(params, x, rngs=key),
        )

    expected, y, drawn = map(np.asarray, outputs(params, adopted))
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert (np.abs(drawn - expected) > 1e-4).mean() > 0.9


def test_a_window_that_changes_after_the_plan_is_named():
    chip = hw.Hardware(input_range=hw.InputRangeParameter(init_value=2.0))
    analog = hw.analogize(
        nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), chip, rngs=nnx.Rngs(mismatch=0)
    )
    x = jnp.ones((2, 6, 6, 3))
    assert analog(x).shape == (2, 6, 6, 4)
    analog.strides = (2, 2)
    with pytest.raises(ValueError, match=r"^this analog layer has the window .*2, 2"):
        analog(x)
