"""Tiles: cutting and joining them, against NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._arrays import tiling


def test_split_is_minimal_and_balanced():
    for size, limit in itertools.product(range(1, 40), [1, 3, 7, 512, None]):
        case = f"{size} lines, at most {limit} a tile"
        sizes = tiling.split_sizes(size, limit)
        assert sum(sizes) == size, case
        assert max(sizes) - min(sizes) <= 1, case
        assert list(sizes) == sorted(sizes, reverse=True), case
        limit = limit or size
        assert max(sizes) <= limit, case
        assert len(sizes) == -(-size // limit), case


@pytest.mark.sampled
@pytest.mark.parametrize("axis", [-1, -2, -3])
@pytest.mark.parametrize("limit", [None, 2, 3, 4])
def test_cut_pads_with_zeros_and_join_undoes_it(axis, limit):
    x = jax.random.normal(jax.random.key(0), (8, 10, 7))
    sizes = tiling.split_sizes(x.shape[axis], limit)
    pieces = tiling.cut(x, sizes, axis)
    moved = np.moveaxis(np.asarray(pieces), (axis - 1, axis), (0, 1))
    valid = tiling.mask(sizes)
    assert (moved[~valid] == 0).all()
    expected = np.split(np.moveaxis(np.asarray(x), axis, 0), np.cumsum(sizes)[:-1])
    for tile, piece, size in zip(moved, expected, sizes):
        np.testing.assert_array_equal(tile[:size], piece)
    np.testing.assert_array_equal(tiling.join(pieces, sizes, axis), x)


def test_expand_rows_repeats_each_tile_for_its_rows():
    statistic = jnp.array([[1.0], [2.0], [3.0]])
    np.testing.assert_array_equal(
        tiling.expand_rows(statistic, (4, 3, 3))[:, 0], [1] * 4 + [2] * 3 + [3] * 3
    )
    assert tiling.expand_rows(statistic[:1], (10,)).shape == (1, 1)
