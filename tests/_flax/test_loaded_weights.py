"""Weights loaded after `analogize` do not keep the scale of the earlier weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain
from hwtrain._plan.stale_leaves import check_fit

X = jnp.ones((2, 6))
CLIP = hwtrain.WeightClipParameter(type="fixed_value", fixed_value=1.0)
REMAP = hwtrain.WeightRemapParameter(type="layerwise_symmetric")
GAUSSIAN = hwtrain.WeightClipParameter(type="layer_gaussian", sigma=2.0)
AVERAGE = hwtrain.WeightClipParameter(type="average_channel_max")
LEARNED = hwtrain.WeightClipParameter(type="learnable_per_channel")
COLUMNS = hwtrain.WeightRemapParameter(type="channelwise_symmetric")
NARROW = dataclasses.replace(COLUMNS, max_scale_range=2.0)
PARTS = {
    "clip": {"clip": CLIP},
    "remap": {"remap": REMAP},
    "remap of columns": {"remap": COLUMNS},
    "remap and clip": {"remap": REMAP, "clip": CLIP},
    "remap and gaussian": {"remap": REMAP, "clip": GAUSSIAN},
    "remap and average": {"remap": COLUMNS, "clip": AVERAGE},
    "average below a limit": {
        "clip": dataclasses.replace(AVERAGE, fixed_value=1.0),
    },
}
UNBOUNDED = {
    "average": {"clip": AVERAGE},
    "learned": {"clip": LEARNED},
    "narrow": {"remap": NARROW},
    "narrow and clip": {"remap": NARROW, "clip": CLIP},
}


def hardware(parts, omega=1.0):
    mapping = hwtrain.MappingParameter(weight_scaling_omega=omega, max_input_size=3)
    converter = hwtrain.SinglePairConductanceConverter(g_max=25.0)
    return hwtrain.Hardware(mapping=mapping, converter=converter, **parts)


def linen(chip):
    analog = hwtrain.analogize(nn.Dense(4), chip)
    params = analog.init(jax.random.key(0), X)["params"]
    return analog, params, hwtrain.plan(analog, params, X)


def of_nnx(chip):
    rngs = nnx.Rngs(0, mismatch=1)
    analog = hwtrain.analogize(nnx.Linear(6, 4, rngs=rngs), chip, rngs=rngs)
    params = nnx.to_pure_dict(nnx.state(analog, nnx.Param))
    return analog, params, hwtrain.plan(analog)


@pytest.mark.sampled
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("model", [linen, of_nnx])
def test_a_scale_of_other_weights_is_refused(model, parts, tmp_path):
    analog, params, plan = model(hardware(PARTS[parts]))
    loaded = {**params, "kernel": 3 * params["kernel"]}
    tx = hwtrain.optim.hardware_aware(optax.sgd(0.0), plan)
    match = "mapping_scale belongs to other weights than kernel"
    with pytest.raises(ValueError, match=match):
        tx.init(loaded)
    with pytest.raises(ValueError, match=match):
        hwtrain.export(tmp_path / "chip", loaded, plan)
    assert not (tmp_path / "chip").exists()
    if model is linen:
        with pytest.raises(ValueError, match=match):
            hwtrain.inspect(analog, {"params": loaded}, X)

    # The way out that the message names; an update of nothing changes nothing.
    example = (X,) if model is linen else ()
    right = hwtrain.adopt(analog, hwtrain.strip(loaded, plan), *example)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, right), tx.init(right), right)
    after = optax.apply_updates(right, updates)
    if "average" not in parts:  # whose mean clips at every update
        np.testing.assert_allclose(after["kernel"], loaded["kernel"], rtol=1e-6)
    hwtrain.export(tmp_path / "chip", right, plan)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("omega", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("parts", [*PARTS, *UNBOUNDED])
def test_what_training_leads_to_is_never_refused(parts, omega):
    chip = hardware({**PARTS, **UNBOUNDED}[parts], omega)
    _, params, plan = linen(chip)
    tx = hwtrain.optim.hardware_aware(optax.sgd(1.0, 0.5), plan)
    state, ema = tx.init(params), optax.ema(0.8)
    average = ema.init(params)
    step = jax.jit(tx.update)
    rng = np.random.default_rng(0)
    for number in range(8):
        size = number % 3 + 1e-6  # now and then, next to nothing
        grads = jax.tree.map(
            lambda leaf, size=size: jnp.asarray(
                size * rng.normal(size=leaf.shape), leaf.dtype
            ),
            params,
        )
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        check_fit(plan, params)
        smooth, average = ema.update(params, average)
        check_fit(plan, smooth)
    jax.jit(tx.init)(params)
    jax.jit(lambda: tx.init(params))()


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("parts", PARTS)
def test_narrow_weights_are_not_refused(parts, dtype):
    _, params, plan = linen(hardware(PARTS[parts]))
    params = {**params, "kernel": params["kernel"].astype(dtype)}
    tx = hwtrain.optim.hardware_aware(optax.sgd(0.3), plan)
    state, rng = tx.init(params), np.random.default_rng(0)
    for _ in range(5):
        grads = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), params
        )
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        check_fit(plan, params)


def test_a_scale_that_nothing_moves_is_one():
    _, params, plan = linen(hardware({"clip": CLIP}, omega=0.0))
    check_fit(plan, {**params, "kernel": 50 * params["kernel"]})  # not yet clipped
    other = {**params, "mapping_scale": params["mapping_scale"].at[1, 0].set(0.5)}
    with pytest.raises(ValueError, match=r"mapping_scale is 0.5, but .* scale is 1"):
        check_fit(plan, other)
    _, remapped, plan = linen(hardware({"remap": REMAP}, omega=0.0))
    check_fit(plan, {**remapped, "mapping_scale": remapped["mapping_scale"] / 2})


@pytest.mark.parametrize(
    ("parts", "name"), [("clip", "mapping_scale"), ("learned", "clip_bound")]
)
@pytest.mark.parametrize("value", [0.0, -0.5])
def test_a_leaf_that_is_not_positive_is_refused(parts, name, value):
    _, params, plan = linen(hardware({**PARTS, **UNBOUNDED}[parts]))
    check_fit(plan, params)
    wrong = {**params, name: params[name].at[0, 0].set(value)}
    with pytest.raises(ValueError, match=f"{name} has the minimum {value:.3g}"):
        check_fit(plan, wrong)
