"""Checks that the conductances of a tile are those that its converter declares."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hwtrain.evaluate._updates import Finding

_TOLERANCE = 1e-3
"""Largest error that is rounding, relative to the range of conductances."""

_MOST_OFF = 0.01
"""Share of weights that float32 may take for a neighbouring level."""


class ConverterProof:
    """Lets a converter declare what is to be measured.

    Attributes:
      findings: what was measured.
    """

    def __init__(
        self,
        path: str,
        converter: Any,
        w: Sequence[np.ndarray],
        tiles: Sequence[Any],
    ):
        """Takes the tiles of an array.

        Args:
          path: its path.
          converter: its converter.
          w: for each tile, the nominal weights that it was given.
          tiles: its tiles, from `HardwareCheckpoint.conductances`.
        """
        self._path, self._converter = path, converter
        self._w, self._tiles = w, tiles
        self.findings: list[Finding] = []

    def holds(self, conductances: Callable[[np.ndarray], Sequence[np.ndarray]]) -> None:
        """Requires that devices hold what NumPy computes for the weights of a tile.

        Args:
          conductances: function of weights `[rows, columns]`, in any unit. It returns
            the conductances of each device in µS, and must not use the converter's own
            functions.
        """
        span, off, total = self._converter.g_max - self._converter.g_min, 0, 0
        for w, tile in zip(self._w, self._tiles):
            found = [tile.conductances[name] for name in self._converter.devices]
            rows, columns = w.shape[-2:]
            matrices = w.reshape(-1, rows, columns)
            stacked = [g.reshape(-1, rows, columns) for g in found]
            for number, matrix in enumerate(matrices):
                for g, expected in zip(stacked, conductances(matrix)):
                    off += np.sum(np.abs(g[number] - expected) > _TOLERANCE * span)
                    total += matrix.size
        wrong = None
        if off > _MOST_OFF * total:
            wrong = f"{off / total:.0%} of the devices have another conductance"
        self.findings.append(
            (self._path, "levels", wrong, "the devices are on their levels")
        )
