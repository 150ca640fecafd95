"""Each range learns at the base's learning rate for the range's own weight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import paths

DECAY = 1e-2
CHIP = hw.Hardware(
    # So wide that it clips nothing: then the decay alone moves it, by rate * decay.
    input_range=hw.InputRangeParameter(init_value=1e3, init_from_data=0, decay=DECAY),
    clip=hw.WeightClipParameter(type="learnable_per_channel"),
)
X = jax.random.normal(jax.random.key(1), (16, 8))
LAYERS = ("first", "second", "head")


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for name, size in zip(LAYERS, (6, 6, 4)):
            x = nn.Dense(size, name=name)(nn.LayerNorm(name=f"norm_{name}")(x))
        return x


class Nnx(nnx.Module):
    def __init__(self, rngs):
        for name, sizes in zip(LAYERS, ((8, 6), (6, 6), (6, 4))):
            setattr(self, name, nnx.Linear(*sizes, rngs=rngs))

    def __call__(self, x):
        return self.head(self.second(self.first(x)))


def by_name(params):
    """Labels the head by name, and everything else by default."""
    return paths.map_leaves(
        lambda path, _: "slow" if path.startswith("head/") else "fast", params
    )


def by_keys(params):
    """As the names of the top of the tree alone."""
    return {name: "slow" if name == "head" else "fast" for name in params}


def by_rank(params):
    return jax.tree.map(lambda leaf: "fast" if leaf.ndim > 1 else "slow", params)


def mask_of(labels, label):
    return lambda params: jax.tree.map(lambda own: own == label, labels(params))


def masks(labels):
    return optax.chain(
        optax.scale(1.0),
        optax.masked(optax.sgd(0.1), mask_of(labels, "fast")),
        optax.masked(optax.sgd(0.3), mask_of(labels, "slow")),
    )


def partition(fast, slow):
    parts = {"fast": fast, "slow": slow}
    return lambda labels: optax.partition(parts, labels)


ADAMW = optax.adamw(0.1, weight_decay=0.5)
inject = optax.inject_hyperparams
CASES = {
    # base of labels: learning rates of the two kinds
    "partition": (partition(optax.sgd(0.1), optax.sgd(0.3)), 0.1, 0.3),
    "adaptive": (partition(ADAMW, optax.lion(0.3)), 0.1, 0.3),
    "schedules": (partition(optax.adam(lambda n: 0.1 / (n + 1)), ADAMW), 0.1, 0.1),
    "masked": (masks, 0.1, 0.3),
    "chained": (
        lambda labels: optax.chain(
            optax.clip_by_global_norm(1.0),
            partition(optax.sgd(0.1), optax.sgd(0.3))(labels),
            optax.add_decayed_weights(0.5, mask_of(labels, "fast")),
        ),
        0.1,
        0.3,
    ),
    "decay alone": (
        lambda labels: optax.adamw(0.1, mask=mask_of(labels, "fast")),
        0.1,
        0.1,
    ),
    # Adagrad divides by the gradient's history, so only its injected rate is right.
    "injected in a part": (
        partition(inject(optax.adagrad)(0.1), optax.sgd(0.3)),
        0.1,
        0.3,
    ),
    "injected in both": (
        partition(inject(optax.adagrad)(0.1), inject(optax.sgd)(0.3)),
        0.1,
        0.3,
    ),
    "nested": (
        lambda labels: optax.partition(
            {"a": partition(optax.sgd(0.1), optax.sgd(0.3))(labels)},
            lambda params: jax.tree.map(lambda _: "a", params),
        ),
        0.1,
        0.3,
    ),
    "partly frozen": (partition(optax.set_to_zero(), optax.sgd(0.3)), 0.0, 0.3),
}
LABELS = {"fast": ("first", "second"), "slow": ("head",)}


@functools.cache
def start():
    analog = hw.analogize(Linen(), CHIP)
    params = jax.jit(analog.init)(jax.random.key(0), X)["params"]
    return analog, params, hw.plan(analog, params, X)


def gradients_of(params):
    analog, _, _ = start()
    found = jax.grad(lambda p: jnp.square(analog.apply({"params": p}, X)).mean())(
        params
    )
    return paths.map_leaves(
        lambda path, g: jnp.full_like(g, 1e-2) if path.endswith("_bound") else g, found
    )


def rates_of(base, steps=1):
    """Returns the rates at which ranges moved in the last step, after clip bounds."""
    _, params, plan = start()
    tx = hw.optim.hardware_aware(base, plan)
    state, step = tx.init(params), jax.jit(tx.update)
    gradients = jax.jit(gradients_of)(params)
    for _ in range(steps):
        updates, state = step(gradients, state, params)
    assert step._cache_size() == 1
    found = {}
    for name in LAYERS:
        moved = updates[name]["input_range"] / params[name]["input_range"]
        found[name] = float(-moved[0, 0]) / DECAY
        bounds = -updates[name]["clip_bound"] / 1e-2
        np.testing.assert_allclose(bounds, found[name], rtol=1e-4)
    return found


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", CASES)
def test_each_range_learns_at_the_rate_of_its_weight(case):
    make, fast, slow = CASES[case]
    rates = rates_of(make(by_name))
    expected = {**dict.fromkeys(LABELS["fast"], fast), "head": slow}
    for name in LAYERS:
        np.testing.assert_allclose(rates[name], expected[name], rtol=1e-4)


def tree_of(labels):
    _, params, plan = start()
    return labels(hw.strip(params, plan))


FORMS = {
    "of top names": lambda: by_keys,
    "tree": lambda: tree_of(by_name),
    "tree of top names": lambda: tree_of(by_keys),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_may_be_of_any_form(form):
    make = partition(optax.sgd(0.1), optax.sgd(0.3))
    rates = list(rates_of(make(FORMS[form]())).values())
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.3], rtol=1e-4)


def test_labels_may_go_by_rank():
    rates = rates_of(partition(optax.sgd(0.1), optax.set_to_zero())(by_rank))
    np.testing.assert_allclose(list(rates.values()), [0.1] * 3, rtol=1e-4)


def test_each_rate_follows_its_own_schedule():
    make = partition(optax.adam(lambda n: 0.1 / (n + 1)), optax.sgd(0.3))
    for steps in (1, 2, 3):
        rates = rates_of(make(by_name), steps)
        np.testing.assert_allclose(rates["first"], 0.1 / steps, rtol=1e-4)
        np.testing.assert_allclose(rates["head"], 0.3, rtol=1e-4)


def test_nnx_has_the_rates_of_its_parts():
    analog = hw.analogize(Nnx(nnx.Rngs(0)), CHIP)
    base = partition(optax.adam(0.1), optax.sgd(0.3))(by_name)
    tx = hw.optim.hardware_aware(base, hw.plan(analog))
    optimizer = nnx.Optimizer(analog, tx, wrt=nnx.Param)
    before = [float(getattr(analog, name).input_range[0, 0]) for name in LAYERS]

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda m: jnp.square(m(X)).mean())(model)
        optimizer.update(model, gradients)

    step(analog, optimizer)
    after = [float(getattr(analog, name).input_range[0, 0]) for name in LAYERS]
    moved = (1 - np.array(after) / before) / DECAY
    np.testing.assert_allclose(moved, [0.1, 0.1, 0.3], rtol=1e-3)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("rate", [None, 0.1])
@pytest.mark.parametrize("kind", ["partition", "masked"])
def test_labels_of_another_tree_are_named_with_the_way_out(kind, rate, frozen):
    rules = [hw.Rule("first", CHIP, frozen=frozen), hw.Rule(".*", CHIP)]
    analog = hw.analogize(Linen(), rules)
    _, params, _ = start()
    plan = hw.plan(analog, params, X)
    # All of its leaves, ours too; where rules freeze, theirs are too many as well.
    given = hw.strip(params, plan) if frozen else params
    labels = by_name(given)
    if kind == "partition":
        base = partition(optax.sgd(0.1), optax.sgd(0.3))(labels)
    else:
        mask = jax.tree.map(lambda label: label == "fast", labels)
        base = optax.masked(optax.sgd(0.1), mask)
    tx = hw.optim.hardware_aware(base, plan, input_range_learning_rate=rate)
    with pytest.raises(ValueError, match=r"hwtrain\.strip\(params, plan\)") as error:
        tx.init(params)
    text = str(error.value)
    assert "lambda params: jax.tree_util.tree_map_with_path" in text
    assert ("'first/kernel' and all else that a rule freezes" in text) == frozen
    assert "\n" not in text


# What the docstring of hardware_aware says of a base whose rate is measured, in step n.
MEASURED = {
    "adagrad": (optax.adagrad(0.1), lambda n: 0.1 / np.sqrt(0.1 + n)),
    "adafactor": (optax.adafactor(0.1), lambda n: 1e-3 * 0.1),
    "adam": (optax.adam(0.1), lambda n: 0.1),
    "injected adagrad": (
        optax.inject_hyperparams(optax.adagrad)(0.1),
        lambda n: np.float32(0.1),
    ),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", MEASURED)
def test_the_rate_that_is_measured_is_the_one_that_the_page_says(name):
    base, rate = MEASURED[name]
    analog = hw.analogize(Linen(), CHIP)
    params = analog.init(jax.random.key(0), X)["params"]
    tx = hw.optim.hardware_aware(base, hw.plan(analog, params, X))
    state = tx.init(params)
    gradients = jax.tree.map(jnp.zeros_like, params)
    for layer in LAYERS:  # inputs that are small, of which none is clipped
        sums = jnp.array([100.0, 100.0, 0.0, 1e-4, 0.0, 0.0])
        shape = gradients[layer]["probe"].shape
        gradients[layer]["probe"] = jnp.broadcast_to(sums, shape)
    for n in range(1, 4):
        updates, state = tx.update(gradients, state, params)
        # Where nothing is clipped the range shrinks by the rate, its decay and itself.
        expected = -rate(n) * DECAY * 1e3
        for layer in LAYERS:
            moved = updates[layer]["input_range"]
            np.testing.assert_allclose(moved, expected, rtol=1e-3)


def test_a_base_that_fails_on_its_measurement_is_named():
    def update(updates, state, params=None):
        leaves = jax.tree.leaves(updates)
        if not any(leaf.ndim > 0 and leaf.size > 1 for leaf in leaves):
            raise RuntimeError("no matrix to work on")
        return jax.tree.map(lambda g: -0.1 * g, updates), state

    base = optax.GradientTransformation(lambda params: (), update)
    analog = hw.analogize(nn.Dense(4), CHIP)
    params = analog.init(jax.random.key(0), X)["params"]
    plan = hw.plan(analog, {"params": params}, X)
    optimizer = hw.optim.hardware_aware(base, plan)
    zeros = jax.tree.map(jnp.zeros_like, params)
    with pytest.raises(ValueError, match="RuntimeError: no matrix to work on"):
        optimizer.update(zeros, optimizer.init(params), params)
