"""A kernel that convolves for the stages, by XLA's convolution for each tile."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays.tiling import add_tiles, join, mask, over_batch
from hwtrain._arrays.window_tiles import Tile, tiles_of
from hwtrain._arrays.windows import Window
from hwtrain._errors import InputError
from hwtrain.periphery._range_gradient import count_outputs
from hwtrain.periphery._ranges_of_windows import clipped_inputs, convolution
from hwtrain.periphery.input_range import RANGE, Range


class WholeKernel(NamedTuple):
    """A kernel that convolves in normalised units, by a convolution for each tile.

    There are either several groups, of one tile each, or one group. With several tiles,
    the inputs of all tiles are side by side: `[batch, *spatial, channels of tiles]`.

    Attributes:
      kernel: `[*taps, channels of a group, features]`.
      scale: s, `[groups or row tiles, 1 or column tiles, 1 or features]`, or 1.
      window: the window.
      row_sizes: rows of each row tile of a group.
      column_sizes: columns of each column tile of a group.
      precision: precision of the multiplication.
      dtype: dtype in which inputs are multiplied.
      convolved: `[batch, *positions, groups or row tiles, column tiles, features]`, the
        convolved inputs of this read. Computed in advance, because the gradient of a
        range depends on each window.
    """

    kernel: jax.Array
    scale: Any
    window: Window
    row_sizes: tuple[int, ...]
    column_sizes: tuple[int, ...]
    precision: Any
    dtype: Any
    convolved: Any = None

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The tiles, row tile by row tile; those of all groups are one."""
        return tiles_of(self.window.taps, self.row_sizes, self.column_sizes)

    @property
    def kernels(self) -> list[jax.Array]:
        """The kernel of each tile."""
        return [tile.kernel(self.kernel) for tile in self.tiles]

    @property
    def fixed(self) -> "WholeKernel":
        """The same without gradients of the kernel."""
        return self._replace(kernel=jax.lax.stop_gradient(self.kernel))

    @property
    def weights(self) -> jax.Array:
        """The weights in units of the crossbar, as `product` takes them.

        They are `[*taps, channels of row tiles, features]`.
        """
        kernel = self.kernel.astype(jnp.float32)
        tiles = [tile.of_row(kernel) for tile in self._row_tiles]
        if not isinstance(self.scale, float):
            shape = (len(self.scale), len(self.column_sizes), self.column_sizes[0])
            each = join(jnp.broadcast_to(self.scale, shape), self.column_sizes, -1)
            each = each.reshape(len(tiles), -1)
            tiles = [w / over_batch(s, w) for w, s in zip(tiles, each)]
        return jnp.concatenate(tiles, -2)

    @property
    def whole(self) -> bool:
        """Whether it is a convolution as a whole: true."""
        return True

    def read(self, x: jax.Array) -> jax.Array:
        """Returns the product of this read, computed in advance."""
        del x  # `convolved` was computed from it
        return self._normalised(self.convolved)

    def multiply(self, x: jax.Array) -> jax.Array:
        """Returns inputs times the weights."""
        return self._normalised(self.convolve(x, self.kernels))

    def multiply_absolute(self, x: jax.Array) -> jax.Array:
        """Returns inputs times the absolute weights."""
        kernels = [jnp.abs(kernel) for kernel in self.kernels]
        return self._normalised(self.convolve(x, kernels))

    def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """Returns inputs times other weights, of the shape of `weights`."""
        sizes = [tile.of_row(self.kernel).shape[-2] for tile in self._row_tiles]
        rows = jnp.split(w, np.cumsum(sizes)[:-1], -2)
        kernels = [rows[t.row][..., t.features] for t in self.tiles]
        return self._replace(dtype=x.dtype).convolve(x, kernels)

    def holding(self, w: jax.Array) -> "WholeKernel":
        """Raises: its product was computed in advance."""
        raise InputError(
            f"inner(x, weights=...) got weights of shape {w.shape} in a convolution as "
            "a whole, which is multiplied before its stages run: leave whole out"
        )

    def total(self, x: jax.Array) -> jax.Array:
        """Returns the sum of the inputs of each tile, with a last axis of 1."""
        shape = (*self.kernel.shape[:-1], self.window.groups)
        ones = jnp.ones(shape, self.kernel.dtype)
        return self.convolve(x, [tile.of_row(ones) for tile in self.tiles])

    def convolve(
        self, x: jax.Array, kernels: Sequence[jax.Array], dtype: Any = None
    ) -> jax.Array:
        """Returns the inputs of tiles times kernels of tiles, as `together`.

        Args:
          x: `[batch, *spatial, channels of tiles]`.
          kernels: a kernel for each tile.
          dtype: dtype of the product; `None` for that of a plain multiplication.
        """
        sizes = [kernel.shape[-2] * self.window.groups for kernel in kernels]
        each = jnp.split(x.astype(self.dtype), np.cumsum(sizes)[:-1], -1)
        return self.together(
            [
                convolution(part, kernel, self.window, self.precision, dtype)
                for part, kernel in zip(each, kernels)
            ]
        )

    def together(self, outputs: Sequence[jax.Array]) -> jax.Array:
        """Returns the outputs of tiles as one array, float32.

        Args:
          outputs: `[batch, *positions, features]` of each tile.

        Returns:
          `[batch, *positions, groups or row tiles, column tiles, features]`.
        """
        if len(outputs) == 1:
            y, grid = outputs[0], (self.window.groups, 1)
            y = y.reshape(*y.shape[:-1], *grid, y.shape[-1] // grid[0])
        else:
            grid = (len(self.row_sizes), len(self.column_sizes))
            width = outputs[0].shape[-1]  # the first is the largest
            y = jnp.stack([_widened(y, width) for y in outputs], -2)
            y = y.reshape(*y.shape[:-2], *grid, width)
        return y.astype(jnp.float32)

    def added(self, y: jax.Array) -> jax.Array:
        """Returns the sum over row tiles, `[batch, *positions, features]`.

        Args:
          y: outputs as returned by `together`.
        """
        if self.window.groups > 1:
            return jax.lax.collapse(y, -3)
        return join(add_tiles(y, -3), self.column_sizes, axis=-1)

    def of_tiles(self, x: jax.Array) -> jax.Array:
        """Returns the inputs of all tiles, side by side.

        Args:
          x: `[batch, *spatial, channels]`.
        """
        return jnp.concatenate([x[..., tile.channels] for tile in self.tiles], -1)

    def ranged(
        self, stage: Range, x: jax.Array, leaves: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the clipped inputs of tiles, and the range of each channel."""
        inside, ranges = [], []
        for tile in self.tiles:
            r, part = leaves[RANGE.name][tile.place], x[..., tile.channels]
            inside.append(clipped_inputs(part, r, None))
            r = jax.lax.stop_gradient(r).astype(jnp.float32).ravel()
            ranges.append(jnp.repeat(r, part.shape[-1] // r.size))
        return jnp.concatenate(inside, -1), jnp.concatenate(ranges)

    def of_range(self, r: jax.Array) -> jax.Array:
        """Returns the range of each output, from that of each input."""
        if len(self.tiles) == 1:
            return r.reshape(self.window.groups, -1)[:, :1, None]
        sizes = [kernel.shape[-2] for kernel in self.kernels]
        first = r[np.cumsum([0, *sizes[:-1]])]
        return first.reshape(len(self.row_sizes), len(self.column_sizes), 1)

    def counted(self, y: jax.Array, probe: jax.Array, bound: Any) -> jax.Array:
        """Returns the outputs, and counts them in the gradient of the probe."""
        return count_outputs(y, probe, bound, self.column_sizes)

    def inputs_of(self, x: jax.Array) -> tuple[tuple[int, ...], Any]:
        """Returns the shape of inputs per tile, and which inputs are not padding."""
        return x.shape, True

    def real_outputs(self, y: jax.Array) -> Any:
        """Returns which outputs are not padding."""
        return over_batch(mask(self.column_sizes), y)

    def of_outputs(
        self, draw: Callable[[jax.Array, Sequence[int]], jax.Array], key: jax.Array
    ) -> jax.Array:
        """Returns a draw for each output, without batch axes."""
        shape = (len(self.row_sizes), len(self.column_sizes), self.column_sizes[0])
        return jax.lax.collapse(jax.vmap(lambda key: draw(key, shape))(key), 0, 2)

    def of_inputs(
        self, draw: Callable[[Any, Sequence[int]], jax.Array], key: Any
    ) -> jax.Array:
        """Raises: a whole convolution has inputs, and no rows."""
        raise InputError("the rows of a convolution as a whole are not its inputs")

    @property
    def _row_tiles(self) -> tuple[Tile, ...]:
        return self.tiles[:: len(self.column_sizes)]

    def _normalised(self, y: jax.Array) -> jax.Array:
        return y / over_batch(self.scale, y)


def _widened(y: jax.Array, width: int) -> jax.Array:
    """Returns outputs with zeros up to a width."""
    missing = width - y.shape[-1]
    return jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, missing)]) if missing else y
