"""Synaptic weights as masks over four base currents shared by the neurons of a core.

A synapse of a DynapSE2-like chip switches on any of four currents, and its sign selects
the dendrite: a weight is a subset sum, not a number on a uniform grid.
"""

import dataclasses
import itertools

import numpy as np

from hwtrain._errors import InputError

BASES = 4
NEAREST_POWERS = (1e-9, 2e-9, 4e-9, 8e-9)
"""Default base currents without a search, in A."""

GRID = 32
"""Levels up to the largest weight; the search tries all sets of four of them."""

_MASKS = np.array(list(itertools.product((0, 1), repeat=BASES)), float)[:, ::-1]

_POINTS = 48  # quantiles that stand for many weights in the search over the grid

_TRIED_ON_TABLE = 4  # best results of the search that are then moved to a table


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WeightCodes:
    """Weights as stored in a core.

    Attributes:
      bases: `[4]` base currents, in A.
      mask: bit b of a weight's mask switches base b on; uint8, shaped like the weights.
      sign: 1 excites, -1 inhibits, 0 for no synapse; int8.
      achieved: the weights that sign, mask and bases realise, in A.
    """

    bases: np.ndarray
    mask: np.ndarray
    sign: np.ndarray
    achieved: np.ndarray


def encode(
    weights: np.ndarray, *, seed: int = 0, table: np.ndarray | None = None
) -> WeightCodes:
    r"""Returns the masks and base currents that approximate weights best.

    .. math:: \min_{I_b, m} \sum_i \left(|w_i| - \sum_b m_{ib} I_b\right)^2,
        \qquad m_{ib} \in \{0, 1\}, \quad I_b \ge 0

    over the nonzero weights. Starting from several sets of bases (`NEAREST_POWERS`, the
    best set from a grid of `GRID` levels, and random ones), it alternates between the
    best mask of each weight and the best bases for the masks until nothing improves,
    and returns the best result. With a table, bases are taken from it. So the result is
    never worse than the nearest codes of `NEAREST_POWERS`, nor, for at most `_POINTS`
    weights, than any four levels of the grid, or with a table the entries next to them.

    >>> codes = encode(np.array([0.0, 3e-9, -5e-9, 8e-9]))
    >>> print(codes.sign, np.round(codes.achieved * 1e9, 6))
    [ 0  1 -1  1] [ 0.  3. -5.  8.]

    Args:
      weights: all synapses of a core, in A, any shape; zero for no synapse.
      seed: seed of the random sets.
      table: `[coarse, fine]` currents available to a base, in A; `None` for any.

    Raises:
      ValueError: if a weight is not finite.
    """
    weights = np.asarray(weights, np.float64)
    if not np.isfinite(weights).all():
        raise InputError(
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
    """Returns the nearest mask of each weight."""
    order, between = _ordered(bases)
    return order[np.searchsorted(between, wanted)]


def _ordered(bases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the masks sorted by sum, and the 15 midpoints between their sums."""
    sums = _MASKS @ bases
    order = np.argsort(sums, kind="stable")
    return order, (sums[order][1:] + sums[order][:-1]) / 2


def _error(wanted: np.ndarray, bases: np.ndarray) -> float:
    """Returns the sum of squared errors with the best masks."""
    return float(((wanted - (_MASKS @ bases)[_nearest_mask(wanted, bases)]) ** 2).sum())


def _alternate(wanted: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """Alternates between the best masks and the best bases until nothing improves.

    It terminates: each round lowers the error, and there are finitely many sets of
    masks.
    """
    # Imported late: it is as slow to load as all of hwtrain.
    from scipy.optimize import nnls

    error = _error(wanted, bases)
    while True:
        mask = _nearest_mask(wanted, bases)
        # The weights of one mask act like their mean, weighted by their number.
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
    """Returns the best four levels for weights, or for quantiles of many weights."""
    if wanted.size > _POINTS:
        wanted = np.quantile(wanted, (np.arange(_POINTS) + 0.5) / _POINTS)
    sets = np.array(list(itertools.combinations(levels, BASES)))
    sums = sets @ _MASKS.T
    errors = sum(((w - sums) ** 2).min(axis=1) for w in wanted)
    return sets[np.argmin(errors)]


def _random_starts(wanted: np.ndarray, seed: int, number: int = 32) -> np.ndarray:
    """Returns random sets of bases, uniform in the logarithm."""
    low, high = np.log(wanted.min() / 2), np.log(wanted.max())
    return np.exp(np.random.default_rng(seed).uniform(low, high, (number, BASES)))


def _nearest(levels: np.ndarray, currents: np.ndarray) -> np.ndarray:
    """Returns the index of the nearest level for each current."""
    return np.abs(levels[:, None] - currents).argmin(axis=0)


def _descend(wanted: np.ndarray, bases: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Moves bases from their nearest levels to neighbours while the error decreases."""
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
