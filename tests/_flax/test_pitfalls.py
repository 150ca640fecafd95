"""Configurations that could silently turn an effect off: each is an error or works."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain import Rule
from hwtrain._arrays import paths
from hwtrain._flax.functional import as_function
from hwtrain._flax.linen import prepass

NOISE = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
NOISY = hw.Hardware(modifier=NOISE)
RANGED = hw.Hardware(modifier=NOISE, input_range=hw.InputRangeParameter())
X = jax.random.normal(jax.random.key(1), (6, 4))


def stream(seed):
    return {"mismatch": jax.random.key(seed)}


def nnx_analog(model, hardware=RANGED):
    return hw.analogize(model, hardware, rngs=nnx.Rngs(mismatch=0))


class Changing(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 3, rngs=rngs)
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return self.layer(x)

    def halve(self):
        self.layer.kernel[...] = self.layer.kernel[...] * 0.5


def test_nnx_methods_that_change_parameters_are_an_error_not_lost():
    model = nnx_analog(Changing(nnx.Rngs(0)))
    with pytest.raises(ValueError, match="Changing.halve changed the parameters"):
        model.halve()
    before = model.layer.kernel[...]
    hw.eval_mode(model).halve()
    np.testing.assert_array_equal(model.layer.kernel[...], before * 0.5)


def test_nnx_plain_attributes_come_back():
    model = nnx_analog(Changing(nnx.Rngs(0)))
    model(X)
    model(X)
    assert model.calls == 2


def test_nnx_layers_that_share_a_kernel_are_an_error():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.encoder = nnx.Linear(4, 4, rngs=rngs)
            self.decoder = nnx.Linear(4, 4, rngs=rngs)
            self.encoder.kernel = self.decoder.kernel

        def __call__(self, x):
            return self.decoder(self.encoder(x))

    with pytest.raises(ValueError, match="share one kernel"):
        nnx_analog(Tied(nnx.Rngs(0)))


def test_nnx_an_analog_model_inside_an_analog_one_is_noisy_once():
    class Outer(nnx.Module):
        def __init__(self):
            layer = nnx.Linear(50, 40, use_bias=False, rngs=nnx.Rngs(0))
            self.inner = nnx_analog(layer, NOISY)
            self.own = nnx.Linear(40, 40, use_bias=False, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.inner(x), self.own(jnp.eye(40))

    loud = hw.Hardware(
        modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.3)
    )
    model = nnx_analog(Outer(), loud)
    assert list(hw.plan(model)) == ["own/kernel"]
    kernel = model.inner.kernel[...]
    noise = model(jnp.eye(50))[0] - kernel
    expected = 0.1 * jnp.abs(kernel).max()
    np.testing.assert_allclose(noise.std(), expected, rtol=5 / np.sqrt(2 * 2000))


def test_nnx_a_layer_in_another_mode_than_its_model_is_an_error():
    model = nnx_analog(Changing(nnx.Rngs(0)))
    model.layer.eval()
    with pytest.raises(ValueError, match=r"hwtrain.train_mode\(model\)"):
        model(X)


def test_nnx_jitted_methods_go_through_both_sides():
    class Jitted(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(4, 3, rngs=rngs)

        @nnx.jit
        def __call__(self, x):
            return self.layer(x)

    model = nnx_analog(Jitted(nnx.Rngs(0)), NOISY)
    assert jnp.abs(model(X) - model(X)).max() > 1e-3


def test_nnx_parameters_that_are_not_the_models_are_an_error():
    model = nnx_analog(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    as_function(model, "chip", params)
    for wrong in ({"bias": params["bias"]}, hw.strip(params)):
        with pytest.raises(ValueError, match="hwtrain.adopt"):
            as_function(model, "chip", wrong)


class WithBias(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="layer")(x)


def test_a_raw_parameter_does_not_take_the_scale_of_the_layer_beside_it():
    scaled = hw.Hardware(
        clip=hw.WeightClipParameter(type="fixed_value", fixed_value=1.0),
        mapping=hw.MappingParameter(weight_scaling_omega=1.0),
    )
    own = hw.Hardware(clip=hw.WeightClipParameter(type="fixed_value", fixed_value=0.5))
    rules = [Rule(params="layer/bias", hardware=own), Rule("layer", scaled)]
    analog = hw.analogize(WithBias(), rules)
    params = jax.jit(analog.init)(jax.random.key(0), X)["params"]
    tx = hw.optim.keep_weights_clipped(hw.plan(analog, params, X))
    ones = jax.tree.map(lambda leaf: 2 * jnp.ones_like(leaf), params)
    updates, _ = tx.update(ones, tx.init(params), params)
    after = optax.apply_updates(params, updates)["layer"]
    np.testing.assert_array_equal(after["bias"], 0.5)
    assert after["kernel"].max() == params["layer"]["mapping_scale"].max()


@pytest.mark.parametrize(
    ("hardware", "part"),
    [
        (RANGED, "input_range"),
        (
            hw.Hardware(
                clip=hw.WeightClipParameter(type="fixed_value", fixed_value=1.0),
                mapping=hw.MappingParameter(weight_scaling_omega=1.0),
            ),
            "weight_scaling_omega",
        ),
    ],
)
def test_hardware_that_a_raw_parameter_cannot_have_is_an_error(hardware, part):
    analog = hw.analogize(WithBias(), Rule(params="layer/bias", hardware=hardware))
    with pytest.raises(ValueError, match=f"{part}.*which only a layer can have"):
        variables = analog.init(jax.random.key(0), X)
        hw.plan(analog, variables, X)


def test_a_model_with_nothing_analog_is_an_error():
    model = nn.Sequential([nn.GroupNorm(num_groups=1), nn.LayerNorm()])
    analog = hw.analogize(model, NOISY)
    with pytest.raises(ValueError, match="nothing in this model can be analog"):
        analog.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="nothing in this model can be analog"):
        nnx_analog(nnx.LayerNorm(4, rngs=nnx.Rngs(0)))


class TwoWays(nn.Module):
    def setup(self):
        self.encoder = nn.Dense(3)
        self.decoder = nn.Dense(4)

    def __call__(self, x):
        return self.encoder(x)

    def both(self, x):
        return self.decoder(self.encoder(x))


def test_a_layer_that_the_plan_does_not_reach_is_an_error_of_the_optimizer():
    analog = hw.analogize(TwoWays(), RANGED)
    params = analog.init(jax.random.key(0), X, method="both")["params"]
    part = hw.plan(analog, params, X)
    with pytest.raises(ValueError, match="does not know 'decoder/input_range'"):
        hw.optim.hardware_aware(optax.adam(1e-3), part).init(params)
    whole = hw.plan(analog, params, X, method="both")
    hw.optim.hardware_aware(optax.adam(1e-3), whole).init(params)
    assert set(part | whole) == set(whole)


def test_a_tree_that_the_plan_does_not_describe_is_an_error():
    clip = hw.WeightClipParameter(type="fixed_value", fixed_value=0.1)
    mismatch = hw.MismatchParameter(type="mult_normal", std_dev=0.1)
    analog = hw.analogize(WithBias(), hw.Hardware(clip=clip, mismatch=mismatch))
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    plan = hw.plan(analog, variables, X)
    with pytest.raises(ValueError, match="Pass `params`"):
        hw.apply_mismatch(variables, plan, hw.chip_key(0))
    tx = hw.optim.keep_weights_clipped(plan)
    with pytest.raises(ValueError, match="Pass `params`"):
        tx.update(variables, tx.init(variables), variables)
    with pytest.raises(ValueError, match=r"in \[0, 2\^32\); got -1"):
        hw.chip_key(-1)


def test_ranges_of_other_tiles_or_types_are_an_error():
    tiled = hw.Hardware(
        input_range=hw.InputRangeParameter(),
        mapping=hw.MappingParameter(max_input_size=2, max_output_size=2),
    )
    whole = hw.Hardware(input_range=hw.InputRangeParameter())
    analog = hw.analogize(WithBias(), tiled)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    analog = hw.analogize(WithBias(), whole)
    with pytest.raises(ValueError, match="come from other hardware"):
        analog.apply(variables, X)
    plan = hw.plan(analog, variables, X)
    with pytest.raises(ValueError, match="come from other hardware"):
        hw.optim.hardware_aware(optax.adam(1e-3), plan).init(variables["params"])
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), variables)
    with pytest.raises(ValueError, match="must be float32"):
        hw.analogize(WithBias(), tiled).apply(half, X)


def test_strip_keeps_a_module_that_has_the_name_of_a_leaf():
    leaves = {"input_range": jnp.ones((1, 1)), "probe": jnp.zeros((1, 1, 6))}
    tree = {"kernel": {"kernel": 1}, "probe": {"kernel": 2, **leaves}}
    assert hw.strip(tree) == {"kernel": {"kernel": 1}, "probe": {"kernel": 2}}


def test_the_plan_of_equal_calls_is_made_once():
    analog = hw.analogize(WithBias(), RANGED)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    analog.apply(variables, X, rngs=stream(0))
    hits = prepass._cached_plan.cache_info().hits
    analog.apply(variables, X, rngs=stream(1))
    analog.apply(variables, X, rngs=stream(2))
    assert prepass._cached_plan.cache_info().hits == hits + 2


def test_a_layer_called_by_keyword():
    class Keyword(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(inputs=x)

    analog = hw.analogize(Keyword(), RANGED)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    outputs = [analog.apply(variables, X, rngs=stream(k)) for k in (1, 2)]
    assert jnp.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_a_module_that_shares_the_scope_of_a_layer():
    class Inner(nn.Module):
        def setup(self):
            self.dense = nn.Dense(3)
            nn.share_scope(self, self.dense)

        def __call__(self, x):
            return self.dense(x)

    analog = hw.analogize(nn.Sequential([Inner()]), RANGED)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    outputs = [analog.apply(variables, X, rngs=stream(k)) for k in (1, 2)]
    assert jnp.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_the_state_of_an_optimizer_without_ranges_holds_no_empty_arrays():
    analog = hw.analogize(WithBias(), NOISY)
    params = jax.jit(analog.init)(jax.random.key(0), X)["params"]
    tx = hw.optim.hardware_aware(optax.adam(1e-3), hw.plan(analog, params, X))
    state = tx.init(params)
    assert all(np.size(leaf) for leaf in jax.tree.leaves(state))
    updates, again = tx.update(params, state, params)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert paths.leaves(updates).keys() == paths.leaves(params).keys()


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_another_generator_draw_anew(impl):
    analog = hw.analogize(WithBias(), NOISY)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    keys = [jax.random.key(seed, impl=impl) for seed in (1, 2)]
    outputs = [analog.apply(variables, X, rngs={"mismatch": key}) for key in keys]
    assert jnp.abs(outputs[0] - outputs[1]).max() > 1e-3
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    model = hw.analogize(model, NOISY, rngs=nnx.Rngs(mismatch=keys[0]))
    assert jnp.abs(model(X) - model(X)).max() > 1e-3


def test_mutable_parameters_are_noisy_and_come_back_nominal():
    analog = hw.analogize(WithBias(), RANGED)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    outputs = [
        analog.apply(variables, X, rngs=stream(seed), mutable=["params"])
        for seed in (1, 2)
    ]
    assert jnp.abs(outputs[0][0] - outputs[1][0]).max() > 1e-3
    before, after = (paths.leaves(t["params"]) for t in (variables, outputs[0][1]))
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path], leaf)


def test_an_nnx_model_in_a_plain_jit_is_an_error_not_a_frozen_draw():
    model = nnx_analog(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(flax.errors.TraceContextError, match="RngCount"):
        jax.jit(lambda x: model(x))(X)
