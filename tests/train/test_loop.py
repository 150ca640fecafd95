"""Tests of hwtrain.train._loop and checkpoints, for Linen and NNX."""

import functools
from pathlib import Path

import chex
import jax
import numpy as np
import optax
import pytest

from hwtrain import optim
from hwtrain._parts.source import resolve
from hwtrain._plan.hardware import Hardware
from hwtrain.evaluate import population
from hwtrain.periphery import InputRangeParameter
from hwtrain.train import _checkpoints as checkpoints
from hwtrain.train import _linen as linen
from hwtrain.train import _nnx as nnx
from hwtrain.train._batches import Split, epoch_order, of_arrays
from hwtrain.train._loop import data_mesh, init_state, make_step, run_steps
from hwtrain.train._task import forward_of, softmax_cross_entropy
from hwtrain.weights import (
    MismatchParameter,
    WeightClipParameter,
    WeightModifierParameter,
)

RECIPES = Path(__file__).parents[2] / "recipes"
HARDWARE = Hardware(
    modifier=WeightModifierParameter(type="add_normal", std_dev=0.3, per_column=True),
    clip=WeightClipParameter(type="layer_gaussian", sigma=2.0),
    input_range=InputRangeParameter(init_from_data=2),
    mismatch=MismatchParameter(type="add_normal", std_dev=0.3, per_column=True),
)
FRONTENDS = {"linen": (linen, "mlp"), "nnx": (nnx, "mlp_nnx")}


RNG = np.random.default_rng(0)
DATA = Split(
    RNG.normal(size=(40, 64)).astype(np.float32),
    RNG.integers(0, 10, size=40, dtype=np.int32),
)
BATCHES = of_arrays("data", DATA, DATA, batch_size=8, evaluated=40)
FORWARD = forward_of(lambda x: x)


@pytest.fixture(autouse=True, scope="module")
def _forget_models():
    yield
    made.cache_clear()


@functools.cache
def made(framework):
    frontend, name = FRONTENDS[framework]
    factory = resolve(f"digits.py:{name}", RECIPES)
    model, plan = frontend.hardware_aware(factory, HARDWARE, FORWARD, BATCHES.example)
    optimizer = optim.hardware_aware(optax.adam(1e-3), plan)
    step = make_step(model, optimizer, softmax_cross_entropy, take=BATCHES.take)
    return model, optimizer, step


def run(step, state, steps, data=BATCHES):
    source = data.training(3, int(state.step), None)
    updates = run_steps(step, state, source, steps=steps, seed=3)
    *_, (last, loss) = updates
    assert np.isfinite(loss)
    return last


def on_chips(framework, params):
    """Returns the loss on each chip of a small population."""
    frontend, name = FRONTENDS[framework]
    factory = resolve(f"digits.py:{name}", RECIPES)
    analog, variables = frontend.on_chip(factory, HARDWARE), {"params": params}
    losses = optax.softmax_cross_entropy_with_integer_labels
    key = jax.random.key(0)
    return population(analog, variables, [DATA], losses, chips=8, key=key).values


@pytest.mark.parametrize(
    "framework",
    [
        pytest.param("linen", marks=[pytest.mark.optimised, pytest.mark.nightly]),
        "nnx",
    ],
)
def test_a_resumed_run_ends_bit_identical(framework, tmp_path):
    model, optimizer, step = made(framework)
    whole = run(step, init_state(model.init(0), optimizer), 13)

    half = run(step, init_state(model.init(0), optimizer), 7)
    with checkpoints.open_checkpoints(tmp_path / "run") as manager:
        checkpoints.save(manager, half)
    with checkpoints.open_checkpoints(tmp_path / "run") as manager:
        state = init_state(model.init(1), optimizer)
        restored, _ = checkpoints.restore_latest(manager, state)
    assert int(restored.step) == 7
    chex.assert_trees_all_equal(run(step, restored, 13), whole)


def test_a_saved_state_is_not_touched_by_the_next_update(tmp_path):
    model, optimizer, step = made("linen")
    state = run(step, init_state(model.init(0), optimizer), 1)
    before = jax.tree.map(np.array, state)
    with checkpoints.open_checkpoints(tmp_path) as manager:
        checkpoints.save(manager, state)
        run(step, state, 5)
    with checkpoints.open_checkpoints(tmp_path) as manager:
        fresh = init_state(model.init(0), optimizer)
        found, _ = checkpoints.restore_latest(manager, fresh)
        chex.assert_trees_all_equal(found, before)


def test_nothing_is_compiled_again():
    model, optimizer, step = made("linen")
    for seed in (0, 1):
        run(step, init_state(model.init(seed), optimizer), 12)
    assert step._cache_size() == 1


def test_linen_and_nnx_train_alike():
    linen_model, optimizer, linen_step = made("linen")
    _, nnx_optimizer, nnx_step = made("nnx")
    initial = linen_model.init(0)
    copy = jax.tree.map(np.array, initial)
    from_linen = run(linen_step, init_state(initial, optimizer), 10)
    from_nnx = run(nnx_step, init_state(copy, nnx_optimizer), 10)
    chex.assert_trees_all_close(
        dict(from_linen.params), dict(from_nnx.params), rtol=1e-4, atol=1e-6
    )
    losses = [
        on_chips(framework, state.params)
        for framework, state in (("linen", from_linen), ("nnx", from_nnx))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0].std() > 0.01


