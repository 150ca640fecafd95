"""Learning of input ranges: golden gradients, decay, initialisation, averaging."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.periphery._range_gradient import RangeGradient, clip_to_range


def plan_for(rows, **options):
    options = {"init_from_data": 0, **options}
    weight = AnalogWeight(
        path="layer/kernel",
        kind="dense",
        layer="Dense",
        shape=(rows, 3),
        rows=(0,),
        columns=(1,),
        hardware=hw.Hardware(input_range=hw.InputRangeParameter(**options)),
        rule="",
        ranged=True,
    )
    return Plan((weight,))


def params_with(r, rows):
    return {
        "layer": {
            "kernel": np.ones((rows, 3), np.float32),
            "input_range": np.full((1, 1), r, np.float32),
            "probe": np.zeros((1, 1, 6), np.float32),
        }
    }


@functools.partial(jax.jit, static_argnums=3)
def pulled(x, d, r, gradient):
    def pull(r, probe):
        y = clip_to_range(x[:, None, None, :], r, probe, (x.shape[-1],), gradient)
        return jnp.sum(y[:, 0, 0] * d)

    return jax.grad(pull, (0, 1))(r, jnp.zeros((1, 1, 6)))


def gradients_of(x, d, r, gradient=RangeGradient()):  # noqa: B008
    x, d = np.float32(x), np.float32(d)
    g_r, g_probe = pulled(x, d, np.full((1, 1), r, np.float32), gradient)
    kernel = np.zeros((x.shape[-1], 3), np.float32)
    return {"layer": {"kernel": kernel, "input_range": g_r, "probe": g_probe}}


def stepped(tx):
    """Returns `f(grads, state, params)`, in one program: updates, state, params."""

    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return updates, state, optax.apply_updates(params, updates)

    return step


@pytest.mark.parametrize(
    "section", ["input_range_aihwkit_torch_fn", "input_range_lightning_fn"]
)
def test_whole_gradient_of_the_references(golden, section):
    for name, case in golden("aihwkit_input_range")[section].items():
        given = case.get("pars", case)
        options = {
            key: given[key]
            for key in ("decay", "input_min_percentage", "gradient_relative")
            if key in given
        }
        scale = given.get("gradient_scale", 1.0)
        rows, r = len(case["x"][0]), case["input_range"]
        r = r[0] if isinstance(r, list) else r
        gradient = RangeGradient(scale, options.get("gradient_relative", True))
        grads = gradients_of(case["x"], case["grad_out"], r, gradient)
        # A learning rate so small that no update is held back at half the range.
        tx = hw.optim.input_range_learning(plan_for(rows, **options), 1e-3)
        params = params_with(r, rows)
        updates, *_ = stepped(tx)(grads, tx.init(params), params)
        updates = jax.tree.map(np.asarray, updates)
        ours = -updates["layer"]["input_range"][0, 0] / 1e-3
        expected = case["grad_input_range"][0]
        if not options.get("gradient_relative", True):
            expected *= scale  # the reference drops the scale there; we do not
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7, err_msg=name)
        assert (updates["layer"]["probe"] == 0).all()


def test_running_initialisation_of_the_references(golden):
    for name, case in golden("aihwkit_input_range")[
        "input_range_init_from_data"
    ].items():
        plan = plan_for(4, init_from_data=case["init_from_data"], decay=0.0)
        tx = hw.optim.input_range_learning(plan, 0.1)
        params = params_with(case["init_value"], 4)
        state, step = tx.init(params), stepped(tx)
        history = case["input_range_and_idx_after_each_batch"]
        for x, (expected, count) in zip(case["xs"], history):
            r = float(params["layer"]["input_range"][0, 0])
            grads = gradients_of(x, np.zeros_like(x), r)
            _, state, params = step(grads, state, params)
            size = np.size(x)
            expected *= np.sqrt((size - 1) / size)  # ours is the pool's deviation
            np.testing.assert_allclose(
                params["layer"]["input_range"][0, 0], expected, rtol=1e-5, err_msg=name
            )
            assert state.initialized[0] == count


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="layer")(x)


CHIP = hw.Hardware(
    input_range=hw.InputRangeParameter(init_value=1.0, init_from_data=0, decay=0.05)
)


def after_one_update(chip, batches, scale=1.0, optimizer=None):
    """Returns the range after one update by the mean gradient of equal batches."""
    analog = hw.analogize(Layer(), chip)
    params = jax.jit(analog.init)(jax.random.key(0), batches[0])["params"]
    base = optimizer or optax.sgd(0.1)
    tx = hw.optim.hardware_aware(base, hw.plan(analog, params, batches[0]))

    @jax.jit
    def gradient(params, x):
        def loss(params):
            y = analog.apply({"params": params}, x)
            return scale * jnp.square(y - 1).mean()

        grads = jax.grad(loss)(params)
        return jax.tree.map(lambda g: g / scale, grads)

    if len(batches) > 1:
        tx = optax.MultiSteps(tx, len(batches)).gradient_transformation()
    state, step = tx.init(params), stepped(tx)
    for x in batches:
        _, state, params = step(gradient(params, x), state, params)
    return float(params["layer"]["input_range"][0, 0])


@pytest.mark.sampled
@pytest.mark.parametrize("init_from_data", [0, 5])
@pytest.mark.parametrize("spread", [0.3, 1.5])
def test_accumulation_and_loss_scaling_give_the_same_range(init_from_data, spread):
    options = hw.InputRangeParameter(
        init_value=1.0, init_from_data=init_from_data, decay=0.05
    )
    chip = hw.Hardware(input_range=options)
    x = spread * jax.random.normal(jax.random.key(1), (64, 8))
    whole = after_one_update(chip, [x])
    parts = after_one_update(chip, list(x.reshape(4, 16, 8)))
    scaled = after_one_update(chip, [x], scale=2.0**15)
    assert whole != 1.0
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    np.testing.assert_allclose(scaled, whole, rtol=1e-6)


def after_one_update_of(model, chip, x):
    """Returns the ranges of a model's only layer after one update."""
    analog = hw.analogize(model, chip)
    params = jax.jit(analog.init)(jax.random.key(0), x)["params"]
    tx = hw.optim.hardware_aware(
        optax.sgd(0.1), hw.plan(analog, params, x), input_range_learning_rate=0.1
    )

    @jax.jit
    def update(params, x):
        def loss(params):
            y = analog.apply({"params": params}, x)
            return jnp.square(y.astype(jnp.float32) - 1).mean()

        grads = jax.grad(loss)(params)
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates)

    return float(update(params, x)["layer"]["input_range"][0, 0])


