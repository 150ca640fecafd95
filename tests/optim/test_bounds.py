"""`keep_weights_clipped`: no weight exceeds its bound after an update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.optim._clip import weight_bound
from hwtrain.weights.clip import as_float32

BASES = {
    "sgd": optax.sgd(0.3),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(0.05, weight_decay=0.1),
    "lion": optax.lion(0.02),
}
CLIPS = {
    "gaussian": hw.WeightClipParameter(type="layer_gaussian", sigma=1.5),
    "per_column": hw.WeightClipParameter(
        type="layer_gaussian", sigma=1.5, per_column=True
    ),
    "fixed": hw.WeightClipParameter(type="fixed_value", fixed_value=0.7),
    "channels": hw.WeightClipParameter(type="average_channel_max"),
}
ROWS, COLUMNS, STACK, STEPS = 11, 6, 3, 60
TILES = [slice(0, 4), slice(4, 8), slice(8, 11)]


def plan_of(clip):
    weight = AnalogWeight(
        path="layers/kernel",
        kind="dense",
        layer="Dense",
        shape=(STACK, ROWS, COLUMNS),
        rows=(1,),
        columns=(2,),
        hardware=hw.Hardware(clip=clip, mapping=hw.MappingParameter(max_input_size=4)),
        rule="",
        ranged=False,
    )
    return Plan((weight,))


def bound_by_hand(clip, w):
    """Returns c for every weight, in float64, tile by tile."""
    w, bound = np.float64(w), np.empty(w.shape)
    for layer in range(STACK):
        for rows in TILES:
            tile = w[layer, rows]
            if clip.type == "fixed_value":
                c = clip.fixed_value
            elif clip.type == "average_channel_max":
                c = np.abs(tile).max(0).mean()
            else:
                axis = 0 if clip.per_column else None
                c = clip.sigma * tile.std(axis=axis, ddof=1)
            bound[layer, rows] = c
    return bound


QUICK = [("gaussian", jnp.bfloat16)]
EVERY = [(kind, dtype) for kind in CLIPS for dtype in (jnp.float32, jnp.bfloat16)]


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.nightly)
        for case in EVERY
    ],
)
def test_no_weight_is_ever_beyond_its_bound(kind, dtype):
    clip = CLIPS[kind]
    plan = plan_of(clip)
    spread = jnp.array([1.0, 20.0, 0.1])[:, None, None]  # each layer its own
    kernel = spread * jax.random.normal(jax.random.key(0), (STACK, ROWS, COLUMNS))
    params = {
        "layers": {
            "kernel": kernel.astype(dtype),
            "bias": jnp.full((STACK, COLUMNS), 50.0, dtype),
        }
    }
    if clip.type in ("fixed_value", "average_channel_max"):
        params["layers"]["mapping_scale"] = jnp.ones((STACK, 3, 1))

    weight = plan["layers/kernel"]

    def one(base, tx, carry, key):
        params, state = carry
        gradients = {
            name: (jax.random.normal(key, leaf.shape) - 0.1 * leaf).astype(leaf.dtype)
            for name, leaf in params["layers"].items()
        }
        gradients = {"layers": gradients}
        updates, new = tx.update(gradients, state, params)
        own, _ = base.update(
            hw.strip(gradients, plan), state.base, hw.strip(params, plan)
        )
        kernel, update = params["layers"]["kernel"], own["layers"]["kernel"]
        free = as_float32(kernel) + as_float32(update)
        scale = paths.leaves(params).get("layers/mapping_scale")
        bound = weight_bound(weight, kernel, scale, update=update)
        bound = jnp.broadcast_to(bound, free.shape)
        after = optax.apply_updates(params, updates)
        return (after, new), (after["layers"]["kernel"], free, bound)

    @jax.jit
    def train(params, key):
        keys, found = jax.random.split(key, STEPS), []
        for base in BASES.values():
            tx = hw.optim.hardware_aware(base, plan)
            step = functools.partial(one, base, tx)
            found.append(jax.lax.scan(step, (params, tx.init(params)), keys)[1])
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    # Read from what is stored: a compiler may leave out the rounding of what it reads.
    kernels, free, bound = map(np.asarray, train(params, jax.random.key(1)))
    assert kernels.dtype == dtype
    assert kernels.shape == (len(BASES), STEPS, STACK, ROWS, COLUMNS)
    assert (np.abs(np.float32(kernels)) <= bound).all()
    # In every layer and for every optimizer, something was clipped.
    clipped = np.abs(free) > bound
    assert clipped.any(axis=(1, 3, 4)).all()
    for base, step in ((0, 0), (2, STEPS - 1), (4, STEPS // 2)):
        by_hand = bound_by_hand(clip, free[base, step])
        np.testing.assert_allclose(bound[base, step], by_hand, rtol=1e-5)
