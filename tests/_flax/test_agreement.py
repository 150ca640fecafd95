"""Linen and NNX give equal results for equal parameters, paths and step keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain._flax.functional import as_function
from hwtrain._flax.weight_side import step_weights


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="head")(nn.relu(nn.Dense(12, name="hidden")(x)))


class NnxMLP(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(9, 12, rngs=rngs)
        self.head = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


HARDWARE = [
    hw.Hardware(
        modifier=hw.WeightModifierParameter(
            type=kind, std_dev=0.2, per_column=kind == "add_normal"
        ),
        input_range=hw.InputRangeParameter(init_value=0.8),
        mapping=hw.MappingParameter(
            max_input_size=limit, max_output_size=limit, weight_scaling_omega=omega
        ),
    )
    for kind in ("add_normal", "mult_normal")
    for limit, omega in ((512, 0.0), (5, 1.0))
]


@functools.cache
def built(chip):
    x = jax.random.normal(jax.random.key(0), (7, 9))
    linen = hw.analogize(LinenMLP(), chip)
    params = jax.jit(linen.init)(jax.random.key(1), x)["params"]
    rngs = nnx.Rngs(mismatch=jax.random.key(4))
    analog = hw.analogize(NnxMLP(nnx.Rngs(0)), chip, rngs=rngs)
    state = nnx.state(analog, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    nnx.update(analog, state)
    return linen, analog, params, x


# Tiled and not tiled hardware: each option occurs in one of them.
@pytest.fixture(
    params=[
        pytest.param(chip, marks=() if i in (1, 2) else pytest.mark.nightly)
        for i, chip in enumerate(HARDWARE)
    ]
)
def models(request):
    linen, analog, params, x = built(request.param)
    # Each test makes its own model, because the model's stream counts calls.
    return linen, nnx.merge(*nnx.split(analog)), params, x


def test_plans_are_equal_but_for_the_class_names(models):
    linen, analog, params, x = models
    ours, theirs = hw.plan(linen, params, x), hw.plan(analog)
    assert {w.layer for w in ours.weights} == {"Dense"}
    assert {w.layer for w in theirs.weights} == {"Linear"}
    for path in ours:
        for field in ("shape", "rows", "columns", "hardware", "ranged", "tiles"):
            assert getattr(ours[path], field) == getattr(theirs[path], field)
    assert {d.path for d in ours.digital} == {d.path for d in theirs.digital}


@pytest.mark.optimised
def test_draws_of_the_weight_side_are_bit_equal(models):
    linen, analog, params, x = models
    key = jax.random.key(11)

    def weights(params, plan):
        return jax.jit(lambda p, key: step_weights(p, plan, "train", key)[0])(
            params, key
        )

    ours = weights(params, hw.plan(linen, params, x))
    state = weights(nnx.state(analog, nnx.Param), hw.plan(analog))
    theirs = paths.leaves(nnx.to_pure_dict(state))
    for path, value in paths.leaves(ours).items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)
        nominal = paths.leaves(params)[path]
        assert path.endswith("kernel") == bool((value != nominal).any()), path


def test_outputs_and_gradients_are_equal_to_rounding(models):
    linen, analog, params, x = models
    key = nnx.Rngs(mismatch=jax.random.key(4)).mismatch()

    def loss(params):
        out = linen.apply({"params": params}, x, rngs={"mismatch": key})
        return jnp.square(out).mean(), out

    (_, out), ours = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    theirs = nnx.jit(nnx.grad(lambda m: jnp.square(m(x)).mean()))(analog)
    theirs = paths.leaves(nnx.to_pure_dict(theirs))
    for path, value in paths.leaves(ours).items():
        np.testing.assert_allclose(value, theirs[path], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        jax.jit(hw.eval_mode(linen).apply)({"params": params}, x),
        nnx.jit(lambda m: m(x))(hw.eval_mode(analog)),
        rtol=1e-6,
        atol=1e-6,
    )
    assert jnp.abs(out).max() > 0


@pytest.mark.sampled
@pytest.mark.parametrize("mode", ["train", "chip", "eval"])
def test_as_functions_they_agree_under_jit_and_vmap(models, mode):
    linen, analog, params, x = models
    results = []
    for model, variables in ((linen, {"params": params}), (analog, None)):
        function, tree = as_function(model, mode, variables)
        keys = jax.random.split(jax.random.key(3), 4)
        each = jax.jit(jax.vmap(function, in_axes=(None, 0, None)))(tree, keys, x)
        np.testing.assert_allclose(
            each[2], jax.jit(function)(tree, keys[2], x), rtol=1e-5, atol=1e-6
        )
        assert (each[0] == each[1]).all() == (mode != "train")
        results.append(each)
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)
