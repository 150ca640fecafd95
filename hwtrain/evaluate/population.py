"""A model on a population of chips: how well will it do on the one I get?"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from hwtrain import paths
from hwtrain.checkpoint import HardwareCheckpoint
from hwtrain.mismatch import apply_mismatch, chip_key
from hwtrain.physics.random import draw_key
from hwtrain.transforms import plan as plan_of
from hwtrain.transforms.functional import as_function

CHUNK_BYTES = 256 * 2**20
"""Chips are evaluated together as long as their parameters take less than this."""


@dataclasses.dataclass(frozen=True, eq=False)
class Population:
    """What a metric is on each chip of a population.

    >>> chips = Population(values=np.array([0.9, 0.8, 1.0]), seeds=(0, 1, 2))
    >>> print(f"{chips.mean:.2f} ± {chips.std:.2f}")
    0.90 ± 0.10

    Attributes:
      values: `[chips]`, the metric's mean over all examples, for each chip.
      seeds: the chips' seeds.
      mode: the mode that the model was in.
    """

    values: np.ndarray
    seeds: tuple[int, ...]
    mode: str = "chip_mode"

    @property
    def mean(self) -> float:
        """Mean over chips."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Standard deviation over chips (N-1): how much chips differ."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean, by Student's t; NaN for one chip."""
        count = len(self.values)
        if count < 2:
            return float("nan"), float("nan")
        half = stats.t.ppf(0.975, count - 1) * self.std / np.sqrt(count)
        return self.mean - float(half), self.mean + float(half)


def population(
    analog: Any,
    variables: Any,
    batches: Iterable[tuple[Any, ...]],
    metric: Callable[..., jax.Array],
    *,
    chips: int | Sequence[int],
    key: jax.Array,
    chunk: int | None = None,
) -> Population:
    """Evaluates a model on a population of chips, in chip mode.

    Each chip gets its frozen mismatch, a function of its seed: chip 7 is the chip that
    `export(..., chip_seed=7)` writes. Chips are a vectorised axis, taken in chunks that
    fit in memory.

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

    Args:
      analog: the analog model.
      variables: Linen: its variables. NNX: its `params`, or `None` for its own. Or a
        loaded `HardwareCheckpoint` of either.
      batches: tuples of arrays; the first goes into the model, and the metric gets the
        output and the others. A further batch size compiles once more.
      metric: returns one number for each example, `[batch]`.
      chips: how many chips, seeds 0, 1, ..., or their seeds.
      key: key of what is drawn at each read.
      chunk: chips that are evaluated together; default: as many as fit into 256 MiB.

    Raises:
      ValueError: for no chips, no batches, a negative seed, or a metric that does not
        return one number for each example.
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
    chunk = chunk or _chunk(tree["params"], len(seeds))

    @jax.jit
    def totals(tree, seeds, key, inputs, *targets):
        def on_chip(seed):
            chip = {
                **tree,
                "params": apply_mismatch(tree["params"], plan, chip_key(seed)),
            }
            read = draw_key(jax.random.fold_in(key, seed), "", "read")
            values = metric(call(chip, read, inputs), *targets)
            return jnp.sum(_checked(values, inputs), dtype=jnp.float32)

        return jax.lax.map(on_chip, seeds, batch_size=chunk)

    total, count = np.zeros(len(seeds)), 0
    number = 0
    while first is not None:
        step_key = jax.random.fold_in(key, number)
        device_seeds = jnp.asarray(seeds, jnp.uint32)
        total += np.asarray(totals(tree, device_seeds, step_key, *first), np.float64)
        count += jnp.shape(first[0])[0]
        first, number = next(batches, None), number + 1
    return Population(values=total / count, seeds=seeds)


def _seeds(chips: int | Sequence[int]) -> tuple[int, ...]:
    seeds = tuple(range(chips)) if isinstance(chips, int) else tuple(chips)
    if not seeds:
        raise ValueError(f"population needs at least one chip; got chips={chips!r}")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"a chip's seed must be in [0, 2^32); got {seed}")
    return seeds


def _chunk(params: Any, chips: int) -> int:
    size = sum(leaf.nbytes for leaf in paths.leaves(params).values())
    return max(1, min(chips, CHUNK_BYTES // max(size, 1)))


def _checked(values: jax.Array, inputs: jax.Array) -> jax.Array:
    if values.shape != (inputs.shape[0],):
        raise ValueError(
            "the metric must return one number for each example, shape "
            f"{(inputs.shape[0],)}; got {values.shape}"
        )
    return values
