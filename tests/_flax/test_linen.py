"""Analog Linen models under every transform: noise is on, fresh and in its place."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import meta
from flax.errors import ScopeParamNotFoundError

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain._arrays.random import draw_key, normal

NOISE = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
NOISY = hw.Hardware(modifier=NOISE)
TILED = hw.Hardware(
    modifier=NOISE,
    input_range=hw.InputRangeParameter(init_value=1.0),
    mapping=hw.MappingParameter(max_input_size=5, max_output_size=3),
)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(4)(nn.LayerNorm()(x))


class Shared(nn.Module):
    def setup(self):
        self.a = nn.Dense(8)
        self.b = nn.Dense(8)

    def __call__(self, x):
        return self.b(self.encode(self.a(x)))

    def encode(self, x):
        return self.a(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.tanh(nn.Dense(8)(x)), None


class Scanned(nn.Module):
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block) if self.remat else Block
        stack = nn.scan(
            block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = stack(name="layers")(x, None)
        return nn.Dense(2)(x)


class Ensemble(nn.Module):
    @nn.compact
    def __call__(self, x):
        members = nn.vmap(
            MLP,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=3,
        )
        return members(name="members")(x)


JittedMLP = nn.jit(MLP)


class Jitted(nn.Module):
    @nn.compact
    def __call__(self, x):
        return JittedMLP(name="inner")(x)


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.broadcast_to(x[:, None], (x.shape[0], 5, x.shape[1]))
        return nn.Dense(2)(nn.RNN(nn.LSTMCell(8))(x))


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        return nn.Dense(4, kernel_init=init)(x)


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(x))


MODELS = {
    "mlp": MLP(),
    "shared": Shared(),
    "scan": Scanned(),
    "scan and remat": Scanned(remat=True),
    "vmap": Ensemble(),
    "class-level jit": Jitted(),
    "recurrent": Recurrent(),
    "boxed": Boxed(),
    "batch norm": Normalized(),
    "one layer": nn.Dense(4),
    "sequential": nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(4)]),
}


# The others are crossed with every layer in test_cross_table.py.
SHORT = ("mlp", "shared", "scan", "vmap", "recurrent")

every_model = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=() if name in SHORT else pytest.mark.nightly,
            id=name.replace(" ", "-"),
        )
        for name in MODELS
    ],
)

X = jax.random.normal(jax.random.key(1), (16, 8))
TOLD = hw.Hardware(modifier=dataclasses.replace(NOISE, enable_during_test=True))


@pytest.fixture
def x():
    return X


def stream(seed):
    return {"mismatch": jax.random.key(seed)}


def differ(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max()) > 1e-3


@functools.cache
def plain_of(name):
    """Returns a model's variables and outputs."""
    variables = jax.jit(MODELS[name].init)(jax.random.key(0), X)
    return variables, jax.jit(MODELS[name].apply)(variables, X)


@functools.cache
def analog_of(name, hardware):
    """Returns an analog model and its variables."""
    analog = hw.analogize(MODELS[name], hardware)
    return analog, jax.jit(analog.init)(jax.random.key(0), X)


def apply(model):
    """Returns the jitted `apply` of a model."""
    return jax.jit(model.apply)


@functools.cache
def mode_of(name, mode):
    """Returns the jitted `apply` of a tiled model in a mode."""
    return apply(mode(analog_of(name, TILED)[0]))


@functools.cache
def step_of(name):
    """Returns `f(variables, key)`, jitted: what a tiled model gives, and gradients."""
    analog, _ = analog_of(name, TILED)

    def loss(params, variables, key):
        bound = {**variables, "params": params}
        y = analog.apply(bound, X, rngs={"mismatch": key})
        return jnp.square(y).mean(), y

    @jax.jit
    def step(variables, key):
        gradient = jax.grad(loss, has_aux=True)
        found, y = gradient(variables["params"], variables, key)
        return y, found

    return step


