"""Synaptic weights as masks over four base currents that the neurons of a core share.

A synapse of a DynapSE2-like chip switches any of four currents on, and its sign says
which dendrite they reach: a weight is a subset sum, not a number on a uniform grid.
"""

import dataclasses
import itertools

import numpy as np

BASES = 4


NEAREST_POWERS = (1e-9, 2e-9, 4e-9, 8e-9)
"""Base currents that a chip is set to without a search, in A."""


GRID = 32
"""Levels up to the largest weight that the search tries every set of four of."""


_MASKS = np.array(list(itertools.product((0, 1), repeat=BASES)), float)[:, ::-1]


_POINTS = 48  # representatives of many weights, in the search over the grid


_TRIED_ON_TABLE = 4  # ends of the search that are moved to a table


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WeightCodes:
    """Weights as a core holds them.

    Attributes:
      bases: `[4]` base currents, in A.
      mask: bit b of the mask of a weight switches base b on; uint8, shaped as the
        weights.
      sign: 1 excites, -1 inhibits, 0 where there is no synapse; int8.
      achieved: what sign, mask and bases amount to, in A.
    """

    bases: np.ndarray
    mask: np.ndarray
    sign: np.ndarray
    achieved: np.ndarray


def encode(
    weights: np.ndarray, *, seed: int = 0, table: np.ndarray | None = None
) -> WeightCodes:
    r"""Returns the masks and base currents that come closest to weights.

    .. math:: \min_{I_b, m} \sum_i \left(|w_i| - \sum_b m_{ib} I_b\right)^2,
        \qquad m_{ib} \in \{0, 1\}, \quad I_b \ge 0

    over the weights that are not zero. From several sets of bases (`NEAREST_POWERS`,
    the best set out of a grid of `GRID` levels, and random ones) it takes turns between
    the best mask of each weight and the best bases of the masks until nothing improves,
    and returns the best end. Bases come from the table, if there is one.

    So the result is never worse than the nearest codes of `NEAREST_POWERS`, nor, for
    `_POINTS` weights or fewer, than any four levels of the grid: of these currents
    themselves, or of what the table has next to them.

    >>> codes = encode(np.array([0.0, 3e-9, -5e-9, 8e-9]))
    >>> print(codes.sign, np.round(codes.achieved * 1e9, 6))
    [ 0  1 -1  1] [ 0.  3. -5.  8.]

    Args:
      weights: of all synapses of a core, in A, any shape; zero for no synapse.
      seed: of the random sets.
      table: `[coarse, fine]` currents that a base may have, in A; `None` for any.

    Raises:
      ValueError: if a weight is not finite.
    """
    weights = np.asarray(weights, np.float64)
    if not np.isfinite(weights).all():
        raise ValueError(
            f"{int((~np.isfinite(weights)).sum())} of {weights.size} weights are NaN "
            "or infinite; export an earlier checkpoint"
        )
    wanted = np.sort(np.abs(weights[weights != 0]))
    ends = [np.array(NEAREST_POWERS)]
    if wanted.size:
        grid = np.arange(1, GRID + 1) / GRID * wanted.max()
        starts = [*ends, _best_of(grid, wanted), *_random_starts(wanted, seed)]
        ends += [_alternate(wanted, bases) for bases in starts]
        if table is not None:
            levels = np.unique(table)
            ends.sort(key=lambda bases: _error(wanted, bases))
            snapped = levels[_nearest(levels, grid)]
            ends = [*ends[:_TRIED_ON_TABLE], starts[0], _best_of(snapped, wanted)]
            ends = [_descend(wanted, bases, levels) for bases in ends]
    elif table is not None:
        levels = np.unique(table)
        ends = [levels[_nearest(levels, ends[0])]]
    bases = np.sort(min(ends, key=lambda bases: _error(wanted, bases)))
    mask = np.where(weights == 0, 0, _nearest_mask(np.abs(weights), bases))
    sign = np.where(mask == 0, 0, np.sign(weights)).astype(np.int8)
    return WeightCodes(
        bases=bases,
        mask=mask.astype(np.uint8),
        sign=sign,
        achieved=sign * amounts(mask, bases),
    )


def amounts(mask: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """Returns the current of each mask, in A.

    >>> amounts(np.array([0, 5]), np.array([1e-9, 2e-9, 4e-9, 8e-9]))
    array([0.e+00, 5.e-09])

    Args:
      mask: masks, 0 to 15.
      bases: `[4]` base currents, in A.
    """
    return (_MASKS @ bases)[mask]


def _nearest_mask(wanted: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """Returns for each weight the number of the nearest mask."""
    order, between = _ordered(bases)
    return order[np.searchsorted(between, wanted)]


def _ordered(bases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the masks by their sum, and the 15 weights half-way between two."""
    sums = _MASKS @ bases
    order = np.argsort(sums, kind="stable")
    return order, (sums[order][1:] + sums[order][:-1]) / 2


def _error(wanted: np.ndarray, bases: np.ndarray) -> float:
    """Returns the sum of squared errors of the best masks."""
    return float(((wanted - (_MASKS @ bases)[_nearest_mask(wanted, bases)]) ** 2).sum())


def _alternate(wanted: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """Takes turns between the best masks and the best bases until nothing improves.

    Each turn lowers the error or ends, and there are finitely many sets of masks.
    """
    # Not at the top: it is as slow to load as all of hwtrain.
    from scipy.optimize import nnls

    error = _error(wanted, bases)
    while True:
        mask = _nearest_mask(wanted, bases)
        # Weights of one mask pull at the bases as their mean does, each with its count.
        count = np.bincount(mask, minlength=len(_MASKS))
        root = np.sqrt(count)
        mean = np.bincount(mask, wanted, len(_MASKS)) / np.maximum(count, 1)
        unit = wanted[-1]
        found = nnls(_MASKS * root[:, None], mean / unit * root)[0] * unit
        lower = _error(wanted, found)
        if not lower < error * (1 - 1e-9):
            return bases
        bases, error = found, lower


def _best_of(levels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the best four of some levels for weights, or for their quantiles."""
    if wanted.size > _POINTS:
        wanted = np.quantile(wanted, (np.arange(_POINTS) + 0.5) / _POINTS)
    sets = np.array(list(itertools.combinations(levels, BASES)))
    sums = sets @ _MASKS.T
    errors = sum(((w - sums) ** 2).min(axis=1) for w in wanted)
    return sets[np.argmin(errors)]


def _random_starts(wanted: np.ndarray, seed: int, number: int = 32) -> np.ndarray:
    """Returns sets of bases, spread evenly in the logarithm."""
    low, high = np.log(wanted.min() / 2), np.log(wanted.max())
    return np.exp(np.random.default_rng(seed).uniform(low, high, (number, BASES)))


def _nearest(levels: np.ndarray, currents: np.ndarray) -> np.ndarray:
    """Returns for each current the number of the nearest level."""
    return np.abs(levels[:, None] - currents).argmin(axis=0)


def _descend(wanted: np.ndarray, bases: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Moves bases from their nearest levels to neighbours while the error falls."""
    places = _nearest(levels, bases)
    steps = np.array(list(itertools.product((-1, 0, 1), repeat=BASES)))
    error = _error(wanted, levels[places])
    while True:
        tries = np.clip(places + steps, 0, len(levels) - 1)
        errors = [_error(wanted, levels[number]) for number in tries]
        best = int(np.argmin(errors))
        if not errors[best] < error:
            return levels[places]
        places, error = tries[best], errors[best]
