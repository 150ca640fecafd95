"""Learns input ranges from the gradients of ranges and probes."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hwtrain._arrays import paths
from hwtrain._parts.leaf import LeafSpec
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.optim._leaves import check, ranged, require
from hwtrain.periphery import InputRangeParameter
from hwtrain.periphery._calibration import spread_range
from hwtrain.periphery._range_gradient import PROBE_SIZE
from hwtrain.periphery.input_range import PROBE, RANGE


class InputRangeLearningState(NamedTuple):
    """State of `input_range_learning`. Ranges form one vector, in the plan's order.

    Attributes:
      step: number of updates. shape=(), dtype=jnp.int32
      initialized: number of updates in which each range was set from the data.
        shape=(ranges,), dtype=jnp.int32; `None` without ranges
      optimizer: state of the ranges' own optimiser.
      extremes: running averages of the largest and smallest inputs, for `fast_mode`.
        shape=(ranges, 2), dtype=jnp.float32; `None` without
    """

    step: jax.Array
    initialized: Any
    optimizer: Any
    extremes: Any = None


def input_range_learning(
    plan: Plan,
    learning_rate: optax.ScalarOrSchedule | Mapping[str, jax.Array],
    optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns the gradients of input ranges and probes into updates of the ranges.

    .. math::
        u = -\eta \left(g + \lambda r\,[\,p > p_\text{min}\,]
        - (1 - q)\,r\,[\,q < q_\text{min}\,]\right)

    with :math:`g` the gradient of the range (see
    `hwtrain.periphery._range_gradient.clip_to_range`), :math:`\lambda` the decay and
    :math:`p` the share of inputs that were not clipped. The last term applies only with
    `manage_output_clipping`; :math:`q` is the share of outputs within the ADC's bound.
    In the first `init_from_data` updates that reach a layer, its range is set from the
    data instead,

    .. math:: r \leftarrow \frac{i\,r + \alpha\,\mathrm{std}(x)}{i + 1},

    with :math:`i` the number of such updates before. If rounding hides the inputs'
    deviation beside their mean, as for a constant, the range becomes their root mean
    square plus :math:`\alpha` times the deviation that rounding may hide. A range does
    not change if its layer was not reached or only got zeros. The running average of
    `"average_abs_max"` starts at the mean of the first update and moves by `nm_decay`
    towards the mean of each later one,

    .. math:: a \leftarrow a + d\,(\overline{\max_j |x_j|} - a).

    In `fast_mode` the first `init_from_data` updates set the range from averages of the
    largest and the smallest input,

    .. math:: u \leftarrow m\,u + (1 - m) \overline{\max x}, \quad
        l \leftarrow m\,l + (1 - m) \overline{\min x}, \quad
        r \leftarrow \max(|l|, |u|),

    which start at those of the first; later ones learn it by its gradient g alone. The
    means are over the calls of the layer that an update pools, such as micro-batches,
    because sums hold no extremes; inside `jit`, one call sees the batch of all devices.

    An update at most halves a learned range, so ranges stay positive. Probes get a zero
    update; all other updates pass unchanged.

    >>> import jax
    >>> from flax import linen as nn
    >>> import hwtrain
    >>> x = jnp.ones((1, 3))
    >>> chip = hwtrain.Hardware(input_range=hwtrain.InputRangeParameter())
    >>> analog = hwtrain.analogize(nn.Dense(4), chip)
    >>> params = analog.init(jax.random.key(0), x)["params"]
    >>> tx = input_range_learning(hwtrain.plan(analog, params, x), learning_rate=0.1)
    >>> state = tx.init(params)

    Args:
      plan: the plan of the model.
      learning_rate: eta, or a schedule of it, or one for each weight by its path.
      optimizer: scales the gradient before the learning rate, such as
        `optax.scale_by_adam()`; `None` for SGD.

    Returns:
      A gradient transformation. It needs the parameters in `update`.

    Raises:
      ValueError: from `init`, if the parameters lack a leaf of the plan.

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023.
    """
    inner = optax.identity() if optimizer is None else optimizer
    # The gradient of a fixed range is not read, so that XLA does not compute it.
    weights = [weight for weight in ranged(plan) if _moves(weight.hardware)]
    fixed = {weight.leaf(RANGE) for weight in ranged(plan)} - {
        weight.leaf(RANGE) for weight in weights
    }
    options: Any = _options(weights) if weights else None
    fast = bool(weights) and bool(np.any(options.fast_mode))
    # One vector instead of a small array for each layer, so that the arithmetic takes a
    # few kernels, however many layers there are.
    ends = np.cumsum([math.prod((*weight.stack, *weight.tiles)) for weight in weights])

    def vector(leaves: dict[str, jax.Array], leaf: LeafSpec, *shape: int) -> jax.Array:
        return jnp.concatenate(
            [leaves[weight.leaf(leaf)].reshape(-1, *shape) for weight in weights]
        )

    def init(params: optax.Params) -> InputRangeLearningState:
        check(plan, params)
        if not weights:  # Orbax saves no empty arrays
            return InputRangeLearningState(jnp.zeros([], jnp.int32), None, None)
        ranges = vector(paths.leaves(params), RANGE)
        return InputRangeLearningState(
            step=jnp.zeros([], jnp.int32),
            initialized=jnp.zeros(ranges.shape, jnp.int32),
            optimizer=inner.init(ranges),
            extremes=jnp.zeros((*ranges.shape, 2)) if fast else None,
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, InputRangeLearningState]:
        del extra_args
        require(params, "input_range_learning")
        step = jnp.asarray(optax.safe_increment(state.step))
        unchanged = {*plan.zeros, *fixed}
        if not weights:
            updates = paths.map_leaves(
                lambda path, leaf: jnp.zeros_like(leaf) if path in unchanged else leaf,
                updates,
            )
            return updates, InputRangeLearningState(step, None, None)
        gradients = paths.leaves(updates)
        sums = vector(gradients, PROBE, PROBE_SIZE)
        r = vector(paths.leaves(params), RANGE)
        # A product, because the share is undefined for a layer that was not reached.
        wide = sums[:, 1] > options.input_min_percentage * sums[:, 0]
        wide = wide & ~options.fast_mode
        decay = jnp.where(wide, options.decay * r, 0)
        gradient = vector(gradients, RANGE) + decay
        gradient = gradient - _output_clipping(options, r, sums)
        scaled: Any
        scaled, optimizer_state = inner.update(gradient, state.optimizer, r)
        rate: Any
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
        if isinstance(rate, Mapping):
            sizes = np.diff(ends, prepend=0)
            rate = [jnp.full(n, rate[w.path]) for n, w in zip(sizes, weights)]
            rate = jnp.concatenate(rate)
        change, initialized = _change(
            options, r, -rate * scaled, sums, state.initialized
        )
        extremes = state.extremes
        if fast:
            extremes, change, initialized = _followed(
                options, r, change, sums, state, initialized
            )
        changes = dict(
            zip((w.leaf(RANGE) for w in weights), jnp.split(change, ends[:-1]))
        )

        def new_update(path: str, leaf: jax.Array) -> jax.Array:
            if path in unchanged:
                return jnp.zeros_like(leaf)
            new = changes.get(path)
            return leaf if new is None else new.reshape(leaf.shape).astype(leaf.dtype)

        state = InputRangeLearningState(step, initialized, optimizer_state, extremes)
        return paths.map_leaves(new_update, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _moves(chip: Hardware) -> bool:
    """Whether updates change the range: it is learned, set from data, or an average."""
    return chip.averages or chip.input_range is None or chip.input_range.moves


class _Options(NamedTuple):
    """The fields of `InputRangeParameter` as vectors, one entry for each range."""

    decay: np.ndarray
    input_min_percentage: np.ndarray
    init_from_data: np.ndarray
    init_std_alpha: np.ndarray
    learn_input_range: np.ndarray
    manage_output_clipping: np.ndarray
    output_min_percentage: np.ndarray
    nm_decay: np.ndarray
    fast_mode: np.ndarray
    act_range_momentum: np.ndarray


def _options(weights: list[AnalogWeight]) -> _Options:
    static = InputRangeParameter(learn_input_range=False, init_from_data=0)

    def value(chip: Hardware, name: str) -> Any:
        if name == "nm_decay":
            return chip.forward.nm_decay if chip.forward and chip.averages else 0.0
        return getattr(chip.input_range or static, name)

    def repeated(name: str) -> np.ndarray:
        values = [
            np.full(
                math.prod((*weight.stack, *weight.tiles)), value(weight.hardware, name)
            )
            for weight in weights
        ]
        joined = np.concatenate(values)
        return joined.astype(np.float32) if joined.dtype == np.float64 else joined

    return _Options(*(repeated(name) for name in _Options._fields))


def _output_clipping(options: _Options, r: jax.Array, sums: jax.Array) -> jax.Array:
    """Returns how much ranges grow because the ADC clips outputs."""
    reached = sums[:, 4] > 0
    share = sums[:, 5] / jnp.where(reached, sums[:, 4], 1)
    grows = reached & options.manage_output_clipping
    grows = grows & (share < options.output_min_percentage)
    return jnp.where(grows, (1 - share) * r, 0)


def _change(
    options: _Options,
    r: jax.Array,
    learned: jax.Array,
    sums: jax.Array,
    initialized: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the updates of all ranges, and their counts of data initialisations."""
    reached = sums[:, 0] > 0
    count = jnp.where(reached, sums[:, 0], 1)
    square = sums[:, 3] / count
    variance = square - jnp.square(sums[:, 2] / count)
    pending = initialized < options.init_from_data
    counts = reached & pending & (square > 0)
    spread = r * spread_range(square, variance, std_alpha=options.init_std_alpha)
    before = initialized.astype(r.dtype)
    target = (r * before + spread) / (before + 1)
    learns = reached & ~pending & options.learn_input_range
    learned = jnp.where(learns, jnp.maximum(learned, -r / 2), 0)
    change = jnp.where(counts, target - r, learned)
    # The probe of a running average holds the vectors' maxima, not their elements.
    averages = options.nm_decay > 0
    average = r * sums[:, 2] / count
    share = jnp.where(initialized > 0, options.nm_decay, 1)
    moves = averages & reached & (average > 0)
    change = jnp.where(averages, jnp.where(moves, share * (average - r), 0), change)
    counts = jnp.where(averages, moves, counts)
    return change, initialized + counts.astype(initialized.dtype)


def _followed(
    options: _Options,
    r: jax.Array,
    change: jax.Array,
    sums: jax.Array,
    state: InputRangeLearningState,
    initialized: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns extremes, updates and counts, with those of ranges in `fast_mode`."""
    calls, before = sums[:, 0], state.initialized
    each = sums[:, 2:4] / jnp.where(calls > 0, calls, 1)[:, None] * r[:, None]
    known, momentum = state.extremes, options.act_range_momentum[:, None]
    mean = momentum * known + (1 - momentum) * each
    most = jnp.stack(
        [jnp.maximum(known, each)[:, 0], jnp.minimum(known, each)[:, 1]], axis=-1
    )
    new = jnp.where(momentum == -1, most, mean)
    new = jnp.where(before[:, None] > 0, new, each)
    target = jnp.max(jnp.abs(new), axis=-1)
    first = options.fast_mode & (before < options.init_from_data)
    counts = first & (calls > 0) & (target > 0)
    extremes = jnp.where(counts[:, None], new, known)
    change = jnp.where(first, jnp.where(counts, target - r, 0), change)
    counted = before + counts.astype(before.dtype)
    return extremes, change, jnp.where(first, counted, initialized)
