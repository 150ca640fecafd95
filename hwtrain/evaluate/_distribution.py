"""Compares measured numbers with those that NumPy draws from a configuration."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hwtrain.evaluate._judgement import strength_of

MOST = 2**15
"""Most numbers that are compared."""

_DRAWN = 2**20
"""Numbers that NumPy draws for them."""


def drawn(sample: Callable[..., Any], *given: np.ndarray) -> np.ndarray:
    """Returns NumPy's draws for each number, `[draws, numbers]`.

    Args:
      sample: function of a NumPy generator and arrays `[draws, numbers]`.
      *given: its arrays, `[numbers]`.
    """
    count = max(_DRAWN // max(given[0].size, 1), 32)
    each = [
        np.broadcast_to(np.asarray(array, np.float64), (count, array.size))
        for array in given
    ]
    return np.asarray(sample(np.random.default_rng(0), *each), np.float64)


def as_drawn(
    found: np.ndarray, rest: np.ndarray, draws: np.ndarray, rounding: np.ndarray
) -> tuple[str, str | None]:
    """Returns how strong changes and noise are next to NumPy's, and what is wrong.

    >>> draws = np.random.default_rng(0).normal(size=(1000, 100)) + 3
    >>> as_drawn(draws[0] / 2, np.zeros(100), draws[1:], np.zeros(100))[1]
    'the mean change is 0.51 x the configured one'

    Args:
      found: the measured numbers.
      rest: what they would be without the effect.
      draws: NumPy's draws for each, `[draws, numbers]`; NaN for none.
      rounding: standard deviation of the rounding of each measured number.
    """
    some = ~np.isnan(found) & (np.sum(~np.isnan(draws), axis=0) >= 16)
    if not some.any():
        return "nothing to compare", None
    found, rest, draws = found[some], rest[some], draws[:, some]
    count = np.sum(~np.isnan(draws), axis=0)
    mean, variance = np.nanmean(draws, axis=0), np.nanvar(draws, axis=0, ddof=1)
    fourth = np.nanmean((draws - mean) ** 4, axis=0)
    variance = np.where(variance > 1e-12 * mean**2, variance, 0)
    change = mean - rest
    square = np.sum(change**2 - variance / count)
    uncertain = (variance + rounding[some] ** 2) * change**2
    error = 5 * math.sqrt(uncertain.sum()) / max(square, 1e-300)
    amount = "as configured"
    if square > 1e-8 * np.sum(rest**2) and error < 0.4:
        share = np.sum((found - rest) * change) / square
        amount = f"{share:.2f} x the configured change"
        if abs(share - 1) > max(error, 0.1):
            return amount, f"the mean change is {share:.2f} x the configured one"
    total = variance.sum()
    if total == 0:
        return amount, None
    all_of_it = np.sum(variance * (1 + 1 / count) + rounding[some] ** 2)
    units = (found - mean) * math.sqrt(found.size / all_of_it)
    # As many normal draws would give a variance as uncertain as that of these.
    uncertain = np.sum(np.maximum(fourth - variance**2, 0)) * 1.2
    independent = 2 * total**2 / max(uncertain, 1e-300)
    return strength_of(units, max(int(min(independent, 1e12)), 1))


def wrong_share(
    found: np.ndarray, function: Callable[[np.ndarray], Any], w: np.ndarray, eps: float
) -> float:
    """Returns the share of numbers that are not a function of others.

    A number next to a step of the function may lie on either side of it.

    Args:
      found: the measured numbers.
      function: NumPy's function.
      w: its arguments.
      eps: relative rounding error of the measured numbers.
    """
    nudge = 32 * np.finfo(np.float32).eps * np.abs(w)
    each = np.stack(
        [np.asarray(function(w + d), np.float64) for d in (-nudge, 0, nudge)]
    )
    size = np.abs(each).max(axis=0)
    slack = 1.5 * eps * size + nudge + 1e-30
    low, high = each.min(axis=0) - slack, each.max(axis=0) + slack
    return float(np.mean((found < low) | (found > high)))
