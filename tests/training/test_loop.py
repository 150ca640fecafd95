"""Tests of hwtrain.training.loop and checkpoints, for Linen and NNX."""

from pathlib import Path

import chex
import jax
import numpy as np
import optax
import pytest

from hwtrain import optim
from hwtrain.evaluate import population
from hwtrain.hardware import (
    Hardware,
    InputRangeParameter,
    MismatchParameter,
    WeightClipParameter,
    WeightModifierParameter,
)
from hwtrain.training import checkpoints, linen, nnx
from hwtrain.training.loop import (
    Split,
    cross_entropy,
    epoch_order,
    init_state,
    make_step,
    run_steps,
)
from hwtrain.training.source import resolve

RECIPES = Path(__file__).parents[2] / "recipes"
HARDWARE = Hardware(
    modifier=WeightModifierParameter(type="add_normal", std_dev=0.3, per_column=True),
    clip=WeightClipParameter(type="layer_gaussian", sigma=2.0),
    input_range=InputRangeParameter(init_from_data=2),
    mismatch=MismatchParameter(type="add_normal", std_dev=0.3, per_column=True),
)
FRONTENDS = {"linen": (linen, "mlp"), "nnx": (nnx, "mlp_nnx")}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 64)).astype(np.float32)
    return Split(inputs, rng.integers(0, 10, size=40, dtype=np.int32))


def make(framework, data):
    frontend, name = FRONTENDS[framework]
    factory = resolve(f"digits.py:{name}", RECIPES)
    model, plan = frontend.hardware_aware(factory, HARDWARE, data.inputs[:1])
    optimizer = optim.hardware_aware(optax.adam(1e-3), plan)
    return model, optimizer, make_step(model, optimizer, cross_entropy)


def run(step, state, data, steps):
    updates = run_steps(step, state, data, steps=steps, batch_size=8, seed=3)
    *_, (last, loss) = updates
    assert np.isfinite(loss)
    return last


def on_chips(framework, params, data):
    """Returns the loss on each chip of a small population."""
    frontend, name = FRONTENDS[framework]
    factory = resolve(f"digits.py:{name}", RECIPES)
    analog, variables = frontend.on_chip(factory, HARDWARE, params)
    losses = optax.softmax_cross_entropy_with_integer_labels
    key = jax.random.key(0)
    return population(analog, variables, [data], losses, chips=8, key=key).values


@pytest.mark.optimised
@pytest.mark.parametrize("framework", FRONTENDS)
def test_a_resumed_run_ends_bit_identical(framework, data, tmp_path):
    model, optimizer, step = make(framework, data)
    whole = run(step, init_state(model.init(0), optimizer), data, 13)

    half = run(step, init_state(model.init(0), optimizer), data, 7)
    with checkpoints.open_checkpoints(tmp_path / "run") as manager:
        checkpoints.save(manager, half)
    with checkpoints.open_checkpoints(tmp_path / "run") as manager:
        state = init_state(model.init(1), optimizer)
        restored = checkpoints.restore_latest(manager, state)
    assert int(restored.step) == 7
    chex.assert_trees_all_equal(run(step, restored, data, 13), whole)


def test_a_saved_state_is_not_touched_by_the_next_update(data, tmp_path):
    model, optimizer, step = make("linen", data)
    state = run(step, init_state(model.init(0), optimizer), data, 1)
    before = jax.tree.map(np.array, state)
    with checkpoints.open_checkpoints(tmp_path) as manager:
        checkpoints.save(manager, state)
        run(step, state, data, 5)
    with checkpoints.open_checkpoints(tmp_path) as manager:
        fresh = init_state(model.init(0), optimizer)
        chex.assert_trees_all_equal(checkpoints.restore_latest(manager, fresh), before)


def test_nothing_is_compiled_again(data):
    model, optimizer, step = make("linen", data)
    for seed in (0, 1):
        run(step, init_state(model.init(seed), optimizer), data, 12)
    assert step._cache_size() == 1


def test_linen_and_nnx_train_alike(data):
    linen_model, optimizer, linen_step = make("linen", data)
    _, nnx_optimizer, nnx_step = make("nnx", data)
    params = linen_model.init(0)
    copy = jax.tree.map(np.array, params)
    from_linen = run(linen_step, init_state(params, optimizer), data, 10)
    from_nnx = run(nnx_step, init_state(copy, nnx_optimizer), data, 10)
    chex.assert_trees_all_close(
        dict(from_linen.params), dict(from_nnx.params), rtol=1e-4, atol=1e-6
    )
    losses = [
        on_chips(framework, state.params, data)
        for framework, state in (("linen", from_linen), ("nnx", from_nnx))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0].std() > 0.01


@pytest.mark.parametrize("framework", FRONTENDS)
def test_plain_and_hardware_aware_start_alike(framework, data):
    frontend, name = FRONTENDS[framework]
    factory = resolve(f"digits.py:{name}", RECIPES)
    plain = frontend.plain(factory, data.inputs[:1]).init(5)
    aware = make(framework, data)[0].init(5)
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


def test_each_step_has_a_key_of_its_own(data):
    model, _, _ = make("linen", data)
    params, x = model.init(0), data.inputs[:4]
    first, second = (model.apply(params, x, jax.random.key(k)) for k in (0, 1))
    assert float(abs(first - second).max()) > 0.01
