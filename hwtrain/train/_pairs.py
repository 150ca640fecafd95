"""Compares two models on the same chips."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from hwtrain._errors import InputError
from hwtrain._plan.tables import table_of
from hwtrain.train._report import OnChips


@dataclasses.dataclass(frozen=True, eq=False)
class Difference:
    """The difference of a metric between two models, on each chip.

    >>> one = OnChips(model="plain", mismatch_std=0.1, values=np.array([[90.0, 92.0]]))
    >>> two = OnChips(model="noisy", mismatch_std=0.1, values=np.array([[95.0, 96.0]]))
    >>> print(Difference(one, two, better="higher").mean)
    4.5

    Attributes:
      first: of one model.
      second: of the other one, on the same chips.
      better: which values of the metric are better.
    """

    first: OnChips
    second: OnChips
    better: str

    @property
    def values(self) -> np.ndarray:
        """`[chips]`, second minus first, each the mean over its training seeds."""
        return self.second.values.mean(axis=0) - self.first.values.mean(axis=0)

    @property
    def mean(self) -> float:
        """Mean over chips."""
        return float(self.values.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean, by Student's t for pairs.

        For these trained networks: it says nothing of other training seeds.
        """
        chips = len(self.values)
        if chips < 2:
            return math.nan, math.nan
        from scipy import stats

        half = stats.t.ppf(0.975, chips - 1) * self.values.std(ddof=1)
        half = float(half / np.sqrt(chips))
        return self.mean - half, self.mean + half

    @property
    def over_seeds(self) -> float:
        """Standard deviation over training seeds; NaN unless both have the same number.

        Seed by seed, of the difference of the means over chips.
        """
        ours, theirs = self.first.values, self.second.values
        if len(ours) != len(theirs) or len(ours) < 2:
            return math.nan
        return float((theirs.mean(axis=1) - ours.mean(axis=1)).std(ddof=1))

    @property
    def share(self) -> float:
        """Share of chips on which the second model is better; equal ones count half."""
        sign = 1 if self.better == "higher" else -1
        return float(np.mean(np.sign(sign * self.values) / 2 + 0.5))


def differences(
    first: Sequence[OnChips], second: Sequence[OnChips], better: str
) -> list[Difference]:
    """Returns the difference for each mismatch that both models have.

    Args:
      first: of one model, for each mismatch.
      second: of the other one.
      better: which values of the metric are better.

    Raises:
      ValueError: if the metrics, or the numbers of chips, are not the same, or if no
        mismatch is.
    """
    if first[0].title != second[0].title:
        raise InputError(
            "expected runs with the same main metric, got "
            f"{first[0].title!r} and {second[0].title!r}"
        )
    theirs = {one.mismatch_std: one for one in second}
    pairs = [(x, theirs[x.mismatch_std]) for x in first if x.mismatch_std in theirs]
    if not pairs:
        levels = [[x.mismatch_std for x in its] for its in (first, second)]
        raise InputError(
            "expected runs with a mismatch in common, got "
            f"{levels[0]} and {levels[1]} (evaluation.mismatch_std)"
        )
    for one, two in pairs:
        if one.values.shape[1] != two.values.shape[1]:
            raise InputError(
                "expected runs on the same chips, got "
                f"{one.values.shape[1]} and {two.values.shape[1]} chips "
                "(evaluation.chips)"
            )
    return [Difference(one, two, better) for one, two in pairs]


def table(found: Sequence[Difference]) -> Table:
    """Returns a table with a row for each mismatch.

    Args:
      found: the differences.
    """
    rows = []
    for one in found:
        form = ".2f" if one.first.unit == "%" else ".4g"
        low, high = one.interval
        level = one.first.mismatch_std
        row = {} if level is None else {"mismatch σ": f"{level:g}"}
        row["A"] = f"{one.first.mean:{form}}"
        row["B"] = f"{one.second.mean:{form}}"
        row["B - A"] = f"{one.mean:+{form}}"
        if not math.isnan(low):
            row["95 % interval"] = f"{low:+{form}} to {high:+{form}}"
        if not math.isnan(one.over_seeds):
            row["± seeds"] = f"{one.over_seeds:{form}}"
        row["B better"] = f"{100 * one.share:.0f} %"
        rows.append(row)
    shown = table_of(rows)
    for column in shown.columns:
        column.overflow = "fold"
    return shown
