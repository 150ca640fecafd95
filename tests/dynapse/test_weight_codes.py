"""Weights as masks over four base currents."""

import itertools

import numpy as np
import pytest

from hwtrain.dynapse._biases import computed_table
from hwtrain.dynapse._weight_codes import encode

TABLE = computed_table()


def draw(seed, number):
    rng = np.random.default_rng(seed)
    return rng.lognormal(0, 0.8, number) * 4e-9 * rng.choice([-1, 1], number)


def nearest(weights, bases):
    """Returns the error of the best subset sums, one weight after the other."""
    sums = [
        sum(subset) for n in range(5) for subset in itertools.combinations(bases, n)
    ]
    return sum(min((abs(w) - s) ** 2 for s in sums) for w in weights)


def error(weights, codes):
    return ((weights - codes.achieved) ** 2).sum()


def exhaustive(weights, levels):
    """Returns the error of the best four of some levels."""
    sets = np.array(list(itertools.combinations_with_replacement(levels, 4)))
    masks = np.array(list(itertools.product((0, 1), repeat=4)))
    sums = sets @ masks.T
    return min(sum(((abs(w) - sums) ** 2).min(axis=1) for w in weights))


@pytest.mark.sampled
@pytest.mark.parametrize("table", [None, TABLE], ids=["free", "table"])
@pytest.mark.parametrize("number", [1, 2, 4, 6, 8, 12, 16])
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))]
)
def test_at_least_as_good_as_every_grid(seed, number, table):
    weights = draw(seed, number)
    found = error(weights, encode(weights, seed=seed, table=table))
    for grid in (np.arange(0, 21) / 20, np.linspace(0.03, 1.1, 18)):
        levels = grid * abs(weights).max()
        if table is not None:
            flat = table.ravel()
            levels = flat[abs(flat[:, None] - levels).argmin(axis=0)]
        best = exhaustive(weights, levels)
        assert found <= best + 1e-12 * (weights**2).sum()


@pytest.mark.sampled
@pytest.mark.parametrize("table", [None, TABLE])
@pytest.mark.parametrize("number", [3, 16, 200])
def test_never_worse_than_powers_of_two(number, table):
    bases = np.array([1e-9, 2e-9, 4e-9, 8e-9])
    if table is not None:
        bases = [table.ravel()[abs(table - base).argmin()] for base in bases]
    for seed in range(2):
        # Also weights that these bases express exactly.
        for weights in (draw(seed, number), np.arange(1, 16) * 1e-9):
            found = error(weights, encode(weights, table=table))
            assert found <= nearest(weights, bases) + 1e-12 * (weights**2).sum()


def test_the_example_of_the_reference():
    # There, 0.75, 1.0 and 1.25 became 0.884, 0.926, 1.158, and 0.125 was lost.
    weights = np.array([0.75, 1.0, 1.25, 0.125, -0.5, 0.25]) * 1e-8
    for table in (None, TABLE):
        achieved = encode(weights, table=table).achieved
        np.testing.assert_allclose(achieved, weights, atol=0.01e-8)


def test_masks_signs_and_bases_amount_to_the_achieved_weights():
    weights = draw(3, 40).reshape(8, 5)
    weights[2] = 0.0
    weights[3, 0] = -0.0
    codes = encode(weights, table=TABLE)
    assert codes.mask.shape == weights.shape and codes.mask.dtype == np.uint8
    for index in np.ndindex(*weights.shape):
        mask, total = int(codes.mask[index]), 0.0
        for bit in range(4):
            total += (mask >> bit & 1) * codes.bases[bit]
        assert codes.achieved[index] == pytest.approx(codes.sign[index] * total)
        if weights[index] == 0:
            assert mask == 0 and codes.sign[index] == 0
        elif mask:
            assert codes.sign[index] == np.sign(weights[index])
    assert np.isin(codes.bases, TABLE).all()


def test_the_seed_decides():
    weights = draw(0, 100)
    first, again = encode(weights, seed=5), encode(weights, seed=5)
    np.testing.assert_array_equal(first.bases, again.bases)
    np.testing.assert_array_equal(first.mask, again.mask)


def test_many_weights_end_near_the_best_scalar_quantiser():
    # Of 16 free levels (Lloyd-Max) a normal distribution, folded, keeps this share of
    # its power as error: 16 levels of |x| are 32 of x, 2.5e-3 (Max 1960, table I). A
    # subset sum has 4 numbers for its 16 levels; allow it thrice that.
    weights = np.random.default_rng(0).normal(0, 4e-9, 4000)
    share = error(weights, encode(weights)) / (weights**2).sum()
    assert 2.0e-3 < share < 7.5e-3


def test_no_synapses():
    codes = encode(np.zeros((3, 2)), table=TABLE)
    assert not codes.achieved.any() and not codes.mask.any()
    assert encode(np.zeros((0, 2))).mask.shape == (0, 2)


def test_weights_that_are_no_numbers():
    with pytest.raises(ValueError, match="1 of 2 weights are NaN"):
        encode(np.array([1.0, np.nan]))
