"""Input ranges of one batch, against NumPy."""

import numpy as np
import pytest

from hwtrain.periphery._calibration import RowSample, batch_range

X = np.random.default_rng(0).normal(size=(6, 5, 7)).astype(np.float32) + 0.5
X[2:4] = 0
TILES = (slice(0, 4), slice(4, 7))
KEPT = np.delete(X, [2, 3], axis=0)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("max", lambda x: np.abs(x).max()),
        ("moving_std", lambda x: 2.5 * x.std()),
        ("moving_quantile", lambda x: np.quantile(np.abs(x), 0.9)),
    ],
)
def test_every_tile_gets_the_statistic_of_its_vectors_that_are_not_zero(
    method, expected
):
    found = batch_range(X, (4, 3), method=method, quantile=0.9, std_alpha=2.5)
    wanted = [expected(KEPT[..., tile]) for tile in TILES]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    none = batch_range(0 * X, (4, 3), method=method, quantile=0.9, std_alpha=2.5)
    np.testing.assert_array_equal(none, 0)


@pytest.mark.parametrize("value", [5.0, -300.0])
def test_a_constant_input_lies_within_its_range(value):
    x = np.full((6, 7), value, np.float32)
    found = batch_range(x, (4, 3), method="moving_std", quantile=1.0, std_alpha=2.5)
    np.testing.assert_allclose(found, abs(value) * (1 + 2.5 * 10**-2.5), rtol=1e-6)


def test_a_sample_keeps_rows_that_are_equally_likely():
    # 20 of 200 rows, of which the second half came later: each with a share of 1/10.
    hits, trials = np.zeros(200), 400
    for seed in range(trials):
        sample = RowSample(20, np.random.default_rng(seed))
        rows = np.arange(1.0, 201)[:, None]
        sample.add(rows[:100])
        sample.add(np.concatenate([rows[100:], np.zeros((5, 1))]))
        assert len(sample._rows) == 20
        hits[sample._rows[:, 0].astype(int) - 1] += 1
    sigma = np.sqrt(0.1 * 0.9 / (100 * trials))
    assert abs(hits[:100].mean() / trials - 0.1) < 5 * sigma
    assert abs(hits[100:].mean() / trials - 0.1) < 5 * sigma
    small = RowSample(500, np.random.default_rng(0))
    small.add(-np.arange(1.0, 201)[:, None])
    assert small.quantile(0.5) == np.quantile(np.arange(1.0, 201), 0.5)
