import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._arrays import tiling
from hwtrain._plan.hardware import Hardware
from hwtrain.weights import WeightClipParameter, clip
from hwtrain.weights.learned_bound import learned_clip

TYPES = {
    "FixedValue": "fixed_value",
    "LayerGaussian": "layer_gaussian",
    "AverageChannelMax": "average_channel_max",
    "None": "none",
}
W = jax.random.normal(jax.random.key(0), (2, 10, 6))


def clipped(parameter, w):
    bound = parameter.bound(w, (w.shape[0],))
    return np.clip(w, -bound, bound)


@pytest.mark.parametrize("section", ["weight_clip_cpp", "weight_clip_torch_tile"])
def test_clipping_agrees_with_the_reference(section, golden):
    done = 0
    for name, case in golden("aihwkit_weights")[section].items():
        # A fixed value that was never set is -1: a no-op in C++, every weight -1 in
        # the torch tile. Ours needs a value.
        if "out" not in case or "default_minus1" in name:
            continue
        pars = {k: v for k, v in case["pars"].items() if k != "type"}
        if pars.get("fixed_value", 0) <= 0:
            pars.pop("fixed_value", None)
        kind = TYPES[case["pars"]["type"]]
        parameter = WeightClipParameter(type=kind, **pars)
        w = jnp.float32(case["w"]).T
        expected = np.float32(case["out"]).T
        np.testing.assert_allclose(
            clipped(parameter, w), expected, rtol=1e-5, err_msg=name
        )
        done += 1
    assert done >= 12


def test_clipping_by_column_agrees_with_the_reference(golden):
    done = 0
    for name, case in golden("aihwkit_weights")["weight_clip_lightning"].items():
        if "out" not in case:
            continue
        parameter = WeightClipParameter(
            type="layer_gaussian",
            sigma=case["sigma"],
            per_column=case["type"].endswith("PerChannel"),
        )
        w = jnp.float32(case["w"]).T
        expected = np.float32(case["out"]).T
        np.testing.assert_allclose(
            clipped(parameter, w), expected, rtol=1e-5, err_msg=name
        )
        done += 1
    assert done == 4


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("parameter", "columns"),
    [
        (WeightClipParameter(type="fixed_value", fixed_value=0.4), 1),
        (WeightClipParameter(type="layer_gaussian", sigma=1.0), 1),
        (WeightClipParameter(type="layer_gaussian", sigma=1.0, per_column=True), 6),
        (WeightClipParameter(type="average_channel_max"), 1),
        (WeightClipParameter(type="average_channel_max", fixed_value=0.3), 1),
    ],
    ids=repr,
)
def test_every_tile_of_every_layer_has_its_own_bound(parameter, columns):
    sizes = tiling.split_sizes(10, 4)
    bound = parameter.bound(W, sizes)
    assert bound.shape == (2, 3, columns)
    start = 0
    for tile, rows in enumerate(sizes):
        alone = parameter.bound(W[:, start : start + rows], (rows,))
        np.testing.assert_allclose(bound[:, tile], alone[:, 0], rtol=1e-6)
        start += rows


def test_an_average_over_columns_by_hand():
    by_hand = np.abs(W).max(-2).mean(-1)[:, None, None]
    np.testing.assert_allclose(clip.average_channel_max(W, (10,)), by_hand, rtol=1e-6)
    limited = clip.average_channel_max(W, (10,), limit=0.1)
    np.testing.assert_allclose(limited, np.full((2, 1, 1), 0.1), rtol=1e-6)


def test_a_bound_in_units_of_the_crossbar_stores_its_scale():
    for kind, stored in (
        ({"type": "average_channel_max"}, True),
        ({"type": "fixed_value", "fixed_value": 1.0}, True),
        ({"type": "layer_gaussian"}, False),
    ):
        assert Hardware(clip=WeightClipParameter(**kind)).stores_scale == stored


@pytest.mark.parametrize(
    ("name", "steps"),
    [("learn_clip/no_quant", None), ("learn_clip/quant_per_channel_res6", 6)],
)
def test_the_learned_bound_agrees_with_the_reference(name, steps, golden):
    case = golden("aihwkit_weights")["lightning_layer"][name]
    x, dy = np.float32(case["x"]), np.float32(case["grad_y"])
    w = jnp.float32(case["W"]).T
    bound = jnp.float32(case["learnable_weight_clip"])
    out, pull = jax.vjp(lambda w, c: learned_clip(w, c, (4,), steps), w, bound)
    np.testing.assert_allclose(x @ out, case["y"], rtol=1e-5, atol=1e-6)
    w_gradient, bound_gradient = pull(jnp.asarray(x.T @ dy))
    expected = np.float32(case["grad_W"]).T
    np.testing.assert_allclose(w_gradient, expected, rtol=1e-5, atol=1e-6)
    expected = np.float32(case["grad_learnable_weight_clip"])
    np.testing.assert_allclose(bound_gradient, expected, rtol=1e-5, atol=1e-6)


def test_a_bound_above_one_is_not_inverted():
    # The reference takes its inverse if all bounds of a slice are above 1.
    w, bound = jnp.float32([[3.0], [-1.5]]), jnp.float32([[2.0]])
    np.testing.assert_array_equal(learned_clip(w, bound, (2,)), [[2.0], [-1.5]])
    rounded = learned_clip(w, bound, (2,), 4)
    np.testing.assert_array_equal(rounded, [[2.0], [-2.0]])


@pytest.mark.parametrize("steps", [None, 7])
def test_the_learned_bound_of_tiles_is_that_of_each_tile(steps):
    sizes = tiling.split_sizes(10, 4)
    bound = jnp.full((2, 3, 6), 0.8) + 0.1 * jnp.arange(6.0)
    slope = jax.random.normal(jax.random.key(1), W.shape)

    def loss(w, c, slope, sizes):
        return jnp.sum(slope * learned_clip(w, c, sizes, steps))

    w_gradient, c_gradient = jax.grad(loss, (0, 1))(W, bound, slope, sizes)
    start = 0
    for tile, rows in enumerate(sizes):
        cut = slice(start, start + rows)
        gradients = jax.grad(loss, (0, 1))(
            W[0, cut], bound[0, tile : tile + 1], slope[0, cut], (rows,)
        )
        np.testing.assert_allclose(w_gradient[0, cut], gradients[0], rtol=1e-6)
        np.testing.assert_allclose(
            c_gradient[0, tile], gradients[1][0], rtol=1e-5, atol=1e-6
        )
        start += rows


def test_the_learned_bound_without_levels_has_the_true_derivative():
    bound = jnp.full((1, 6), 0.8)
    gradient = jax.grad(lambda c: learned_clip(W[0], c, (10,)).sum())(bound)

    def plain(c):
        return np.clip(np.float64(W[0]), -c, c).sum()

    step = 1e-6
    basis = np.eye(6)[:, None]
    difference = [
        (plain(0.8 + step * e) - plain(0.8 - step * e)) / (2 * step) for e in basis
    ]
    # No weight lies within the step of the bound, so the difference is exact.
    assert (np.abs(np.abs(W[0]) - 0.8) > step).all()
    scaled = np.asarray(difference)[None] / np.sqrt(60)
    np.testing.assert_allclose(gradient, scaled, rtol=1e-5, atol=1e-6)
