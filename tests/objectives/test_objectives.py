"""Robust objectives: closed forms, golden numbers, and both frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain import objectives
from hwtrain._arrays import paths
from hwtrain._arrays.random import stable_hash
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.objectives._adversarial import deviated
from hwtrain.periphery._range_gradient import PROBE_SCALE

KEY = jax.random.key(5, impl=hw.threefry_prng)
NOTHING = Plan(())
OWN = {"w": jnp.array([0.5, -2.0, 1.0]), "b": jnp.array([-0.25])}


def plan_of(shape, **hardware):
    weight = AnalogWeight(
        path="kernel",
        kind="dense",
        layer="Dense",
        shape=shape,
        rows=(0,),
        columns=(1,),
        hardware=hw.Hardware(**hardware),
        rule="",
        ranged=False,
    )
    return Plan((weight,))


def xi(key, path, effect, shape):
    name = jax.random.fold_in(key, stable_hash(f"{path}#{effect}#0"))
    return np.asarray(jax.random.normal(name, shape))


def test_sharpness_of_a_quadratic_is_known():
    h = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]], np.float32)

    def loss(params, key, offset):
        w = params["w"] - offset
        return 0.5 * w @ h @ w + 2 * params["b"].sum(), params["w"]

    robust = objectives.sharpness_aware(loss, NOTHING, rho=0.3, has_aux=True)
    offset = np.array([0.1, 0.2, 0.3], np.float32)
    run = jax.jit(jax.value_and_grad(robust, has_aux=True))
    (value, aux), gradient = run(OWN, KEY, offset)
    g = h @ (OWN["w"] - offset)
    norm = np.sqrt(g @ g + 4)  # the bias counts, with its gradient of 2
    moved = OWN["w"] + 0.3 * g / norm
    expected = 0.5 * (moved - offset) @ h @ (moved - offset)
    expected += 2 * (-0.25 + 0.3 * 2 / norm)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient["w"], h @ (moved - offset), rtol=1e-5)
    np.testing.assert_allclose(aux, moved, rtol=1e-6)
    still = objectives.sharpness_aware(lambda p, k: 0.0 * p["w"].sum(), NOTHING, rho=1)
    assert still(OWN, KEY) == 0  # no gradient, no direction, no NaN


def linear(params, key, x):
    return x @ params["w"] + params["b"]


def test_an_attack_on_a_linear_model_is_known():
    x = np.array([[1.0, -2.0, 0.5]], np.float32)

    def loss(params, key, x):
        return jnp.sum(linear(params, key, x))

    robust = objectives.adversarial(
        loss,
        NOTHING,
        linear,
        mismatch_level=0.1,
        attack_steps=4,
        initial_std=1e-3,
        beta_robustness=0.5,
    )
    value, gradient = jax.jit(jax.value_and_grad(robust))(OWN, KEY, x)
    # Every parameter goes to its corner, all pushing the output one way.
    start = {name: 1e-3 * xi(KEY, name, "attack", OWN[name].shape) for name in OWN}
    size = {"w": x[0], "b": np.ones(1, np.float32)}
    first = sum(np.sum(size[n] * np.abs(OWN[n]) * start[n]) for n in OWN)
    d = {n: np.clip(start[n] + 0.1 * np.sign(first * size[n]), -0.1, 0.1) for n in OWN}
    shift = sum(np.sum(size[n] * np.abs(OWN[n]) * d[n]) for n in OWN)
    plain = float(loss(OWN, KEY, x))
    np.testing.assert_allclose(value, plain + 0.5 * shift**2, rtol=1e-5)
    for name in OWN:
        # The attack is constant, but relative to the parameter's size.
        slope = 2 * 0.5 * shift * size[name] * np.sign(OWN[name]) * d[name]
        np.testing.assert_allclose(gradient[name], size[name] + slope, rtol=1e-5)
    assert gradient["b"][0] != 1.0  # biases really are attacked


def test_an_attack_stays_inside_its_box_wherever_it_starts():
    params = {"w": jax.random.normal(KEY, (50,)), "z": jnp.zeros(3)}
    start = {"w": 5 * jax.random.normal(KEY, (50,)), "z": jnp.zeros(3)}
    wanted = jax.random.normal(jax.random.key(1), (50,))

    def objective(params):
        return jnp.sum(params["w"] * wanted) + params["z"].sum()

    d = objectives.attack(objective, params, start, level=0.2, steps=3)
    assert (jnp.abs(d["w"]) <= 0.2).all()
    d = objectives.attack(
        objective, params, jax.tree.map(jnp.zeros_like, params), level=0.2, steps=3
    )
    np.testing.assert_allclose(d["w"], 0.2 * np.sign(wanted), rtol=1e-6)
    assert (deviated(params, d)["z"] == 0).all()  # no relative distance


def test_the_attack_of_the_reference(golden):
    case = golden("rockpool")["adversarial"]
    x, y = np.float32(case["X"]), np.float32(case["Y"])
    first = jnp.float32(case["params"]["0_LinearJax"]["weight"])
    last = case["params"]["2_LinearJax"]
    params = {
        "0": first,
        "1": jnp.float32(last["bias"]),
        "2": jnp.float32(last["weight"]),
    }

    def forward(params, bias=1.0):
        return jnp.tanh(x @ params["0"]) @ params["2"] + bias * params["1"]

    # The reference loses the bias inside its attack, so its numbers do too.
    clean = forward(params)

    def moved(params):
        return jnp.mean((clean - forward(params, bias=0.0)) ** 2)

    def start_at(key):
        start = {}
        for name in params:  # in the order that the reference draws
            key, drawn = jax.random.split(key)
            start[name] = case["initial_std"] * jax.random.normal(
                drawn, params[name].shape
            )
        return key, start

    _, start = start_at(jax.random.key(case["seed"]))
    level, steps = case["mismatch_level"], case["attack_steps"]
    np.testing.assert_allclose(
        moved(deviated(params, start)), case["attack_losses"][0], rtol=1e-5
    )
    d = jax.jit(
        lambda: objectives.attack(moved, params, start, level=level, steps=steps)
    )()
    for (name, p), theirs in zip(params.items(), case["theta_star_flat"]):
        # Theirs leaves the box by what it started with; ours is projected.
        box = level * np.abs(p)
        expected = np.clip(np.float32(theirs), p - box, p + box)
        np.testing.assert_allclose(deviated(params, d)[name], expected, rtol=2e-6)
    assert y.shape == clean.shape


def test_noise_on_analog_weights_alone_by_hand():
    plan = plan_of((6, 4))
    params = {"kernel": jax.random.normal(KEY, (6, 4)), "bias": jnp.ones(4)}
    c = np.asarray(jax.random.normal(jax.random.key(2), (6, 4)))

    def loss(params, key):
        return jnp.sum(c * params["kernel"]) + params["bias"].sum()

    draw = xi(KEY, "kernel", "objective", (6, 4))
    kernel = np.asarray(params["kernel"])
    added = {
        "gaussian": 0.1 * np.abs(kernel).max() * draw,
        "per_column": 0.1 * np.abs(kernel).max(0) * draw,
        "multiplicative": 0.1 * kernel * draw,
    }
    made = {
        "gaussian": objectives.gaussian(loss, plan, std_dev=0.1),
        "per_column": objectives.gaussian(loss, plan, std_dev=0.1, per_column=True),
        "multiplicative": objectives.multiplicative(loss, plan, std_dev=0.1),
    }
    for name, robust in made.items():
        value, gradient = jax.value_and_grad(robust)(params, KEY)
        expected = np.sum(c * (kernel + added[name])) + 4
        # A sum of 28 numbers of about 1 that nearly cancel.
        np.testing.assert_allclose(value, expected, atol=28 * 2.0**-22)
        np.testing.assert_allclose(gradient["kernel"], c, rtol=1e-6)


def test_the_mean_of_the_tail_by_sorting():
    values = np.random.default_rng(0).normal(size=8).astype(np.float32)
    ordered = np.sort(values)[::-1]
    for share, expected in (
        (1.0, values.mean()),
        (0.25, ordered[:2].mean()),
        (0.3125, (ordered[:2].sum() + 0.5 * ordered[2]) / 2.5),
        (1 / 8, values.max()),
        (0.01, values.max()),
    ):
        found = objectives.tail_mean(jnp.asarray(values), share)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    weights = jax.grad(lambda v: objectives.tail_mean(v, 0.25))(jnp.asarray(values))
    np.testing.assert_allclose(weights, np.where(values >= ordered[1], 0.5, 0.0))


def test_chips_differ_by_the_mismatch_and_the_worst_one_counts():
    mismatch = hw.MismatchParameter(type="mult_normal", std_dev=0.1)
    plan = plan_of((3, 1), mismatch=mismatch)
    params = {"kernel": jnp.array([[1.0], [2.0], [-1.0]]), "bias": jnp.ones(1)}

    def loss(params, key):
        return jnp.sum(params["kernel"]) + params["bias"].sum(), params["kernel"]

    def run(share, chips=64):
        robust = objectives.of_chips(loss, plan, chips=chips, share=share, has_aux=True)
        (value, kernels), gradient = jax.value_and_grad(robust, has_aux=True)(
            params, KEY
        )
        return value, np.asarray(kernels), gradient

    mean, kernels, gradient = run(1.0)
    assert kernels.shape == (64, 3, 1)
    sums = kernels.sum((1, 2)) + 1
    np.testing.assert_allclose(mean, sums.mean(), rtol=1e-5)
    # Each of 192 deviations is relative and normal: 4 standard errors.
    deviations = kernels / np.asarray(params["kernel"]) - 1
    assert abs(deviations.mean()) < 4 * 0.1 / np.sqrt(192)
    assert abs(deviations.std() - 0.1) < 4 * 0.1 / np.sqrt(2 * 192)
    np.testing.assert_allclose(run(1 / 64)[0], sums.max(), rtol=1e-6)
    tail = np.sort(sums)[-16:].mean()
    np.testing.assert_allclose(run(0.25)[0], tail, rtol=1e-6)
    np.testing.assert_allclose(gradient["kernel"], 1.0, rtol=1e-5)  # straight-through
    with pytest.raises(ValueError, match="chips do not differ"):
        objectives.of_chips(loss, plan_of((3, 1)), chips=4)
    with pytest.raises(ValueError, match="a share above 0"):
        objectives.of_chips(loss, plan, chips=4, share=0.0)


def test_programming_noise_makes_chips_differ_too():
    chip = hw.presets.pcm()
    plan = plan_of((3, 1), noise_model=chip.noise_model, converter=chip.converter)
    params = {"kernel": jnp.array([[1.0], [0.5], [-1.0]])}
    robust = objectives.of_chips(
        lambda p, key: (jnp.sum(p["kernel"]), p["kernel"]), plan, chips=3, has_aux=True
    )
    _, kernels = jax.jit(robust)(params, KEY)
    assert (np.std(kernels, axis=0) > 1e-3).all()
    np.testing.assert_allclose(kernels.mean(0), params["kernel"], atol=0.3)


CHIP = hw.Hardware(
    input_range=hw.InputRangeParameter(init_value=1.0, init_from_data=0),
    mismatch=hw.MismatchParameter(type="add_normal", std_dev=0.1),
    mapping=hw.MappingParameter(weight_scaling_omega=1.0),
)
X = jax.random.normal(jax.random.key(1), (16, 8))
EACH = [
    objectives.ObjectiveParameter(type="gaussian", std_dev=0.1),
    objectives.ObjectiveParameter(type="multiplicative", std_dev=0.1),
    objectives.ObjectiveParameter(type="sharpness_aware", rho=0.1),
    objectives.ObjectiveParameter(type="adversarial", attack_steps=2),
    objectives.ObjectiveParameter(type="mean_of_chips", chips=2),
    objectives.ObjectiveParameter(type="worst_of_chips", chips=2),
    objectives.ObjectiveParameter(type="cvar_of_chips", chips=3),
]


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(x)


def linen_model():
    analog = hw.analogize(Linen(), CHIP)
    params = jax.jit(analog.init)(jax.random.key(0), X)["params"]
    params["head"]["bias"] = jnp.ones(4)

    def outputs(params, key, x):
        return analog.apply({"params": params}, x, rngs={"mismatch": key})

    return params, outputs, hw.plan(analog, params, X)


def nnx_model():
    twin = Nnx(nnx.Rngs(0))
    twin.head.bias[...] = jnp.ones(4)
    analog = hw.analogize(twin, CHIP, rngs=nnx.Rngs(mismatch=3))
    graph, params, rest = nnx.split(analog, nnx.Param, ...)

    def outputs(params, key, x):
        return nnx.merge(graph, params, rest)(x)

    return params, outputs, hw.plan(analog)


@pytest.mark.parametrize("model", [linen_model, nnx_model], ids=["linen", "nnx"])
def test_every_objective_is_on_in_both_frameworks(model):
    params, outputs, plan = model()

    def loss(params, key, x):
        return jnp.mean(jnp.square(outputs(params, key, x) - 1))

    def gradients(params, key, x):
        made = [
            objectives.robust(loss, plan, objective, outputs=outputs)
            for objective in EACH
        ]
        return [jax.grad(f)(params, key, x) for f in (loss, *made)]

    plain, *others = jax.jit(gradients)(params, KEY, X)
    plain = paths.leaves(plain)
    # How often its inputs are in the pool; the same ones of several chips count once.
    passes = [1, 1, 1, 3, 1, 1, 1]
    for objective, gradient, runs in zip(EACH, others, passes):
        gradient = paths.leaves(gradient)
        assert gradient.keys() == plain.keys()
        moved = np.abs(gradient["head/kernel"] - plain["head/kernel"]).max()
        assert moved > 1e-5, objective.type
        if objective.type in ("sharpness_aware", "adversarial"):
            assert np.abs(gradient["head/bias"] - plain["head/bias"]).max() > 1e-6
        count = gradient["head/probe"][0, 0, 0] / PROBE_SCALE
        np.testing.assert_allclose(count, runs * X.size, err_msg=objective.type)


def test_what_does_nothing_is_an_error():
    make = objectives.ObjectiveParameter
    with pytest.raises(ValueError, match='rho=0.1 does nothing with type="gaussian"'):
        make(type="gaussian", std_dev=0.1, rho=0.1)
    with pytest.raises(ValueError, match="needs a standard deviation"):
        make(type="multiplicative")
    with pytest.raises(ValueError, match="share must be above 0"):
        make(type="cvar_of_chips", share=0.0)
    with pytest.raises(ValueError, match="compares outputs"):
        objectives.robust(lambda p, k: 0.0, NOTHING, make(type="adversarial"))
