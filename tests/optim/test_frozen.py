"""Weights that the optimiser never updates, and all their leaves, stay unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import paths

X = jax.random.normal(jax.random.key(1), (16, 8))
BOUND = 0.05
EFFECTS = {
    "clip": {"clip": hw.WeightClipParameter(type="fixed_value", fixed_value=BOUND)},
    "learned clip": {"clip": hw.WeightClipParameter(type="learnable_per_channel")},
    "remap": {"remap": hw.WeightRemapParameter(type="channelwise_symmetric")},
    "drift": {"drift": hw.SimpleDriftParameter(nu=0.1, dt_s=1000.0)},
    "range": {"input_range": hw.InputRangeParameter(init_from_data=1)},
    "output scale": {
        "mapping": hw.MappingParameter(
            weight_scaling_omega=1.0, learn_out_scaling=True, max_input_size=5
        )
    },
}
ALL = hw.Hardware(
    **{
        name: part
        for effect in ("clip", "remap", "drift", "range", "output scale")
        for name, part in EFFECTS[effect].items()
    }
)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(nn.relu(nn.Dense(16, name="hidden")(x)))


class Twin(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(8, 16, rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


def is_frozen(path):
    return path.startswith("hidden/") and not path.endswith("bias")


def labels(tree):
    return paths.map_leaves(
        lambda path, _: "frozen" if is_frozen(path) else "trained", tree
    )


def frozen(tree):
    return paths.map_leaves(lambda path, _: is_frozen(path), tree)


def parts(trained):
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


ADAM = optax.adam(0.1)
STILL = optax.masked(optax.set_to_zero(), frozen)
WAYS = {
    "partition": lambda aware, plan: aware(parts(ADAM), plan),
    "last": lambda aware, plan: aware(optax.chain(ADAM, STILL), plan),
    "first": lambda aware, plan: aware(optax.chain(STILL, ADAM), plan),
    "first of many": lambda aware, plan: aware(
        optax.chain(STILL, optax.clip_by_global_norm(1.0), optax.adam(_warm_up())), plan
    ),
    "partition around": lambda aware, plan: parts(aware(ADAM, plan)),
    "rule": lambda aware, plan: aware(ADAM, plan),
}


def _warm_up():
    return optax.linear_schedule(0.0, 0.1, 3)


def rules_of(hardware, way):
    hidden = hw.Rule("hidden", hardware, frozen=way == "rule")
    return [hidden, hw.Rule("head", hardware)]


def aware(base, plan):
    return hw.optim.hardware_aware(base, plan, input_range_learning_rate=0.1)


def linen_steps(rules, make, steps=3):
    """Returns all parameters before and after some updates."""
    analog = hw.analogize(MLP(), rules)
    params = before = analog.init(jax.random.key(0), X)["params"]
    tx = make(hw.plan(analog, params, X))
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        loss = lambda p: jnp.square(analog.apply({"params": p}, X) - 1).mean()  # noqa: E731
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    assert step._cache_size() == 1
    return paths.leaves(before), paths.leaves(params)


def nnx_steps(rules, make, steps=3, wrt=nnx.Param):
    analog = hw.analogize(Twin(nnx.Rngs(0)), rules)
    optimizer = nnx.Optimizer(analog, make(hw.plan(analog)), wrt=wrt)

    def values():
        pure = nnx.to_pure_dict(nnx.state(analog, nnx.Param))
        return jax.tree.map(jnp.copy, paths.leaves(pure))

    @nnx.jit
    def step(model, optimizer):
        loss = lambda m: jnp.square(m(X) - 1).mean()  # noqa: E731
        grads = nnx.grad(loss, argnums=nnx.DiffState(0, wrt))(model)
        optimizer.update(model, grads)

    before = values()
    for _ in range(steps):
        step(analog, optimizer)
    return before, values()


FRAMEWORKS = {"linen": linen_steps, "nnx": nnx_steps}


@pytest.fixture(params=FRAMEWORKS)
def steps(request):
    return FRAMEWORKS[request.param]


CASES = [(way, effect) for way in WAYS for effect in ("all", "learned clip")]
CASES += [("partition", effect) for effect in EFFECTS if effect != "learned clip"]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("way", "effect"), CASES)
def test_what_is_never_updated_stays_bit_for_bit(steps, way, effect):
    chip = ALL if effect == "all" else hw.Hardware(**EFFECTS[effect])
    before, after = steps(
        rules_of(chip, way), lambda plan: WAYS[way](aware, plan), steps=3
    )
    assert before.keys() == after.keys()
    for path, value in before.items():
        if is_frozen(path):
            np.testing.assert_array_equal(after[path], value, err_msg=path)
    # All else is trained, as ever.
    assert (after["hidden/bias"] != before["hidden/bias"]).any()
    for path in set(after) - {path for path in after if is_frozen(path)}:
        fixed = path.endswith("probe") or (
            path.endswith("mapping_scale") and chip.remap is None
        )
        assert fixed == bool((after[path] == before[path]).all()), path


DECAYED = optax.chain(optax.set_to_zero(), optax.add_decayed_weights(1e-3))
TRAINED = {
    "zero rate": optax.sgd(0.0),
    "zero schedule": optax.sgd(optax.constant_schedule(0.0)),
    "warm-up": optax.sgd(_warm_up()),
    "warm-up of Adam": optax.adam(_warm_up()),
    "injected": optax.inject_hyperparams(optax.sgd)(learning_rate=0.0),
    "zero momentum": optax.sgd(0.0, momentum=0.9),
    "zeroed, then decayed": DECAYED,
    "zeroed NaN": optax.chain(optax.zero_nans(), optax.sgd(0.0)),
    "clipped": optax.chain(optax.clip(0.0), optax.sgd(0.0)),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("gradient", [0.0, 1.0])
@pytest.mark.parametrize("base", TRAINED)
def test_no_value_freezes(base, gradient):
    chip = hw.Hardware(**EFFECTS["clip"])
    analog = hw.analogize(MLP(), chip)
    params = analog.init(jax.random.key(0), X)["params"]
    tx = aware(TRAINED[base], hw.plan(analog, params, X))
    grads = jax.tree.map(lambda p: jnp.full_like(p, gradient), params)
    updates, _ = tx.update(grads, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    for name in ("hidden", "head"):
        assert jnp.abs(params[name]["kernel"]).max() > BOUND
        assert jnp.abs(after[name]["kernel"]).max() <= BOUND


ALONE = {
    "clip": (hw.optim.keep_weights_clipped, "kernel"),
    "drift": (hw.optim.drift_weights, "kernel"),
    "remap": (hw.optim.remap_weights, "mapping_scale"),
    "range": (lambda plan: hw.optim.input_range_learning(plan, 0.1), "input_range"),
}


@pytest.mark.parametrize("effect", ALONE)
def test_each_transformation_alone_leaves_frozen_weights(effect):
    make, moved = ALONE[effect]
    analog = hw.analogize(MLP(), rules_of(hw.Hardware(**EFFECTS[effect]), "rule"))
    params = analog.init(jax.random.key(0), X)["params"]
    tx = make(hw.plan(analog, params, X))
    zeros, state = jax.tree.map(jnp.zeros_like, params), tx.init(params)
    if effect == "range":
        sums = jnp.array([100.0, 97.0, 5.0, 60.0, 0.0, 0.0])
        for name in ("hidden", "head"):
            zeros[name]["probe"] = jnp.broadcast_to(sums, (1, 1, 6))
    moves = False
    for _ in range(2):
        updates, state = tx.update(zeros, state, params)
        assert (updates["hidden"].get("probe", jnp.zeros(1)) == 0).all()
        for path, update in paths.leaves(updates).items():
            assert (update == 0).all() or path == f"head/{moved}"
        moves |= bool((updates["head"][moved] != 0).any())
        params = optax.apply_updates(params, updates)
    assert moves


def test_a_frozen_weight_takes_no_memory_of_the_base():
    analog = hw.analogize(MLP(), rules_of(ALL, "rule"))
    params = analog.init(jax.random.key(0), X)["params"]
    state = aware(ADAM, hw.plan(analog, params, X)).init(params)
    moments = paths.leaves(state.base[0].mu)
    assert set(moments) == {
        "hidden/bias",
        "head/bias",
        "head/kernel",
        "head/output_scale",
    }


class Adapted(nnx.Module):
    """A base that stays, and a LoRA that learns."""

    def __init__(self, rngs):
        start = nnx.initializers.normal(0.5)
        self.layer = nnx.LoRALinear(8, 4, lora_rank=2, b_initializer=start, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


def adapted(rule, wrt, base=ADAM):
    ranged = hw.Hardware(**EFFECTS["clip"], **EFFECTS["range"])
    # A clip of the adapters stores scales beside them, which are no LoRAParam.
    clipped = hw.Hardware(**EFFECTS["clip"]) if wrt is nnx.Param else hw.Hardware()
    stays = hw.Rule("layer", ranged, frozen=rule)
    analog = hw.analogize(Adapted(nnx.Rngs(0)), [stays, hw.Rule("layer/lora", clipped)])
    optimizer = nnx.Optimizer(analog, aware(base, hw.plan(analog)), wrt=wrt)
    return analog, optimizer


@pytest.mark.parametrize(
    ("rule", "wrt"), [(True, nnx.Param), (True, nnx.LoRAParam), (False, nnx.Param)]
)
def test_the_base_of_a_lora_stays(rule, wrt):
    of_lora = lambda tree: paths.map_leaves(  # noqa: E731
        lambda path, _: "trained" if "lora" in path else "frozen", tree
    )
    base = ADAM
    if not rule:
        base = optax.partition(
            {"trained": ADAM, "frozen": optax.set_to_zero()}, of_lora
        )
    analog, optimizer = adapted(rule, wrt, base)
    before = jnp.copy(analog.layer.kernel[...])
    range_before = jnp.copy(analog.layer.input_range[...])

    @nnx.jit
    def step(model, optimizer):
        loss = lambda m: jnp.square(m(X) - 1).mean()  # noqa: E731
        grads = nnx.grad(loss, argnums=nnx.DiffState(0, wrt))(model)
        optimizer.update(model, grads)

    for _ in range(3):
        step(analog, optimizer)
    assert jnp.abs(before).max() > BOUND
    np.testing.assert_array_equal(analog.layer.kernel[...], before)
    np.testing.assert_array_equal(analog.layer.input_range[...], range_before)
    for factor in (analog.layer.lora.lora_a, analog.layer.lora.lora_b):
        largest = BOUND if wrt is nnx.Param else jnp.inf
        assert 0 < jnp.abs(factor[...]).max() <= largest


def test_a_filter_is_named_with_the_way_out():
    with pytest.raises(ValueError, match="'layer/kernel'.* wrt= of nnx.Optimizer") as e:
        adapted(False, nnx.LoRAParam)
    assert "Rule('layer', hardware, frozen=True)" in str(e.value)
    # Leaves of trained weights that the filter leaves out.
    chip = hw.Hardware(**EFFECTS["range"])
    analog = hw.analogize(nnx.LoRA(6, 2, 5, rngs=nnx.Rngs(0)), chip)
    with pytest.raises(ValueError, match="lora_a_input_range'.*wrt=nnx.Param"):
        nnx.Optimizer(analog, aware(ADAM, hw.plan(analog)), wrt=nnx.LoRAParam)


def test_what_is_digital_cannot_be_frozen_by_a_rule():
    with pytest.raises(ValueError, match="'head', frozen=True.*optax.set_to_zero"):
        hw.Rule("head", None, frozen=True)


def test_assert_active_does_not_ask_for_what_is_frozen():
    analog = hw.analogize(MLP(), rules_of(ALL, "rule"))
    variables = analog.init(jax.random.key(0), X)
    hw.assert_active(analog, variables, X)


def test_inspect_and_a_checkpoint_say_what_is_frozen(tmp_path):
    chip = hw.Hardware(converter=hw.SinglePairConductanceConverter())
    analog = hw.analogize(MLP(), rules_of(chip, "rule"))
    variables = analog.init(jax.random.key(0), X)
    rows = hw.inspect(analog, variables, X).rows
    assert "Rule('hidden', frozen=True)" in {row["by"] for row in rows}
    plan = hw.plan(analog, variables, X)
    hw.export(tmp_path / "chip", variables, plan)
    restored = hw.load(tmp_path / "chip").plan
    assert {weight.path: weight.frozen for weight in restored.weights} == {
        "hidden/kernel": True,
        "head/kernel": False,
    }
