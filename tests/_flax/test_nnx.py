"""Analog NNX models under every transform: noise is on, fresh and in its place."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

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


class Shared(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(8, 8, rngs=rngs)
        self.b = self.a
        self.more = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        x = self.b(self.encode(x))
        for layer in self.more:
            x = layer(x)
        return x

    def encode(self, x):
        return self.a(x)


class Normalized(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.a(x)))


class Scanned(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return nnx.Linear(8, 8, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def step(x, layer):
            return jnp.tanh(layer(x))

        return step(x, self.layers)


class Rematerialized(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return nnx.remat(lambda layer, x: layer(x))(self.a, x)


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(8, 8, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.rnn(jnp.broadcast_to(x[:, None], (x.shape[0], 5, x.shape[1])))


def one_layer(rngs):
    return nnx.Linear(8, 4, rngs=rngs)


MODELS = {
    "shared": Shared,
    "batch norm": Normalized,
    "scan": Scanned,
    "remat": Rematerialized,
    "recurrent": Recurrent,
    "one layer": one_layer,
}


# The others are crossed with every layer in test_cross_table.py.
SHORT = ("shared", "batch norm", "scan", "recurrent")


@pytest.fixture(
    params=[
        pytest.param(
            name,
            marks=() if name in SHORT else pytest.mark.nightly,
            id=name.replace(" ", "-"),
        )
        for name in MODELS
    ]
)
def make(request):
    return MODELS[request.param]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (16, 8))


def analog_of(make, hardware=TILED):
    return hw.analogize(make(nnx.Rngs(0)), hardware, rngs=nnx.Rngs(mismatch=1))


call = nnx.jit(lambda model, x: model(x))
"""One compiled program instead of a hundred; the states of the model come back."""


def differ(a, b):
    return float(jnp.abs(a - b).max()) > 1e-3


def params_of(model):
    return {k: v[...] for k, v in paths.leaves(nnx.state(model, nnx.Param)).items()}


def test_the_users_model_is_untouched_and_paths_are_kept(make, x):
    plain = make(nnx.Rngs(0))
    before = params_of(plain)
    model = hw.analogize(plain, TILED, rngs=nnx.Rngs(mismatch=1))
    assert isinstance(model, type(plain))
    call(model, x)
    assert not hasattr(plain, "hardware_mode")
    own, ours = params_of(plain), params_of(model)
    assert own.keys() == before.keys()
    for path, value in own.items():
        np.testing.assert_array_equal(ours.pop(path), value)
    assert {path.rpartition("/")[2] for path in ours} == {"input_range", "probe"}
    kernels = {path.rpartition("/")[0] for path in own if path.endswith("kernel")}
    assert {path.rpartition("/")[0] for path in ours} == kernels


def test_every_call_advances_the_stream_once_and_draws_anew(make, x):
    model = analog_of(make)
    first, second = call(model, x), call(model, x)
    assert differ(first, second)
    assert model.analog_stream.count[...] == 2
    again = analog_of(make)
    np.testing.assert_array_equal(call(again, x), first)


@pytest.mark.sampled(2)
def test_training_falls_without_recompiling(make, x):
    model = analog_of(make)
    optimizer = nnx.Optimizer(
        model, hw.optim.hardware_aware(optax.adam(1e-2), hw.plan(model)), wrt=nnx.Param
    )
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)
        loss, grads = nnx.value_and_grad(lambda m: jnp.square(m(x) - 0.1).mean())(model)
        optimizer.update(model, grads)
        return loss, grads

    losses = []
    for _ in range(30):
        loss, grads = step(model, optimizer)
        losses.append(float(loss))
    assert len(traces) == 1
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    for path, value in paths.leaves(grads).items():
        assert jnp.isfinite(value[...]).all(), path
        if path.endswith("probe"):
            assert (value[..., 0] > 0).all(), path


def test_train_eval_and_chip_mode(make, x):
    model = analog_of(make)
    model.eval()
    np.testing.assert_array_equal(call(model, x), call(model, x))
    assert hw.train_mode(model) is model
    assert differ(call(model, x), call(model, x))
    hw.chip_mode(model)
    np.testing.assert_array_equal(call(model, x), call(model, x))
    model.train()
    assert differ(call(model, x), call(model, x))
    view = nnx.view(model, deterministic=True)
    assert view.hardware_mode == "eval"


def test_eval_mode_is_the_plain_model_where_nothing_is_clipped(make, x):
    wide = hw.Hardware(
        modifier=NOISE,
        input_range=hw.InputRangeParameter(init_value=1e6),
        mapping=hw.MappingParameter(max_input_size=5, max_output_size=3),
    )
    plain = make(nnx.Rngs(0))
    plain.eval()
    model = hw.eval_mode(hw.analogize(make(nnx.Rngs(0)), wide))
    np.testing.assert_allclose(call(model, x), call(plain, x), rtol=1e-5, atol=1e-5)
    clipped = hw.eval_mode(hw.analogize(make(nnx.Rngs(0)), TILED))
    assert differ(call(clipped, x), call(plain, x))


def test_modes_reach_a_model_inside_another(x):
    class Outer(nnx.Module):
        def __init__(self):
            self.inner = analog_of(one_layer, NOISY)
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.dropout(self.inner(x))

    outer = Outer()
    outer.eval()
    np.testing.assert_array_equal(call(outer, x), call(outer, x))
    outer.train()
    assert differ(call(outer, x), call(outer, x))


def test_a_missing_stream_is_an_error(make, x):
    model = hw.analogize(make(nnx.Rngs(0)), NOISY)
    with pytest.raises(ValueError, match=r"rngs=nnx.Rngs\(mismatch=seed\)"):
        call(model, x)
    with pytest.raises(ValueError, match='stream "mismatch"'):
        hw.analogize(make(nnx.Rngs(0)), NOISY, rngs=nnx.Rngs(0))


def test_statistics_counters_and_captured_values_come_back(x):
    model = analog_of(Normalized)
    mean = model.norm.mean[...]
    call(model, x)
    assert differ(model.norm.mean[...], mean)
    assert model.dropout.rngs.count[...] == 1
    assert not any("noise_key" in path for path in paths.leaves(nnx.state(model)))


class Sowing(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        x = self.a(x)
        self.sow(nnx.Intermediate, "hidden", x)
        return x


def test_captured_values_come_back(x):
    y, captured = nnx.capture(analog_of(Sowing), nnx.Intermediate)(x)
    (hidden,) = jax.tree.leaves(captured)
    np.testing.assert_array_equal(hidden, y)


def test_shared_modules_stay_shared(x):
    model = analog_of(Shared)
    assert model.a is model.b
    gradient = nnx.jit(nnx.grad(lambda m: jnp.square(m(x)).mean()))
    probe = gradient(model)["a"]["probe"][...]
    # Called twice: the sums of both calls, over 16 examples and the first tile's rows.
    assert probe[0, 0, 0] * 2.0**40 == 2 * 16 * 4


def test_every_public_method_goes_through_both_sides(x):
    model = analog_of(Shared)
    assert differ(model.encode(x), model.encode(x))


def test_a_layer_called_around_the_root_is_an_error(x):
    model = analog_of(Shared)
    with pytest.raises(ValueError, match="a was called without"):
        model.a(x)
    model.eval()
    model.a(x)  # nothing is drawn: its range is on, and nothing is missing


def test_weight_noise_is_the_named_draw_times_the_largest_weight():
    layer = nnx.Linear(50, 40, use_bias=False, rngs=nnx.Rngs(0))
    kernel = layer.kernel[...]
    key = jax.random.key(7, impl=hw.threefry_prng)
    model = hw.analogize(layer, NOISY, rngs=nnx.Rngs(mismatch=key))
    step_key = nnx.Rngs(mismatch=key).mismatch()
    xi = normal(draw_key(step_key, "kernel", "weight_noise"), kernel.shape)
    expected = kernel + 0.1 * jnp.abs(kernel).max() * xi
    np.testing.assert_allclose(call(model, jnp.eye(50)), expected, rtol=1e-5, atol=1e-6)


def test_the_layers_of_a_stack_have_their_own_noise_and_scale():
    count, rows, columns = 4, 60, 50

    class Stack(nnx.Module):
        def __init__(self, rngs):
            @nnx.split_rngs(splits=count)
            @nnx.vmap(in_axes=0, out_axes=0)
            def make(rngs):
                return nnx.Linear(rows, columns, use_bias=False, rngs=rngs)

            self.layers = make(rngs)
            scale = jnp.array([1.0, 10.0, 0.1, 3.0])[:, None, None]
            self.layers.kernel[...] = self.layers.kernel[...] * scale

        def __call__(self, x):
            return nnx.vmap(lambda m, x: m(x), in_axes=(0, None))(self.layers, x)

    model = analog_of(Stack, NOISY)
    kernel = model.layers.kernel[...]
    w_max = jnp.abs(kernel).max((1, 2), keepdims=True)
    unit = np.asarray((call(model, jnp.eye(rows)) - kernel) / (0.1 * w_max)).reshape(
        count, -1
    )
    size = rows * columns
    np.testing.assert_allclose(unit.std(1), 1, atol=5 / np.sqrt(2 * size))
    assert np.abs(np.corrcoef(unit) - np.eye(count)).max() < 5 / np.sqrt(size)


def test_old_state_loads_and_adopt_completes_it(x):
    plain = Shared(nnx.Rngs(3))
    model = analog_of(Shared)
    nnx.update(model, nnx.state(plain, nnx.Param))
    np.testing.assert_array_equal(model.a.kernel[...], plain.a.kernel[...])
    for params in (nnx.state(plain, nnx.Param), nnx.to_pure_dict(nnx.state(plain))):
        adopted = hw.adopt(model, params)
        assert type(adopted) is type(params)
        expected = paths.leaves(nnx.state(model, nnx.Param)).keys()
        assert paths.leaves(adopted).keys() == expected
        stripped = paths.leaves(hw.strip(adopted)).keys()
        assert stripped == paths.leaves(params).keys()


def test_copy_pickle_and_equal_graphs(x):
    model = analog_of(Normalized)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(call(copied, x), call(analog_of(Normalized), x))
    traces = []

    @nnx.jit
    def counted(model):
        traces.append(1)
        return model(x)

    counted(analog_of(Normalized))
    counted(analog_of(Normalized))
    assert len(traces) == 1


def test_a_model_is_made_analog_once():
    model = analog_of(one_layer)
    with pytest.raises(ValueError, match="analog already"):
        hw.analogize(model, NOISY)
    with pytest.raises(ValueError, match="is not analog"):
        hw.eval_mode(one_layer(nnx.Rngs(0)))


class Deterministic(nnx.Module):
    """A model with an attribute that NNX's modes set."""

    def __init__(self, rngs):
        self.deterministic = False
        self.layer = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


@pytest.mark.sampled
@pytest.mark.parametrize("mode", ["train", "chip", "eval"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Deterministic(nnx.Rngs(0)),
        lambda: nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0)),
        lambda: nnx.Linear(4, 4, rngs=nnx.Rngs(0)),
    ],
    ids=["own attribute", "attention", "layer"],
)
def test_a_mode_survives_splitting_and_merging(make, mode):
    model = hw.analogize(make(), TILED, rngs=nnx.Rngs(mismatch=1))
    getattr(hw, f"{mode}_mode")(model)
    for merged in (nnx.merge(*nnx.split(model)), nnx.clone(model)):
        for module in (model, merged):
            modes = {
                module.hardware_mode
                for _, module in nnx.iter_modules(module)
                if hasattr(module, "hardware_mode")
            }
            assert modes == {mode}
    y = nnx.jit(lambda model, x: model(x))(model, jnp.ones((2, 3, 4)))
    assert jnp.isfinite(y).all()
