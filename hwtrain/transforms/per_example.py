"""Weights that are drawn for each example, chunk by chunk."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LARGEST_CHUNK = 2**22
"""Weights that are drawn at once: 16 MiB in float32."""


def per_example(
    product: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    draw: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    w: jax.Array,
) -> jax.Array:
    r"""Multiplies every example by weights of its own.

    .. math:: y_b = x_b\, w_b

    The weights are drawn in chunks of examples, and again in the backward pass, so that
    memory does not grow with the batch. The draw of an example depends on its index
    alone: in a layer that is called several times, or in a loop over time, an example
    keeps its weights for the step.

    >>> y = per_example(lambda x, w, index: x @ w, lambda index, w: w * index,
    ...                 jnp.ones((3, 2)), jnp.ones((2, 1)))
    >>> print(y.ravel())
    [0. 2. 4.]

    Args:
      product: returns the product of `[1, ...]` inputs and weights; its third argument
        is the index of the example, uint32.
      draw: returns the weights of an example from its index and `w`.
      x: `[examples, ...]`, or a vector, a single example.
      w: weights, nominal.
    """

    def one(operands):
        index, example = operands
        return product(example[None], draw(index, w), index)[0]

    if x.ndim == 1:
        return one((jnp.uint32(0), x))
    indices = jnp.arange(x.shape[0], dtype=jnp.uint32)
    chunk = max(1, LARGEST_CHUNK // w.size)
    one = jax.checkpoint(one)
    if x.shape[0] <= chunk:
        return jax.vmap(one)((indices, x))
    return jax.lax.map(one, (indices, x), batch_size=chunk)
