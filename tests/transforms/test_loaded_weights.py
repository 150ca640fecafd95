"""Weights that are loaded after `analogize` do not keep the scale of others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain

X = jnp.ones((2, 6))
CLIP = hwtrain.WeightClipParameter(type="fixed_value", fixed_value=1.0)
REMAP = hwtrain.WeightRemapParameter(type="layerwise_symmetric")
PARTS = {"clip": {"clip": CLIP}, "remap": {"remap": REMAP}}


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
    np.testing.assert_allclose(after["kernel"], loaded["kernel"], rtol=1e-6)
    hwtrain.export(tmp_path / "chip", right, plan)


@pytest.mark.parametrize("omega", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("parts", PARTS)
def test_what_training_leads_to_is_never_refused(parts, omega):
    _, params, plan = linen(hardware(PARTS[parts], omega))
    tx = hwtrain.optim.hardware_aware(optax.sgd(1.0), plan)
    state = tx.init(params)
    rng = np.random.default_rng(0)
    for _ in range(5):
        grads = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), params
        )
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        plan.check_scales(params)
    jax.jit(tx.init)(params)
