"""The tiles of a convolution, as parts of its channels and features.

The rows of the matrix are the channels, and the taps within each channel. A row tile
therefore holds neighbouring channels, of which it may share the first and the last with
other tiles: then it has some of their taps.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rows(NamedTuple):
    """The rows of a row tile among those of the channels that it reads.

    Attributes:
      first: number of rows of its channels before its first row.
      size: number of rows.
    """

    first: int
    size: int

    def mask(self, taps: int, channels: int) -> np.ndarray:
        """Returns which weights it holds, `[taps, channels]`."""
        rows = np.arange(channels * taps).reshape(channels, taps).T
        return (rows >= self.first) & (rows < self.first + self.size)


class Tile(NamedTuple):
    """A tile of a convolution: the part of its inputs and weights.

    Attributes:
      place: its row tile and column tile.
      channels: the channels that it reads.
      features: the features that it computes.
      rows: its rows among those of its channels; `None` for all of them.
    """

    place: tuple[slice, slice]
    channels: slice
    features: slice
    rows: Rows | None

    def kernel(self, kernel: jax.Array) -> jax.Array:
        """Returns the kernel of the tile, with zeros for weights of other tiles.

        Args:
          kernel: `[*taps, channels, features]`.
        """
        kernel = kernel[..., self.channels, self.features]
        if self.rows is None:
            return kernel
        *sizes, channels, _ = kernel.shape
        mask = self.rows.mask(math.prod(sizes), channels)
        return jnp.where(mask.reshape(*sizes, channels, 1), kernel, 0)

    def of_row(self, kernel: jax.Array) -> jax.Array:
        """Returns the same with all features."""
        return self._replace(features=slice(None)).kernel(kernel)

    @property
    def row(self) -> int:
        """The number of its row tile."""
        return self.place[0].start or 0


def tiles_of(
    taps: int, row_sizes: tuple[int, ...], column_sizes: tuple[int, ...]
) -> tuple[Tile, ...]:
    """Returns the tiles of a convolution, row tile by row tile.

    A convolution with groups of channels has one tile here, which is all of it.

    >>> for tile in tiles_of(2, (3, 3), (4,)):
    ...     print(tile.channels, tile.rows)
    slice(0, 2, None) Rows(first=0, size=3)
    slice(1, 3, None) Rows(first=1, size=3)

    Args:
      taps: number of taps of the window.
      row_sizes: rows of each row tile.
      column_sizes: columns of each column tile.
    """
    if len(row_sizes) == len(column_sizes) == 1:
        everything = slice(None)
        return (Tile((everything, everything), everything, everything, None),)
    return tuple(
        Tile(
            (slice(i, i + 1), slice(j, j + 1)),
            slice(start // taps, -(-end // taps)),
            slice(first, last),
            Rows(start % taps, end - start) if start % taps or end % taps else None,
        )
        for i, (start, end) in enumerate(_spans(row_sizes))
        for j, (first, last) in enumerate(_spans(column_sizes))
    )


def _spans(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    ends = np.cumsum(sizes).tolist()
    return [(end - size, end) for end, size in zip(ends, sizes)]
