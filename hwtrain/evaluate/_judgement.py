"""Tests whether measured draws have their configured strength.

Every bound is five standard errors, so that correct models do not fail. The number of
draws is large enough to tell half of a strength, or none, from the whole.
"""

import math

import numpy as np

ENOUGH = 128
"""Number of draws that tells strengths of 1 and 0.5 apart by more than both errors."""

MOST_KEYS = 512
"""Most steps that are measured, for a model with a layer of very few weights."""

ZEROS = (
    "the kernel is all zeros, so that outputs, and noise relative to its largest "
    "weight, are zero whatever its hardware is: measure it with weights that are not, "
    "such as trained ones"
)


def strength_of(draws: np.ndarray, independent: int) -> tuple[str, str | None]:
    """Returns the strength of draws relative to their configuration, and any fault.

    >>> strength_of(np.ones(128), 128)
    ('1.00 x the configured deviation', None)

    Args:
      draws: over their configured deviation; NaN where that is zero.
      independent: lower bound of the number of independent draws.
    """
    strength = math.sqrt(np.nanmean(np.square(draws, dtype=np.float64)))
    amount = f"{strength:.2f} x the configured deviation"
    # The standard error of a chi-square; a tenth allows for rounding in narrow dtypes.
    margin = max(5 / math.sqrt(2 * max(independent, 1)), 0.1)
    return amount, None if abs(strength - 1) < margin else f"the noise has {amount}"


def spread_of(variances: np.ndarray) -> tuple[str, str | None]:
    """Returns a spread relative to its configuration, and what is wrong with it.

    >>> spread_of(np.full(1000, 0.25))
    ('0.50 x the configured spread', 'the spread is 0.50 x the configured spread')

    Args:
      variances: independent estimates of its square, over the configured one.
    """
    mean, deviation = variances.mean(), max(variances.std(), math.sqrt(3))
    error = 5 * deviation / math.sqrt(variances.size)
    if error > 0.7:
        return "too small next to the noise to be measured", None
    amount = f"{math.sqrt(max(mean, 0)):.2f} x the configured spread"
    wrong = f"the spread is {amount}" if abs(mean - 1) > max(error, 0.3) else None
    return amount, wrong


def share_of(count: int, total: int, share: float) -> tuple[str, str | None]:
    """Returns a share of weights as text, and what is wrong with it.

    >>> share_of(0, 1000, 0.1)[1]
    '0 of 1000 weights are dropped, 100 expected'

    Args:
      count: number of dropped weights.
      total: number of weights.
      share: the configured share.
    """
    amount = f"{count} of {total} weights are dropped, {share * total:.3g} expected"
    margin = 5 * math.sqrt(share * (1 - share) * total) + 1
    return amount, amount if abs(count - share * total) > margin else None


def repeated(draws: np.ndarray, *, few: bool = False) -> bool:
    """Returns whether several draws are the same.

    A few numbers of a narrow dtype may be equal by chance; for these, more than half of
    all pairs must be equal.

    Args:
      draws: `[keys, draws of a key]`.
      few: whether a key draws few numbers, or few different ones.
    """
    _, counts = np.unique(draws, axis=0, return_counts=True)
    keys, width = draws.shape
    if width >= 16 and not few:
        return bool((counts > 1).any())
    return float(np.sum(counts * (counts - 1))) > 0.5 * keys * (keys - 1)
