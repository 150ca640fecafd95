"""Calibrates input ranges from data, with or without training."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from hwtrain._arrays import paths, processes, tiling
from hwtrain._arrays.shared import is_shared, placed_as, require_alike
from hwtrain._errors import InputError
from hwtrain._flax.calls import Forward, first_call, require_one_call, through
from hwtrain._flax.functional import (
    agreed,
    are_shared,
    as_function,
    compiled,
    require_same_plan,
)
from hwtrain._flax.modes import plan as plan_of
from hwtrain._flax.observation import Multiplication, observed, tell
from hwtrain._flax.weight_side import local
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.periphery._calibration import METHODS, RowSample, batch_range
from hwtrain.periphery.input_range import RANGE


def calibrate(
    analog: Any,
    variables: Any,
    batches: Iterable[Any],
    *,
    method: str = "max",
    quantile: float = 0.99995,
    std_alpha: float = 3.0,
    max_samples: int = 1000,
    console: Console | None = None,
    forward: Forward | None = None,
    **kwargs: Any,
) -> Any:
    r"""Sets the input range of every tile from data.

    The data pass through the model without hardware effects: nothing is clipped,
    rounded or drawn. For the inputs :math:`x` of a tile, without vectors of zeros,

    .. math::
        \text{max:}\ \max |x| \qquad
        \text{moving_std:}\ \langle \alpha\, \mathrm{std}(x) \rangle \qquad
        \text{moving_quantile:}\ \langle Q_q(|x|) \rangle \qquad
        \text{cache_quantile:}\ Q_q(|x|)

    where :math:`\langle\cdot\rangle` is the mean over the calls of the layer, and the
    last is the quantile over a random sample of at most `max_samples` of all vectors.
    Ranges that are initialised from data (`init_from_data` > 0) start anew in training.
    In several processes that share the arrays, all of them call it, with batches that
    they share, and all get the same ranges.

    >>> import hwtrain
    >>> from flax import linen as nn
    >>> chip = hwtrain.Hardware(input_range=hwtrain.InputRangeParameter())
    >>> analog = hwtrain.analogize(nn.Dense(4), chip)
    >>> x = jnp.array([[1.0, -5.0, 2.0]])
    >>> variables = analog.init(jax.random.key(0), x)
    >>> variables = calibrate(analog, variables, [x], method="max")
    >>> print(variables["params"]["input_range"])
    [[5.]]

    Args:
      analog: the analog model.
      variables: Linen: its variables. NNX: its `params`, or `None` for its own.
      batches: the model's inputs: an array for each call, or a tuple of arguments.
      method: one of the methods above.
      quantile: q of the quantiles, above 0 and at most 1.
      std_alpha: alpha, in standard deviations.
      max_samples: size of the sample of `"cache_quantile"`, in vectors.
      console: where the progress bar is shown; `None` for the standard error.
      forward: `(apply, batch) -> outputs`, how the model is called for a batch of any
        kind, such as `lambda apply, batch: apply(batch["image"], train=False)`. `None`
        for a call with the batch and `kwargs`.
      **kwargs: keyword arguments of every call, such as `train=False`. For Linen also
        `rngs`, `mutable` and `method`, as for Flax's `apply`: the model's other draws
        are the same in every call, and variables that it writes are dropped.

    Returns:
      The given `variables` with the ranges set; for `None` the model itself, whose
      ranges are set in place.

    Raises:
      ValueError: if the model has no stored ranges, if the data do not reach a range,
        are all zero or contain NaN there, or if a weight is not finite; the message
        names the path.

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023.
    """
    shared = are_shared(analog, variables=variables, kwargs=kwargs)
    with processes.together(shared):
        _check(method, quantile, std_alpha, max_samples)
        require_one_call(forward, kwargs, "calibrate")
        rest = iter(batches)
        first = next(rest, None)
        if first is None:
            raise InputError("calibrate needs at least one batch; got none")
    shared = shared or is_shared({"batch": first})
    with processes.together(shared):
        args, kwargs = (_arguments(first), kwargs)
        if forward is not None:
            args, kwargs = first_call(forward, first)
        found = plan_of(analog, variables, *args, **kwargs)
        weights = [weight for weight in found.weights if weight.ranged]
        if not weights:
            raise InputError(
                "calibrate sets stored input ranges, and no layer of this model has "
                "one. Give its Hardware an input_range=InputRangeParameter(); one that "
                "is dynamic follows each vector by itself"
            )
        ranges = _Ranges(found, weights, method, quantile, std_alpha, max_samples)
        function, tree = as_function(analog, "eval", variables)
        # During calibration, every range holds its own number, so that a layer inside
        # a scan or a vmap tells which layer of the stack it is.
        numbered = paths.map_leaves(ranges.number, tree["params"])
        call = compiled(function, kwargs, shared)
        if forward is not None:
            call = agreed(jax.jit(through(function, forward)), shared)
        total = len(batches) if hasattr(batches, "__len__") else None  # type: ignore[arg-type]
        batches = _shown(itertools.chain([first], rest), total, console)
    require_same_plan(found, shared)
    if shared:
        require_alike(tree)
    with processes.together(shared):
        paths.require_finite(tree["params"])
    with observed(ranges.observe):
        for batch in processes.in_step(batches, shared):
            arguments = _arguments(batch) if forward is None else (batch,)
            key = jax.random.key(0)
            outputs = call({**tree, "params": numbered}, key, *arguments)
            with processes.together(shared):
                jax.block_until_ready(outputs)
                jax.effects_barrier()
                ranges.check_numbers()
    values = processes.of_one(ranges.values, ranges.seen, shared)
    with processes.together(shared):
        return _with_ranges(analog, variables, values)


def _check(method: str, quantile: float, std_alpha: float, max_samples: int) -> None:
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if not 0 < quantile <= 1:
        raise InputError(f"quantile must be above 0 and at most 1; got {quantile}")
    if std_alpha <= 0 or max_samples < 1:
        raise InputError(
            "std_alpha and max_samples must be positive; got "
            f"std_alpha={std_alpha}, max_samples={max_samples}"
        )


def _arguments(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def _shown(
    batches: Iterator[Any], total: int | None, console: Console | None
) -> Iterator[Any]:
    """Yields the batches with a progress bar; without a terminal, silently."""
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield from bar.track(batches, total=total, description="calibrating")


class _Ranges:
    """Collects statistics of the batches for every range, on the host."""

    def __init__(
        self,
        plan: Plan,
        weights: list[AnalogWeight],
        method: str,
        quantile: float,
        std_alpha: float,
        max_samples: int,
    ):
        self._method, self._quantile = method, quantile
        self._options = {"quantile": quantile, "std_alpha": std_alpha}
        self._numbers: dict[str, np.ndarray] = {}
        self._owners: list[str] = []
        self._rows: list[int] = []
        for weight in weights:
            shape = (*weight.stack, *weight.tiles)
            count = math.prod(shape)
            start = len(self._owners)
            numbers = np.arange(start, start + count, dtype=np.float32)
            path = local(plan, weight.leaf(RANGE))
            self._numbers[path] = numbers.reshape(shape)
            self._owners += [weight.leaf(RANGE)] * count
            sizes = np.asarray(weight.row_sizes)[:, None]
            self._rows += np.broadcast_to(sizes, shape).ravel().tolist()
        size = len(self._owners)
        self._value, self._calls = np.zeros(size), np.zeros(size, int)
        self._wrong: set[str] = set()
        generator = np.random.default_rng(0)
        self._samples = [RowSample(max_samples, generator) for _ in range(size)]

    def number(self, path: str, leaf: Any) -> Any:
        """Returns the ranges' numbers in place of their values."""
        numbers = self._numbers.get(path)
        return leaf if numbers is None else jnp.asarray(numbers)

    def observe(self, call: Multiplication) -> jax.Array:
        """Sends the statistics of a call to the host."""
        if call.weight.ranged:
            sizes = call.weight.row_sizes
            if self._method == "cache_quantile":
                rows = jax.lax.collapse(call.x, 0, -1).astype(jnp.float32)
                seen = jnp.swapaxes(tiling.cut(rows, sizes, axis=-1), 0, 1)
            else:
                seen = batch_range(call.x, sizes, method=self._method, **self._options)
            wrong = jnp.isnan(call.x).any()
            numbers = call.leaves[RANGE.name]
            tell(self._take, numbers, seen, wrong)
        return call.plain()

    def _take(self, numbers: Any, seen: Any, wrong: Any) -> None:
        for row, values in zip(np.asarray(numbers).astype(int), np.asarray(seen)):
            for number in row:
                self._calls[number] += 1
                if wrong:
                    self._wrong.add(self._owners[number])
                elif self._method == "cache_quantile":
                    self._samples[number].add(values[:, : self._rows[number]])
                elif self._method == "max":
                    self._value[number] = max(self._value[number], values)
                else:
                    self._value[number] += values

    def check_numbers(self) -> None:
        """Raises if the inputs of a layer contained NaN."""
        if self._wrong:
            raise InputError(
                f"the inputs of {', '.join(sorted(self._wrong))} hold NaN: no range "
                "fits them. Look at the batch, and at the parameters of the layers "
                "before"
            )

    @property
    def seen(self) -> bool:
        """Whether calls were seen here; of several processes, one sees all of them."""
        return bool(self._calls.any())

    def values(self) -> dict[str, np.ndarray]:
        """Returns the ranges by path."""
        value = self._value
        if self._method == "cache_quantile":
            value = np.array([s.quantile(self._quantile) for s in self._samples])
        elif self._method != "max":
            value = value / np.maximum(self._calls, 1)
        for why, wrong in (
            ("no batch reaches {}: its range cannot be calibrated", self._calls == 0),
            (
                "all inputs of {} are zero or constant, so that no range fits",
                value <= 0,
            ),
        ):
            if wrong.any():
                path = self._owners[int(np.argmax(wrong))]
                raise InputError(
                    f"{why.format(path)}. Give batches that exercise the layer, or "
                    "take its input_range away by a rule"
                )
        return {
            path: value[numbers.astype(int)].astype(np.float32)
            for path, numbers in self._numbers.items()
        }


def _with_ranges(analog: Any, variables: Any, values: dict[str, np.ndarray]) -> Any:
    if variables is None:
        state = nnx.state(analog, nnx.Param)
        nnx.update(analog, paths.map_leaves(_put(values), state))
        return analog
    if "params" in variables:
        inner = paths.map_leaves(_put(values), variables["params"])
        return type(variables)({**variables, "params": inner})
    return paths.map_leaves(_put(values), variables)


def _put(values: dict[str, np.ndarray]) -> Any:
    def replaced(path: str, leaf: Any) -> Any:
        if path not in values:
            return leaf
        return placed_as(leaf, jnp.asarray(values[path]))

    return replaced
