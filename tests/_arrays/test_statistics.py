"""Statistics of row tiles, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._arrays import statistics


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("sizes", [(10,), (5, 5), (4, 3, 3)])
def test_statistics_of_row_tiles(sizes, per_column):
    w = np.random.default_rng(0).normal(size=(2, 10, 3)).astype(np.float32) + 1
    axes = (1,) if per_column else (1, 2)
    tiles = np.split(w, np.cumsum(sizes)[:-1], axis=1)
    maxima = np.stack([np.abs(t).max(axes, keepdims=True)[:, 0] for t in tiles], 1)
    spreads = np.stack([t.std(axes, ddof=1, keepdims=True)[:, 0] for t in tiles], 1)

    @jax.jit
    def both(w):
        options = {"per_column": per_column}
        maximum = statistics.absolute_maximum(w, sizes, **options)
        return maximum, statistics.standard_deviation(w, sizes, **options)

    largest, spread = both(w)
    np.testing.assert_array_equal(largest, maxima)
    np.testing.assert_allclose(spread, spreads, rtol=1e-5)
    if per_column and len(sizes) == 2:  # operation by operation, what compares exactly
        largest = statistics.absolute_maximum(jnp.asarray(w), sizes, per_column=True)
        np.testing.assert_array_equal(largest, maxima)


@pytest.mark.sampled
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("sizes", [(2048,), (683, 683, 682), (1021, 1020), (3,)])
@pytest.mark.parametrize(
    "kind", ["about zero", "far from zero", "one odd row", "one odd weight"]
)
def test_the_spread_of_a_sum_loses_few_ulps(kind, sizes, per_column):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(sum(sizes), 5)).astype(np.float32)
    w += 1e4 if kind == "far from zero" else 0
    first = np.cumsum((0, *sizes[:-1]))
    if kind == "one odd row":
        w[first] = 1e6
    if kind == "one odd weight":
        w[first, 0] = 1e6
    update = rng.normal(size=w.shape).astype(np.float32)
    total = (w + update).astype(np.float64)
    axes = (0,) if per_column else (0, 1)
    expected = [
        tile.var(axes, ddof=1, keepdims=True)[0]
        for tile in np.split(total, np.cumsum(sizes)[:-1])
    ]
    spread = jax.jit(
        lambda w, u: statistics.standard_deviation(
            w, sizes, per_column=per_column, update=u
        )
    )(w, update)
    lost = np.abs(np.float64(spread) ** 2 / expected - 1) / np.finfo(np.float32).eps
    # The distance of eight weights to the mean is at most sqrt(weights / 8) spreads.
    count = np.asarray(sizes)[:, None] * (1 if per_column else w.shape[1])
    limit = np.maximum(count / 8, 8) if "odd" in kind else 8
    assert (lost <= limit).all(), lost


@pytest.mark.parametrize("value", [0.1, -3e4, 7e-5])
@pytest.mark.parametrize("per_column", [False, True])
def test_equal_weights_have_no_spread(value, per_column):
    w = jnp.full((2, 21, 3), value)
    spread = statistics.standard_deviation(w, (11, 10), per_column=per_column)
    np.testing.assert_array_equal(spread, 0)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("shape", "rows"),
    [((7, 5), (4, 3)), ((64, 256), (32, 32)), ((2, 9, 130), (3, 3, 3)), ((1, 1), (1,))],
)
def test_the_largest_weight_and_its_gradient(shape, rows, dtype, per_column):
    w = jax.random.normal(jax.random.key(0), shape).astype(dtype)
    axis = -2 if per_column else (-2, -1)

    def by_words(w):
        return statistics.absolute_maximum(w, rows, per_column=per_column)

    def by_hand(w):
        parts = jnp.split(w, np.cumsum(rows)[:-1], axis=-2)
        parts = [jnp.abs(part).max(axis=axis) for part in parts]
        largest = jnp.stack(parts, axis=-2 if per_column else -1)
        return largest if per_column else largest[..., None]

    assert by_words(w).dtype == w.dtype
    np.testing.assert_array_equal(by_words(w), by_hand(w))
    d = jax.random.normal(jax.random.key(1), by_hand(w).shape).astype(dtype)
    for each in (by_words, by_hand):
        assert each(w).dtype == d.dtype
    found, expected = (jax.vjp(f, w)[1](d)[0] for f in (by_words, by_hand))
    np.testing.assert_array_equal(found, expected)
    found, expected = (jax.jvp(f, (w,), (w,))[1] for f in (by_words, by_hand))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -0.0])
def test_the_largest_weight_of_unusual_numbers(value):
    w = jnp.full((4, 3), value).at[1, 1].set(-2.0)
    found = statistics.absolute_maximum(w, (4,), per_column=False)
    np.testing.assert_array_equal(found, np.abs(np.asarray(w)).max()[None, None])


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("width", [5, 256])
def test_the_spread_of_scaled_columns_in_one_pass(width, per_column):
    rng = np.random.default_rng(0)
    w, update = rng.normal(3, 1, (2, 30, width)).astype(np.float32)
    scale = rng.uniform(0.5, 2, (2, width)).astype(np.float32)
    found = statistics.standard_deviation(
        w, (15, 15), per_column=per_column, scale=scale, update=update
    )
    tiles = np.float64(w + update).reshape(2, 15, width) / np.float64(scale)[:, None]
    axis = 1 if per_column else (1, 2)
    expected = tiles.std(axis=axis, ddof=1).reshape(2, -1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("per_column", [False, True])
def test_the_spread_beside_unusual_first_rows(per_column):
    """As of a bias or of padding: what the spread is computed about lies elsewhere."""
    w = np.random.default_rng(0).normal(size=(4096, 256)).astype(np.float32) * 2e-4
    w[:8, 0] = 1.0
    found = statistics.standard_deviation(
        jnp.asarray(w), (4096,), per_column=per_column
    )
    axes = 0 if per_column else None
    expected = w.astype(np.float64).std(axis=axes, ddof=1)
    np.testing.assert_allclose(np.ravel(found), np.ravel(expected), rtol=1e-4)
