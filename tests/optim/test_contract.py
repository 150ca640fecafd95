"""Optax's contract for transformations, tested on all of hwtrain's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.periphery._range_gradient import PROBE_SCALE

CHIP = hw.Hardware(
    input_range=hw.InputRangeParameter(init_value=1.0, init_from_data=1),
    clip=hw.WeightClipParameter(type="fixed_value", fixed_value=0.5),
    remap=hw.WeightRemapParameter(type="layerwise_symmetric"),
    mapping=hw.MappingParameter(max_input_size=4),
)
PLAN = Plan(
    tuple(
        AnalogWeight(
            path=f"{name}/kernel",
            kind="dense",
            layer="Dense",
            shape=(8, 3),
            rows=(0,),
            columns=(1,),
            hardware=CHIP,
            rule="",
            ranged=True,
        )
        for name in ("first", "second")
    )
)
MAKE = {
    "input_range_learning": lambda: hw.optim.input_range_learning(PLAN, 0.1),
    "keep_weights_clipped": lambda: hw.optim.keep_weights_clipped(PLAN),
    "remap_weights": lambda: hw.optim.remap_weights(PLAN),
    "sgd": lambda: hw.optim.hardware_aware(optax.sgd(0.1), PLAN),
    "adamw": lambda: hw.optim.hardware_aware(optax.adamw(0.1), PLAN),
    "ema": lambda: hw.optim.hardware_aware(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1), optax.ema(0.9)),
        PLAN,
    ),
    "injected": lambda: hw.optim.hardware_aware(
        optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 9)), PLAN
    ),
}


CASES = [(name, jnp.float32) for name in MAKE]
# Injected hyperparameters are float32, so that Optax's own updates are then, too.
CASES += [(name, jnp.bfloat16) for name in MAKE if name != "injected"]
CASES += [
    pytest.param((name, jnp.float16), marks=pytest.mark.nightly)
    for name in MAKE
    if name != "injected"
]


@pytest.fixture(params=MAKE)
def tx(request):
    return MAKE[request.param]()


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1].__name__}")
def case(request):
    name, dtype = request.param
    return MAKE[name](), dtype


def params_of(dtype=jnp.float32, key=0):
    keys = iter(jax.random.split(jax.random.key(key), 4))

    def layer():
        return {
            "kernel": jax.random.normal(next(keys), (8, 3)).astype(dtype),
            "bias": jax.random.normal(next(keys), (3,)).astype(dtype),
            "input_range": jnp.ones((2, 1)),
            "probe": jnp.zeros((2, 1, 6)),
            "mapping_scale": jnp.ones((2, 1)),
        }

    return {"first": layer(), "second": layer()}


def gradients_of(dtype=jnp.float32, key=1):
    gradients = params_of(dtype, key)
    for layer in gradients.values():
        layer["input_range"] = -0.3 * layer["input_range"]
        sums = jnp.array([100.0, 97.0, 5.0, 60.0, 0.0, 0.0])
        layer["probe"] = jnp.broadcast_to(PROBE_SCALE * sums, (2, 1, 6))
    return gradients


def kinds(tree):
    return jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(lambda: tree)
    )


def compiled(tx):
    tx = optax.with_extra_args_support(tx)
    return jax.jit(lambda g, s, p: tx.update(g, s, p, value=1.0, unknown=2.0))


@pytest.mark.sampled(3)
def test_dtype_state_and_program_stay(case):
    tx, dtype = case
    params, gradients = params_of(dtype), gradients_of(dtype)
    state, step = tx.init(params), compiled(tx)
    before = kinds(state)
    for _ in range(2):  # takes arguments that it does not know
        updates, state = step(gradients, state, params)
        assert kinds(updates) == kinds(gradients)
        assert kinds(state) == before
        params = optax.apply_updates(params, updates)
    assert step._cache_size() == 1
    assert kinds(params) == kinds(params_of(dtype))


@pytest.mark.sampled(4)
def test_accumulated_gradients_are_their_mean(tx):
    params, gradients = params_of(), gradients_of()
    whole, _ = compiled(tx)(gradients, tx.init(params), params)
    many = optax.MultiSteps(tx, 2).gradient_transformation()
    step, state = compiled(many), many.init(params)
    halves = [jax.tree.map(lambda g, f=f: g * f, gradients) for f in (0.5, 1.5)]
    nothing, state = step(halves[0], state, params)
    assert all((u == 0).all() for u in jax.tree.leaves(nothing))
    updates, state = step(halves[1], state, params)
    assert step._cache_size() == 1
    assert_close(updates, whole)


@pytest.mark.sampled(3)
def test_what_is_not_finite_is_skipped(case):
    tx, dtype = case
    params, gradients = params_of(dtype), gradients_of(dtype)
    wrapped = optax.apply_if_finite(tx, 5)
    step, state = compiled(wrapped), wrapped.init(params)
    bad = jax.tree.map(lambda g: g.at[(0,) * g.ndim].set(jnp.nan), gradients)
    nothing, skipped = step(bad, state, params)
    assert all((u == 0).all() for u in jax.tree.leaves(nothing))
    jax.tree.map(np.testing.assert_array_equal, skipped.inner_state, state.inner_state)
    updates, _ = step(gradients, skipped, params)
    whole, _ = compiled(tx)(gradients, tx.init(params), params)
    assert_close(updates, whole)


def test_each_part_of_a_partition_is_its_own():
    # One of the layers is ours, the other a plain optimiser's.
    mine = Plan(PLAN.weights[:1])
    ours = hw.optim.hardware_aware(optax.sgd(0.1), mine)
    params, gradients = params_of(), gradients_of()
    labels = {"first": "analog", "second": "other"}
    parts = optax.partition({"analog": ours, "other": optax.sgd(0.5)}, labels)
    updates, _ = compiled(parts)(gradients, parts.init(params), params)
    alone, _ = compiled(ours)(
        {"first": gradients["first"]},
        ours.init({"first": params["first"]}),
        {"first": params["first"]},
    )
    assert_close(updates["first"], alone["first"])
    expected = jax.tree.map(lambda g: -0.5 * g, gradients["second"])
    assert_close(updates["second"], expected)


def test_a_partition_inside_takes_the_users_parameters():
    labels = {name: {"kernel": "w", "bias": "b"} for name in ("first", "second")}
    parts = optax.partition({"w": optax.sgd(0.01), "b": optax.sgd(1.0)}, labels)
    tx = hw.optim.hardware_aware(parts, PLAN, input_range_learning_rate=0.1)
    params, gradients = params_of(), gradients_of()
    updates, _ = compiled(tx)(gradients, tx.init(params), params)
    np.testing.assert_allclose(updates["first"]["bias"], -gradients["first"]["bias"])


def test_the_learning_rate_of_ranges_can_be_injected():
    make = optax.inject_hyperparams(
        hw.optim.input_range_learning, static_args=("plan", "optimizer")
    )
    tx = make(PLAN, optax.linear_schedule(0.1, 0.0, 2))
    params, gradients = params_of(), gradients_of()
    state, step, moved = tx.init(params), compiled(tx), []
    for _ in range(3):  # the first update initialises from data
        updates, state = step(gradients, state, params)
        moved.append(float(updates["first"]["input_range"][0, 0]))
    assert step._cache_size() == 1
    assert moved[2] == 0  # the end of the schedule
    np.testing.assert_allclose(moved[1], -0.05 * (-0.3 + 1e-3), rtol=1e-5)


def test_weights_take_the_steps_of_the_base_alone():
    # Norm clipping, averages and decay are inside the base and do not see our leaves.
    free = Plan(
        tuple(
            AnalogWeight(
                **{
                    **weight.__dict__,
                    "hardware": hw.Hardware(
                        input_range=CHIP.input_range, mapping=CHIP.mapping
                    ),
                }
            )
            for weight in PLAN.weights
        )
    )
    params, gradients = params_of(), gradients_of()
    for tree in (params, gradients):
        for layer in tree.values():
            del layer["mapping_scale"]
    base = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1), optax.ema(0.9))
    tx = hw.optim.hardware_aware(base, free)
    plain, plain_gradients = hw.strip(params), hw.strip(gradients)
    step, plain_step = compiled(tx), compiled(base)
    state, plain_state = tx.init(params), base.init(plain)
    for _ in range(4):
        updates, state = step(gradients, state, params)
        plain_updates, plain_state = plain_step(plain_gradients, plain_state, plain)
        for path, update in paths.leaves(plain_updates).items():
            np.testing.assert_array_equal(paths.leaves(updates)[path], update)
        params = optax.apply_updates(params, updates)
        plain = optax.apply_updates(plain, plain_updates)


def assert_close(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for path, value in paths.leaves(expected).items():
        found = np.asarray(paths.leaves(tree)[path], np.float32)
        expected_value = np.asarray(value, np.float32)
        np.testing.assert_allclose(
            found, expected_value, rtol=1e-5, atol=1e-6, err_msg=path
        )
