"""Weights that a layer draws itself, and redraws in its backward pass."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from hwtrain._arrays.derivatives import custom_vjp
from hwtrain._parts.constant import CONSTANTS
from hwtrain._plan.constants import filled_weight
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._crossbar import modified
from hwtrain.periphery._read_keys import NOISE_STRENGTH, WEIGHT_KEY
from hwtrain.weights.clip import CLIP_BOUND
from hwtrain.weights.mapping import MAPPING_SCALE

Leaves = Mapping[str, jax.Array]


def redrawn(
    draw: Callable[[Leaves, jax.Array], jax.Array],
    product: Callable[[Leaves, jax.Array, jax.Array, jax.Array | None], jax.Array],
    leaves: Leaves,
    x: jax.Array,
    w: jax.Array,
    keys: jax.Array | None,
) -> jax.Array:
    r"""Multiplies by weights drawn for the step, without storing them.

    .. math:: y = x\, w'(w, k), \qquad
              \bar x = \bar y\, w'(w, k)^T, \quad \bar w = x^T \bar y

    Forward and backward pass draw the same :math:`w'`: the key k is that of the layer
    in the step, for all its calls. Between the passes, only x, w and k are stored,
    instead of a copy of all layers' weights. This costs a second draw, two more for
    each further call, as at every step of a loop over time, and a second product if the
    backward pass needs the first, as for an ADC. Reverse mode only.

    Args:
      draw: returns the weights of the step from leaves and `w`. Like `product`, it
        takes all arrays as arguments, because a closed-over tracer would leak.
      product: returns the product of leaves, inputs, weights and key.
      leaves: the leaves beside the weights in this step, as in `names_beside`, and the
        `WEIGHT_KEY` for the draw.
      x: inputs.
      w: nominal weights.
      keys: the keys of `product`'s draws, or `None`.
    """

    def multiply(since, x, w, leaves, keys):
        leaves = {**leaves, WEIGHT_KEY: _after(since, leaves[WEIGHT_KEY])}
        return product(leaves, x, draw(leaves, w), keys)

    return _redrawn(multiply, x, w, dict(leaves), keys)


@custom_vjp(nondiff_argnums=(0,))
def _redrawn(multiply, x, w, leaves, keys):
    return multiply(x, x, w, leaves, keys)


def _forward(multiply, x, w, leaves, keys):
    # Without the custom rule, in which a policy of `jax.checkpoint` sees no product.
    return multiply(x, x, w, leaves, keys), (x, w, leaves, keys)


def _backward(multiply, residuals, d):
    x, w, leaves, keys = residuals
    real = {k: v for k, v in leaves.items() if jnp.issubdtype(v.dtype, jnp.floating)}

    def again(x, w, real):
        return multiply(d, x, w, {**leaves, **real}, keys)

    d_x, d_w, d_real = jax.vjp(again, x, w, real)[1](d)
    return d_x, d_w, {name: d_real.get(name) for name in leaves}, None


_redrawn.defvjp(_forward, _backward)


def _after(since: jax.Array, key: jax.Array) -> jax.Array:
    """Returns a key unchanged, but only available after `since`.

    XLA starts independent computations at once: all draws of a step, whose results then
    occupy memory. It also merges equal draws into the first. An optimisation barrier,
    as in `jax.checkpoint`, is removed on CPU before scheduling. But XLA does not know
    that no odd number is zero.
    """
    if not since.size:
        return key
    # The maximum, because a single entry of a sharded array lies on one device only.
    entry = jnp.max(jax.lax.stop_gradient(since)).astype(jnp.float32)
    odd = jax.lax.bitcast_convert_type(entry, jnp.uint32) | 1
    data = jax.random.key_data(key)
    data = data ^ (odd == 0).astype(data.dtype)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))


def step_draw(weight: AnalogWeight, leaves: Leaves, w: jax.Array) -> jax.Array:
    """Returns one matrix of a layer as drawn for a step.

    Args:
      weight: the plan of the kernel.
      leaves: the leaves beside the matrix in this step.
      w: `[rows, columns]`, nominal, not yet clipped to its learned bound.
    """
    weight = filled_weight(weight, leaves.get(CONSTANTS.name))
    return drawn(weight, leaves, w, leaves[WEIGHT_KEY], leaves.get(CLIP_BOUND.name))


def kernel_draw(weight: AnalogWeight, leaves: Leaves, kernel: jax.Array) -> jax.Array:
    """Returns one layer's kernel, of one or several matrices, as drawn for a step.

    Args:
      weight: the plan of the kernel, for one layer.
      leaves: the leaves beside the kernel in this step.
      kernel: nominal, not yet clipped to its learned bound.
    """
    draw = functools.partial(step_draw, weight)
    for _ in weight.parallel:
        draw = jax.vmap(draw)
    return weight.from_matrix(draw(leaves, weight.to_matrix(kernel)))


def drawn(
    weight: AnalogWeight,
    leaves: Leaves,
    w: jax.Array,
    key: jax.Array,
    bound: jax.Array | None = None,
) -> jax.Array:
    """Returns one matrix of a layer with its weight modifier applied.

    Args:
      weight: the plan of the kernel.
      leaves: the leaves beside the matrix in this step.
      w: `[rows, columns]`, nominal.
      key: key of the draw.
      bound: its learned clip bound, unless `w` is already within it.
    """
    matrix = dataclasses.replace(
        weight, shape=w.shape, rows=(0,), columns=(1,), window=None
    )
    scale = leaves[MAPPING_SCALE.name] if weight.stores_scale else None
    strength = leaves.get(NOISE_STRENGTH.name)
    return modified(matrix, w, scale, key, strength, bound, leaves)
