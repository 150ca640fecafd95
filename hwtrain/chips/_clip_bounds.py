"""The learned clip bounds of analog weights, over a tree of parameters."""

import jax
import jax.numpy as jnp

from hwtrain._arrays import paths
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.weights.clip import CLIP_BOUND, within_bound


def learning(plan: Plan) -> list[AnalogWeight]:
    """Returns the weights whose clip bound is learned."""
    return [weight for weight in plan.weights if weight.hardware.learns_clip]


def clipped(
    weight: AnalogWeight,
    kernel: jax.Array,
    bound: jax.Array | None,
    steps: float | None = None,
) -> jax.Array:
    """Returns a kernel clipped to its learned bound; unchanged without a bound.

    Args:
      weight: the plan of the array.
      kernel: the stored array, nominal.
      bound: its learned clip bound, `[*stack, row tiles, columns]`.
      steps: number of steps between -bound and bound to round to; `None` for none.
    """
    return kernel if bound is None else within_bound(weight, kernel, bound, steps)


def with_clipped(params: paths.Tree, plan: Plan) -> paths.Tree:
    """Returns parameters with kernels clipped to their learned bounds.

    Args:
      params: nominal parameters, nested mappings.
      plan: the plan.
    """
    values = paths.leaves(params)
    weights = {weight.path: weight for weight in learning(plan)}

    def value(path: str, leaf: jax.Array) -> jax.Array:
        weight = weights.get(path)
        if weight is None:
            return leaf
        return clipped(weight, jnp.asarray(leaf), weight.stored_bound(values))

    return paths.map_leaves(value, params) if weights else params


def with_open_bounds(params: paths.Tree, plan: Plan) -> paths.Tree:
    """Returns a chip's parameters with learned clip bounds that clip nothing.

    A bound applies to nominal weights: weights changed by mismatch, programming or
    drift are not clipped again.

    Args:
      params: parameters of a chip, nested mappings.
      plan: the plan.
    """
    values = paths.leaves(params)
    weights = {weight.leaf(CLIP_BOUND): weight for weight in learning(plan)}

    def value(path: str, leaf: jax.Array) -> jax.Array:
        weight = weights.get(path)
        if weight is None:
            return leaf
        largest = weight.initial_bound(weight.to_matrix(values[weight.path]))
        return jnp.maximum(jnp.asarray(leaf), largest).astype(leaf.dtype)

    return paths.map_leaves(value, params) if weights else params
