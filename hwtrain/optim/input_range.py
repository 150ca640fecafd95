"""Learns input ranges from what the forward pass returned through the gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hwtrain import paths
from hwtrain.optim.leaves import check, ranged, require
from hwtrain.plan import AnalogWeight, Plan


class InputRangeLearningState(NamedTuple):
    """State of `input_range_learning`.

    Attributes:
      step: number of updates. shape=(), dtype=jnp.int32
      initialized: for every range, by path, the number of updates that have set it
        from the data. dtype=jnp.int32, shape of the range
      optimizer: state of the ranges' own optimiser.
    """

    step: jax.Array
    initialized: dict[str, jax.Array]
    optimizer: Any


def input_range_learning(
    plan: Plan,
    learning_rate: optax.ScalarOrSchedule,
    optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns the gradients of input ranges and probes into updates of the ranges.

    .. math::
        u = -\eta \left(g + \lambda r\,[\,p > p_\text{min}\,]\right)

    with :math:`g` the gradient of the range (see
    `hwtrain.physics.input_range.clip_to_range`), :math:`\lambda` the decay and
    :math:`p` the share of inputs that were not clipped. In the first `init_from_data`
    updates that reach a layer, the range is set from the data instead,

    .. math:: r \leftarrow \frac{i\,r + \alpha\,\mathrm{std}(x)}{i + 1},

    with :math:`i` the number of such updates before. A range whose layer was not
    reached does not change. One update at most halves a range, so it stays positive.
    Probes get a zero update; all other updates pass unchanged.

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
      learning_rate: eta, or a schedule of it.
      optimizer: what scales the gradient before the learning rate, such as
        `optax.scale_by_adam()`; `None` for none, which is SGD.

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
    weights = {weight.leaf("input_range"): weight for weight in ranged(plan)}
    probes = {weight.leaf("probe") for weight in ranged(plan)}

    def init(params: optax.Params) -> InputRangeLearningState:
        check(plan, params)
        present = paths.leaves(params)
        ranges = {path: present[path] for path in weights}
        return InputRangeLearningState(
            step=jnp.zeros([], jnp.int32),
            initialized={p: jnp.zeros(r.shape, jnp.int32) for p, r in ranges.items()},
            optimizer=inner.init(ranges),
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, InputRangeLearningState]:
        del extra_args
        require(params, "input_range_learning")
        gradients, values = paths.leaves(updates), paths.leaves(params)
        sums = {p: gradients[w.leaf("probe")] for p, w in weights.items()}
        ranges = {path: values[path] for path in weights}
        decayed = {
            path: gradients[path] + _decay(weight, ranges[path], sums[path])
            for path, weight in weights.items()
        }
        scaled: Any
        scaled, optimizer_state = inner.update(decayed, state.optimizer, ranges)
        rate: Any
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
        steps, initialized = {}, {}
        for path, weight in weights.items():
            steps[path], initialized[path] = _step(
                weight,
                ranges[path],
                -rate * scaled[path],
                sums[path],
                state.initialized[path],
            )

        def new_update(path: str, leaf: jax.Array) -> jax.Array:
            if path in probes:
                return jnp.zeros_like(leaf)
            return steps[path].astype(leaf.dtype) if path in steps else leaf

        step = jnp.asarray(optax.safe_increment(state.step))
        state = InputRangeLearningState(step, initialized, optimizer_state)
        return paths.map_leaves(new_update, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _decay(weight: AnalogWeight, r: jax.Array, sums: jax.Array) -> jax.Array:
    parameter = weight.hardware.input_range
    if parameter is None:
        return jnp.zeros_like(r)
    count, unclipped = sums[..., 0], sums[..., 1]
    # As a product, because the quotient of a layer that was not reached is undefined.
    few = unclipped > parameter.input_min_percentage * count
    return jnp.where(few, parameter.decay * r, 0)


def _step(
    weight: AnalogWeight,
    r: jax.Array,
    learned: jax.Array,
    sums: jax.Array,
    initialized: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the update of a range, and the count of its running initialisation."""
    parameter = weight.hardware.input_range
    if parameter is None:
        return jnp.zeros_like(r), initialized
    reached = sums[..., 0] > 0
    count = jnp.where(reached, sums[..., 0], 1)
    mean = sums[..., 2] / count
    variance = jnp.maximum(sums[..., 3] / count - jnp.square(mean), 0)
    spread = parameter.init_std_alpha * r * jnp.sqrt(variance)
    counts = reached & (spread > 0) & (initialized < parameter.init_from_data)
    target = (r * initialized + spread) / (initialized + 1)
    if not parameter.learn_input_range:
        learned = jnp.zeros_like(r)
    pending = initialized < parameter.init_from_data
    learned = jnp.where(reached & ~pending, jnp.maximum(learned, -r / 2), 0)
    step = jnp.where(counts, target - r, learned)
    return step, initialized + counts.astype(initialized.dtype)
