"""Populations under several conditions as one table and one plot."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from hwtrain._errors import InputError
from hwtrain._plan.tables import as_text, count, fold_names, table_of, time_name
from hwtrain.evaluate._population import Population, is_higher


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Study:
    """The same metric of one model on populations of other chips.

    >>> one, two = (Population(values=np.array(x), seeds=(0, 1))
    ...             for x in ([90.0, 91.0], [95.0, 95.0]))
    >>> study = Study([({"out_bits": 4}, one), ({"out_bits": 8}, two)])
    >>> [float(point.mean) for _, point in study.points]
    [90.5, 95.0]

    Attributes:
      populations: pairs of what was varied, by name, and a population.
    """

    populations: Sequence[tuple[Mapping[str, Any], Population]]

    def __post_init__(self):
        if not self.populations:
            raise InputError("a Study needs at least one population; got none")
        for conditions, population in self.populations:
            both = set(conditions) & {*(population.constants or ()), "t_s"}
            if both:
                raise InputError(
                    f"Study: {', '.join(sorted(both))} is a condition, and a constant "
                    "or the time of its population too; name the condition otherwise"
                )

    @property
    def points(self) -> list[tuple[dict[str, Any], Population]]:
        """Pairs of all conditions and the values of `[chips]`.

        The conditions include the constants and, as `"t_s"`, the time.
        """
        found = []
        for conditions, population in self.populations:
            constants = population.constants or {}
            settings = [dict(zip(constants, row)) for row in zip(*constants.values())]
            times = [{"t_s": t_s} for t_s in population.times_s or ()]
            rows = itertools.product(settings or [{}], times or [{}])
            columns = np.reshape(population.values, (len(population.seeds), -1)).T
            for (setting, time), values in zip(rows, columns, strict=True):
                one = Population(values=values, seeds=population.seeds)
                found.append(({**conditions, **setting, **time}, one))
        return found

    def table(
        self,
        form: str = ".4g",
        *,
        required: float | None = None,
        better: str = "higher",
    ) -> Table:
        """Returns a table with a row for each point.

        Args:
          form: format of the numbers.
          required: adds the yield at this value of the metric, with its 95 % interval;
            `None` for no yield.
          better: `"higher"` or `"lower"`, which values of the metric are better.
        """
        tail = 0.05 if is_higher(better) else 0.95
        rows, points = [], self.points
        names = dict.fromkeys(name for conditions, _ in points for name in conditions)
        short = short_names(list(names))
        for conditions, chips in points:
            row = {
                short[name].replace("_", " "): condition_name(name, value)
                for name, value in (names | conditions).items()
            }
            row["mean"] = f"{chips.mean:{form}}"
            if len(chips.seeds) > 1:
                low, high = chips.interval
                row["± 95 %"] = f"{(high - low) / 2:{form}}"
                row["std"] = f"{chips.std:{form}}"
                row[f"{100 * tail:.0f}th percentile"] = f"{chips.quantile(tail):{form}}"
            if required is not None:
                share = chips.chip_yield(required, better)
                low, high = chips.yield_interval(required, better)
                row[f"yield at {required:g}"] = (
                    f"{100 * share:.0f} % ({100 * low:.0f}-{100 * high:.0f})"
                )
            rows.append(row)
        found = table_of(rows)
        fold_names(found, len(short))
        return found

    def __str__(self) -> str:
        """Returns the table as text."""
        seeds = {len(population.seeds) for _, population in self.populations}
        chips = count(max(seeds), "chip")
        return as_text([chips if len(seeds) == 1 else f"up to {chips}", self.table()])


def condition_name(name: str, value: Any) -> str:
    """Returns the value of a condition as tables show it.

    Args:
      name: the condition; `"t_s"` is a time.
      value: its value.
    """
    if value is None:
        return ""
    return time_name(value) if name == "t_s" else value_name(value)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Returns the last part of each name, or all of it where that is not unique.

    >>> short_names(["forward.out_bits", "converter.g_max", "noise_model.g_max"])
    {'forward.out_bits': 'out_bits', 'converter.g_max': 'converter.g_max', \
    'noise_model.g_max': 'noise_model.g_max'}
    """
    last = {name: name.rpartition(".")[2] for name in names}
    often = list(last.values())
    short = {n: x if often.count(x) == 1 else n for n, x in last.items()}
    return {name: "time" if name == "t_s" else x for name, x in short.items()}


def value_name(value: Any) -> str:
    """Returns a value of a configuration as tables show it.

    >>> value_name(0.05), value_name({"type": "global"}), value_name([1, 2])
    ('0.05', 'global', '[1, 2]')
    """
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping) and not value:
        return "default"
    if isinstance(value, Mapping) and set(value) == {"type"}:
        return str(value["type"])
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {value_name(x)}" for name, x in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(value_name, value))}]"
    return str(value)
