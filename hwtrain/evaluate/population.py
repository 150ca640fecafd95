"""A model on a population of chips: how well will it do on the one I get?"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import stats

from hwtrain.checkpoint import HardwareCheckpoint
from hwtrain.chips import chip_key, with_chip_keys, with_nominal_scales
from hwtrain.evaluate.measured import are_measured, as_they_are
from hwtrain.physics.random import as_key, draw_key
from hwtrain.plan import Plan
from hwtrain.programming import program_chip
from hwtrain.transforms import plan as plan_of
from hwtrain.transforms.functional import as_function

CHUNK_BYTES = 256 * 2**20
"""Chips are evaluated together as long as their parameters, and the conductances of
their devices, take less than this."""


@dataclasses.dataclass(frozen=True, eq=False)
class Population:
    """What a metric is on each chip of a population.

    >>> chips = Population(values=np.array([0.9, 0.8, 1.0]), seeds=(0, 1, 2))
    >>> print(f"{chips.mean:.2f} ± {chips.std:.2f}")
    0.90 ± 0.10

    Attributes:
      values: `[chips]` or `[chips, times]`, the metric's mean over all examples, for
        each chip and time.
      seeds: the chips' seeds.
      mode: the mode that the model was in.
      times_s: the times since programming, in seconds; `None` if none were asked for.
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
        """Standard deviation over chips (N-1), how much they differ, as `mean`."""
        if len(self.values) < 2:
            return _plain(np.zeros(self.values.shape[1:]))
        return _plain(np.std(self.values, axis=0, ddof=1))

    @property
    def interval(self) -> tuple[Any, Any]:
        """95 % confidence interval of the mean, by Student's t; NaN for one chip."""
        count = len(self.values)
        if count < 2:
            missing = _plain(np.full(self.values.shape[1:], np.nan))
            return missing, missing
        half = _plain(stats.t.ppf(0.975, count - 1) * self.std / np.sqrt(count))
        return self.mean - half, self.mean + half


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
) -> Population:
    """Evaluates a model on a population of chips, in chip mode.

    Each chip gets its frozen mismatch and the noise of its programming, functions of
    its seed: chip 7 is the chip that `export(..., chip_seed=7)` writes. A chip of a
    checkpoint that was measured is evaluated as it was measured. With a noise
    model its conductances drift, and every batch at every time is a read of its own.
    Chips are a vectorised axis, taken in chunks. What is compiled is used again by
    calls with equal models, plans and metrics: pass one function as the metric, not a
    new lambda each time.

    >>> from flax import linen as nn
    >>> import hwtrain
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
        loaded `HardwareCheckpoint` of either.
      batches: tuples of arrays, or of trees of arrays, whose first axis is that of the
        examples; the first goes into the model, and the metric gets the output and the
        others. A further batch size compiles once more.
      metric: returns one number for each example, `[batch]`.
      chips: how many chips, seeds 0, 1, ..., or their seeds.
      key: key of what is drawn at each read.
      times_s: seconds since programming. `None`: just after programming, and no axis
        for the time in the result.
      chunk: chips that are evaluated together; default: as many as fit into 256 MiB,
        and one on a CPU, which multiplies a batch of matrices no faster.
      call_kwargs: keyword arguments of the model's call, such as `{"train": False}`.

    Raises:
      ValueError: for no chips, no batches or a batch that is empty or no tuple, seeds
        that are negative or no whole numbers, a Linen model without variables, a key
        that is none, a metric that does not return one number for each example, or for
        times that are negative or that no noise model of the plan would feel.
    """
    seeds = _seeds(chips)
    key = _checked_key(key)
    params_of_chips: list[Any] = []
    if isinstance(variables, HardwareCheckpoint):
        if are_measured(variables, seeds, times_s):
            params_of_chips = [variables.chip(seed) for seed in seeds]
        variables = variables.variables
    if variables is None and not isinstance(analog, nnx.Module):
        raise ValueError(
            "a Linen model holds no variables of its own, and population got "
            "variables=None; pass those of model.init(...), or a loaded checkpoint"
        )
    _, tree = as_function(analog, "chip", variables)
    kwargs = dict(call_kwargs or {})
    batches = _checked_batches(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("population got no batches; expected tuples of arrays")
    plan = plan_of(analog, tree, first[0], **kwargs)
    times = _times(times_s, plan)
    if chunk is None:
        chunk = _chunk(tree["params"], plan, len(seeds))
    elif _whole(chunk, "chunk") < 1:
        raise ValueError(f"chunk must be at least 1 chip; got {chunk}")
    nominal, groups = tree["params"], [(tree, jnp.asarray(seeds, jnp.uint32))]
    if params_of_chips:
        plan = as_they_are(plan)
        groups = [
            ({**tree, "params": params}, jnp.asarray([seed], jnp.uint32))
            for seed, params in zip(seeds, params_of_chips)
        ]
    totals = _compiled_totals(analog, plan, metric, kwargs, int(chunk))

    total, count = np.zeros((len(seeds), len(times))), 0
    device_times = jnp.asarray(times, jnp.float32)
    for number, batch in enumerate(itertools.chain([first], batches)):
        step_key = jax.random.fold_in(key, number)
        found = [
            totals(group, nominal, some, device_times, step_key, *batch)
            for group, some in groups
        ]
        total += np.concatenate([np.asarray(part, np.float64) for part in found])
        count += _examples(batch[0])
    values = total / count
    if times_s is None:
        return Population(values=values[:, 0], seeds=seeds)
    return Population(values=values, seeds=seeds, times_s=times)


Totals = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class _NnxStructure:
    """An NNX model without its arrays: hashable, and nothing large is kept alive."""

    graphdef: nnx.GraphDef[Any]
    treedef: Any
    shapes: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, model: nnx.Module) -> Self:
        graphdef, state = nnx.split(model)
        shapes, treedef = jax.tree.flatten(jax.eval_shape(lambda: state))
        return cls(graphdef, treedef, tuple(shapes))

    def model(self) -> Any:
        """Returns the model, with zeros for its numbers and shapes for its keys."""
        leaves = [
            shape
            if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key)
            else jnp.zeros(shape.shape, shape.dtype)
            for shape in self.shapes
        ]
        return nnx.merge(self.graphdef, self.treedef.unflatten(leaves))


