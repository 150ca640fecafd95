"""Whether what undoes the drift of an exported chip does so."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._crossbar import on_crossbar
from hwtrain.evaluate._updates import Finding


class CompensationProof:
    """Where what undoes drift says what is to be measured of it.

    Attributes:
      amount: what was measured, in words.
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
          part: what undoes the drift.
          target: the nominal weights.
          chip: the same after programming.
          later: the same after a day, compensated.
          tolerance: of the mean, relative.
        """
        self._part, self._target, self._chip, self._later = part, target, chip, later
        self._tolerance = tolerance
        self.amount, self.wrong = "", None

    def keeps_mean(self, *, of_target: bool = False, per_column: bool = False) -> None:
        """The mean absolute weight is that of its reference after a day.

        Args:
          of_target: whether the reference is the target; if not, the chip at first.
          per_column: whether that of each column is, not only of the tile.
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
        """Outputs that have halved are multiplied by something."""
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
    """Returns whether what is compensated has the mean of its reference after a day."""
    _, scale = on_crossbar(weight, jnp.asarray(nominal), weight.stored_scale(leaves))

    def tiles(kernel: np.ndarray) -> list[np.ndarray]:
        matrix = np.asarray(weight.to_matrix(jnp.asarray(kernel / scale)), np.float32)
        rows = np.split(matrix, np.cumsum(weight.row_sizes)[:-1], axis=-2)
        ends = np.cumsum(weight.column_sizes)[:-1]
        return [tile for row in rows for tile in np.split(row, ends, axis=-1)]

    compensation: Any = weight.hardware.drift_compensation
    # Through its own ADC a chip measures the mean with an error of its steps and noise.
    exact = compensation.readout == "exact" or not weight.hardware.converts
    target, first, now = (tiles(kernel) for kernel in (nominal, chip, later))
    tolerance = 0.01 if exact else 0.15
    proof = CompensationProof(compensation, target, first, now, tolerance)
    compensation.proof(proof)
    return weight.path, "drift_compensation", proof.wrong, proof.amount
