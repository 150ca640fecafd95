"""How well a fitted noise model agrees with the measurements that it was fitted to."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

_FEWEST = 8
"""Devices of a target from which their mean and spread are compared."""

DOUBTFUL = 0.001
"""A probability below which a family is called wrong."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    r"""The largest difference of a fitted model from its measurements.

    The devices of each target are compared at each time, in their mean and in their
    standard deviation s:

    .. math::
        t = \frac{\bar g - m}{s / \sqrt n}, \qquad
        \nu \frac{s^2}{\sigma^2} \sim \chi^2_\nu, \quad
        \nu = \frac{2 (n - 1)}{\kappa - 1}

    with m and σ of the model, n devices, and κ the kurtosis of all measurements. Both
    hold for devices that are not normal. `probability` is that of a difference as
    significant as the largest one if the family is right, times the number of
    comparisons (Bonferroni), at most 1. It is not too small where comparisons depend on
    each other, and larger than it would be had nothing been fitted. Below 0.001, the
    family is wrong, or the fit started too far away.

    Attributes:
      quantity: `"mean"` or `"spread"`.
      g_target_us: target of the largest difference, in µS.
      t_s: its time, in seconds.
      measured_us: the mean or the standard deviation of the devices, in µS.
      model_us: that of the model, in µS.
      comparisons: number of pairs of a target and a time.
      probability: of such a difference if the family is right.
    """

    quantity: str
    g_target_us: float
    t_s: float
    measured_us: float
    model_us: float
    comparisons: int
    probability: float

    def __str__(self) -> str:
        """Returns it as a sentence."""
        verdict = ": this family does not describe these devices"
        return (
            f"{self.quantity}: differs most at {self.g_target_us:.4g} µS after "
            f"{self.t_s:.4g} s, {self.measured_us:.4g} µS measured and "
            f"{self.model_us:.4g} µS of the model, probability "
            f"{self.probability:.2g}"
            f"{verdict if self.probability < DOUBTFUL else ''}"
        )


def agreements(moments: Sequence[Any], groups: Sequence[Any]) -> tuple[Agreement, ...]:
    """Returns the agreement of the means and of the spreads.

    Args:
      moments: of each group of devices, the mean and the covariance of its reads.
      groups: of each, the target, the times, and `[devices, times]`, the reads. Groups
        of fewer than 8 devices are left out, and nothing is returned without any.
    """
    from scipy import stats

    rows, fourth = [], []
    for (mean, cov, *_), (target, times, reads) in zip(moments, groups):
        n = len(reads)
        if n < _FEWEST:
            continue
        off = reads - reads.mean(0)
        s = off.std(0, ddof=1)
        known = s > 0
        ratio = off[:, known] / s[known]
        # The small-sample mean of a normal kurtosis is below 3.
        fourth.append((n, np.mean(ratio**4, axis=0) * n**2 * (n + 1) / (n - 1) ** 3))
        rows.append((target, times, n, reads.mean(0), s, mean, np.sqrt(np.diag(cov))))
    if not rows:
        return ()
    weights = np.concatenate([np.full(len(k), n) for n, k in fourth] or [[]])
    values = np.concatenate([k for _, k in fourth] or [[]])
    kurtosis = float(np.average(values, weights=weights)) if len(values) else 3.0
    means, spreads = [], []
    for target, times, n, g, s, mean, sigma in rows:
        t = np.abs(g - mean) * np.sqrt(n) / np.maximum(s, 1e-6 * sigma)
        free = 2 * (n - 1) / max(kurtosis - 1, 0.1)
        scaled = free * (s / sigma) ** 2
        each = stats.chi2(free)
        both = 2 * np.minimum(each.cdf(scaled), each.sf(scaled))
        means += zip(2 * stats.t(n - 1).sf(t), [target] * len(times), times, g, mean)
        spreads += zip(both, [target] * len(times), times, s, sigma)
    return tuple(
        _worst(name, cells) for name, cells in (("mean", means), ("spread", spreads))
    )


def _worst(quantity: str, cells: list[tuple[float, ...]]) -> Agreement:
    probability, target, t_s, measured, modelled = map(float, min(cells))
    return Agreement(
        quantity=quantity,
        g_target_us=target,
        t_s=t_s,
        measured_us=measured,
        model_us=modelled,
        comparisons=len(cells),
        probability=min(1.0, probability * len(cells)),
    )
