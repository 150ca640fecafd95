"""Differences of two models on the same chips, against SciPy."""

import numpy as np
import pytest
from scipy import stats

from hwtrain.train._pairs import differences, table
from hwtrain.train._report import OnChips

RANDOM = np.random.default_rng(0)
CHIPS = RANDOM.normal(0, 5, 40)
FIRST = 80 + CHIPS + RANDOM.normal(0, 0.5, (3, 40))
SECOND = 81 + CHIPS + RANDOM.normal(0, 0.5, (3, 40))


def of(values, level=0.1, **options):
    return OnChips(model="m", mismatch_std=level, values=values, **options)


def test_the_interval_is_that_of_pairs_not_of_two_samples():
    (found,) = differences([of(FIRST)], [of(SECOND)], "higher")
    expected = stats.ttest_rel(SECOND.mean(0), FIRST.mean(0))
    low, high = expected.confidence_interval(0.95)
    np.testing.assert_allclose(found.interval, (low, high))
    np.testing.assert_allclose(found.mean, SECOND.mean() - FIRST.mean())
    apart = stats.ttest_ind(SECOND.mean(0), FIRST.mean(0)).confidence_interval(0.95)
    assert high - low < 0.5 * (apart.high - apart.low)
    seeds = SECOND.mean(axis=1) - FIRST.mean(axis=1)
    np.testing.assert_allclose(found.over_seeds, seeds.std(ddof=1))


@pytest.mark.parametrize("better, share", [("higher", 0.625), ("lower", 0.375)])
def test_the_share_of_chips_counts_equal_ones_half(better, share):
    one, two = np.array([[1.0, 1.0, 1.0, 1.0]]), np.array([[2.0, 2.0, 1.0, 0.0]])
    (found,) = differences([of(one)], [of(two)], better)
    assert found.share == share


def test_other_numbers_of_seeds_are_compared_by_their_means():
    (found,) = differences([of(FIRST[:1])], [of(SECOND)], "higher")
    np.testing.assert_allclose(found.values, SECOND.mean(0) - FIRST[0])
    assert np.isnan(found.over_seeds)


def test_only_mismatches_in_common_are_compared():
    first = [of(FIRST, level) for level in (0.0, 0.1, 0.2)]
    second = [of(SECOND, level) for level in (0.2, 0.0)]
    found = differences(first, second, "higher")
    assert [one.first.mismatch_std for one in found] == [0.0, 0.2]
    shown = table(found)
    assert [column.header for column in shown.columns][0] == "mismatch σ"


@pytest.mark.parametrize(
    "other, expected",
    [
        (of(SECOND, 0.3), "a mismatch in common"),
        (of(SECOND[:, :5]), "40 and 5 chips"),
        (of(SECOND, metric="loss", unit=""), "the same main metric"),
    ],
)
def test_what_cannot_be_compared_is_refused(other, expected):
    with pytest.raises(ValueError, match=expected):
        differences([of(FIRST)], [other], "higher")


def test_one_chip_has_no_interval():
    (found,) = differences([of(FIRST[:, :1])], [of(SECOND[:, :1])], "higher")
    assert np.isnan(found.interval).all()
    assert "95 % interval" not in [c.header for c in table([found]).columns]