@pytest.mark.parametrize("framework", FRONTENDS)
def test_plain_and_hardware_aware_start_alike(framework):
    frontend, name = FRONTENDS[framework]
    factory = resolve(f"digits.py:{name}", RECIPES)
    plain, _ = frontend.plain(factory, FORWARD, BATCHES.example).init(5)
    aware, _ = made(framework)[0].init(5)
    for layer, leaves in plain.items():
        for leaf, value in leaves.items():
            chex.assert_trees_all_equal(aware[layer][leaf], value)


def test_an_epoch_is_a_function_of_seed_and_number():
    order = epoch_order(1, 2, examples=23, batch_size=5)
    assert order.shape == (4, 5)
    assert len(set(order.ravel())) == 20
    np.testing.assert_array_equal(order, epoch_order(1, 2, 23, 5))
    assert (order != epoch_order(1, 3, 23, 5)).any()
    assert (order != epoch_order(2, 2, 23, 5)).any()


def test_each_step_has_a_key_of_its_own():
    model, _, _ = made("linen")
    first, second = (
        model.apply(*model.init(0), DATA, jax.random.key(k))[0] for k in (0, 1)
    )
    assert float(abs(first - second).max()) > 0.01


def test_the_average_is_that_of_the_parameters_after_each_update():
    model, optimizer, _ = made("linen")
    options = {"take": BATCHES.take, "average": 0.75}
    step = make_step(model, optimizer, softmax_cross_entropy, **options)
    state = init_state(model.init(0), optimizer, average=True)
    expected = jax.tree.map(np.array, state.params)
    source, key = BATCHES.training(0, 0, None), jax.random.key(0)
    for _ in range(3):
        state, _ = step(state, next(source), key)
        expected = jax.tree.map(
            lambda mean, now: 0.75 * mean + 0.25 * np.asarray(now),
            expected,
            state.params,
        )
    chex.assert_trees_all_close(state.trained, expected, rtol=1e-6, atol=1e-7)
    head = state.trained["head"]["kernel"]
    assert np.abs(head - state.params["head"]["kernel"]).max() > 1e-4


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_batch(parts):
    """Without noise; with it, each part draws its own."""
    frontend, name = FRONTENDS["linen"]
    factory = resolve(f"digits.py:{name}", RECIPES)
    model = frontend.plain(factory, FORWARD, BATCHES.example)
    optimizer, found = optax.sgd(0.1), []
    for accumulate in (1, parts):
        options = {"take": BATCHES.take, "accumulate": accumulate}
        step = make_step(model, optimizer, softmax_cross_entropy, **options)
        found.append(run(step, init_state(model.init(0), optimizer), 3))
    chex.assert_trees_all_close(*(s.params for s in found), rtol=1e-4, atol=1e-6)


def test_a_batch_that_cannot_be_divided_is_named():
    model, optimizer, _ = made("linen")
    options = {"take": BATCHES.take, "accumulate": 3}
    step = make_step(model, optimizer, softmax_cross_entropy, **options)
    with pytest.raises(ValueError, match="8 examples cannot be divided into 3"):
        run(step, init_state(model.init(0), optimizer), 1)


def test_a_loss_of_a_batch_is_refused():
    model, optimizer, _ = made("linen")

    def mean(outputs, batch):
        return softmax_cross_entropy(outputs, batch).mean()

    step = make_step(model, optimizer, mean, take=BATCHES.take)
    with pytest.raises(ValueError, match=r"one number for each.*\(8,\); got \(\)"):
        run(step, init_state(model.init(0), optimizer), 1)


def test_more_devices_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="expected 99 devices, found"):
        data_mesh(99)


ON_DEVICES = """
import jax, numpy as np, optax
import hwtrain as hw
from flax import linen as nn
from hwtrain.train import _linen as linen, data_mesh, init_state, make_step, run_steps
from hwtrain.train import softmax_cross_entropy
from hwtrain.train._batches import Split, of_arrays
from hwtrain.train._task import forward_of

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16, use_bias=False)(x))
        return nn.Dense(10)(nn.relu(x))

rng = np.random.default_rng(0)
x = rng.normal(size=(40, 12)).astype(np.float32)
data = Split(x, rng.integers(0, 10, 40).astype(np.int32))
batches = of_arrays("data", data, data, batch_size=16, evaluated=40)
hardware = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
    clip=hw.WeightClipParameter(type="layer_gaussian", sigma=2.0),
    input_range=hw.InputRangeParameter(init_from_data=2),
    forward=hw.IOParameters(out_noise=0.01),
)
forward = forward_of(Net().__call__)
model, plan = linen.hardware_aware(Net, hardware, forward, batches.example)
optimizer = hw.optim.hardware_aware(optax.adam(1e-2), plan)
ends = []
for devices, parts in ((1, 1), (4, 1), (1, 2), (4, 2)):
    mesh = data_mesh(devices)
    options = {"take": batches.take, "mesh": mesh, "accumulate": parts}
    step = make_step(model, optimizer, softmax_cross_entropy, average=0.9, **options)
    state = init_state(model.init(0), optimizer, average=True, mesh=mesh)
    source = batches.training(0, 0, None)
    *_, (state, loss) = run_steps(step, state, source, steps=5, seed=0)
    assert step._cache_size() == 1
    ends.append(jax.tree.map(np.asarray, (state.trained, state.model_state, loss)))
for one, other in ((0, 1), (2, 3)):
    for a, b in zip(jax.tree.leaves(ends[one]), jax.tree.leaves(ends[other])):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, ends[1:3])))
print("equal")
"""


def test_a_training_is_the_same_on_several_devices(on_devices):
    on_devices(4, ON_DEVICES)