def _compiled_totals(
    analog: Any,
    plan: Plan,
    metric: Callable[..., jax.Array],
    kwargs: dict[str, Any],
    chunk: int,
) -> Totals:
    """Returns the jitted function of all chips, the one of an earlier call if it fits.

    A study calls `population` with other variables of one model again and again, and
    compiling takes longer than evaluating.
    """
    model = _NnxStructure.of(analog) if isinstance(analog, nnx.Module) else analog
    # With its type, because True and 1 are equal.
    arguments = tuple((name, type(value), value) for name, value in kwargs.items())
    try:
        hash((model, plan, metric, arguments))
    except TypeError:
        return _build_totals(model, plan, metric, arguments, chunk)
    return _cached_totals(model, plan, metric, arguments, chunk)


def _build_totals(
    model: Any,
    plan: Plan,
    metric: Callable[..., jax.Array],
    arguments: tuple[tuple[str, type, Any], ...],
    chunk: int,
) -> Totals:
    kwargs = {name: value for name, _, value in arguments}

    @jax.jit
    def totals(tree, nominal, seeds, times, key, inputs, *targets):
        # While tracing, so that the model's zeros are no arrays that stay alive.
        if isinstance(model, _NnxStructure):
            call, _ = as_function(model.model(), "chip")
        else:
            call, _ = as_function(model, "chip", {"params": {}})

        def on_chip(seed):
            frozen = chip_key(seed)
            chip = program_chip(tree["params"], plan, frozen)

            def at_time(number_and_time):
                number, t_s = number_and_time
                read = draw_key(jax.random.fold_in(key, seed), "", "read")
                read = jax.random.fold_in(read, number)
                params = with_chip_keys(chip.at(t_s, read), plan, frozen)
                params = with_nominal_scales(params, plan, nominal)
                outputs = call({**tree, "params": params}, read, inputs, **kwargs)
                values = _checked_values(metric(outputs, *targets), _examples(inputs))
                return jnp.sum(values, dtype=jnp.float32)

            # One after the other: only one time's weights are in memory.
            return jax.lax.map(at_time, (jnp.arange(times.size), times))

        return jax.lax.map(on_chip, seeds, batch_size=chunk)

    return totals


