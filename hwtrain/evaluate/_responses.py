"""Compares outputs of a layer with those that NumPy computes for its tiles."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

ROUNDING = 2e-6
"""Relative rounding error of a product in float32."""

TOLERANCE = 0.25
"""Largest error relative to the effect: half of it is an error of 0.5."""


class Tiles:
    """The tiles of a layer in NumPy, for functions that compute their outputs.

    Attributes:
      w: weights in units of the crossbar, `[row tiles, rows, column tiles, columns]`,
        padded with zeros.
      row_sizes: rows of each row tile.
      column_sizes: columns of each column tile.
    """

    def __init__(
        self,
        w: np.ndarray,
        factors: np.ndarray,
        row_sizes: tuple[int, ...],
        column_sizes: tuple[int, ...],
    ):
        """Takes the tiles of a layer.

        Args:
          w: its weights; see the attribute.
          factors: factors on outputs, which broadcast against them.
          row_sizes: rows of each row tile.
          column_sizes: columns of each column tile.
        """
        self.w, self.row_sizes = np.asarray(w, np.float64), row_sizes
        self.column_sizes = column_sizes
        self._factors = np.asarray(factors, np.float64)
        self._nudge = 0.0

    def nudged(self, share: float) -> "Tiles":
        """Returns the same with products that are off by a share of their size."""
        other = Tiles(self.w, self._factors, self.row_sizes, self.column_sizes)
        other._nudge = share
        return other

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """Returns inputs times the weights; see `product`."""
        return self.product(x, self.w)

    def product(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Returns `[vectors, row tiles, column tiles, columns]`.

        Args:
          x: `[vectors, row tiles, column tiles or 1, rows]`.
          w: weights, of the shape of `self.w`.
        """
        y = self._product(x, w)
        if not self._nudge:
            return y
        return y + self._nudge * self._product(np.abs(x), np.abs(w))

    def _product(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        matrices = np.moveaxis(w, 2, 1)  # [row tiles, column tiles, rows, columns]
        x = np.moveaxis(np.asarray(x, np.float64), 0, 2)
        return np.moveaxis(x @ matrices, 2, 0)

    def cut(self, x: np.ndarray) -> np.ndarray:
        """Returns inputs of tiles, `[vectors, row tiles, 1, rows]`."""
        cut = np.zeros((len(x), len(self.row_sizes), 1, self.w.shape[1]))
        ends = itertools.accumulate(self.row_sizes)
        for tile, (size, end) in enumerate(zip(self.row_sizes, ends)):
            cut[:, tile, 0, :size] = x[:, end - size : end]
        return cut

    def join(self, y: np.ndarray) -> np.ndarray:
        """Returns outputs of the layer from those of its tiles."""
        y = np.broadcast_to(y, (len(y), *self.w.shape[::2], self.w.shape[3]))
        y = (y * self._factors).sum(axis=1)
        each = (y[:, i, :size] for i, size in enumerate(self.column_sizes))
        return np.concatenate(list(each), axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Response:
    """Outputs of a layer for some inputs, and the function that NumPy has for them.

    Attributes:
      x: inputs, `[vectors, rows]`.
      y: outputs, `[vectors, columns]`.
      arguments: further arguments of the functions.
      expected: function of the inputs of tiles, the `Tiles` and the arguments.
      rest: the same without the effect.
      amount: text for what is as expected.
      wrong: text for what is not; empty for the size of the error.
    """

    x: Any
    y: Any
    arguments: tuple[Any, ...]
    expected: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    rest: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    amount: str = dataclasses.field(metadata={"static": True})
    wrong: str = dataclasses.field(metadata={"static": True})

    def judged(self, tiles: Tiles) -> tuple[str, str | None]:
        """Returns the amount of the effect, and what is wrong with it or `None`."""
        x, found = (
            tiles.cut(np.asarray(self.x, np.float64)),
            np.asarray(self.y, np.float64),
        )
        given = [np.asarray(each) for each in self.arguments]

        def outputs(function: Callable[..., Any], nudge: float = 0.0) -> np.ndarray:
            return tiles.join(function(x, tiles.nudged(nudge), *given))

        expected = outputs(self.expected)
        size = _rms(expected - outputs(self.rest))
        # Next to a step, rounding errors decide between two levels.
        near = [outputs(self.expected, nudge) for nudge in (-ROUNDING, ROUNDING)]
        sure = np.max(np.abs(np.stack(near) - expected), axis=0) <= 0.1 * size
        if size == 0 or 2 * sure.sum() < sure.size:
            return "smaller than the rounding of float32", None
        error = _rms((found - expected)[sure]) / size
        if error <= TOLERANCE:
            return self.amount or f"as computed within {error:.1e}", None
        off = f"the outputs are off by {min(error, 9.99):.0%} of the effect"
        return "", self.wrong or off


def _rms(y: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(y))))