class Twice(nn.Module):
    """One layer called on both halves of a batch."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(3, name="layer")
        return jnp.concatenate([layer(half) for half in jnp.split(x, 2)])


class OverTime(nn.Module):
    """The same layer at each of four times, by scan, of a batch cut into times."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(3, name="layer")
        scan = nn.scan(
            lambda layer, carry, x: (carry, layer(x)),
            variable_broadcast="params",
            split_rngs={"params": False},
        )
        _, y = scan(layer, (), x.reshape(4, -1, x.shape[-1]))
        return y.reshape(-1, 3)


class Half(nn.Module):
    """In float16, whose sums of 512 squares of up to 200 would be infinite."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="layer", dtype=jnp.float16)(x)


@pytest.mark.sampled
@pytest.mark.parametrize("init_from_data", [0, 5])
@pytest.mark.parametrize("spread", [0.3, 1.5])
def test_calls_in_parts_give_the_range_of_one_call(init_from_data, spread):
    options = hw.InputRangeParameter(
        init_value=1.0, init_from_data=init_from_data, decay=0.05
    )
    chip = hw.Hardware(input_range=options)
    x = spread * jax.random.normal(jax.random.key(1), (64, 8))
    whole = after_one_update_of(Layer(), chip, x)
    assert whole != 1.0
    for model in (Twice(), OverTime()):
        np.testing.assert_allclose(
            after_one_update_of(model, chip, x), whole, rtol=1e-6
        )


def test_statistics_do_not_overflow_in_half_precision():
    options = hw.InputRangeParameter(init_from_data=1)
    x = 200 * jax.random.uniform(jax.random.key(1), (64, 8))
    found = after_one_update_of(Half(), hw.Hardware(input_range=options), x)
    # The inputs are rounded to 11 bits.
    np.testing.assert_allclose(found, 3 * np.std(x), rtol=2**-10)


def test_output_clipping_widens_the_range_by_hand():
    # One weight of 2 and a bound of 1: the ADC clips where x / r is above 0.4995.
    chip = hw.Hardware(
        input_range=hw.InputRangeParameter(
            init_value=2.0,
            init_from_data=0,
            decay=0.0,
            manage_output_clipping=True,
            output_min_percentage=0.9,
        ),
        forward=hw.IOParameters(out_bound=1.0),
    )
    x = jnp.array([[0.5], [0.9], [1.2], [1.5]])  # 0.25, 0.45, 0.6, 0.75 of the range

    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            ones = nn.initializers.constant(2.0)
            return nn.Dense(1, name="layer", use_bias=False, kernel_init=ones)(x)

    # Half of the outputs are inside: the range grows by the rate times (1 - 1/2) r.
    found = after_one_update_of(One(), chip, x)
    np.testing.assert_allclose(found, 2.0 + 0.1 * 0.5 * 2.0, rtol=1e-6)
    few = dataclasses.replace(chip.input_range, output_min_percentage=0.4)
    enough = dataclasses.replace(chip, input_range=few)
    assert after_one_update_of(One(), enough, x) == 2.0


def test_a_wide_range_decays_and_a_narrow_one_grows():
    narrow = after_one_update(
        CHIP, [2 * jnp.ones((8, 4)) * jnp.array([1, -1, 1, -1.0])]
    )
    wide = after_one_update(CHIP, [0.1 * jnp.ones((8, 4))])
    np.testing.assert_allclose(wide, 1.0 - 0.1 * 0.05, rtol=1e-6)
    assert narrow >= 1.0


def test_a_range_whose_layer_is_not_reached_stays():
    plan, params = plan_for(4, init_from_data=3), params_with(2.0, 4)
    tx = hw.optim.input_range_learning(plan, 0.1)
    updates, state = tx.update(
        jax.tree.map(jnp.zeros_like, params), tx.init(params), params
    )
    assert updates["layer"]["input_range"][0, 0] == 0
    assert state.initialized[0] == 0


@pytest.mark.parametrize("noise", [0.0, 0.5 / 300])
@pytest.mark.parametrize("value", [0.1, 5.0, -300.0])
def test_a_nearly_constant_input_initialises_a_range_that_holds_it(value, noise):
    # Its deviation, from sums, is rounding: it would end the range at nothing.
    plan, params = plan_for(7, init_from_data=3, decay=0.0), params_with(2.0, 7)
    tx = hw.optim.input_range_learning(plan, 0.1)
    x = value * (1 + noise * np.random.default_rng(0).uniform(-1, 1, (33, 7)))
    grads = gradients_of(x, np.zeros((33, 7)), 2.0)
    updates, state, _ = stepped(tx)(grads, tx.init(params), params)
    assert state.initialized[0] == 1
    found = 2.0 + float(updates["layer"]["input_range"][0, 0])
    expected = np.sqrt(np.mean(x**2)) * (1 + 3 * 10**-2.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.abs(x).max() < found


def test_an_input_of_zeros_does_not_initialise():
    plan, params = plan_for(7, init_from_data=3, decay=0.0), params_with(2.0, 7)
    tx = hw.optim.input_range_learning(plan, 0.1)
    grads = gradients_of(np.zeros((33, 7)), np.zeros((33, 7)), 2.0)
    updates, state, _ = stepped(tx)(grads, tx.init(params), params)
    assert state.initialized[0] == 0
    assert updates["layer"]["input_range"][0, 0] == 0


def test_learning_off_leaves_the_running_initialisation():
    x = jax.random.normal(jax.random.key(1), (64, 8))
    still = hw.InputRangeParameter(learn_input_range=False, init_from_data=0)
    assert after_one_update(hw.Hardware(input_range=still), [x]) == 3.0
    data = hw.InputRangeParameter(learn_input_range=False, init_from_data=1)
    np.testing.assert_allclose(
        after_one_update(hw.Hardware(input_range=data), [x]), 3 * np.std(x), rtol=1e-5
    )


def test_a_range_stays_positive_under_any_gradient():
    params = params_with(1.0, 4)
    tx = hw.optim.input_range_learning(plan_for(4), 1e6)
    state, step = tx.init(params), stepped(tx)
    for _ in range(50):
        grads = gradients_of(0.1 * np.ones((5, 4)), np.ones((5, 4)), 1.0)
        _, state, params = step(grads, state, params)
        assert float(params["layer"]["input_range"][0, 0]) > 0


def test_a_schedule_and_another_optimizer():
    params = params_with(1.0, 4)
    grads = gradients_of(2 * np.ones((5, 4)), -0.01 * np.ones((5, 4)), 1.0)
    g = float(grads["layer"]["input_range"][0, 0])
    rates = [0.1, 0.05]
    schedule = optax.piecewise_constant_schedule(0.1, {1: 0.5})
    tx = hw.optim.input_range_learning(plan_for(4, decay=0.0), schedule)
    state, step = tx.init(params), stepped(tx)
    for rate in rates:
        updates, state, _ = step(grads, state, params)
        np.testing.assert_allclose(
            updates["layer"]["input_range"][0, 0], -rate * g, rtol=1e-6
        )
    tx = hw.optim.input_range_learning(
        plan_for(4, decay=0.0), 0.1, optax.scale_by_adam()
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["layer"]["input_range"][0, 0], 0.1, rtol=1e-5)


def test_the_range_learns_in_every_layer_of_a_stack():
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.vmap(
                nn.Dense,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=0,
                axis_size=3,
            )(4, name="layers")(x)

    spread = np.float32([0.5, 1.0, 4.0])[:, None, None]
    x = spread * np.float32(np.random.default_rng(0).normal(size=(3, 200, 10)))
    chip = hw.Hardware(input_range=hw.InputRangeParameter(init_from_data=1))
    analog = hw.analogize(Stack(), chip)
    params = jax.jit(analog.init)(jax.random.key(0), x)["params"]
    tx = hw.optim.hardware_aware(optax.sgd(0.1), hw.plan(analog, params, x))
    loss = lambda p: jnp.square(analog.apply({"params": p}, x)).mean()  # noqa: E731
    grads = jax.jit(jax.grad(loss))(params)
    *_, after = stepped(tx)(grads, tx.init(params), params)
    learned = np.asarray(after["layers"]["input_range"])
    np.testing.assert_allclose(learned[:, 0, 0], 3 * np.std(x, (1, 2)), rtol=1e-5)


def test_missing_leaves_and_parameters_are_errors():
    tx = hw.optim.input_range_learning(plan_for(4), 0.1)
    with pytest.raises(ValueError, match="hwtrain.adopt"):
        tx.init({"layer": {"kernel": jnp.ones((4, 3))}})
    params = params_with(1.0, 4)
    with pytest.raises(ValueError, match="tx.update.grads, state, params"):
        tx.update(params, tx.init(params))
    assert "layer/probe" in paths.leaves(params)


@pytest.mark.parametrize("learns", [True, False])
def test_a_fixed_range_costs_no_gradient_of_the_input(learns):
    # Two layers: two products forward, two of the weights, one of the inputs between
    # them, and one of the model's inputs where the first range learns.
    fixed = hw.InputRangeParameter(learn_input_range=False, init_from_data=0)
    moving = hw.InputRangeParameter()
    first = hw.Hardware(input_range=moving if learns else fixed)
    rules = (
        hw.Rule("layers_0", first),
        hw.Rule(".*", hw.Hardware(input_range=moving)),
    )
    model = hw.analogize(nn.Sequential([nn.Dense(8), nn.Dense(8)]), rules)
    x = jnp.ones((4, 8))
    params = model.init(jax.random.key(0), x)["params"]
    tx = hw.optim.hardware_aware(optax.sgd(0.1), hw.plan(model, params, x))

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, x) ** 2))(
            params
        )
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    text = step.lower(params, state).compile().as_text()
    assert text.count(" dot(") == (6 if learns else 5)
    before = params["layers_0"]["input_range"]
    after = step(params, state)[0]["layers_0"]["input_range"]
    assert (after != before).any() == learns
