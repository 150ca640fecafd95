"""Input ranges from data, in Linen and NNX."""

import io

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from rich.console import Console

import hwtrain as hw
from hwtrain._flax.linen.flax_internals import refuses_callbacks
from hwtrain._flax.observation import observed

CHIP = hw.Hardware(
    input_range=hw.InputRangeParameter(),
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
    forward=hw.IOParameters(inp_bits=8, out_noise=0.1),
    mapping=hw.MappingParameter(max_input_size=4, max_output_size=3),
)
BATCHES = [
    (1 + seed) * jax.random.normal(jax.random.key(seed), (8, 6)) for seed in range(3)
]
TILES = (slice(0, 3), slice(3, 6))


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="b")(nn.tanh(nn.Dense(6, name="a")(x)))


class NnxMLP(nnx.Module):
    def __init__(self):
        self.a = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
        self.b = nnx.Linear(6, 4, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.b(nnx.tanh(self.a(x)))


def calibrated(framework, batches, **options):
    """Returns the ranges of both layers, and the kernel and bias of the first."""
    if framework == "linen":
        analog = hw.analogize(LinenMLP(), CHIP)
        variables = jax.jit(analog.init)(jax.random.key(0), BATCHES[0])
        params = hw.calibrate(analog, variables, batches, **options)["params"]
    else:
        analog = hw.analogize(NnxMLP(), CHIP, rngs=nnx.Rngs(mismatch=0))
        assert hw.calibrate(analog, None, batches, **options) is analog
        params = nnx.to_pure_dict(nnx.state(analog, nnx.Param))
    return jax.tree.map(np.asarray, params)


STATISTICS = {
    "max": lambda xs: max(np.abs(x).max() for x in xs),
    "moving_std": lambda xs: np.mean([3 * x.std() for x in xs]),
    "moving_quantile": lambda xs: np.mean([np.quantile(np.abs(x), 0.9) for x in xs]),
    "cache_quantile": lambda xs: np.quantile(np.abs(np.concatenate(xs)), 0.9),
}


@pytest.mark.sampled
@pytest.mark.parametrize("framework", ["linen", "nnx"])
@pytest.mark.parametrize("method", STATISTICS)
def test_ranges_are_the_statistics_of_each_tiles_clean_inputs(framework, method):
    params = calibrated(framework, BATCHES, method=method, quantile=0.9)
    a = params["a"]
    hidden = [np.tanh(np.asarray(x) @ a["kernel"] + a["bias"]) for x in BATCHES]
    for layer, xs in (("a", [np.asarray(x) for x in BATCHES]), ("b", hidden)):
        each = [STATISTICS[method]([x[:, tile] for x in xs]) for tile in TILES]
        columns = params[layer]["input_range"].shape[1]
        wanted = np.repeat(np.array(each)[:, None], columns, axis=1)
        np.testing.assert_allclose(params[layer]["input_range"], wanted, rtol=2e-5)


class Stack(nn.Module):
    checked: bool = False
    constant: bool = False

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return 2 * jnp.tanh(nn.Dense(6)(x)), jnp.ones(())

        layers = nn.scan(
            nn.remat(Block),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            out_axes=nn.broadcast if self.constant else 0,
            length=3,
            check_constancy_invariants=self.checked,
        )
        return layers(name="layers")(x, None)[0]


def check_each_layer_of_a_stack(stack):
    analog = hw.analogize(stack, CHIP)
    variables = jax.jit(analog.init)(jax.random.key(0), BATCHES[0])
    found = hw.calibrate(analog, variables, BATCHES[:1])["params"]["layers"]["Dense_0"]
    x = np.asarray(BATCHES[0])
    for kernel, bias, ranges in zip(
        found["kernel"], found["bias"], found["input_range"]
    ):
        wanted = [np.abs(x[:, tile]).max() for tile in TILES]
        np.testing.assert_allclose(ranges[:, 0], wanted, rtol=1e-5)
        x = 2 * np.tanh(x @ kernel + bias)


@pytest.mark.optimised
def test_each_layer_of_a_stack_gets_its_own_range():
    check_each_layer_of_a_stack(Stack())


def test_an_nnx_stack_of_jitted_layers_is_watched_after_a_plain_call():
    class Blocks(nnx.Module):
        def __init__(self):
            @nnx.vmap(in_axes=0, out_axes=0)
            def make(rngs):
                return nnx.Linear(6, 6, rngs=rngs)

            self.layers = make(nnx.Rngs(0).split(2))

        @nnx.jit
        def __call__(self, x):
            @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            def through(layer, x):
                return 3 * layer(x)

            return through(self.layers, x)

    analog = hw.analogize(Blocks(), CHIP, rngs=nnx.Rngs(mismatch=0))
    x = BATCHES[0]
    hw.eval_mode(analog)(x)
    hw.calibrate(analog, None, [x])
    after = 3 * (x @ analog.layers.kernel[0] + analog.layers.bias[0])
    wanted = [[np.abs(v[:, tile]).max() for tile in TILES] for v in (x, after)]
    np.testing.assert_allclose(analog.layers.input_range[..., 0], wanted, rtol=1e-5)


class Branch(nn.Module):
    @nn.compact
    def __call__(self, x, *, deep=False):
        y = nn.Dense(3, name="a")(x)
        return nn.Dense(3, name="b")(y * 0) if deep else y


def test_what_cannot_be_calibrated_is_an_error():
    analog = hw.analogize(Branch(), CHIP)
    x = BATCHES[0]
    variables = analog.init(jax.random.key(0), x, deep=True)
    with pytest.raises(ValueError, match="a/input_range, b/input_range hold NaN"):
        hw.calibrate(analog, variables, [x, x.at[1, 1].set(jnp.nan)], deep=True)
    with pytest.raises(ValueError, match="inputs of b/input_range are zero"):
        hw.calibrate(analog, variables, [(x,)], deep=True)
    with pytest.raises(ValueError, match="at least one batch"):
        hw.calibrate(analog, variables, [])
    with pytest.raises(ValueError, match="one of max, moving_std"):
        hw.calibrate(analog, variables, [x], method="mean")
    with pytest.raises(ValueError, match="quantile must be above 0"):
        hw.calibrate(analog, variables, [x], quantile=0.0)
    plain = hw.analogize(Branch(), hw.Hardware(modifier=CHIP.modifier))
    with pytest.raises(ValueError, match="no layer of this model has one"):
        hw.calibrate(plain, plain.init(jax.random.key(0), x), [x])


def test_progress_is_shown_in_a_terminal():
    analog = hw.analogize(Branch(), CHIP)
    variables = jax.jit(analog.init)(jax.random.key(0), BATCHES[0])
    for terminal in (True, False):
        shown = Console(file=io.StringIO(), force_terminal=terminal)
        hw.calibrate(analog, variables, BATCHES, console=shown)
        assert ("3/3" in shown.file.getvalue()) == terminal


def test_inspect_says_that_a_range_is_calibrated():
    analog = hw.analogize(NnxMLP(), CHIP, rngs=nnx.Rngs(mismatch=0))
    assert "not initialised" in hw.inspect(analog).rows[0]["input range"]
    hw.calibrate(analog, None, BATCHES)
    assert "not initialised" not in hw.inspect(analog).rows[0]["input range"]


def test_a_scan_with_checks_is_watched_like_one_without():
    """Also where Flax refuses callbacks in them, as since 0.12.12."""
    check_each_layer_of_a_stack(Stack(checked=True))


def test_a_scan_that_returns_constants_is_told_the_way_out():
    if refuses_callbacks():
        with pytest.raises(ValueError, match="nn.scan that returns constants"):
            check_each_layer_of_a_stack(Stack(checked=True, constant=True))
    else:
        check_each_layer_of_a_stack(Stack(checked=True, constant=True))


def test_an_rnn_is_calibrated():
    """Whose scan has the checks; its user cannot turn them off."""
    model = nn.RNN(nn.SimpleCell(4))
    analog = hw.analogize(model, CHIP)
    x = jax.random.normal(jax.random.key(1), (2, 5, 6))
    variables = analog.init(jax.random.key(0), x)
    found = hw.calibrate(analog, variables, [x])
    ranges = [
        leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(found)
        if keys[-1].key == "input_range"
    ]
    assert len(ranges) == 2 and all((leaf != 3.0).all() for leaf in ranges)


def test_other_errors_of_a_scan_are_not_renamed():
    class Leaking(nn.Module):
        @nn.compact
        def __call__(self, x):
            def body(module, x, _):
                y = nn.Dense(6)(x)
                return x, y

            params = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            _, y = nn.scan(body, length=3, out_axes=nn.broadcast, **params)(
                self, x, None
            )
            return y

    with pytest.raises(ValueError, match="data dependency") as plain:
        Leaking().init(jax.random.key(0), BATCHES[0])
    with pytest.raises(ValueError) as watched, observed(None):
        Leaking().init(jax.random.key(0), BATCHES[0])
    assert str(watched.value) == str(plain.value)


class Flagged(nn.Module):
    """Only an argument by name reaches the second layer."""

    @nn.compact
    def __call__(self, x, *, deep):
        x = nn.Dense(6, name="a")(x)
        return nn.Dense(3, name="b")(x) if deep else x


def test_a_forward_function_calls_the_model_for_a_batch_of_any_kind():
    analog, x = hw.analogize(Flagged(), CHIP), BATCHES[0]
    variables = analog.init(jax.random.key(0), x, deep=True)
    expected = hw.calibrate(analog, variables, BATCHES, deep=True)
    found = hw.calibrate(
        analog,
        variables,
        [{"image": batch} for batch in BATCHES],
        forward=lambda apply, batch: apply(batch["image"], deep=True),
    )
    chex.assert_trees_all_equal(found, expected)
    assert (found["params"]["b"]["input_range"] != 3.0).all()
    with pytest.raises(ValueError, match="got a forward function and deep too"):
        hw.calibrate(analog, variables, [x], forward=lambda a, b: a(b), deep=True)
