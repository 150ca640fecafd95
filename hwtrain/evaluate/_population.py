"""Evaluates a model on a population of chips: what to expect of any one of them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np
from rich.table import Table

from hwtrain._flax.calls import Forward
from hwtrain._plan.tables import as_text, count, time_name
from hwtrain.evaluate._on_chips import Metrics, values_on_chips


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Population:
    """The values of a metric on each chip of a population; printed as a table.

    >>> chips = Population(values=np.array([0.9, 0.8, 1.0]), seeds=(0, 1, 2))
    >>> print(f"{chips.mean:.2f} ± {chips.std:.2f}")
    0.90 ± 0.10

    Attributes:
      values: `[chips]` or `[chips, times]`, the metric's mean over all examples, for
        each chip and time.
      seeds: the chips' seeds.
      mode: the mode that the model ran in.
      times_s: the times since programming, in seconds; `None` if none were given.
    """

    values: np.ndarray
    seeds: tuple[int, ...]
    mode: str = "chip_mode"
    times_s: tuple[float, ...] | None = None

    @property
    def mean(self) -> Any:
        """Mean over chips: a float, or `[times]`."""
        return _plain(np.mean(self.values, axis=0))

    @property
    def std(self) -> Any:
        """Standard deviation over chips (N-1), shaped as `mean`."""
        if len(self.values) < 2:
            return _plain(np.zeros(self.values.shape[1:]))
        # For equal chips, rounding of the mean would look like a spread.
        differ = np.ptp(self.values, axis=0) > 0
        return _plain(np.where(differ, np.std(self.values, axis=0, ddof=1), 0.0))

    @property
    def interval(self) -> tuple[Any, Any]:
        """95 % confidence interval of the mean, by Student's t; NaN for one chip."""
        chips = len(self.values)
        if chips < 2:
            missing = _plain(np.full(self.values.shape[1:], np.nan))
            return missing, missing
        # Imported late: it is as slow to load as all of hwtrain.
        from scipy import stats

        half = _plain(stats.t.ppf(0.975, chips - 1) * self.std / np.sqrt(chips))
        return self.mean - half, self.mean + half

    def table(self, form: str = ".4g") -> Table:
        """Returns a table of the population, with a row for each time.

        Args:
          form: format of the numbers.
        """
        found = Table()
        if self.times_s is not None:
            found.add_column("time", justify="right")
        for name in ("mean", "std", "95 % interval of the mean", "lowest", "highest"):
            found.add_column(name, justify="right")
        one = len(self.seeds) < 2
        rows = np.reshape(self.values, (len(self.seeds), -1)).T
        bounds = zip(*(np.ravel(bound) for bound in self.interval))
        times = [[time_name(t_s)] for t_s in self.times_s or ()] or [[]]
        numbers = zip(times, rows, np.ravel(self.std), bounds, strict=True)
        for time, values, std, (low, high) in numbers:
            found.add_row(
                *time,
                f"{values.mean():{form}}",
                "" if one else f"{std:{form}}",
                "" if one else f"{low:{form}} to {high:{form}}",
                f"{values.min():{form}}",
                f"{values.max():{form}}",
            )
        return found

    def __str__(self) -> str:
        """Returns the table as text."""
        return as_text([f"{count(len(self.seeds), 'chip')}, {self.mode}", self.table()])

    def __repr__(self) -> str:
        """Returns one line: the number of chips, their mean and their spread."""
        shown = {"chips": len(self.seeds), "mode": repr(self.mode)}
        for name in ("mean", "std"):
            numbers = [f"{number:.4g}" for number in np.ravel(getattr(self, name))]
            listed = ", ".join(numbers[:4]) + (", ..." if numbers[4:] else "")
            shown[name] = numbers[0] if self.times_s is None else f"[{listed}]"
        return f"Population({', '.join(f'{k}={v}' for k, v in shown.items())})"


@overload
def population(
    analog: Any,
    variables: Any,
    batches: Iterable[tuple[Any, ...]],
    metric: Callable[..., jax.Array],
    *,
    chips: int | Sequence[int],
    key: jax.Array,
    times_s: Sequence[float] | None = None,
    chunk: int | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    forward: Forward | None = None,
) -> Population: ...


@overload
def population(
    analog: Any,
    variables: Any,
    batches: Iterable[tuple[Any, ...]],
    metric: Mapping[str, Callable[..., jax.Array]],
    *,
    chips: int | Sequence[int],
    key: jax.Array,
    times_s: Sequence[float] | None = None,
    chunk: int | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    forward: Forward | None = None,
) -> dict[str, Population]: ...


