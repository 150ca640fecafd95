"""Tables of the actual hardware effects in each layer of an analog model."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax import nnx
from flax.core import meta
from rich.markup import escape
from rich.table import Table

from hwtrain._arrays import paths
from hwtrain._flax.inspection_rows import columns
from hwtrain._flax.modes import plan as plan_of
from hwtrain._flax.nnx.step import stored
from hwtrain._flax.weight_side import local
from hwtrain._plan.plan import Plan
from hwtrain._plan.stale_leaves import check_fit
from hwtrain._plan.tables import as_text, listed, table, tables_of
from hwtrain._plan.training_noise import quiet_training


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The result of `inspect`; printed as tables.

    Attributes:
      rows: for every analog weight, its columns by name.
      digital: for every other parameter, its path and the reason why it stays digital.
      totals: numbers of tiles, of devices, and of analog and digital weights.
      results: for every module whose results are stored in few bits, its columns.
      note: notes on the whole model, such as that training draws no noise; or empty.
    """

    rows: tuple[dict[str, str], ...]
    digital: tuple[tuple[str, str], ...]
    totals: dict[str, int]
    note: str = ""
    results: tuple[dict[str, str], ...] = ()

    def tables(self) -> Iterator[Table | str]:
        """Yields the tables, and the totals as a line, for rich.

        Values that all weights share are listed once, above those that differ.
        """
        yield from tables_of(self.rows, "Analog")
        if self.digital:
            found = table("parameter", "why", title="Digital")
            for path, reason in self.digital:
                found.add_row(path, reason)
            yield found
        if self.results:
            yield listed(self.results, "Results")
        yield ", ".join(f"{name}: {n:,}" for name, n in self.totals.items())
        if self.note:
            yield escape(self.note)

    def __str__(self) -> str:
        """Returns the tables as text."""
        return as_text(self.tables())


def inspect(
    analog: Any, variables: Any = None, *example: Any, **kwargs: Any
) -> Inspection:
    """Returns a table of the actual hardware effects in each layer of an analog model.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> from hwtrain import Hardware
    >>> from hwtrain import analogize
    >>> x = jnp.ones((1, 3))
    >>> analog = analogize(nn.Dense(4), Hardware())
    >>> found = inspect(analog, analog.init(jax.random.key(0), x), x)
    >>> found.rows[0]["weight"], found.digital
    ('kernel', (('bias', 'the bias of a Dense is added digitally'),))

    Args:
      analog: from `analogize`.
      variables: Linen: the variables.
      *example: Linen: arguments of a call, as for `plan`.
      **kwargs: Linen: keyword arguments of the call.
    """
    found = plan_of(analog, variables, *example, **kwargs)
    if isinstance(analog, nnx.Module):
        # Leaves of a chip beside its weights may be plain arrays, set by `nnx.update`.
        state = stored(nnx.state(analog))
        whole = paths.leaves(state)
        beside = [local(found, path) for path in found.leaves_of_chip(state)]
        params = stored(nnx.state(analog, nnx.Param))
        params = paths.insert(params, {path: whole[path] for path in beside})
    else:
        params = variables.get("params", variables)
    return inspect_plan(found, params)


def inspect_plan(found: Plan, params: Any) -> Inspection:
    """Returns the table of a model with a known plan, such as that of a checkpoint.

    Args:
      found: the plan.
      params: the parameters.

    Raises:
      ValueError: for weights that are not finite, and leaves of other hardware.
    """
    values = paths.leaves(meta.unbox(params))
    paths.require_finite(meta.unbox(params))
    chips = found.leaves_of_chip(meta.unbox(params))
    found.check_leaves(meta.unbox(params), of_chip=True)
    check_fit(found, meta.unbox(params))
    return Inspection(
        rows=tuple(columns(weight, found, values) for weight in found.weights),
        digital=tuple((entry.path, entry.reason) for entry in found.digital),
        totals=_totals(found, values),
        note="\n".join(_notes(found, chips)),
        results=tuple(output.row for output in found.outputs),
    )


def _notes(plan: Plan, chips: list[str]) -> Iterator[str]:
    if chips:
        yield (
            f"These are a chip's weights, not nominal ones: {chips[0]} is stored "
            "beside them, as by hwtrain.apply_mismatch and HardwareCheckpoint.chip."
        )
    quiet = quiet_training(plan)
    if quiet:
        yield quiet


def _totals(plan: Plan, values: dict[str, Any]) -> dict[str, int]:
    analog = sum(math.prod(weight.shape) for weight in plan.weights)
    digital = [local(plan, entry.path) for entry in plan.digital]
    devices = sum(
        math.prod(weight.shape) * len(weight.hardware.converter.devices)
        for weight in plan.weights
        if weight.hardware.converter is not None
    )
    return {
        "tiles": sum(math.prod((*w.stack, *w.tiles)) for w in plan.weights),
        "analog weights": analog,
        "digital parameters": sum(int(np.size(values[path])) for path in digital),
        **({"devices": devices} if devices else {}),
    }
