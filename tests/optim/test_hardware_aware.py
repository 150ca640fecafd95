"""`hardware_aware` around Optax: routing, constraints, order, no recompilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain.optim._clip import weight_bound
from hwtrain.weights.clip import as_float32


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(nn.relu(nn.Dense(16, name="hidden")(x)))


X = jax.random.normal(jax.random.key(1), (64, 8))
CHIP = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
    input_range=hw.InputRangeParameter(init_from_data=5, init_value=1.0),
    clip=hw.WeightClipParameter(type="layer_gaussian", sigma=1.5),
)
SCHEDULE = optax.cosine_decay_schedule(1e-2, 100)
BASES = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.05, momentum=0.9),
    "adam": optax.adam(SCHEDULE),
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "lion": optax.lion(1e-3),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
    # Hyperparameters in float32: Adam's own arithmetic is NaN with bfloat16 ones.
    "injected": optax.inject_hyperparams(optax.adam, hyperparam_dtype=jnp.float32)(
        learning_rate=1e-2
    ),
    "extra args": optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
}


@functools.cache
def start(chip=CHIP, model=MLP()):  # noqa: B008 an immutable value
    analog = hw.analogize(model, chip)
    params = jax.jit(analog.init)(jax.random.key(0), X)["params"]
    return analog, params, hw.plan(analog, params, X)


def loss_of(analog, params, key):
    y = analog.apply({"params": params}, X, rngs={"mismatch": key})
    return jnp.square(y - 1).mean()


def trainer(analog, tx):
    @jax.jit
    def step(params, state, key):
        loss, grads = jax.value_and_grad(lambda p: loss_of(analog, p, key))(params)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    return step


@pytest.fixture(params=BASES)
def base(request):
    return BASES[request.param]


@pytest.mark.sampled(2)
def test_training_falls_and_never_recompiles(base):
    analog, params, plan = start()
    tx = hw.optim.hardware_aware(base, plan)
    step, state = trainer(analog, tx), tx.init(params)
    structure = jax.tree.structure(state)
    losses = []
    for i in range(25):
        params, state, loss = step(params, state, jax.random.key(i))
        losses.append(float(loss))
    assert step._cache_size() == 1
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert jax.tree.structure(state) == structure
    assert float(params["hidden"]["input_range"][0, 0]) != 1.0
    for name in ("hidden", "head"):
        assert (params[name]["probe"] == 0).all()


def test_the_base_sees_the_plain_models_parameters_only(base):
    _, params, plan = start()
    state = hw.optim.hardware_aware(base, plan).init(params)
    plain = base.init(hw.strip(params))
    assert jax.tree.structure(state.base) == jax.tree.structure(plain)


@pytest.mark.parametrize("name", ["adamw", "clipped"])
def test_weights_train_as_if_the_probes_were_not_there(name):
    # No clip, and ranges so wide that they clip nothing: the weights must follow the
    # plain model's path.
    wide = hw.InputRangeParameter(init_value=1e3, init_from_data=0)
    analog, params, plan = start(hw.Hardware(input_range=wide))
    tx = hw.optim.hardware_aware(BASES[name], plan)
    state, plain_params = tx.init(params), hw.strip(params)
    plain_state = BASES[name].init(plain_params)
    step = trainer(analog, tx)
    plain_step = trainer(MLP(), optax.with_extra_args_support(BASES[name]))
    for _ in range(5):
        params, state, _ = step(params, state, jax.random.key(0))
        plain_params, plain_state, _ = plain_step(
            plain_params, plain_state, jax.random.key(0)
        )
    for path, value in paths.leaves(plain_params).items():
        np.testing.assert_allclose(
            paths.leaves(params)[path], value, rtol=1e-5, atol=1e-6
        )


def test_weight_decay_never_touches_ranges():
    still = hw.InputRangeParameter(init_value=1.0, init_from_data=0, decay=0.0)
    _, params, plan = start(hw.Hardware(input_range=still))
    base = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))
    tx = hw.optim.hardware_aware(base, plan, input_range_learning_rate=0.1)
    grads = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    assert updates["hidden"]["input_range"][0, 0] == 0
    np.testing.assert_allclose(
        updates["hidden"]["kernel"], -0.05 * params["hidden"]["kernel"], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("base", "rates"),
    [
        (optax.sgd(0.1), [0.1] * 3),
        (optax.adam(1e-2), [1e-2] * 3),
        (optax.adamw(SCHEDULE), [float(SCHEDULE(i)) for i in range(3)]),
        (
            optax.inject_hyperparams(optax.adam)(SCHEDULE),
            [float(SCHEDULE(i)) for i in range(3)],
        ),
        # They divide by the gradient's history, so a measurement would be wrong.
        (optax.inject_hyperparams(optax.adagrad)(0.3), [0.3] * 3),
    ],
)
def test_the_ranges_learn_at_the_rate_of_the_base(base, rates):
    wide = hw.InputRangeParameter(init_value=1e3, init_from_data=0, decay=1e-2)
    analog, params, plan = start(hw.Hardware(input_range=wide))
    tx = hw.optim.hardware_aware(base, plan)
    step, state = trainer(analog, tx), tx.init(params)
    for rate in rates:
        before = float(params["hidden"]["input_range"][0, 0])
        params, state, _ = step(params, state, jax.random.key(0))
        after = float(params["hidden"]["input_range"][0, 0])
        np.testing.assert_allclose(after, before * (1 - rate * 1e-2), rtol=2e-7)


SCALED = hw.MappingParameter(weight_scaling_omega=1.0, max_input_size=5)
CLIPS = {
    "sigma": hw.WeightClipParameter(type="layer_gaussian", sigma=1.5),
    "fixed": hw.WeightClipParameter(type="fixed_value", fixed_value=0.5),
}
BOUNDED = {
    f"{kind}_{dtype}": hw.Hardware(clip=clip, mapping=SCALED)
    for kind, clip in CLIPS.items()
    for dtype in ("float32", "bfloat16")
}
"""A layer for each bound and dtype, so that one step shows them all."""


class Bounded(nn.Module):
    @nn.compact
    def __call__(self, x):
        for name in BOUNDED:
            dtype = jnp.dtype(name.rpartition("_")[2])
            x = nn.relu(nn.Dense(16, name=name, param_dtype=dtype)(x))
        return nn.Dense(4, name="head")(x)


@pytest.mark.sampled(2)
def test_every_step_of_every_optimizer_keeps_every_bound(base):
    rules = tuple(hw.Rule(name, chip) for name, chip in BOUNDED.items())
    analog, params, plan = start(rules, Bounded())
    assert len(plan) == len(BOUNDED) == 4
    free = hw.optim.hardware_aware(base, plan)
    state = free.init(params)

    @jax.jit
    def step(params, state, key):
        loss, grads = jax.value_and_grad(lambda p: loss_of(analog, p, key))(params)
        updates, new = free.update(grads, state, params, value=loss)
        own, _ = optax.with_extra_args_support(base).update(
            hw.strip(grads, plan), state.base, hw.strip(params, plan), value=loss
        )
        after = optax.apply_updates(params, updates)
        excess = {}
        for path, weight in plan.items():
            kernel, update = paths.leaves(params)[path], paths.leaves(own)[path]
            scale = paths.leaves(params).get(weight.leaf("mapping_scale"))
            bound = weight_bound(weight, kernel, scale, update=update)
            now = jnp.abs(as_float32(paths.leaves(after)[path]))
            excess[path] = jnp.max(now - bound), jnp.mean(now >= 0.99 * bound)
        return after, new, excess

    for i in range(8):
        params, state, excess = step(params, state, jax.random.key(i))
        assert all(float(over) <= 0 for over, _ in excess.values()), excess
    for path, (_, share) in excess.items():
        assert float(share) > 0, path  # something was clipped


def test_clipping_is_per_layer_inside_a_stack():
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.vmap(
                nn.Dense,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=None,
                axis_size=3,
            )(16, name="layers")(x)

    _, params, plan = start(CHIP, Stack())
    kernel = np.asarray(params["layers"]["kernel"])
    kernel = kernel * np.float32([1.0, 20.0, 0.1])[:, None, None]
    params = {"layers": {**params["layers"], "kernel": kernel}}
    tx = hw.optim.keep_weights_clipped(plan)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    after = kernel + np.asarray(updates["layers"]["kernel"])
    bound = 1.5 * np.std(kernel, (1, 2), ddof=1, keepdims=True)
    np.testing.assert_allclose(after, np.clip(kernel, -bound, bound), rtol=1e-5)
    assert (updates["layers"]["bias"] == 0).all()


def test_a_fixed_clip_acts_on_the_stored_scale():
    # Were the scale derived anew each step, the largest weight would be omega for ever
    # and the clip would do nothing.
    clip = hw.WeightClipParameter(type="fixed_value", fixed_value=1.0)
    chip = hw.Hardware(clip=clip, mapping=hw.MappingParameter(weight_scaling_omega=1.0))
    _, params, plan = start(chip)
    scale = params["hidden"]["mapping_scale"]
    np.testing.assert_allclose(scale[0, 0], jnp.abs(params["hidden"]["kernel"]).max())
    tx = hw.optim.hardware_aware(optax.sgd(1.0), plan)
    grads = jax.tree.map(lambda p: -np.ones_like(p), params)

    @jax.jit
    def step(grads, params):
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates)

    after = step(grads, params)
    assert after["hidden"]["kernel"].max() == scale[0, 0]
    np.testing.assert_array_equal(after["hidden"]["mapping_scale"], scale)


def test_the_other_order_and_what_cannot_be_measured_are_errors():
    _, params, plan = start()
    make = hw.optim.hardware_aware
    with pytest.raises(
        ValueError, match=r"^optax.MultiSteps must go around.*Write optax\.MultiSteps\("
    ):
        make(optax.MultiSteps(optax.adam(1e-3), 2), plan)

    def init(params):
        return params["hidden"]["kernel"]

    by_name = optax.GradientTransformation(init, lambda u, s, p=None: (u, s))
    with pytest.raises(ValueError, match="input_range_learning_rate=1e-3"):
        make(by_name, plan).init(params)
    make(by_name, plan, input_range_learning_rate=1e-3).init(params)
    with pytest.raises(ValueError, match="Pass `params`, not the variables"):
        make(optax.adam(1e-3), plan).init({"params": params})


WITHIN = {
    "alone": lambda tx: tx,
    "in a chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "in a named chain": lambda tx: optax.named_chain(
        ("a", optax.identity()), ("b", tx)
    ),
    "in a partition": lambda tx: optax.partition(
        {"a": tx}, lambda params: jax.tree.map(lambda _: "a", params)
    ),
    "masked": lambda tx: optax.masked(tx, True),
    "in a chain in a partition": lambda tx: optax.partition(
        {"a": optax.chain(optax.clip(1.0), tx), "b": optax.sgd(1.0)},
        lambda params: jax.tree.map(lambda p: "a" if p.ndim > 1 else "b", params),
    ),
    "with hyperparameters": lambda tx: optax.inject_hyperparams(
        lambda rate: optax.chain(tx, optax.scale(rate))
    )(1.0),
}


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("name", ["MultiSteps", "apply_if_finite"])
def test_steps_are_not_accumulated_or_skipped_within_the_base(name, within):
    _, params, plan = start()
    tx = getattr(optax, name)(optax.adam(1e-3), 2)
    if name == "MultiSteps":
        tx = tx.gradient_transformation()
    way_out = rf"^optax\.{name} must go around.*Write optax\.{name}\(hardware_aware"
    with pytest.raises(ValueError, match=way_out):
        hw.optim.hardware_aware(WITHIN[within](tx), plan).init(params)


def test_apply_if_finite_goes_around():
    analog, params, plan = start()
    tx = optax.apply_if_finite(hw.optim.hardware_aware(optax.adam(1e-2), plan), 3)
    state = tx.init(params)
    bad = jax.tree.map(lambda p: np.full_like(p, np.nan), params)
    updates, state = jax.jit(tx.update)(bad, state, params)
    assert all((np.asarray(u) == 0).all() for u in jax.tree.leaves(updates))


@pytest.mark.nightly
@pytest.mark.optimised
def test_train_state_saved_and_resumed_ends_bit_identical(tmp_path):
    analog, params, plan = start()
    tx = hw.optim.hardware_aware(optax.adamw(SCHEDULE), plan)

    @jax.jit
    def step(state, key):
        grads = jax.grad(lambda p: loss_of(analog, p, key))(state.params)
        return state.apply_gradients(grads=grads)

    def run(state, numbers):
        for i in numbers:
            state = step(state, jax.random.key(i))
        return state

    state = TrainState.create(apply_fn=analog.apply, params=params, tx=tx)
    whole = run(state, range(8))
    half = run(state, range(4))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", half)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "half", jax.eval_shape(lambda: half))
    jax.tree.map(np.testing.assert_array_equal, run(restored, range(4, 8)), whole)


def test_nnx_optimizer_takes_the_same_steps():
    class Twin(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(8, 16, rngs=rngs)
            self.head = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.hidden(x)))

    analog, params, plan = start()
    twin = hw.analogize(Twin(nnx.Rngs(0)), CHIP, rngs=nnx.Rngs(mismatch=9))
    state = nnx.state(twin, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    nnx.update(twin, state)
    optimizer = nnx.Optimizer(
        twin, hw.optim.hardware_aware(optax.adamw(1e-2), hw.plan(twin)), wrt=nnx.Param
    )
    tx = hw.optim.hardware_aware(optax.adamw(1e-2), plan)
    step, linen_state = trainer(analog, tx), tx.init(params)
    stream = nnx.Rngs(mismatch=9).mismatch

    @nnx.jit
    def nnx_step(twin, optimizer):
        grads = nnx.grad(lambda m: jnp.square(m(X) - 1).mean())(twin)
        optimizer.update(twin, grads)

    for _ in range(6):
        nnx_step(twin, optimizer)
        params, linen_state, _ = step(params, linen_state, stream())
    ours = paths.leaves(nnx.to_pure_dict(nnx.state(twin, nnx.Param)))
    for path, value in paths.leaves(params).items():
        np.testing.assert_allclose(ours[path], value, rtol=1e-4, atol=1e-5)
