"""A matrix on tiles, and products with it in units of the crossbar."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hwtrain._arrays import tiling
from hwtrain.periphery._range_gradient import count_outputs
from hwtrain.periphery.input_range import Range, ranged


class TiledMatrix(NamedTuple):
    r"""A matrix on tiles that multiplies in normalised units.

    .. math:: y_{rc} = x_r W_{rc} / s_{rc}

    >>> w = TiledMatrix.cut(jnp.ones((4, 2)), None, (2, 2), (2,))
    >>> print(w.multiply(jnp.ones((2, 1, 2))))
    [[[2. 2.]]
    <BLANKLINE>
     [[2. 2.]]]

    Attributes:
      w: `[row tiles, rows, column tiles, columns]`.
      scale: s, `[row tiles, 1 or column tiles, 1 or columns]`, or 1.
      row_sizes: rows of each row tile.
      column_sizes: columns of each column tile.
      dot_general: the product to use, called as `jax.lax.dot_general`.
      dtype: dtype in which inputs are multiplied; `None` for that of the matrix.
    """

    w: jax.Array
    scale: Any
    row_sizes: tuple[int, ...]
    column_sizes: tuple[int, ...]
    dot_general: Callable[..., jax.Array] = jax.lax.dot_general
    dtype: Any = None

    @classmethod
    def cut(
        cls,
        w: jax.Array,
        scale: jax.Array | None,
        row_sizes: tuple[int, ...],
        column_sizes: tuple[int, ...],
        dot_general: Callable[..., jax.Array] = jax.lax.dot_general,
        dtype: Any = None,
    ) -> "TiledMatrix":
        """Cuts a matrix into tiles.

        Args:
          w: `[rows, columns]`.
          scale: `[row tiles, columns, column tiles or 1]`; `None` for 1.
          row_sizes: rows of each row tile.
          column_sizes: columns of each column tile.
          dot_general: the product to use.
          dtype: dtype in which inputs are multiplied.
        """
        s: Any = 1.0
        if scale is not None:
            s = cut_columns(scale, column_sizes)
        w = tiling.cut_matrix(w, row_sizes, column_sizes)
        return cls(w, s, row_sizes, column_sizes, dot_general, dtype)

    @property
    def fixed(self) -> "TiledMatrix":
        """The same without gradients of the matrix."""
        return self._replace(w=jax.lax.stop_gradient(self.w))

    @property
    def whole(self) -> bool:
        """Whether it is a convolution as a whole: false."""
        return False

    def read(self, x: jax.Array) -> jax.Array:
        """Returns the product of a read, inside all stages."""
        return self.multiply(x)

    def multiply(self, x: jax.Array) -> jax.Array:
        """Returns normalised outputs, `[..., row tiles, column tiles, columns]`.

        Args:
          x: `[..., row tiles, column tiles or 1, rows]`.
        """
        return self._normalised(self._product(x, self.w))

    def multiply_absolute(self, x: jax.Array) -> jax.Array:
        """Returns the same with absolute weights."""
        return self._normalised(self._product(x, jnp.abs(self.w)))

    @property
    def weights(self) -> jax.Array:
        """The weights in units of the crossbar, as `product` takes them."""
        scale = self.scale if isinstance(self.scale, float) else self.scale[:, None]
        return self.w.astype(jnp.float32) / scale

    def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """Returns inputs times other weights, of the shape of `weights`."""
        return self._replace(dtype=None)._product(x, w)

    def holding(self, w: jax.Array) -> "TiledMatrix":
        """Returns the same with other weights, of the shape of `weights`."""
        return self._replace(w=w, scale=1.0, dtype=None)

    def total(self, x: jax.Array) -> jax.Array:
        """Returns the sum of the inputs of each tile, with a last axis of 1."""
        return jnp.sum(x, axis=-1, keepdims=True)

    def inputs_of(self, x: jax.Array) -> tuple[tuple[int, ...], Any]:
        """Returns the shape of inputs per tile, and which inputs are not padding."""
        grid = (len(self.row_sizes), len(self.column_sizes))
        valid = tiling.mask(self.row_sizes)[:, None, :]
        return (*x.shape[:-3], *grid, self.row_sizes[0]), tiling.over_batch(valid, x)

    def real_outputs(self, y: jax.Array) -> Any:
        """Returns which outputs are not padding."""
        return tiling.over_batch(tiling.mask(self.column_sizes), y)

    def of_outputs(
        self, draw: Callable[[jax.Array, Sequence[int]], jax.Array], key: jax.Array
    ) -> jax.Array:
        """Returns a draw for each output, without batch axes."""
        grid = (len(self.row_sizes), len(self.column_sizes))
        return draw(key, (*grid, self.column_sizes[0]))

    def of_inputs(
        self, draw: Callable[[Any, Sequence[int]], jax.Array], key: Any
    ) -> jax.Array:
        """Returns a draw for each row of each tile, without batch axes."""
        grid = (len(self.row_sizes), len(self.column_sizes))
        return draw(key, (*grid, self.row_sizes[0]))

    def ranged(
        self, stage: Range, x: jax.Array, leaves: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns inputs clipped to their range, and the range."""
        return ranged(stage, x, leaves, self.row_sizes)

    def of_range(self, r: jax.Array) -> jax.Array:
        """Returns the range of each output."""
        return r

    def counted(self, y: jax.Array, probe: jax.Array, bound: Any) -> jax.Array:
        """Returns the outputs, and counts them in the gradient of the probe."""
        return count_outputs(y, probe, bound, self.column_sizes)

    def _normalised(self, y: jax.Array) -> jax.Array:
        return y / tiling.over_batch(self.scale, y)

    def _product(self, x: jax.Array, w: jax.Array) -> jax.Array:
        x = x.astype(self.dtype or w.dtype)
        last = x.ndim - 1
        if len(self.row_sizes) == len(self.column_sizes) == 1:
            # XLA is fastest for a plain matrix multiplication.
            flat = (((last - 2,), (0,)), ((), ()))
            y = self.dot_general(x[..., 0, 0, :], w[0, :, 0, :], flat)[
                ..., None, None, :
            ]
        else:
            y = self._product_of_tiles(x, w)
        return y.astype(jnp.float32)

    def _product_of_tiles(self, x: jax.Array, w: jax.Array) -> jax.Array:
        # Tiles are leading batch axes: XLA differentiates such a product without
        # transposing the matrix.
        columns = len(self.column_sizes)
        x = jnp.moveaxis(x, (-3, -2), (0, 1))
        if x.shape[1] == 1:
            # All column tiles multiply the inputs that they share at once.
            x, w = x[:, 0], w.reshape(*w.shape[:2], -1)
            y = jnp.moveaxis(self._batched(x, w, 1), 0, -2)
            return y.reshape(*y.shape[:-1], columns, y.shape[-1] // columns)
        w = jnp.moveaxis(w, 2, 1)
        if tiling.may_be_spread(w, 0, 1):
            # A joined axis could not be spread over devices by its minor part.
            y = self._batched(x, w, 2)
        else:
            # One axis is multiplied up to 1.5 times as fast as two.
            x, w = (jax.lax.collapse(array, 0, 2) for array in (x, w))
            y = self._batched(x, w, 1)
            y = y.reshape(len(self.row_sizes), columns, *y.shape[1:])
        return jnp.moveaxis(y, (0, 1), (-3, -2))

    def _batched(self, x: jax.Array, w: jax.Array, batch: int) -> jax.Array:
        """Returns `[tiles..., ..., columns]`, the products of tiles.

        Args:
          x: `[tiles..., ..., rows]`.
          w: `[tiles..., rows, columns]`.
          batch: number of axes of tiles.
        """
        tiles = tuple(range(batch))
        return self.dot_general(x, w, (((x.ndim - 1,), (batch,)), (tiles, tiles)))


def cut_columns(statistic: jax.Array, column_sizes: tuple[int, ...]) -> jax.Array:
    """Shapes a statistic of row tiles to broadcast against the outputs of tiles.

    Args:
      statistic: `[row tiles, columns, column tiles or 1]`.
      column_sizes: columns of each column tile.

    Returns:
      `[row tiles, 1 or column tiles, 1 or columns]`, float32, padded with ones: as a
      divisor, zeros would give a gradient of NaN.
    """
    statistic = statistic.astype(jnp.float32)
    if statistic.shape[-1] in (1, len(column_sizes)):
        return statistic[..., None]
    pieces = tiling.cut(statistic, column_sizes, axis=-1)
    real = tiling.over_batch(tiling.mask(column_sizes), pieces)
    return jnp.where(real, pieces, 1)
