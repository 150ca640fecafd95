"""The input range: golden gradients, tiles against NumPy, statistics in the probe."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain.periphery._range_gradient import (
    PROBE_SCALE,
    RangeGradient,
    clip_to_range,
    ranged_matmul,
)


def clip(x, r, probe, gradient=RangeGradient()):  # noqa: B008
    """Clips `[batch, rows]` on one tile."""
    tiles = x[:, None, None, :]
    return clip_to_range(tiles, r, probe, (x.shape[-1],), gradient)[:, 0, 0, :]


def gradients(x, r, d, gradient=RangeGradient()):  # noqa: B008
    probe = jnp.zeros((1, 1, 6))
    r = jnp.full((1, 1), r, jnp.float32)

    @jax.jit
    def both(x, r, probe, d):
        y, pull = jax.vjp(lambda *a: clip(*a, gradient), x, r, probe)
        return y, *pull(d)

    y, d_x, d_r, d_probe = both(jnp.asarray(x), r, probe, jnp.asarray(d))
    return y, d_x, d_r[0, 0], d_probe[0, 0] / PROBE_SCALE


def cases(golden, section):
    return sorted(golden("aihwkit_input_range")[section].items())


def test_range_gradient_of_aihwkit_without_decay(golden):
    compared = 0
    for name, case in cases(golden, "input_range_aihwkit_torch_fn"):
        if case["pars"].get("decay") != 0.0:
            continue
        scale = case["pars"].get("gradient_scale", 1.0)
        relative = case["pars"].get("gradient_relative", True)
        _, _, d_r, _ = gradients(
            case["x"],
            case["input_range"],
            case["grad_out"],
            RangeGradient(scale=scale, relative=relative),
        )
        expected = case["grad_input_range"][0]
        if not relative:
            expected *= scale  # the reference drops the scale there; we do not
        np.testing.assert_allclose(d_r, expected, rtol=1e-6, err_msg=name)
        compared += 1
    assert compared == 9


def test_gradient_to_inputs_of_lightning(golden):
    for name, case in cases(golden, "input_range_lightning_fn"):
        y, d_x, _, _ = gradients(case["x"], case["input_range"], case["grad_out"])
        np.testing.assert_array_equal(y, np.float32(case["y"]), err_msg=name)
        np.testing.assert_array_equal(d_x, np.float32(case["grad_x"]), err_msg=name)


def test_gradient_at_the_boundary_by_hand():
    # At x = r the input passes its gradient, and counts as clipped for the range.
    x = [[2.0, -2.0, 2.5, -2.5, 1.0]]
    d = [[-0.3, 0.4, -0.5, 0.6, 0.7]]
    _, d_x, d_r, sums = gradients(x, 2.0, d, RangeGradient(relative=False))
    np.testing.assert_allclose(d_x, [[-0.3, 0.4, 0.0, 0.0, 0.7]], rtol=1e-6)
    np.testing.assert_allclose(d_r, (-0.3 - 0.5) - (0.4 + 0.6), rtol=1e-6)
    np.testing.assert_allclose(sums[:2], [5, 1])


def test_straight_through_passes_clipped_gradients():
    x, d = [[5.0, 1.0]], [[0.3, 0.4]]
    _, d_x, _, _ = gradients(x, 2.0, d, RangeGradient(straight_through=True))
    np.testing.assert_array_equal(d_x, np.float32(d))


def test_probe_holds_sums_of_the_input_before_clipping():
    x = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32) * 2
    _, _, _, sums = gradients(x, 1.5, np.ones_like(x))
    scaled = x / 1.5
    expected = [x.size, (np.abs(x) < 1.5).sum(), scaled.sum(), (scaled**2).sum(), 0, 0]
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-4)


TILES = [((10,), (7,)), ((5, 5), (7,)), ((10,), (3, 2, 2)), ((4, 3, 3), (4, 3))]


def by_numpy(x, w, r, rows, columns):
    """The product tile by tile."""
    y = np.zeros((*x.shape[:-1], w.shape[1]), np.float64)
    row_ends, column_ends = np.cumsum((0, *rows)), np.cumsum((0, *columns))
    for i in range(len(rows)):
        for j in range(len(columns)):
            a, b = slice(*row_ends[i : i + 2]), slice(*column_ends[j : j + 2])
            y[..., b] += np.clip(x[..., a], -r[i, j], r[i, j]) @ w[a, b]
    return y


@pytest.mark.sampled
@pytest.mark.parametrize(("rows", "columns"), TILES)
@pytest.mark.parametrize("batch", [(), (4,), (3, 5)])
def test_tiled_product_against_numpy(rows, columns, batch):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(*batch, 10)).astype(np.float32)
    w = rng.normal(size=(10, 7)).astype(np.float32)
    r = rng.uniform(0.3, 1.5, (len(rows), len(columns))).astype(np.float32)
    expected = by_numpy(x, w, r, rows, columns)
    product = functools.partial(ranged_matmul, row_sizes=rows, column_sizes=columns)
    arrays = tuple(map(jnp.asarray, (x, w, r)))
    probes = None, jnp.zeros((*r.shape, 6))

    def with_and_without(x, w, r):
        return [product(x, w, r, probe) for probe in probes]

    # Both eagerly and in one program, which rounds differently.
    for call in (with_and_without, jax.jit(with_and_without)):
        for y in call(*arrays):
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


COMPILED = [(*tiles, True) for tiles in TILES]


# Operation by operation, a gradient is seventy programs: on one kind of tiles.
@pytest.mark.parametrize(
    ("rows", "columns", "compiled"), [*COMPILED, (*TILES[1], False)]
)
def test_each_tile_has_its_own_gradient_and_statistics(rows, columns, compiled):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20, 10)).astype(np.float32)
    w = rng.normal(size=(10, 7)).astype(np.float32)
    d = rng.normal(size=(20, 7)).astype(np.float32)
    r = rng.uniform(0.3, 1.5, (len(rows), len(columns))).astype(np.float32)
    product = functools.partial(ranged_matmul, row_sizes=rows, column_sizes=columns)
    arrays = (*map(jnp.asarray, (x, w, r)), jnp.zeros((*r.shape, 6)))

    def pull(d, *arrays):
        return jax.vjp(product, *arrays)[1](d)

    call = jax.jit(pull) if compiled else pull
    d_x, d_w, d_r, d_probe = map(np.asarray, call(jnp.asarray(d), *arrays))

    row_ends, column_ends = np.cumsum((0, *rows)), np.cumsum((0, *columns))
    expected_x, expected_w = np.zeros_like(x), np.zeros_like(w)
    for i in range(len(rows)):
        for j in range(len(columns)):
            a, b = slice(*row_ends[i : i + 2]), slice(*column_ends[j : j + 2])
            inputs, limit = x[:, a], r[i, j]
            back = d[:, b] @ w[a, b].T
            expected_x[:, a] += np.where(np.abs(inputs) <= limit, back, 0)
            expected_w[a, b] = np.clip(inputs, -limit, limit).T @ d[:, b]
            widen = np.minimum(back, 0)[inputs >= limit].sum()
            widen -= np.maximum(back, 0)[inputs <= -limit].sum()
            np.testing.assert_allclose(d_r[i, j], limit * widen, rtol=1e-4, atol=1e-5)
            sums = d_probe[i, j] / PROBE_SCALE
            assert sums[0] == inputs.size
            assert sums[1] == (np.abs(inputs) < limit).sum()
            np.testing.assert_allclose(sums[2], (inputs / limit).sum(), atol=1e-4)
            np.testing.assert_allclose(sums[3], ((inputs / limit) ** 2).sum(), 1e-5)
    np.testing.assert_allclose(d_x, expected_x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(d_w, expected_w, rtol=1e-4, atol=1e-4)


def test_without_a_probe_forward_mode_works():
    product = functools.partial(ranged_matmul, row_sizes=(2,), column_sizes=(1,))
    x, w, r = jnp.array([[0.5, 4.0]]), jnp.ones((2, 1)), jnp.full((1, 1), 3.0)
    _, slope = jax.jvp(lambda x: product(x, w, r, None), (x,), (jnp.ones_like(x),))
    np.testing.assert_array_equal(slope, [[1.0]])  # the clipped input passes nothing


def test_bfloat16_keeps_its_type():
    x = jnp.ones((4, 6), jnp.bfloat16)
    w = jnp.ones((6, 2), jnp.bfloat16)
    product = functools.partial(ranged_matmul, row_sizes=(3, 3), column_sizes=(2,))

    @jax.jit
    def both(x, w, *rest):
        y, pull = jax.vjp(product, x, w, *rest)
        return y, pull(y)

    y, gradients = both(x, w, jnp.full((2, 1), 0.5), jnp.zeros((2, 1, 6)))
    assert y.dtype == jnp.bfloat16
    assert [leaf.dtype for leaf in gradients] == [jnp.bfloat16] * 2 + [jnp.float32] * 2
