"""Keeps analog weights inside the range of their devices."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from hwtrain._arrays import paths
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.optim._leaves import require
from hwtrain.weights.clip import as_float32, bounded_update


def keep_weights_clipped(plan: Plan) -> optax.GradientTransformationExtraArgs:
    r"""Changes updates so that the updated analog weights lie within their clip bound.

    .. math:: u' = \mathrm{clip}(W + u, -s c, s c) - W

    The hardware's `clip` computes the bound :math:`c`, in units of the crossbar, from
    :math:`W + u` before clipping; :math:`s` is the mapping scale. The sum stays within
    the bound exactly, in float32 and in bfloat16: where rounding would exceed it, the
    update takes a last step toward zero. Place this last in a chain.

    >>> import jax
    >>> from flax import linen as nn
    >>> import hwtrain
    >>> x = jnp.ones((1, 3))
    >>> clip = hwtrain.WeightClipParameter(type="fixed_value", fixed_value=0.1)
    >>> analog = hwtrain.analogize(nn.Dense(4), hwtrain.Hardware(clip=clip))
    >>> params = analog.init(jax.random.key(0), x)["params"]
    >>> tx = keep_weights_clipped(hwtrain.plan(analog, params, x))
    >>> updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params),
    ...                        params)
    >>> print(optax.apply_updates(params, updates)["kernel"].max())
    0.1

    Args:
      plan: the plan of the model; weights without a clip pass unchanged.

    Returns:
      A stateless gradient transformation. It needs the parameters in `update`, and
      keeps the dtype of updates.
    """
    weights = {
        weight.path: weight
        for weight in plan.trained.weights
        if weight.hardware.clip is not None and weight.hardware.clip.active
    }

    def init(params: optax.Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args
        require(params, "keep_weights_clipped")
        plan.trained.check_weights(params)
        values = paths.leaves(params)

        def clipped(path: str, leaf: jax.Array) -> jax.Array:
            weight = weights.get(path)
            if weight is None:
                return leaf
            scale = weight.stored_scale(values)
            bound = weight_bound(weight, values[path], scale, update=leaf)
            return bounded_update(values[path], leaf, bound)

        return paths.map_leaves(clipped, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def weight_bound(
    weight: AnalogWeight,
    kernel: jax.Array,
    scale: jax.Array | None,
    *,
    update: jax.Array | None = None,
) -> jax.Array:
    """Returns the clip bound of a kernel, broadcastable against it; inf without clip.

    Args:
      weight: the plan of the array.
      kernel: the stored array that the bound is computed from.
      scale: its stored mapping scale, if it has one.
      update: an update to add to the kernel first, of its shape; `None` for none.
    """
    clip = weight.hardware.clip
    if clip is None:
        return jnp.asarray(jnp.inf)
    matrix, added = weight.to_matrix(as_float32(kernel)), None
    if update is not None:
        added = weight.to_matrix(as_float32(update))
    if scale is None:
        scale = weight.derived_scale(matrix, update=added)
    scale = None if scale is None else weight.of_columns(scale)
    bound = clip.bound(matrix, weight.row_sizes, scale, update=added)
    # The barrier makes XLA compute the bound once, before the pass over the weights.
    return weight.spread(jax.lax.optimization_barrier(bound))
