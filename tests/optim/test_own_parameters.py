"""Bases with parameters of their own are refused where a bound would not hold."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx
from optax import contrib

import hwtrain as hw

X = jnp.ones((2, 3))
CLIP = hw.Hardware(clip=hw.WeightClipParameter(type="fixed_value", fixed_value=0.3))
DRIFT = hw.Hardware(drift=hw.SimpleDriftParameter(nu=0.1, dt_s=1000.0))
HOLDING = {
    "schedule_free": contrib.schedule_free_sgd(1.0),
    "cocob": contrib.cocob(),
    "mechanize": contrib.mechanize(optax.sgd(0.1)),
    "madgrad": contrib.madgrad(0.1),
}
PLACES = {
    "alone": lambda base: base,
    "chained": lambda base: optax.chain(optax.clip_by_global_norm(1.0), base),
    "masked": lambda base: optax.masked(base, True),
    "partition": lambda base: optax.partition({"all": base}, "all"),
    "conditional": lambda base: optax.conditionally_transform(base, lambda n: True),
}


def linen(hardware):
    analog = hw.analogize(nn.Dense(4), hardware)
    params = analog.init(jax.random.key(0), X)["params"]
    plan = hw.plan(analog, params, X)
    return lambda base: hw.optim.hardware_aware(base, plan).init(params)


def nnx_model(hardware):
    analog = hw.analogize(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), hardware)

    def init(base):
        tx = hw.optim.hardware_aware(base, hw.plan(analog))
        return nnx.Optimizer(analog, tx, wrt=nnx.Param)

    return init


@pytest.mark.sampled
@pytest.mark.parametrize("init", [linen, nnx_model])
@pytest.mark.parametrize("name", HOLDING)
@pytest.mark.parametrize(("effect", "chip"), [("clip", CLIP), ("drift", DRIFT)])
def test_it_is_refused_by_name(init, name, effect, chip):
    message = rf"optax.contrib.{name} .*the {effect} of kernel.*Hardware\({effect}=None"
    with pytest.raises(ValueError, match=message):
        init(chip)(HOLDING[name])


@pytest.mark.sampled
@pytest.mark.parametrize("init", [linen, nnx_model])
@pytest.mark.parametrize(
    "search",
    [
        optax.lbfgs(),
        optax.chain(
            optax.sgd(1.0),
            optax.scale_by_backtracking_linesearch(max_backtracking_steps=5),
        ),
    ],
)
def test_a_line_search_is_refused_by_name(init, search):
    for place in PLACES.values():
        with pytest.raises(ValueError, match="line search.*linesearch=None"):
            init(CLIP)(place(search))
    init(CLIP)(optax.lbfgs(0.1, linesearch=None))


@pytest.mark.parametrize("place", PLACES)
def test_it_is_found_wherever_it_stands(place):
    with pytest.raises(ValueError, match="optax.contrib.schedule_free"):
        linen(CLIP)(PLACES[place](HOLDING["schedule_free"]))


@pytest.mark.parametrize("name", HOLDING)
def test_without_a_bound_it_may_train(name):
    linen(hw.Hardware())(HOLDING[name])
    frozen = [hw.Rule("", CLIP, frozen=True)]
    linen(frozen)(HOLDING[name])


# Bases that remember where they started, and only measure by it.
@pytest.mark.parametrize(
    "base", [contrib.prodigy(), contrib.dog(1.0), contrib.momo(1.0), optax.adam(1e-3)]
)
def test_others_train_within_the_bound(base):
    analog = hw.analogize(nn.Dense(4), CLIP)
    params = analog.init(jax.random.key(0), X)["params"]
    tx = hw.optim.hardware_aware(base, hw.plan(analog, params, X))
    state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    for _ in range(3):
        updates, state = tx.update(grads, state, params, value=1.0)
        params = optax.apply_updates(params, updates)
    assert jnp.abs(params["kernel"]).max() <= 0.3


def test_lookahead_goes_around():
    with pytest.raises(ValueError, match=r"optax.lookahead\(hardware_aware"):
        linen(CLIP)(optax.lookahead(optax.sgd(1.0), 2, 0.5))
    analog = hw.analogize(nn.Dense(4), CLIP)
    params = analog.init(jax.random.key(0), X)["params"]
    aware = hw.optim.hardware_aware(optax.sgd(1.0), hw.plan(analog, params, X))
    tx = optax.lookahead(aware, 2, 0.5)
    pair = optax.LookaheadParams.init_synced(params)
    # From weights beyond the bound, an average comes back to it.
    state, grads = tx.init(pair), jax.tree.map(jnp.ones_like, params)
    for _ in range(24):
        updates, state = tx.update(grads, state, pair)
        pair = optax.apply_updates(pair, updates)
    for side in pair:
        assert jnp.abs(side["kernel"]).max() <= 0.3 + 2**-12
