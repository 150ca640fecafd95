"""Shift of outputs down to the full scale of the ADC."""

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import tiling
from hwtrain._parts.part import Part


def shifted(y: jax.Array, column_sizes: tuple[int, ...], *, bound: float) -> jax.Array:
    r"""Shifts outputs down until the largest lies at the bound of the ADC.

    .. math:: y' = y - \max(0,\ \max_i y_i - b)

    A softmax is invariant to the shift. It is the same for all column tiles of a row
    tile, and no gradient passes through it.

    >>> y = jnp.array([3.0, 1.0]).reshape(1, 1, 1, 2)
    >>> print(shifted(y, (2,), bound=2.0).ravel())
    [2. 0.]

    Args:
      y: `[..., row tiles, column tiles, columns]`.
      column_sizes: columns of each column tile.
      bound: b.
    """
    valid = tiling.over_batch(tiling.mask(column_sizes), y)
    return _shifted(y, valid, bound)


def _shifted(y, valid, bound):
    fixed = jax.lax.stop_gradient(y)
    largest = jnp.max(
        fixed, axis=(-2, -1), keepdims=True, where=valid, initial=-jnp.inf
    )
    return y - jnp.maximum(largest - bound, 0)


class Shift(Part):
    """Lowers all outputs of a vector until the largest fits the ADC.

    `shifted` has the equation.
    """

    bound: float
    """The bound of the ADC, in normalised units."""

    def around(self, inner, x, ctx):
        """Shifts the outputs."""
        y = inner(x)
        return _shifted(y, ctx.crossbar.real_outputs(y), self.bound)

    def describe(self):
        """Returns its fields."""
        return f"shift to {self.bound:g}"

    def proof(self, ctx):
        """Declares its measured effect: a shift of outputs beyond the bound."""

        def expected(x, tile):
            y = tile.multiply(x)  # padding adds zeros, which are below the bound
            largest = y.max(axis=(-2, -1), keepdims=True)
            return y - np.maximum(largest - self.bound, 0)

        ctx.responds(expected, "bound_management", outputs=self.bound)
