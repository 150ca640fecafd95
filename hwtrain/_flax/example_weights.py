"""Weights drawn for each example, in chunks of examples."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LARGEST_CHUNK = 2**22
"""Most weights drawn at once: 16 MiB in float32."""


def per_example(
    product: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    draw: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    w: jax.Array,
) -> jax.Array:
    r"""Multiplies every example by its own weights.

    .. math:: y_b = x_b\, w_b

    The weights are drawn in chunks of examples, and drawn again in the backward pass,
    so that memory does not grow with the batch. An example's draw depends only on its
    index: in a layer that is called several times, or in a loop over time, an example
    keeps its weights for the step.

    >>> y = per_example(lambda x, w, index: x @ w, lambda index, w: w * index,
    ...                 jnp.ones((3, 2)), jnp.ones((2, 1)))
    >>> print(y.ravel())
    [0. 2. 4.]

    Args:
      product: returns the product of `[1, ...]` inputs and weights; its third argument
        is the index of the example, uint32.
      draw: returns the weights of an example from its index and `w`.
      x: `[examples, ...]`, or a vector for a single example.
      w: nominal weights.
    """

    def one(operands):
        index, example = operands
        return product(example[None], draw(index, w), index)[0]

    if x.ndim == 1:
        return one((jnp.uint32(0), x))
    # Adding zeros of the inputs places the indices on the same mesh. They are a product
    # with the inputs, because zeros made from a shape may be placed anywhere.
    indices = jnp.arange(x.shape[0], dtype=jnp.uint32)
    if x.size:
        indices += 0 * x[(slice(None), *[0] * (x.ndim - 1))].astype(jnp.uint32)
    several = jax.vmap(jax.checkpoint(one))
    chunks = _chunks(x.shape[0], max(1, LARGEST_CHUNK // w.size))
    if chunks == 1:
        return several((indices, x))

    def cut(array):
        # Every chunk has examples from all devices that the batch is placed on.
        parts = array.reshape(array.shape[0] // chunks, chunks, *array.shape[1:])
        return jnp.swapaxes(parts, 0, 1)

    y = jnp.swapaxes(jax.lax.map(several, (cut(indices), cut(x))), 0, 1)
    return y.reshape(x.shape[0], *y.shape[2:])


def _chunks(examples: int, largest: int) -> int:
    """Returns the smallest number of equal chunks of at most `largest` examples."""
    counts = range(max(1, -(-examples // largest)), examples + 1)
    return next((count for count in counts if examples % count == 0), 1)
