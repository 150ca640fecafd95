"""Checks that the drift compensation of an exported chip works."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._crossbar import on_crossbar
from hwtrain.evaluate._updates import Finding


class CompensationProof:
    """Lets a drift compensation declare what is to be measured.

    Attributes:
      amount: the measurement, as text.
      wrong: what is wrong with it; `None` for nothing.
    """

    def __init__(
        self,
        part: Any,
        target: list[np.ndarray],
        chip: list[np.ndarray],
        later: list[np.ndarray],
        tolerance: float,
    ):
        """Takes weights of tiles in units of the crossbar.

        Args:
          part: the drift compensation.
          target: the nominal weights.
          chip: the weights after programming.
          later: the weights after a day, compensated.
          tolerance: relative tolerance of the mean.
        """
        self._part, self._target, self._chip, self._later = part, target, chip, later
        self._tolerance = tolerance
        self.amount, self.wrong = "", None

    def keeps_mean(self, *, of_target: bool = False, per_column: bool = False) -> None:
        """Requires that after a day the mean absolute weight is that of a reference.

        Args:
          of_target: the reference is the target instead of the programmed chip.
          per_column: compare the mean of each column instead of the tile's.
        """

        def means(tiles: list[np.ndarray]) -> np.ndarray:
            axes = -2 if per_column else (-2, -1)
            return np.concatenate([abs(t).mean(axis=axes).ravel() for t in tiles])

        reference = means(self._target if of_target else self._chip)
        ratio = means(self._later) / np.maximum(reference, 1e-4)
        error = float(np.abs(ratio - 1).max())
        self.amount = f"keeps the mean within {error:.1e} for a day"
        if error > self._tolerance:
            self.wrong = (
                f"after a day the mean of a tile is off by {error:.0%} of its reference"
            )

    def undoes_halves(self) -> None:
        """Requires that outputs that have halved are multiplied by a factor."""
        part, factors = self._part, []
        for tile in map(jnp.asarray, self._target):
            factors.append(part.factor(part.baseline(tile, tile), tile / 2))
        mean = np.mean([float(jnp.mean(factor)) for factor in factors])
        self.amount = f"multiplies halved outputs by {mean:.3g}"
        if all(bool(jnp.allclose(factor, 1.0)) for factor in factors):
            self.wrong = "its factor is 1 for outputs that have halved"


def compensated(
    weight: AnalogWeight,
    leaves: dict[str, Any],
    nominal: np.ndarray,
    chip: np.ndarray,
    later: np.ndarray,
) -> Finding:
    """Returns whether compensated weights keep their reference's mean for a day."""
    _, scale = on_crossbar(weight, jnp.asarray(nominal), weight.stored_scale(leaves))

    def tiles(kernel: np.ndarray) -> list[np.ndarray]:
        matrix = np.asarray(weight.to_matrix(jnp.asarray(kernel / scale)), np.float32)
        rows = np.split(matrix, np.cumsum(weight.row_sizes)[:-1], axis=-2)
        ends = np.cumsum(weight.column_sizes)[:-1]
        return [tile for row in rows for tile in np.split(row, ends, axis=-1)]

    compensation: Any = weight.hardware.drift_compensation
    # Measured through its own ADC, a chip's mean has errors of rounding and noise.
    exact = compensation.readout == "exact" or not weight.hardware.converts
    target, first, now = (tiles(kernel) for kernel in (nominal, chip, later))
    tolerance = 0.01 if exact else 0.15
    proof = CompensationProof(compensation, target, first, now, tolerance)
    compensation.proof(proof)
    return weight.path, "drift_compensation", proof.wrong, proof.amount
