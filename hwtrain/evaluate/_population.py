"""Evaluates a model on a population of chips: what to expect of any one of them."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np
from rich.table import Table

from hwtrain._errors import InputError
from hwtrain._flax.calls import Forward
from hwtrain._plan.tables import as_text, count, table_of, time_name
from hwtrain.evaluate._chip_program import Metrics
from hwtrain.evaluate._on_chips import values_on_chips

_FEW = 20
"""Number of chips below which a table leaves out the share of 5 %."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Population:
    """The values of a metric on each chip of a population; printed as a table.

    >>> chips = Population(values=np.array([0.9, 0.8, 1.0]), seeds=(0, 1, 2))
    >>> print(f"{chips.mean:.2f} ± {chips.std:.2f}")
    0.90 ± 0.10

    All numbers below are floats, or arrays `[settings]`, `[times]` or `[settings,
    times]`, if constants or times were given.

    Attributes:
      values: `[chips]`, or with these further axes: the metric's mean over all
        examples.
      seeds: the chips' seeds.
      mode: the mode that the model ran in.
      times_s: the times since programming, in seconds; `None` if none were given.
      constants: the values of the constants of each setting, by key; `None` if none
        were given.
    """

    values: np.ndarray
    seeds: tuple[int, ...]
    mode: str = "chip_mode"
    times_s: tuple[float, ...] | None = None
    constants: Mapping[str, tuple[float, ...]] | None = None

    @property
    def mean(self) -> Any:
        """Mean over chips."""
        return _plain(np.mean(self.values, axis=0))

    @property
    def std(self) -> Any:
        """Standard deviation over chips (N-1); 0 for one chip."""
        if len(self.values) < 2:
            return _plain(np.zeros(self.values.shape[1:]))
        # For equal chips, rounding of the mean would look like a spread.
        differ = ~(np.ptp(self.values, axis=0) == 0)
        return _plain(np.where(differ, np.std(self.values, axis=0, ddof=1), 0.0))

    @property
    def interval(self) -> tuple[Any, Any]:
        """95 % confidence interval of the mean, by Student's t; NaN for one chip.

        With few chips it may reach beyond a metric's bounds, such as 100 %.
        """
        chips = len(self.values)
        if chips < 2:
            missing = _plain(np.full(self.values.shape[1:], np.nan))
            return missing, missing
        # Imported late: it is as slow to load as all of hwtrain.
        from scipy import stats

        half = _plain(stats.t.ppf(0.975, chips - 1) * self.std / np.sqrt(chips))
        return self.mean - half, self.mean + half

    def quantile(self, share: float) -> Any:
        """Returns the value that a share of the chips lies below.

        >>> chips = Population(values=np.arange(101.0), seeds=tuple(range(101)))
        >>> chips.quantile(0.05)
        5.0

        Args:
          share: from 0 to 1; values between two chips are interpolated.
        """
        return _plain(np.quantile(self.values, share, axis=0))

    def chip_yield(self, required: float, better: str = "higher") -> Any:
        """Returns the share of chips that are good enough.

        >>> chips = Population(values=np.array([0.9, 0.8, 1.0]), seeds=(0, 1, 2))
        >>> print(f"{chips.chip_yield(0.85):.2f}")
        0.67

        Args:
          required: the value that is just good enough.
          better: `"higher"` or `"lower"`, which values of the metric are better.
        """
        return _plain(self._good(required, better).mean(axis=0))

    def yield_interval(
        self, required: float, better: str = "higher"
    ) -> tuple[Any, Any]:
        """Returns the 95 % confidence interval of the yield (Clopper and Pearson).

        It holds for any number of chips, also where all or none are good enough.

        >>> chips = Population(values=np.ones(100), seeds=tuple(range(100)))
        >>> low, high = chips.yield_interval(0.9)
        >>> print(f"{low:.3f} to {high:.3f}")
        0.964 to 1.000

        Args:
          required: see `chip_yield`.
          better: see `chip_yield`.
        """
        from scipy import stats

        chips, good = len(self.values), self._good(required, better).sum(axis=0)
        found = [
            stats.binomtest(int(k), chips).proportion_ci(0.95) for k in np.ravel(good)
        ]
        low, high = np.reshape(found, (*np.shape(good), 2)).T
        return _plain(low.T), _plain(high.T)

    def bootstrap(
        self,
        statistic: Callable[..., Any],
        *,
        level: float = 0.95,
        resamples: int = 9999,
    ) -> tuple[Any, Any]:
        """Returns the bias-corrected bootstrap interval of any statistic of chips.

        Bias-corrected and accelerated (Efron, 1987); of the percentiles where this is
        undefined, because no single chip changes the statistic. The resamples are the
        same in each call.

        >>> values = np.random.default_rng(0).normal(size=400)
        >>> chips = Population(values=values, seeds=tuple(range(400)))
        >>> low, high = chips.bootstrap(lambda x, axis: np.quantile(x, 0.05, axis))
        >>> bool(low < -1.645 < high)
        True

        Args:
          statistic: `statistic(values, axis=axis)`, reduces an axis, such as `np.mean`.
          level: the confidence level.
          resamples: number of resamples.

        Raises:
          ValueError: for fewer than two chips, or a level that is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise InputError(
                f"level must be between 0 and 1, such as 0.95; got {level}"
            )
        if len(self.values) < 2:
            raise InputError(f"a bootstrap needs two chips, got {len(self.values)}")
        from scipy import stats

        columns = np.reshape(self.values, (len(self.values), -1)).T
        found = [
            _bootstrap(stats, column, statistic, level, resamples) for column in columns
        ]
        low, high = np.reshape(found, (*self.values.shape[1:], 2)).T
        return _plain(low.T), _plain(high.T)

    def at(self, setting: int) -> "Population":
        """Returns the population of one setting of the constants.

        Args:
          setting: index among the values of each constant.
        """
        if self.constants is None:
            raise InputError("this population was evaluated without constants")
        return dataclasses.replace(self, values=self.values[:, setting], constants=None)

    def table(
        self,
        form: str = ".4g",
        *,
        required: float | None = None,
        better: str = "higher",
    ) -> Table:
        """Returns a table of the population, with a row for each setting and time.

        Args:
          form: format of the numbers.
          required: adds the yield at this value of the metric; `None` for no yield.
          better: `"higher"` or `"lower"`, which values of the metric are better.
        """
        return table_of(self.rows(form, required=required, better=better))

    def rows(
        self,
        form: str = ".4g",
        *,
        required: float | None = None,
        better: str = "higher",
    ) -> list[dict[str, str]]:
        """Returns the rows of `table`, each cell by the name of its column.

        Args:
          form: as for `table`.
          required: as for `table`.
          better: as for `table`.
        """
        columns = np.reshape(self.values, (len(self.seeds), -1)).T
        rows = []
        for condition, values in zip(self._conditions(), columns, strict=True):
            one = Population(values=values, seeds=self.seeds)
            rows.append(condition | one._cells(form, required, better))
        return rows

    def _cells(self, form: str, required: float | None, better: str) -> dict[str, str]:
        """Returns the row of one setting and time."""
        low, high = self.interval
        alone, few = len(self.seeds) < 2, len(self.seeds) < _FEW
        tail = 0.05 if is_higher(better) else 0.95
        cells = {
            "mean": f"{self.mean:{form}}",
            "std": "" if alone else f"{self.std:{form}}",
            "95 % interval of the mean": (
                "" if alone else f"{low:{form}} to {high:{form}}"
            ),
        }
        if not few:
            name = f"{100 * tail:.0f}th percentile"
            cells[name] = f"{self.quantile(tail):{form}}"
        cells["lowest"] = f"{self.values.min():{form}}"
        cells["highest"] = f"{self.values.max():{form}}"
        if required is not None:
            share = self.chip_yield(required, better)
            bounds = self.yield_interval(required, better)
            shown = " to ".join(f"{100 * bound:.1f}" for bound in bounds)
            cells[f"yield at {required:g}"] = f"{100 * share:.1f} % ({shown})"
        return cells

    def _good(self, required: float, better: str) -> np.ndarray:
        higher = is_higher(better)
        return self.values >= required if higher else self.values <= required

    def _conditions(self) -> list[dict[str, str]]:
        """Returns the setting and the time of each row of a table."""
        settings: list[dict[str, str]] = [{}]
        if self.constants is not None:
            numbers = zip(*self.constants.values())
            settings = [
                {name: f"{x:g}" for name, x in zip(self.constants, row)}
                for row in numbers
            ]
        times = [{"time": time_name(t_s)} for t_s in self.times_s or ()] or [{}]
        return [{**setting, **time} for setting in settings for time in times]

    def __str__(self) -> str:
        """Returns the table as text."""
        return as_text([f"{count(len(self.seeds), 'chip')}, {self.mode}", self.table()])

    def __repr__(self) -> str:
        """Returns one line: the number of chips, their mean and their spread."""
        shown = {"chips": len(self.seeds), "mode": repr(self.mode)}
        for name in ("mean", "std"):
            numbers = [f"{number:.4g}" for number in np.ravel(getattr(self, name))]
            listed = ", ".join(numbers[:4]) + (", ..." if numbers[4:] else "")
            shown[name] = numbers[0] if self.values.ndim == 1 else f"[{listed}]"
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
    constants: Mapping[str, Sequence[float]] | None = None,
    until: float | None = None,
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
    constants: Mapping[str, Sequence[float]] | None = None,
    until: float | None = None,
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
    constants: Mapping[str, Sequence[float]] | None = None,
    until: float | None = None,
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

    For several strengths of a noise, in one program (`hwtrain.with_constants`):

    >>> result = population(analog, variables, [(x,)], lambda y: abs(y).mean(-1),
    ...                     chips=16, key=jax.random.key(1), times_s=(0.0, 86_400.0),
    ...                     constants={"noise_model.prog_noise_scale": (1.0, 4.0)})
    >>> result.values.shape
    (16, 2, 2)

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
      constants: values of numbers of the hardware, by key as in
        `hwtrain.with_constants`: lists of one length, whose first entries are one
        setting, whose second entries another. All settings share the draws of a chip,
        so that their differences are those of the constants.
      until: half the width of the 95 % interval of the mean, at which there are enough
        chips: further ones are left out, once it is as narrow in all settings, at all
        times, for the first metric. The chips come 16 at a time or more. `None`: all
        chips.
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
        metric that does not return one number for each example, times that are
        negative or have no effect because the plan has no noise model, or constants
        that do not fit or have no effect.
    """
    if isinstance(metric, Mapping) and not metric:
        raise InputError("population needs at least one metric; got an empty mapping")
    several = isinstance(metric, Mapping)
    if until is not None and not until > 0:
        raise InputError(f"until must be a width above 0, or None; got {until!r}")

    def enough(values: np.ndarray) -> bool:
        first = values[0, ..., 0] if several else values[0]
        low, high = Population(values=first, seeds=()).interval
        return bool(np.all(np.subtract(high, low) <= 2 * (until or 0)))

    seeds, times, values = values_on_chips(
        analog,
        variables,
        batches,
        Metrics(tuple(metric.items())) if several else metric,
        chips=chips,
        key=key,
        times_s=times_s,
        constants=constants,
        enough=None if until is None else enough,
        chunk=chunk,
        call_kwargs=call_kwargs,
        forward=forward,
        caller="population",
    )
    given: Any = None
    if constants is not None:
        given = {name: tuple(map(float, its)) for name, its in constants.items()}

    def of(values: np.ndarray) -> Population:
        values = values if times_s is not None else values[:, :, 0]
        return Population(
            values=values if given else values[:, 0],
            seeds=seeds,
            times_s=None if times_s is None else times,
            constants=given,
        )

    if not several:
        return of(values[0])
    return {name: of(values[0, ..., place]) for place, name in enumerate(metric)}


def is_higher(better: str) -> bool:
    """Returns whether higher values are better, given as `"higher"` or `"lower"`."""
    if better not in ("higher", "lower"):
        raise InputError(f'better must be "higher" or "lower"; got {better!r}')
    return better == "higher"


def _bootstrap(
    stats: Any,
    values: np.ndarray,
    statistic: Callable[..., Any],
    level: float,
    resamples: int,
) -> tuple[float, float]:
    """Returns the interval of one column; equal chips have one of no width."""
    if not np.ptp(values):
        value = float(statistic(values, axis=0))
        return value, value
    with warnings.catch_warnings(action="ignore"):  # undefined for equal replicates
        found = stats.bootstrap(
            (values,),
            statistic,
            confidence_level=level,
            n_resamples=resamples,
            rng=np.random.default_rng(0),
        )
    bounds = [*found.confidence_interval]
    if not np.isfinite(bounds).all():
        tail = (1 - level) / 2
        bounds = np.quantile(found.bootstrap_distribution, (tail, 1 - tail))
    return float(bounds[0]), float(bounds[1])


def _plain(number: Any) -> Any:
    """Returns a scalar array as a float; other arrays are returned unchanged."""
    return float(number) if np.ndim(number) == 0 else number
