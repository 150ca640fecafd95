"""Chooses which layers to map in another way, within a budget."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from hwtrain.evaluate._population import Population

Mapped = frozenset[tuple[str, str]]
"""Pairs of a layer and how it is mapped; other layers are as configured."""

Score = Callable[[Mapped], np.ndarray]
"""Returns a metric, `[chips]`, on the same chips for each mapping."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Another way to map a layer.

    >>> Choice("head", "digital", "digital weights", 640).fits(
    ...     {}, {"digital weights": 500})
    False

    Attributes:
      layer: the layer's path.
      kind: how it is mapped.
      budget: the budget that it takes from.
      amount: what it takes.
    """

    layer: str
    kind: str
    budget: str
    amount: float

    def fits(self, used: Mapping[str, float], budgets: Mapping[str, float]) -> bool:
        """Whether the budgets allow this choice beside what is used already."""
        left = budgets.get(self.budget, 0.0) - used.get(self.budget, 0.0)
        return self.amount <= left


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One step of a greedy search.

    Attributes:
      choice: what is mapped in another way; `None` for the mapping as configured.
      values: `[chips]`, the metric with this choice and all before.
      gain: `[chips]`, how much better it is than before.
      used: what all choices take of each budget.
    """

    choice: Choice | None
    values: np.ndarray
    gain: np.ndarray
    used: Mapping[str, float]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean gain, for pairs of the same chip."""
        return _interval(self.gain)


def greedy(
    score: Score,
    choices: Sequence[Choice],
    budgets: Mapping[str, float],
    *,
    better: str,
) -> list[Step]:
    """Returns the better of two greedy searches, by gain and by gain for the budget.

    Each step takes the choice that gains most, as long as its gain is more than chance:
    its 95 % interval lies above zero.

    Args:
      score: evaluates a mapping; each is asked for once.
      choices: what can be chosen; at most one for each layer is.
      budgets: the most of each budget, by name.
      better: `"higher"` or `"lower"`, which values of the metric are better.
    """
    found: dict[Mapped, np.ndarray] = {}
    sign = 1 if better == "higher" else -1

    def scored(mapped: Mapped) -> np.ndarray:
        if mapped not in found:
            found[mapped] = np.asarray(score(mapped), np.float64)
        return found[mapped]

    ways = [
        list(_search(scored, choices, budgets, sign, by_budget=by_budget))
        for by_budget in (False, True)
    ]
    return max(ways, key=lambda steps: sign * steps[-1].values.mean())


def _search(
    scored: Score,
    choices: Sequence[Choice],
    budgets: Mapping[str, float],
    sign: int,
    *,
    by_budget: bool,
) -> Iterator[Step]:
    mapped: Mapped = frozenset()
    used: dict[str, float] = {}
    values = scored(mapped)
    yield Step(None, values, np.zeros_like(values), {})
    while True:
        layers = {layer for layer, _ in mapped}
        gains = {
            choice: sign * (scored(mapped | {(choice.layer, choice.kind)}) - values)
            for choice in choices
            if choice.layer not in layers and choice.fits(used, budgets)
        }
        worth = {
            choice: gain.mean() / (choice.amount / budgets[choice.budget])
            if by_budget and choice.amount
            else gain.mean()
            for choice, gain in gains.items()
            if _interval(gain)[0] > 0
        }
        if not worth:
            return
        chosen = max(worth, key=lambda choice: worth[choice])
        mapped |= {(chosen.layer, chosen.kind)}
        used[chosen.budget] = used.get(chosen.budget, 0.0) + chosen.amount
        values = scored(mapped)
        yield Step(chosen, values, gains[chosen], dict(used))


def _interval(gain: np.ndarray) -> tuple[float, float]:
    low, high = Population(values=gain, seeds=()).interval
    return float(low), float(high)