def population(
    analog: Any,
    variables: Any,
    batches: Iterable[tuple[Any, ...]],
    metric: Callable[..., jax.Array] | Mapping[str, Callable[..., jax.Array]],
    *,
    chips: int | Sequence[int],
    key: jax.Array,
    times_s: Sequence[float] | None = None,
    chunk: int | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    forward: Forward | None = None,
) -> Any:
    """Evaluates a model on a population of chips, in chip mode.

    Each chip gets its frozen mismatch and programming noise as functions of its seed:
    chip 7 is the chip that `export(..., chip_seed=7)` writes. A measured chip of a
    checkpoint is evaluated as measured; if a checkpoint has measured chips, asking for
    a chip that it does not hold is an error. With a noise model, conductances drift,
    and every batch at every time is a new read.

    Chips are a vectorised axis, evaluated in chunks. The compiled program is reused by
    calls with equal models, plans and metrics: pass the same function as the metric,
    not a new lambda each time.

    >>> import hwtrain, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> mismatch = hwtrain.MismatchParameter(type="mult_normal", std_dev=0.1)
    >>> analog = hwtrain.analogize(nn.Dense(4), hwtrain.Hardware(mismatch=mismatch))
    >>> x = jnp.ones((8, 3))
    >>> variables = analog.init(jax.random.key(0), x)
    >>> result = population(analog, variables, [(x,)], lambda y: y.mean(-1),
    ...                     chips=16, key=jax.random.key(1))
    >>> result.values.shape
    (16,)

    Over time:

    >>> analog = hwtrain.analogize(nn.Dense(4), hwtrain.presets.pcm())
    >>> result = population(analog, variables, [(x,)], lambda y: abs(y).mean(-1),
    ...                     chips=16, key=jax.random.key(1), times_s=(0.0, 86_400.0))
    >>> bool(result.mean[0] > result.mean[1])
    True

    Args:
      analog: the analog model.
      variables: Linen: its variables. NNX: its `params`, or `None` for its own. Or a
        loaded `HardwareCheckpoint` of either, with chips of its hardware.
      batches: tuples of arrays, or of trees of arrays, with examples along the first
        axis. The first entry goes into the model; the metric gets the output and the
        other entries. Each further batch size compiles once more.
      metric: returns one number for each example, `[batch]`. Or several such functions
        by name, which share the outputs of the model.
      chips: number of chips, with seeds 0, 1, ..., or their seeds.
      key: key of the draws at each read.
      times_s: seconds since programming. `None`: just after programming, without a time
        axis in the result.
      chunk: number of chips evaluated together. Default: as many as fit into 256 MiB,
        and one on a CPU, where a batch of matrices is no faster.
      call_kwargs: keyword arguments of the model's call, such as `{"train": False}`.
        For Linen also `rngs`, `mutable` and `method`, as for Flax's `apply`: the
        model's other draws are the same in every call, and variables that it writes are
        dropped.
      forward: `(apply, inputs) -> outputs`, how the model is called for the first
        entry of a batch, such as `lambda apply, x: apply(x["image"], train=False)`.
        `None` for `apply(inputs, **call_kwargs)`. Pass the same function in every call,
        as for the metric.

    Returns:
      A `Population`; for several metrics, one for each by name.

    Raises:
      ValueError: for no chips or more than a million, for no batches or a batch that is
        empty, not a tuple, or has arrays of different lengths, for weights that are NaN
        or infinite, a checkpoint of other hardware than the model's, seeds that are
        negative or no integers, a Linen model without variables, an invalid key, a
        metric that does not return one number for each example, or times that are
        negative or have no effect because the plan has no noise model.
    """
    if isinstance(metric, Mapping) and not metric:
        raise ValueError("population needs at least one metric; got an empty mapping")
    seeds, times, values = values_on_chips(
        analog,
        variables,
        batches,
        Metrics(tuple(metric.items())) if isinstance(metric, Mapping) else metric,
        chips=chips,
        key=key,
        times_s=times_s,
        chunk=chunk,
        call_kwargs=call_kwargs,
        forward=forward,
        caller="population",
    )

    def of(values: np.ndarray) -> Population:
        if times_s is None:
            return Population(values=values[:, 0], seeds=seeds)
        return Population(values=values, seeds=seeds, times_s=times)

    if not isinstance(metric, Mapping):
        return of(values[0])
    return {name: of(values[0, ..., place]) for place, name in enumerate(metric)}


def _plain(number: Any) -> Any:
    """Returns a scalar array as a float; other arrays are returned unchanged."""
    return float(number) if np.ndim(number) == 0 else number
