"""Updates set to zero stay zero after all Optax transformations that keep a zero."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain.optim._frozen import untouched

X = jax.random.normal(jax.random.key(1), (16, 8))
CLIP = hw.WeightClipParameter(type="fixed_value", fixed_value=0.05)
RANGE = hw.InputRangeParameter(init_from_data=1)
STILL = optax.masked(
    optax.set_to_zero(),
    lambda tree: paths.map_leaves(lambda path, _: path.startswith("hidden"), tree),
)
ADAM = optax.adam(0.01)

# Values for arguments without a default, by their names in Optax.
ARGUMENTS = {
    "adv_optimizer": optax.sgd(0.1),
    "base_optimizer": ADAM,
    "clipping": 0.1,
    "decay": 0.9,
    "eta": 0.1,
    "f": lambda updates, params: updates,
    "freeze_mask": False,
    "gamma": 0.5,
    "inner": ADAM,
    "inner_factory": optax.adam,
    "key": 0,
    "learning_rate": 0.01,
    "mask": False,
    "max_delta": 1.0,
    "max_norm": 1.0,
    "measure": lambda updates, *_, **__: optax.tree.norm(updates),
    "measure_name": "norm",
    "measures": {},
    "optimizer": ADAM,
    "should_transform_fn": lambda *_, **__: True,
    "step_size": 0.5,
    "step_size_fn": lambda count: 0.1,
    "threshold": 1.0,
    "tx": ADAM,
    "weight_decay": 0.01,
}
NO_TRANSFORMATION_OF_ITS_OWN = {
    *("chain", "named_chain", "partition", "multi_transform"),
    # Of gradients for each example.
    *("differentially_private_aggregate", "dpsgd"),
    # Around hardware_aware, which refuses them as a base.
    *("apply_if_finite", "lookahead"),
    # Of measurements, for `optax.monitor`.
    "measure_with_ema",
    # They call the loss of the whole model, and are refused.
    *("lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"),
}
REMEMBER_PARAMETERS = {"scale_by_lbfgs", "sam", "cocob", "scale_by_cocob", "mechanize"}
VALUE = {"value": jnp.ones([])}
EXTRA = {
    "momo": VALUE,
    "momo_adam": VALUE,
    "polyak_sgd": VALUE,
    "reduce_on_plateau": VALUE,
    "scale_by_polyak": VALUE,
    "sophia": {"obj_fn": lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))},
}


def transformations():
    """Returns Optax's transformations by name, with the functions that make them."""
    found = {}
    for module in (optax, optax.contrib):
        for name in sorted(dir(module)):
            make = getattr(module, name)
            if name.startswith("_") or not inspect.isfunction(make):
                continue
            signature = inspect.signature(make)
            if "GradientTransformation" not in str(signature.return_annotation):
                continue
            if name not in NO_TRANSFORMATION_OF_ITS_OWN:
                found[name] = make, signature
    return found


FOUND = transformations()


def made(name):
    make, signature = FOUND[name]
    arguments = {
        name: ARGUMENTS[name]
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
        and name in ARGUMENTS
    }
    if name == "scale_by_muon":
        arguments["weight_dimension_numbers"] = lambda tree: jax.tree.map(
            lambda _: optax.contrib.MuonDimensionNumbers(), tree
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arguments that Optax will ask for
        transformation = make(**arguments)
        if name.startswith("inject"):
            transformation = transformation(learning_rate=0.01)
        return optax.with_extra_args_support(optax.chain(STILL, transformation))


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6, use_bias=False, name="hidden")(x))
        return nn.Dense(4, use_bias=False, name="head")(x)


def params_and_gradients(hardware):
    analog = hw.analogize(MLP(), hardware)
    params = analog.init(jax.random.key(0), X)["params"]

    def gradient(size):
        loss = lambda p: jnp.square(analog.apply({"params": p}, size * X) - 1).mean()  # noqa: E731
        return jax.grad(loss)(params)

    return params, hw.plan(analog, params, X), [gradient(s) for s in (1.0, -30.0, 0.1)]


def steps(tx, params, gradients, extra):
    @jax.jit
    def step(gradient, state, params):
        updates, state = tx.update(gradient, state, params, **extra)
        return updates, state

    state, moved = tx.init(params), False
    for gradient in gradients:
        updates, state = step(gradient, state, params)
        moved = moved or bool(jnp.any(updates["hidden"]["kernel"] != 0))
        params = optax.apply_updates(params, updates)
    return params, moved


def test_there_is_something_to_go_through():
    names = {"adam", "clip", "muon", "adafactor", "lars", "flatten", "rprop", "galore"}
    assert names <= FOUND.keys()


OFTEN = ("adamw", "clip", "flatten", "muon", "noisy_sgd", "schedule_free_sgd")
"""One of each kind of program: others are as one of these."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in OFTEN else pytest.mark.nightly)
        for name in FOUND
    ],
)
def test_what_plain_optax_keeps_stays(name):
    extra = EXTRA.get(name, {})
    chip = hw.Hardware(clip=CLIP, input_range=RANGE)
    params, plan, gradients = params_and_gradients(chip)
    plain = hw.strip(params, plan)
    of_plain = [hw.strip(gradient, plan) for gradient in gradients]
    _, moves = steps(made(name), plain, of_plain, extra)
    _, moves_too = steps(made(name), plain, of_plain[::-1], extra)
    moves = moves or moves_too
    base = made(name)
    if name in REMEMBER_PARAMETERS:
        pytest.skip("it is no zero but by the values of the parameters")
    found = untouched(base, of_plain[0], base.init(plain), plain, extra)
    assert ("hidden/kernel" in found) != moves
    assert "head/kernel" not in found or name == "set_to_zero"
    try:
        tx = hw.optim.hardware_aware(base, plan, input_range_learning_rate=0.1)
        tx.init(params)
    except ValueError as error:
        assert "parameters of its own" in str(error) or "it keeps" in str(error)
        params, plan, gradients = params_and_gradients(hw.Hardware(input_range=RANGE))
        tx = hw.optim.hardware_aware(base, plan, input_range_learning_rate=0.1)
    after, _ = steps(tx, params, gradients, extra)
    for leaf in ("kernel", "input_range"):
        same = np.array_equal(after["hidden"][leaf], params["hidden"][leaf])
        assert same != moves, leaf
