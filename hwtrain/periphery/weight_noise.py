"""Weight noise that is drawn for each input vector, at the outputs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hwtrain._arrays.tiling import over_batch
from hwtrain.periphery._tiled_matrix import TiledMatrix, cut_columns


@dataclasses.dataclass(frozen=True)
class WeightNoise:
    """Adds the output noise of weights that a modifier draws anew for each vector.

    Attributes:
      deviation: function that returns the standard deviation of the outputs, given the
        inputs and the crossbar.
    """

    deviation: Callable[[jax.Array, Any], jax.Array]

    def around(self, inner, x, ctx):
        """Adds the noise."""
        y = inner(x)
        if ctx.keys is None:
            return y
        noise = ctx.normal("weight_noise", y.shape)
        return y + _scaled(self.deviation(x, ctx.crossbar), noise)


def _scaled(deviation: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns noise times its deviation, `[..., row tiles, column tiles, columns]`."""
    if noise.shape[-3:-1] != (1, 1):
        return deviation * noise
    # The derivative to the deviation is a sum over columns, which on XLA's CPU backend
    # takes ten times as long with the axes of a single tile in between.
    return (deviation[..., 0, 0, :] * noise[..., 0, 0, :])[..., None, None, :]


def output_deviation(
    x: jax.Array,
    tiles: TiledMatrix,
    w_max: jax.Array,
    sigma: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    r"""Returns the standard deviation of a product with normal noise on its weights.

    .. math:: \sigma_j = \sqrt{\textstyle\sum_i x_i^2\, \sigma(w_{ij}, A)^2}

    Noise :math:`\sigma(w_{ij}, A)\,\xi_{ij}` drawn for each vector x gives outputs that
    are normal and independent, with this deviation: B x N draws instead of B x K x N.
    The deviation is differentiated through x, and not through w or A: this gives the
    mean of the gradient to x at the given outputs, with less variance than drawn
    weights, and the straight-through gradient to w.

    >>> w = TiledMatrix.cut(jnp.ones((2, 1)), None, (2,), (1,))
    >>> x = jnp.array([[[3.0, 4.0]]])
    >>> print(output_deviation(x, w, jnp.array([[0.1]]), lambda w, a: a))
    [[[0.5]]]

    Args:
      x: `[..., row tiles, column tiles or 1, rows]`, in normalised units.
      tiles: the weights.
      w_max: A, `[row tiles, columns or 1]`, in units of the crossbar.
      sigma: the deviation of a weight, a function of w and A in units of the crossbar,
        which broadcast; if it depends on A alone, no product is computed.

    Returns:
      `[..., row tiles, column tiles or 1, columns or 1]`, in normalised units.

    References:
      Kingma et al., Variational dropout and the local reparameterization trick,
      NeurIPS 2015.
    """
    a = jax.lax.stop_gradient(cut_columns(w_max, tiles.column_sizes))
    scale = tiles.scale if isinstance(tiles.scale, float) else tiles.scale[:, None]
    w = jax.lax.stop_gradient(tiles.w).astype(jnp.float32) / scale
    each = sigma(w, a[:, None])
    if each.shape[1] == 1:  # equal for all rows
        # For one tile, fuse the sum with the square instead of copying the inputs.
        one = x.shape[-3:-1] == (1, 1)
        flat = jax.lax.collapse(x, -3) if one else x
        total = jnp.sum(jnp.square(flat.astype(jnp.float32)), axis=-1, keepdims=True)
        total = total[..., None, None] if one else total
        return _square_root(total) * over_batch(jnp.abs(each[:, 0]), total)
    square = jnp.square(x.astype(jnp.float32))
    variance = tiles._replace(w=jnp.square(each), scale=1.0, dtype=None)
    return _square_root(variance.multiply(square))


def _square_root(x: jax.Array) -> jax.Array:
    """Returns the square root, with zero as its derivative at zero."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)
