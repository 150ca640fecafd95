"""Learns the clip bounds of analog weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hwtrain._arrays import paths
from hwtrain._plan.plan import Plan
from hwtrain.chips._clip_bounds import learning
from hwtrain.optim._leaves import check, require
from hwtrain.weights.clip import CLIP_BOUND


class ClipBoundLearningState(NamedTuple):
    """State of `clip_bound_learning`.

    Attributes:
      step: number of updates. shape=(), dtype=jnp.int32
      optimizer: state of the bounds' own optimiser, over a dict of bounds by path.
    """

    step: jax.Array
    optimizer: Any


def clip_bound_learning(
    plan: Plan,
    learning_rate: optax.ScalarOrSchedule | Mapping[str, jax.Array],
    optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns the gradients of learned clip bounds into updates of the bounds.

    .. math:: u = -\eta\, g, \qquad c + u \ge c / 2

    with the gradient :math:`g` of `weights.learned_bound`, whose factor makes the bound
    learn about as fast as the weights under SGD. An update at most halves a bound, so
    bounds stay positive. All other updates pass unchanged.

    >>> from flax import linen as nn
    >>> import hwtrain
    >>> x = jnp.ones((1, 3))
    >>> clip = hwtrain.WeightClipParameter(type="learnable_per_channel")
    >>> analog = hwtrain.analogize(nn.Dense(4), hwtrain.Hardware(clip=clip))
    >>> params = analog.init(jax.random.key(0), x)["params"]
    >>> tx = clip_bound_learning(hwtrain.plan(analog, params, x), learning_rate=0.1)
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
      Esser et al., Learned step size quantization, ICLR 2020.
    """
    inner = optax.identity() if optimizer is None else optimizer
    weights = learning(plan.trained)
    learned = {weight.leaf(CLIP_BOUND): weight.path for weight in weights}

    def bounds(tree: Any) -> dict[str, jax.Array]:
        leaves = paths.leaves(tree)
        return {path: leaves[path] for path in learned}

    def init(params: optax.Params) -> ClipBoundLearningState:
        check(plan, params)
        return ClipBoundLearningState(
            jnp.zeros([], jnp.int32), inner.init(bounds(params))
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ClipBoundLearningState]:
        del extra_args
        require(params, "clip_bound_learning")
        values = bounds(params)
        scaled: Any
        scaled, optimizer_state = inner.update(bounds(updates), state.optimizer, values)
        rate: Any
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate

        def new_update(path: str, leaf: jax.Array) -> jax.Array:
            if path not in values:
                return leaf
            own = rate[learned[path]] if isinstance(rate, Mapping) else rate
            least = -values[path] / 2
            return jnp.maximum(-own * scaled[path], least).astype(leaf.dtype)

        step = jnp.asarray(optax.safe_increment(state.step))
        state = ClipBoundLearningState(step, optimizer_state)
        return paths.map_leaves(new_update, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
