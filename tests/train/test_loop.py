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
from hwtrain.train._loop import (
    Split,
    cross_entropy,
    epoch_order,
    init_state,
    make_step,
    run_steps,
)
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


@pytest.fixture(autouse=True, scope="module")
def _forget_models():
    yield
    made.cache_clear()


@functools.cache
def made(framework):
    frontend, name = FRONTENDS[framework]
    factory = resolve(f"digits.py:{name}", RECIPES)
    model, plan = frontend.hardware_aware(factory, HARDWARE, DATA.inputs[:1])
    optimizer = optim.hardware_aware(optax.adam(1e-3), plan)
    return model, optimizer, make_step(model, optimizer, cross_entropy)


def run(step, state, data, steps):
    updates = run_steps(step, state, data, steps=steps, batch_size=8, seed=3)
    *_, (last, loss) = updates
    assert np.isfinite(loss)
    return last


def on_chips(framework, params):
    """Returns the loss on each chip of a small population."""
    frontend, name = FRONTENDS[framework]
    factory = resolve(f"digits.py:{name}", RECIPES)
    analog, variables = frontend.on_chip(factory, HARDWARE, params)
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
    whole = run(step, init_state(model.init(0), optimizer), DATA, 13)

    half = run(step, init_state(model.init(0), optimizer), DATA, 7)
    with checkpoints.open_checkpoints(tmp_path / "run") as manager:
        checkpoints.save(manager, half)
    with checkpoints.open_checkpoints(tmp_path / "run") as manager:
        state = init_state(model.init(1), optimizer)
        restored = checkpoints.restore_latest(manager, state)
    assert int(restored.step) == 7
    chex.assert_trees_all_equal(run(step, restored, DATA, 13), whole)


def test_a_saved_state_is_not_touched_by_the_next_update(tmp_path):
    model, optimizer, step = made("linen")
    state = run(step, init_state(model.init(0), optimizer), DATA, 1)
    before = jax.tree.map(np.array, state)
    with checkpoints.open_checkpoints(tmp_path) as manager:
        checkpoints.save(manager, state)
        run(step, state, DATA, 5)
    with checkpoints.open_checkpoints(tmp_path) as manager:
        fresh = init_state(model.init(0), optimizer)
        chex.assert_trees_all_equal(checkpoints.restore_latest(manager, fresh), before)


def test_nothing_is_compiled_again():
    model, optimizer, step = made("linen")
    for seed in (0, 1):
        run(step, init_state(model.init(seed), optimizer), DATA, 12)
    assert step._cache_size() == 1


def test_linen_and_nnx_train_alike():
    linen_model, optimizer, linen_step = made("linen")
    _, nnx_optimizer, nnx_step = made("nnx")
    params = linen_model.init(0)
    copy = jax.tree.map(np.array, params)
    from_linen = run(linen_step, init_state(params, optimizer), DATA, 10)
    from_nnx = run(nnx_step, init_state(copy, nnx_optimizer), DATA, 10)
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
    plain = frontend.plain(factory, DATA.inputs[:1]).init(5)
    aware = made(framework)[0].init(5)
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
    params, x = model.init(0), DATA.inputs[:4]
    first, second = (model.apply(params, x, jax.random.key(k)) for k in (0, 1))
    assert float(abs(first - second).max()) > 0.01