@pytest.mark.sampled(2)
@every_model
def test_init_keeps_the_users_values_and_adds_leaves_beside_kernels(name):
    plain = paths.leaves(plain_of(name)[0]["params"])
    params = analog_of(name, TILED)[1]["params"]
    leaves = paths.leaves(params)
    for path, value in plain.items():
        np.testing.assert_array_equal(leaves.pop(path), value)
    kernels = {path.rpartition("/")[0] for path in plain if path.endswith("kernel")}
    added = {path.rpartition("/")[0] for path in leaves}
    assert added == kernels
    assert {path.rpartition("/")[2] for path in leaves} == {"input_range", "probe"}
    jax.tree.map(np.testing.assert_array_equal, hw.strip(params), hw.strip(params))
    assert paths.leaves(hw.strip(meta.unbox(params))).keys() == plain.keys()


@pytest.mark.sampled(2)
@every_model
def test_noise_is_on_fresh_per_key_and_reproducible(name):
    step, (_, variables) = step_of(name), analog_of(name, TILED)
    first, again, other = (step(variables, jax.random.key(k))[0] for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert differ(first, other)
    assert step._cache_size() == 1


@every_model
def test_gradients_are_finite_and_feel_the_noise_and_the_range(name):
    step, (_, variables) = step_of(name), analog_of(name, TILED)
    one, two = (
        jax.tree.map(np.asarray, paths.leaves(step(variables, jax.random.key(k))[1]))
        for k in (1, 2)
    )
    for path, value in one.items():
        assert np.isfinite(value).all(), path
        leaf = path.rpartition("/")[2]
        if leaf == "kernel":
            assert differ(1e3 * value, 1e3 * two[path]), path
        if leaf == "probe":
            assert (value[..., 0] > 0).all(), path
            assert (value[..., 1] <= value[..., 0]).all(), path
    probes = [value for path, value in one.items() if path.endswith("probe")]
    ranges = [value for path, value in one.items() if path.endswith("input_range")]
    assert any((value[..., 1] < value[..., 0]).any() for value in probes)
    assert any((value != 0).any() for value in ranges)


@every_model
def test_eval_mode_is_the_plain_model_where_nothing_is_clipped(name, x):
    _, variables = analog_of(name, TILED)
    _, plain = plain_of(name)

    def widened(path, leaf):
        return np.full_like(leaf, 1e6) if path.endswith("input_range") else leaf

    wide = paths.map_leaves(widened, meta.unbox(variables["params"]))
    y = mode_of(name, hw.eval_mode)({**variables, "params": wide}, x, rngs=stream(0))
    np.testing.assert_allclose(y, plain, rtol=1e-5, atol=1e-5)


@every_model
def test_the_range_is_on_in_every_mode(name, x):
    _, variables = analog_of(name, TILED)
    _, plain = plain_of(name)
    for mode in (hw.eval_mode, hw.chip_mode):
        assert differ(mode_of(name, mode)(variables, x, rngs=stream(0)), plain)


@pytest.mark.sampled(2)
@every_model
def test_chip_mode_draws_the_modifier_only_when_told(name, x):
    analog, variables = analog_of(name, NOISY)
    chip = apply(hw.chip_mode(analog))
    outputs = [chip(variables, x, rngs=stream(k)) for k in (1, 2)]
    np.testing.assert_array_equal(*outputs)
    np.testing.assert_array_equal(apply(hw.chip_mode(analog))(variables, x), outputs[0])
    chip = apply(hw.chip_mode(hw.analogize(MODELS[name], TOLD)))
    outputs = [chip(variables, x, rngs=stream(k)) for k in (1, 2)]
    assert differ(*outputs)


@every_model
def test_a_missing_stream_is_an_error_never_the_params_stream(name, x):
    analog, variables = analog_of(name, NOISY)
    for rngs in ({}, {"params": jax.random.key(0)}):
        with pytest.raises(ValueError, match=r'rngs=\{"mismatch": key\} to apply'):
            analog.apply(variables, x, rngs=rngs)


@every_model
def test_plain_parameters_are_an_error_that_points_to_adopt(name, x):
    (plain, _), (analog, fresh) = plain_of(name), analog_of(name, TILED)
    with pytest.raises(ValueError, match="hwtrain.adopt"):
        jax.eval_shape(analog.apply, plain, x, rngs=stream(0))
    adopted = hw.adopt(analog, plain, x)
    assert paths.leaves(adopted).keys() == paths.leaves(fresh).keys()
    np.testing.assert_array_equal(
        *(step_of(name)(v, jax.random.key(0))[0] for v in (adopted, fresh))
    )


@every_model
def test_the_plain_model_stays_plain_after_the_analog_one_ran(name, x):
    variables, before = plain_of(name)
    step_of(name)(analog_of(name, TILED)[1], jax.random.key(0))
    np.testing.assert_array_equal(apply(MODELS[name])(variables, x), before)


def effective_weights(analog, variables, key):
    """Reads a bias-free layer's weights by feeding it the unit vectors."""
    eye = jnp.eye(variables["params"]["kernel"].shape[-2])
    return apply(analog)(variables, eye, rngs={"mismatch": key})


@pytest.mark.sampled
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("rows", [None, 30])
def test_weight_noise_is_the_named_draw_times_the_largest_weight(per_column, rows):
    modifier = hw.WeightModifierParameter(
        type="add_normal", std_dev=0.1, per_column=per_column
    )
    mapping = hw.MappingParameter(max_input_size=rows)
    layer = nn.Dense(40, use_bias=False)
    analog = hw.analogize(layer, hw.Hardware(modifier=modifier, mapping=mapping))
    variables = jax.jit(layer.init)(jax.random.key(0), jnp.ones((1, 50)))
    kernel = variables["params"]["kernel"]
    key = jax.random.key(7, impl=hw.threefry_prng)
    xi = normal(draw_key(key, "kernel", "weight_noise"), kernel.shape)
    tiles = [slice(0, 25), slice(25, 50)] if rows else [slice(0, 50)]
    expected = np.array(kernel)
    for tile in tiles:
        axis = 0 if per_column else None
        w_max = np.abs(kernel[tile]).max(axis=axis, keepdims=True)
        expected[tile] += 0.1 * w_max * xi[tile]
    np.testing.assert_allclose(
        effective_weights(analog, variables, key), expected, rtol=1e-5, atol=1e-6
    )


def test_column_scaling_makes_noise_relative_to_each_column():
    # With a scale per column every column's largest weight is omega, so noise relative
    # to the largest weight of the tile is relative to each column.
    mapping = hw.MappingParameter(
        weight_scaling_omega=0.7, weight_scaling_columnwise=True
    )
    layer = nn.Dense(40, use_bias=False)
    variables = jax.jit(layer.init)(jax.random.key(0), jnp.ones((1, 50)))
    key = jax.random.key(7)
    scaled = hw.analogize(layer, hw.Hardware(modifier=NOISE, mapping=mapping))
    column = hw.WeightModifierParameter(type="add_normal", std_dev=0.1, per_column=True)
    direct = hw.analogize(layer, hw.Hardware(modifier=column))
    np.testing.assert_allclose(
        effective_weights(scaled, variables, key),
        effective_weights(direct, variables, key),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("kind", ["add_normal", "mult_normal"])
def test_the_layers_of_a_stack_have_their_own_noise_and_scale(kind):
    count, rows, columns = 4, 60, 50
    stack = nn.vmap(
        nn.Dense,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=count,
    )(columns, use_bias=False)
    eye = jnp.eye(rows)
    kernel = np.array(jax.jit(stack.init)(jax.random.key(0), eye)["params"]["kernel"])
    kernel *= np.array([1.0, 10.0, 0.1, 3.0])[:, None, None]  # layers of unlike scale
    modifier = hw.WeightModifierParameter(type=kind, std_dev=0.1)
    analog = hw.analogize(stack, hw.Hardware(modifier=modifier))
    noisy = apply(analog)({"params": {"kernel": kernel}}, eye, rngs=stream(3))
    w_max = np.abs(kernel).max((1, 2), keepdims=True)
    unit = (noisy - kernel) / (0.1 * (w_max if kind == "add_normal" else kernel))
    unit = np.asarray(unit).reshape(count, -1)
    size = rows * columns
    np.testing.assert_allclose(unit.std(1), 1, atol=5 / np.sqrt(2 * size))
    correlation = np.corrcoef(unit) - np.eye(count)
    assert np.abs(correlation).max() < 5 / np.sqrt(size)


def test_the_gradient_passes_straight_through_to_the_nominal_weight():
    # Loss <C, W'>: the gradient at the noisy weight is C, and so is the nominal one's.
    layer = nn.Dense(4, use_bias=False)
    analog = hw.analogize(layer, NOISY)
    variables = jax.jit(layer.init)(jax.random.key(0), jnp.ones((1, 6)))
    weights = jax.random.normal(jax.random.key(1), (6, 4))

    def loss(variables):
        noisy = effective_weights(analog, variables, jax.random.key(2))
        return jnp.sum(weights * noisy)

    gradient = jax.jit(jax.grad(loss))(variables)["params"]["kernel"]
    np.testing.assert_allclose(gradient, weights, rtol=1e-6)


def test_batch_statistics_and_captured_intermediates_come_back(x):
    analog = hw.analogize(Normalized(), TILED)
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    rngs = {**stream(1), "dropout": jax.random.key(2)}
    options = {"mutable": ["batch_stats"], "capture_intermediates": True}
    call = functools.partial(analog.apply, train=True, **options)
    _, changed = jax.jit(call)(variables, x, rngs=rngs)
    before, after = variables["batch_stats"], changed["batch_stats"]
    assert differ(*map(lambda s: s["BatchNorm_0"]["mean"], (before, after)))
    assert "intermediates" in changed
    assert not any("noise_key" in path for path in paths.leaves(changed))


@pytest.mark.parametrize("method", ["encode", Shared.encode, lambda m, x: m.encode(x)])
def test_every_public_method_goes_through_both_sides(method, x):
    analog = hw.analogize(Shared(), TILED)
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    call = jax.jit(lambda k: analog.apply(variables, x, method=method, rngs=stream(k)))
    assert differ(call(1), call(2))
    with pytest.raises(ValueError, match="mismatch"):
        analog.apply(variables, x, method=method)


def test_a_layer_called_around_the_root_is_an_error(x):
    analog = hw.analogize(Shared(), NOISY)
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    with pytest.raises(ValueError, match="Shared.a was called without"):
        analog.bind(variables, rngs=stream(0)).a(x)
    with pytest.raises(ValueError, match="Shared.a was called without"):
        analog.apply(variables, x, method=lambda m, x: m.a(x), rngs=stream(0))
    sequential = hw.analogize(MODELS["sequential"], NOISY)
    variables = jax.jit(sequential.init)(jax.random.key(0), x)
    with pytest.raises(ValueError, match="Sequential.layers was called without"):
        sequential.bind(variables, rngs=stream(0)).layers[0](x)


def test_a_bound_model_is_called_printed_and_unbound_as_ever(x):
    analog = hw.analogize(Shared(), NOISY)
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    bound = analog.bind(variables, rngs=stream(0))
    first, second = bound(x), bound(x)
    np.testing.assert_array_equal(first, analog.apply(variables, x, rngs=stream(0)))
    assert (first != second).any()  # as dropout would
    assert "Shared" in repr(bound)
    module, values = bound.unbind()
    np.testing.assert_array_equal(module.apply(values, x, rngs=stream(0)), first)


class Pair(nn.Module):
    left: nn.Module
    right: nn.Module

    def __call__(self, x):
        return self.left(x), self.right(x)


class InlinePair(nn.Module):
    @nn.compact
    def __call__(self, x):
        left = hw.analogize(nn.Dense(8, use_bias=False, name="left"), NOISY)
        right = hw.analogize(nn.Dense(8, use_bias=False, name="right"), NOISY)
        return left(x), right(x)


def layer(name=None):
    return hw.analogize(nn.Dense(8, use_bias=False), NOISY, name=name)


@pytest.mark.parametrize(
    "model", [Pair(layer("left"), layer("right")), Pair(layer(), layer()), InlinePair()]
)
def test_two_analog_models_inside_another_do_not_share_noise(model):
    eye = jnp.eye(8)
    variables = jax.jit(model.init)(jax.random.key(0), eye)
    noisy = apply(model)(variables, eye, rngs=stream(0))
    params = variables["params"]
    draws = [n - params[k]["kernel"] for n, k in zip(noisy, ("left", "right"))]
    correlation = np.corrcoef(np.ravel(draws[0]), np.ravel(draws[1]))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(64)
    assert all(differ(draw, 0) for draw in draws)


class Around(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.inner(x), nn.Dense(3, name="own")(x)


def test_an_analog_model_inside_an_analog_one_is_noisy_once():
    inner = hw.analogize(nn.Dense(40, use_bias=False), NOISY, name="inner")
    outer = hw.analogize(Around(inner), NOISY)
    eye = jnp.eye(50)
    variables = jax.jit(outer.init)(jax.random.key(0), eye)
    assert list(hw.plan(outer, variables, eye, rngs=stream(0))) == ["own/kernel"]
    kernel = variables["params"]["inner"]["kernel"]
    noise = apply(outer)(variables, eye, rngs=stream(0))[0] - kernel
    np.testing.assert_allclose(
        np.std(noise), 0.1 * np.abs(kernel).max(), rtol=5 / np.sqrt(2 * 2000)
    )


def test_equal_models_are_equal_and_share_traces(x):
    first, second = hw.analogize(MLP(), TILED), hw.analogize(MLP(), TILED)
    assert first == second
    assert hash(first) == hash(second)
    assert hw.eval_mode(first) != first
    assert type(first) is type(second)
    assert isinstance(first, MLP)


def test_pickle_and_copy_keep_a_model_analog(x):
    analog = hw.analogize(MLP(), TILED)
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    copied = pickle.loads(pickle.dumps(analog))
    np.testing.assert_array_equal(
        apply(copied)(variables, x, rngs=stream(0)),
        apply(analog)(variables, x, rngs=stream(0)),
    )


def test_a_missing_parameter_is_the_error_of_the_plain_model():
    plain = nn.Dense(3)
    analog = hw.analogize(plain, NOISY)
    x = jnp.ones((2, 4))
    params = {"kernel": jnp.ones((4, 3))}
    for model in (plain, analog):
        with pytest.raises(ScopeParamNotFoundError, match='parameter named "bias"'):
            model.apply({"params": params}, x, rngs={"mismatch": jax.random.key(0)})


@pytest.mark.parametrize("boxed", [True, False])
def test_shapes_are_planned_where_a_mesh_is_set(boxed):
    init = nn.initializers.lecun_normal()
    if boxed:
        init = nn.with_partitioning(init, (None, "model"))
    chip = hw.Hardware(input_range=hw.InputRangeParameter())
    analog, x = hw.analogize(nn.Dense(4, kernel_init=init), chip), jnp.ones((2, 3))
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    alone = hw.plan(analog, jax.eval_shape(analog.init, jax.random.key(0), x), x)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(analog.init, jax.random.key(0), x)
        assert hw.plan(analog, shapes, x) == alone
        assert hw.plan(analog, analog.init(jax.random.key(0), x), x) == alone
