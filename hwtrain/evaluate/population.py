"""A model on a population of chips: how well will it do on the one I get?"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from hwtrain.checkpoint import HardwareCheckpoint
from hwtrain.mismatch import chip_key, with_chip_keys, with_nominal_scales
from hwtrain.physics.random import draw_key
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
) -> Population:
    """Evaluates a model on a population of chips, in chip mode.

    Each chip gets its frozen mismatch and the noise of its programming, functions of
    its seed: chip 7 is the chip that `export(..., chip_seed=7)` writes. With a noise
    model its conductances drift, and every batch at every time is a read of its own.
    Chips are a vectorised axis, taken in chunks that fit in memory.

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
      batches: tuples of arrays; the first goes into the model, and the metric gets the
        output and the others. A further batch size compiles once more.
      metric: returns one number for each example, `[batch]`.
      chips: how many chips, seeds 0, 1, ..., or their seeds.
      key: key of what is drawn at each read.
      times_s: seconds since programming. `None`: just after programming, and no axis
        for the time in the result.
      chunk: chips that are evaluated together; default: as many as fit into 256 MiB.

    Raises:
      ValueError: for no chips, no batches, a negative seed, a metric that does not
        return one number for each example, or for times that are negative or that no
        noise model of the plan would feel.
    """
    seeds = _seeds(chips)
    if isinstance(variables, HardwareCheckpoint):
        variables = variables.variables
    call, tree = as_function(analog, "chip", variables)
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("population got no batches; expected tuples of arrays")
    plan = plan_of(analog, tree, first[0])
    times = _times(times_s, plan)
    chunk = chunk or _chunk(tree["params"], plan, len(seeds))

    @jax.jit
    def totals(tree, seeds, times, key, inputs, *targets):
        def on_chip(seed):
            frozen = chip_key(seed)
            chip = program_chip(tree["params"], plan, frozen)

            def at_time(number_and_time):
                number, t_s = number_and_time
                read = draw_key(jax.random.fold_in(key, seed), "", "read")
                read = jax.random.fold_in(read, number)
                params = with_chip_keys(chip.at(t_s, read), plan, frozen)
                params = with_nominal_scales(params, plan, tree["params"])
                values = metric(
                    call({**tree, "params": params}, read, inputs), *targets
                )
                return jnp.sum(_checked(values, inputs), dtype=jnp.float32)

            # One after the other: only one time's weights are in memory.
            return jax.lax.map(at_time, (jnp.arange(times.size), times))

        return jax.lax.map(on_chip, seeds, batch_size=chunk)

    total, count = np.zeros((len(seeds), len(times))), 0
    number = 0
    device_times = jnp.asarray(times, jnp.float32)
    while first is not None:
        step_key = jax.random.fold_in(key, number)
        device_seeds = jnp.asarray(seeds, jnp.uint32)
        found = totals(tree, device_seeds, device_times, step_key, *first)
        total += np.asarray(found, np.float64)
        count += jnp.shape(first[0])[0]
        first, number = next(batches, None), number + 1
    values = total / count
    if times_s is None:
        return Population(values=values[:, 0], seeds=seeds)
    return Population(values=values, seeds=seeds, times_s=times)


def _plain(number: Any) -> Any:
    """Returns a scalar array as a float, and another as it is."""
    return float(number) if np.ndim(number) == 0 else number


def _times(times_s: Sequence[float] | None, plan: Plan) -> tuple[float, ...]:
    if times_s is None:
        return (0.0,)
    times = tuple(float(t_s) for t_s in times_s)
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
    seeds = tuple(range(chips)) if isinstance(chips, int) else tuple(chips)
    if not seeds:
        raise ValueError(f"population needs at least one chip; got chips={chips!r}")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"a chip's seed must be in [0, 2^32); got {seed}")
    return seeds


def _chunk(params: Any, plan: Plan, chips: int) -> int:
    chip = jax.eval_shape(lambda p: program_chip(p, plan, chip_key(0)), params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(chip))
    return max(1, min(chips, CHUNK_BYTES // max(size, 1)))


def _checked(values: jax.Array, inputs: jax.Array) -> jax.Array:
    if values.shape != (inputs.shape[0],):
        raise ValueError(
            "the metric must return one number for each example, shape "
            f"{(inputs.shape[0],)}; got {values.shape}"
        )
    return values