_cached_totals = functools.lru_cache(maxsize=8)(_build_totals)


def _plain(number: Any) -> Any:
    """Returns a scalar array as a float, and another as it is."""
    return float(number) if np.ndim(number) == 0 else number


def _times(times_s: Sequence[float] | None, plan: Plan) -> tuple[float, ...]:
    if times_s is None:
        return (0.0,)
    times = tuple(float(t_s) for t_s in times_s) if np.ndim(times_s) == 1 else ()
    if not times or not all(0 <= t_s < np.inf for t_s in times):
        raise ValueError(
            "times_s must be seconds since programming, at least one, none negative; "
            f"got {times_s!r}. Zero is just after programming"
        )
    if all(weight.hardware.noise_model is None for weight in plan.weights):
        raise ValueError(
            f"times_s={times_s!r} would change nothing: no weight of the plan has a "
            "noise model. Give its Hardware a converter and a noise_model, as "
            "presets.pcm() has, or leave times_s out"
        )
    return times


def _seeds(chips: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(chips, Iterable):
        seeds = tuple(_whole(seed, "a chip's seed") for seed in chips)
    else:
        seeds = tuple(range(_whole(chips, "chips, unless it lists seeds,")))
    if not seeds:
        raise ValueError(f"population needs at least one chip; got chips={chips!r}")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"a chip's seed must be in [0, 2^32); got {seed}")
    return seeds


def _whole(number: Any, name: str) -> int:
    try:
        return operator.index(number)
    except TypeError:
        raise ValueError(f"{name} must be a whole number; got {number!r}") from None


def _checked_key(key: Any) -> jax.Array:
    dtype, ndim = getattr(key, "dtype", None), getattr(key, "ndim", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == jnp.uint32
    if not (typed and ndim == 0 or raw and ndim == 1):
        raise ValueError(
            f"key must be one JAX key, such as jax.random.key(0); got {key!r}"
        )
    return as_key(key)


def _checked_batches(batches: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Yields the batches; one that cannot be evaluated is an error."""
    expected = (
        "population takes tuples of arrays, such as [(inputs, labels)]: inputs, and "
        "what the metric compares the outputs with"
    )
    if not isinstance(batches, Iterable):
        raise ValueError(f"{expected}; got {type(batches).__name__}")
    for number, batch in enumerate(batches):
        if not isinstance(batch, (tuple, list)) or not len(batch):
            raise ValueError(
                f"{expected}; batch {number} is {_kind(batch)}. Put it into a list"
            )
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch[0])]
        if len({shape[:1] for shape in shapes}) != 1 or not shapes[0]:
            raise ValueError(
                f"{expected}; all inputs share their first axis, the examples, but "
                f"those of batch {number} have the shapes {shapes}"
            )
        if not shapes[0][0]:
            raise ValueError(f"batch {number} is empty; leave it out")
        yield tuple(batch)


def _kind(batch: Any) -> str:
    """Returns what a batch that is no tuple of arrays is, for an error."""
    shape = getattr(batch, "shape", None)
    text = type(batch).__name__ if shape is None else f"an array of shape {shape}"
    return text


def _examples(inputs: Any) -> int:
    return jnp.shape(jax.tree.leaves(inputs)[0])[0]


def _chunk(params: Any, plan: Plan, chips: int) -> int:
    if jax.default_backend() == "cpu":
        return 1
    chip = jax.eval_shape(lambda p: program_chip(p, plan, chip_key(0)), params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(chip))
    return max(1, min(chips, CHUNK_BYTES // max(size, 1)))


def _checked_values(values: Any, examples: int) -> jax.Array:
    if jnp.shape(values) != (examples,):
        raise ValueError(
            "the metric must return one number for each example, shape "
            f"{(examples,)}; got {jnp.shape(values)}"
        )
    return values
