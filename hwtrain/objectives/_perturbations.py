"""Losses at perturbed weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from hwtrain._arrays import paths
from hwtrain._arrays.random import draw_key, step_key
from hwtrain._plan.plan import Plan, added
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._crossbar import largest_weight, on_crossbar
from hwtrain.weights import noises

Loss = Callable[..., Any]
"""`loss(params, key, *batch) -> []`, or with auxiliary data `([], aux)`. The model
draws its noise of a step from the key."""


def gaussian(
    loss: Loss, plan: Plan, *, std_dev: ArrayLike, per_column: bool = False
) -> Loss:
    r"""Returns the loss at analog weights with normal noise (straight-through).

    .. math:: L'(W) = L(W + \sigma A s\, \xi)

    with :math:`A` the largest absolute weight of the row tile in units of the crossbar
    and :math:`s` the mapping scale. The model's own noise is added to this.

    >>> plan = Plan(())
    >>> quadratic = lambda params, key: jnp.sum(params["w"] ** 2)
    >>> robust = gaussian(quadratic, plan, std_dev=0.1)
    >>> print(jax.grad(robust)({"w": jnp.ones(2)}, jax.random.key(0))["w"])
    [2. 2.]

    Args:
      loss: `loss(params, key, *batch)`.
      plan: the plan of the model; only analog weights get noise.
      std_dev: sigma. May be traced. Zero turns it off.
      per_column: take A for each column (output) instead of the whole tile.

    References:
      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020.
    """

    def noisy(key: jax.Array, w: jax.Array, weight: AnalogWeight) -> jax.Array:
        w_max = largest_weight(weight, w, per_column=per_column)
        return noises.add_normal(key, w, w_max, std_dev=std_dev)

    return _at_noisy_weights(loss, plan, noisy)


def multiplicative(loss: Loss, plan: Plan, *, std_dev: ArrayLike) -> Loss:
    r"""Returns the loss at analog weights with relative noise (straight-through).

    .. math:: L'(W) = L(W (1 + \sigma\, \xi))

    Args:
      loss: `loss(params, key, *batch)`.
      plan: the plan of the model; only analog weights get noise.
      std_dev: sigma. May be traced. Zero turns it off.
    """

    def noisy(key: jax.Array, w: jax.Array, weight: AnalogWeight) -> jax.Array:
        return noises.mult_normal(key, w, std_dev=std_dev)

    return _at_noisy_weights(loss, plan, noisy)


def sharpness_aware(
    loss: Loss, plan: Plan, *, rho: ArrayLike, has_aux: bool = False
) -> Loss:
    r"""Returns the loss at the worst nearby parameters, to first order.

    .. math:: L'(\theta) = L\Big(\theta + \rho \frac{g}{\|g\|}\Big), \qquad
        g = \nabla L(\theta)

    over all parameters of the user's model, including biases; no gradient passes
    through :math:`g`. Input ranges, probes and mapping scales do not move. It costs two
    gradients.

    >>> quadratic = lambda params, key: 0.5 * jnp.sum(params["w"] ** 2)
    >>> robust = sharpness_aware(quadratic, Plan(()), rho=0.5)
    >>> print(jax.grad(robust)({"w": jnp.array([3.0, 4.0])}, jax.random.key(0))["w"])
    [3.3 4.4]

    Args:
      loss: `loss(params, key, *batch)`.
      plan: the plan of the model.
      rho: the distance, in units of the parameters. May be traced. Zero turns it off.
      has_aux: whether the loss also returns auxiliary data.

    References:
      Foret et al., Sharpness-aware minimization for efficiently improving
      generalization, ICLR 2021.
    """

    def robust(params: Any, key: jax.Array, *batch: Any) -> Any:
        def value(params):
            result = loss(params, key, *batch)
            return result[0] if has_aux else result

        gradient = own(jax.grad(value)(jax.lax.stop_gradient(params)), plan)
        gradient = jax.tree.map(lambda g: g.astype(jnp.float32), gradient)
        norm = optax.tree.norm(gradient)
        factor = rho / jnp.where(norm > 0, norm, 1)
        moved = jax.tree.map(
            lambda p, g: p + jax.lax.stop_gradient(factor * g).astype(p.dtype),
            params,
            gradient,
        )
        return loss(moved, key, *batch)

    return robust


def own(tree: Any, plan: Plan) -> Any:
    """Returns a tree with zeros in place of the leaves that `analogize` added."""
    ours = added(plan)
    return paths.map_leaves(
        lambda path, leaf: jnp.zeros_like(leaf) if path in ours else leaf, tree
    )


def _at_noisy_weights(
    loss: Loss,
    plan: Plan,
    noisy: Callable[[jax.Array, jax.Array, AnalogWeight], jax.Array],
) -> Loss:
    weights = {weight.path: weight for weight in plan.weights}

    def robust(params: Any, key: jax.Array, *batch: Any) -> Any:
        plan.check_effective()
        plan.check_weights(params)
        values = paths.leaves(params)

        def perturbed(path: str, leaf: jax.Array) -> jax.Array:
            weight = weights.get(path)
            if weight is None:
                return leaf
            w, s = on_crossbar(weight, leaf, weight.stored_scale(values))
            value = noisy(draw_key(step_key(key), path, "objective"), w, weight) * s
            return jnp.asarray(value, leaf.dtype)

        return loss(paths.map_leaves(perturbed, params), key, *batch)

    return robust
