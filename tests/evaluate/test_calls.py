"""Studies of a model accept its call arguments: streams, collections, masks, flags."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._flax import weight_side
from hwtrain.evaluate import population, sensitivity

CHIP = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
    input_range=hw.InputRangeParameter(),
    mismatch=hw.MismatchParameter(type="mult_normal", std_dev=0.1),
)
X = jax.random.normal(jax.random.key(0), (8, 6))
MASK = (np.arange(5) < 4).astype(np.float32)
RNGS = {"dropout": jax.random.key(1)}


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, mask):
        x = nn.Dense(5, name="a")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(0.5, deterministic=not train)(x * mask)
        return nn.Dense(3, name="b")(x)


class NnxNet(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a = nnx.Linear(6, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.b = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x, *, mask, rngs=None):
        return self.b(self.dropout(self.norm(self.a(x)) * mask, rngs=rngs))


TRAINING = {"train": True, "mask": MASK, "rngs": RNGS, "mutable": ["batch_stats"]}


@pytest.fixture(scope="module")
def linen():
    analog = hw.analogize(LinenNet(), CHIP)
    init = jax.jit(lambda key: analog.init(key, X, train=False, mask=MASK))
    return analog, init(jax.random.key(0))


def studies(analog, variables, call):
    """Runs every function that calls the model."""
    on_chips = {"chips": 2, "key": jax.random.key(0), "call_kwargs": call}
    found = population(analog, variables, [(X,)], squares, **on_chips)
    layers = sensitivity(analog, variables, [(X,)], squares, **on_chips)
    np.testing.assert_array_equal(layers.whole, found.values)
    hw.assert_active(analog, variables, X, **call)
    calibrated = hw.calibrate(analog, variables, [X], **call)
    return found.values, calibrated


def squares(y):
    return jnp.sum(jnp.square(y), axis=-1)


def test_linen_in_training_mode(linen):
    analog, variables = linen
    values, calibrated = studies(analog, variables, TRAINING)
    plan = hw.plan(analog, variables, X, **TRAINING)
    hw.inspect(analog, variables, X, **TRAINING)

    # What Flax's own call gives with the same masks of the Dropout.
    @jax.jit
    def plain(params):
        return LinenNet().apply(
            {**variables, "params": hw.strip(params)},
            X,
            **TRAINING | {"mutable": True},
            capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
        )

    inner = plain(variables["params"])[1]["intermediates"]["Dropout_0"]["__call__"][0]
    assert (inner == 0).mean() > 0.3
    ranges = [calibrated["params"][name]["input_range"] for name in ("a", "b")]
    largest = [np.abs(x).max() for x in (X, inner)]
    np.testing.assert_allclose(np.ravel(ranges), largest, rtol=1e-6)
    assert calibrated["batch_stats"] is variables["batch_stats"]
    for seed, value in enumerate(values):
        chip = hw.apply_mismatch(variables["params"], plan, hw.chip_key(seed))
        clipped, _ = hw.eval_mode(analog).apply(
            {**variables, "params": chip}, X, **TRAINING
        )
        np.testing.assert_allclose(value, squares(clipped).mean(), rtol=1e-5)


def test_further_keys_and_masks_compile_nothing(linen):
    traced = []

    def metric(y):
        traced.append(1)
        return squares(y)

    options = {"chips": 1, "key": jax.random.key(0)}
    values = []
    for seed in range(2):
        call = TRAINING | {"rngs": {"dropout": jax.random.key(seed)}, "mask": MASK}
        found = population(*linen, [(X,)], metric, call_kwargs=call, **options)
        values.append(found.mean)
    assert len(traced) == 1 and values[0] != values[1]
    call = call | {"mask": np.ones_like(MASK)}
    found = population(*linen, [(X,)], metric, call_kwargs=call, **options)
    assert len(traced) == 1 and values[1] != found.mean


@pytest.mark.sampled(2)
@pytest.mark.parametrize("given", [False, True])
def test_nnx_is_left_as_it_was(given):
    model = hw.analogize(NnxNet(), CHIP, rngs=nnx.Rngs(mismatch=0))
    call = {"mask": MASK}
    if given:
        call["rngs"] = nnx.Rngs(dropout=3)
    state = jax.tree.map(np.asarray, nnx.to_pure_dict(without_keys(model)))
    counts = counts_of(model, *call.values())
    _, same = studies(model, None, call)
    assert same is model and counts_of(model, *call.values()) == counts
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(without_keys(model)))
    jax.tree.map(np.testing.assert_array_equal, state, after)
    assert model.hardware_mode == "train" and not model.dropout.deterministic
    ranges = np.ravel([model.a.input_range[...], model.b.input_range[...]])
    assert (ranges != CHIP.input_range.init_value).all()


def without_keys(model):
    of_ranges = nnx.PathContains("input_range")
    return nnx.state(model, nnx.Not(nnx.Any(nnx.RngState, of_ranges)))


def counts_of(*objects):
    objects = [x for x in objects if isinstance(x, nnx.Module | nnx.Rngs)]
    states = [nnx.to_pure_dict(nnx.state(x, nnx.RngCount)) for x in objects]
    return jax.tree.map(int, states)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_dropout_does_not_count_as_noise_of_the_weights(framework, linen, retraced):
    retraced.setattr(weight_side, "_modified", lambda w, kernel, *_: kernel)
    model, call = (*linen, X), TRAINING
    if framework == "nnx":
        analog = hw.analogize(NnxNet(), CHIP, rngs=nnx.Rngs(mismatch=0))
        model, call = (analog, None, X), {"mask": MASK}
    with pytest.raises(ValueError, match="the outputs are the same at every step key"):
        hw.assert_active(*model, **call)


def test_a_complex_metric_is_refused(linen):
    analog, variables = linen
    call = {"train": False, "mask": MASK}
    for study in (population, sensitivity):
        with pytest.raises(ValueError, match="metric must return real numbers; got co"):
            study(
                analog,
                variables,
                [(X,)],
                lambda y: y[:, 0] + 1j,
                chips=2,
                key=jax.random.key(0),
                call_kwargs=call,
            )
