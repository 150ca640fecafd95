"""A mapping scale for each physical tile: its effect on outputs and leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain
from hwtrain._arrays import paths

ROWS, COLUMNS = (4, 3), (3, 3, 2)
RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (5, 7)).astype(np.float32)
# Column tiles of very different sizes: with one scale for all, most levels are lost.
W = (RNG.normal(size=(7, 8)) * np.repeat([1.0, 0.1, 0.01], COLUMNS)).astype(np.float32)
W[4:] *= 3
BOUND, RES = 4.0, 1 / 16


def chip_type(columnwise=False, **parts):
    return hwtrain.Hardware(
        forward=hwtrain.IOParameters(inp_bound=1.0, out_bound=BOUND, out_res=RES),
        mapping=hwtrain.MappingParameter(
            max_input_size=4,
            max_output_size=3,
            weight_scaling_omega=0.5,
            weight_scaling_columnwise=columnwise,
        ),
        **parts,
    )


def linen(hardware):
    analog = hwtrain.analogize(nn.Dense(8, use_bias=False), hardware)
    params = hwtrain.adopt(analog, {"kernel": jnp.asarray(W)}, X)
    model = hwtrain.eval_mode(analog)
    plan = hwtrain.plan(analog, params, X)
    return plan, params, lambda params: model.apply({"params": params}, X)


def of_nnx(hardware):
    plain = nnx.Linear(7, 8, use_bias=False, rngs=nnx.Rngs(0))
    plain.kernel[...] = jnp.asarray(W)
    analog = hwtrain.analogize(plain, hardware, rngs=nnx.Rngs(mismatch=0))
    params = nnx.to_pure_dict(nnx.state(analog, nnx.Param))

    def outputs(params):
        model = hwtrain.eval_mode(nnx.clone(analog))
        nnx.update(model, params)
        return model(X)

    return hwtrain.plan(analog), params, outputs


def tiles():
    """Yields the place and the slices of every tile."""
    row_ends, column_ends = np.cumsum((0, *ROWS)), np.cumsum((0, *COLUMNS))
    for i in range(len(ROWS)):
        for j in range(len(COLUMNS)):
            yield (
                (i, j),
                slice(*row_ends[i : i + 2]),
                slice(*column_ends[j : j + 2]),
            )


def by_hand(scale):
    """The product in NumPy; `scale` of rows, columns and the place of a tile."""
    y = np.zeros((5, 8))
    for place, rows, columns in tiles():
        s = scale(W[rows, columns].astype(np.float64), place)
        part = X[:, rows].astype(np.float64) @ (W[rows, columns] / s)
        step = 2 * BOUND * RES
        y[:, columns] += np.clip(np.round(part / step) * step, -BOUND, BOUND) * s
    return y


def test_two_column_tiles_have_a_full_scale_each():
    hardware = hwtrain.Hardware(
        forward=hwtrain.IOParameters(inp_bound=1.0, out_bound=1.0, out_res=0.25),
        mapping=hwtrain.MappingParameter(max_output_size=1, weight_scaling_omega=1.0),
    )
    analog = hwtrain.eval_mode(hwtrain.analogize(nn.Dense(2, use_bias=False), hardware))
    y = analog.apply({"params": {"kernel": jnp.array([[1.0, 0.3]])}}, jnp.ones((1, 1)))
    # One scale for both gave [1, 0.5]: 0.3 was rounded to a level of the other tile.
    np.testing.assert_allclose(y, [[1.0, 0.3]], rtol=1e-6)


@pytest.mark.parametrize("columnwise", [False, True])
@pytest.mark.parametrize("model", [linen, of_nnx])
def test_derived_scales_are_those_of_each_tile(model, columnwise):
    _, params, outputs = model(chip_type(columnwise))
    axes = 0 if columnwise else None

    def scale(w, place):
        return np.abs(w).max(axis=axes) / 0.5

    np.testing.assert_allclose(outputs(params), by_hand(scale), atol=1e-5)


@pytest.mark.parametrize("model", [linen, of_nnx])
def test_stored_scales_are_leaves_of_tiles_that_remapping_sets(model, tmp_path):
    remap = hwtrain.WeightRemapParameter(type="layerwise_symmetric")
    plan, params, outputs = model(chip_type(remap=remap))
    assert params["mapping_scale"].shape == (len(ROWS), len(COLUMNS))
    tx = hwtrain.optim.hardware_aware(optax.sgd(0.0), plan)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    expected = np.zeros((len(ROWS), len(COLUMNS)))
    for place, rows, columns in tiles():
        expected[place] = np.abs(W[rows, columns]).max()
    np.testing.assert_allclose(params["mapping_scale"], expected, rtol=1e-6)
    y = by_hand(lambda w, place: expected[place])
    np.testing.assert_allclose(outputs(params), y, atol=1e-5)

    # Of checkpoints that hold one scale for a row of tiles.
    one = np.float32([[4.0], [10.0]])
    old = {**params, "mapping_scale": jnp.asarray(one)}
    y = by_hand(lambda w, place: one[place[0], 0])
    if model is linen:
        np.testing.assert_allclose(outputs(old), y, atol=1e-5)
    checkpoint = hwtrain.load(hwtrain.export(tmp_path / "old", old, plan))
    np.testing.assert_array_equal(checkpoint.params["mapping_scale"], one)
    updates, _ = tx.update(grads, tx.init(old), old)
    new = optax.apply_updates(old, updates)["mapping_scale"]
    widest = np.abs(W).max(axis=1)
    np.testing.assert_allclose(
        new[:, 0], [widest[:4].max(), widest[4:].max()], rtol=1e-6
    )


@pytest.mark.parametrize("model", [linen, of_nnx])
def test_the_largest_ratio_of_scales_is_that_of_a_tile(model):
    remap = hwtrain.WeightRemapParameter(
        type="channelwise_symmetric", max_scale_range=1.5
    )
    plan, params, _ = model(chip_type(remap=remap))
    before = np.float64(params["mapping_scale"])
    assert before.shape == (len(ROWS), 8)
    tx = hwtrain.optim.remap_weights(plan)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    after = optax.apply_updates(params, updates)["mapping_scale"]
    for (i, _), rows, columns in tiles():
        largest = np.abs(W[rows, columns]).max(axis=0)
        limit = 1.5 * before[i, columns].min()
        np.testing.assert_allclose(
            after[i, columns], np.minimum(largest, limit), rtol=1e-5
        )


@pytest.mark.sampled
@pytest.mark.parametrize("columnwise", [False, True])
@pytest.mark.parametrize("model", [linen, of_nnx])
def test_the_full_scale_of_a_learned_clip_is_its_bound(model, columnwise):
    clip = hwtrain.WeightClipParameter(type="learnable_per_channel")
    _, params, outputs = model(chip_type(columnwise, clip=clip))
    bound = np.asarray(params["clip_bound"]) * np.linspace(1.5, 3.0, 8)
    params = paths.insert(params, {"clip_bound": jnp.asarray(bound, jnp.float32)})

    def scale(w, place):
        columns = slice(*np.cumsum((0, *COLUMNS))[place[1] : place[1] + 2])
        c = bound[place[0], columns]
        return (c if columnwise else c.max()) / 0.5

    np.testing.assert_allclose(outputs(params), by_hand(scale), atol=1e-5)
