"""The IR drop, a loss of voltage along the wires of a crossbar."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import tiling
from hwtrain._parts.part import Part

G_RATIO = 1 / 0.35 / 5e-6
"""Conductance of the wire between two cells over the largest cell conductance, for
0.35 Ohm and 5 µS."""


def dropped(
    x: jax.Array,
    multiply: Callable[[jax.Array], jax.Array],
    multiply_absolute: Callable[[jax.Array], jax.Array],
    row_sizes: tuple[int, ...],
    *,
    ir_drop: float,
    g_ratio: float = G_RATIO,
) -> jax.Array:
    r"""Returns the loss of the outputs of tiles by the resistance of the wires.

    .. math::
        \Delta y_i = \lambda\, c_i \sum_j w_{ij} x_j \left(1 - (1 - j/n)^2\right),
        \qquad c = 0.5 a - 0.2 a^2 + 0.05 a^3, \qquad
        a_i = \frac{n}{\gamma} \sum_j |w_{ij}| |x_j|

    with :math:`j = 0 \ldots n - 1` the row in a tile of :math:`n` rows; the last row
    loses most. The gradient is the true one.

    >>> w = jnp.ones((2, 1))
    >>> x = jnp.ones((1, 1, 1, 2))
    >>> dot = lambda x: x @ w
    >>> print(dropped(x, dot, dot, (2,), ir_drop=1.0, g_ratio=40.0).ravel())
    [0.0360375]

    Args:
      x: `[..., row tiles, column tiles or 1, rows]`, in normalised units.
      multiply: multiplies such inputs by the weights of the tiles.
      multiply_absolute: multiplies them by the absolute weights.
      row_sizes: rows of each row tile.
      ir_drop: lambda, the strength. Zero turns the drop off.
      g_ratio: gamma, the conductance of the wire between two cells over the largest
        cell conductance.

    Returns:
      The drop, to be subtracted, of the shape of `multiply(x)`.

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """
    rows = np.asarray(row_sizes, np.float32)[:, None, None]
    position = np.arange(row_sizes[0], dtype=np.float32) / rows
    farther = np.where(tiling.mask(row_sizes)[:, None, :], 1 - (1 - position) ** 2, 0)
    current = multiply_absolute(jnp.abs(x))
    current = current * tiling.over_batch(rows / g_ratio, current)
    share = current * (current * (0.05 * current - 0.2) + 0.5)
    farther = tiling.over_batch(farther.astype(np.float32), x)
    drop = share * multiply(x * farther)
    return ir_drop * drop


class IrDrop(Part):
    """Subtracts from outputs what the resistance of the wires takes away.

    `dropped` has the equation.
    """

    strength: float
    """Strength; 1 is physical."""
    g_ratio: float = G_RATIO
    """Conductance of the wire between two cells over the largest device conductance."""

    def around(self, inner, x, ctx):
        """Subtracts the IR drop."""
        return inner(x) - dropped(
            x,
            ctx.multiply,
            ctx.multiply_absolute,
            ctx.crossbar.row_sizes,
            ir_drop=self.strength,
            g_ratio=self.g_ratio,
        )

    def describe(self):
        """Returns its fields."""
        return f"IR drop {self.strength:g}"

    def proof(self, ctx):
        """Declares its measured effect: the outputs."""
        if max(ctx.row_sizes) > 1:  # the first row of a tile has no wire before it
            # With inputs that drop about as much as they can: in its place, the drop of
            # a small layer may be less than the rounding of its outputs.
            large = self.g_ratio / max(ctx.row_sizes) ** 2
            ctx.responds(self._expected, "ir_drop", inputs=large)

    def _expected(self, x, tile):
        y = tile.multiply(x)
        rows = np.asarray(tile.row_sizes, np.float64)[:, None, None]
        position = np.arange(x.shape[-1]) / rows
        farther = np.where(position < 1, 1 - (1 - position) ** 2, 0)
        a = tile.product(np.abs(x), np.abs(tile.w)) * rows / self.g_ratio
        share = 0.5 * a - 0.2 * a**2 + 0.05 * a**3
        return y - self.strength * share * tile.multiply(x * farther)
