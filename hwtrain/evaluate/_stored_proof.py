"""Checks that digital units store the results of modules in their format."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._plan.outputs import StoredOutput

_VECTORS = 64
"""Number of vectors of a result that are compared."""

_TOLERANCE = 0.25
"""Largest error relative to the effect; without the effect it is 1."""

_ROUNDING = 2e-6
"""Relative rounding error of float32."""


_NUDGE = 4e-6
"""What float32 may add to a number, relative to the largest of its vector."""


class Readings(NamedTuple):
    """A result of a module, and numbers of our own, before and after they are stored.

    Attributes:
      y: `[vectors, features]`, the result as it was computed.
      stored: the same as the module returned it.
      test: `[1, features]`, numbers between minus and plus twice the largest result.
      stored_test: the same, stored; results may already be on the levels.
    """

    y: jax.Array
    stored: jax.Array
    test: jax.Array
    stored_test: jax.Array


def read(output: StoredOutput, y: jax.Array, stored: jax.Array) -> Readings:
    """Returns the readings of an array that a module returned.

    Args:
      output: the module's entry in the plan.
      y: the array as it was computed.
      stored: as it was stored.
    """
    largest = jnp.max(jnp.abs(y), initial=0.0).astype(jnp.float32)
    test = jnp.linspace(-2, 2, 63)[None] * jnp.where(largest > 0, largest, 1.0)
    return Readings(_rows(y), _rows(stored), test, output.format.store(test))


def _rows(y: jax.Array) -> jax.Array:
    y = jnp.atleast_1d(y)
    return y.reshape(-1, y.shape[-1])[:_VECTORS]


class StoredProof:
    """Lets a format declare what is to be measured.

    Attributes:
      findings: effect, amount, and what is wrong with it or `None`.
    """

    def __init__(self, output: StoredOutput, readings: Sequence[Readings]):
        """Takes the readings of a module.

        Args:
          output: its entry in the plan.
          readings: of each array that its calls returned.
        """
        self._readings = readings
        self.findings: list[tuple[str, str, str | None]] = []
        if readings:
            output.format.proof(self)
        else:
            why = (
                "no call was seen: the module is called around its model, or not at all"
            )
            self.findings.append(("outputs", "", why))

    def differs(self) -> None:
        """Requires that results, or else our own numbers, are not stored unchanged."""
        pairs = [p for x in self._readings for p in (x[:2], x[2:])]
        change = max(_rms(stored - y) / max(_rms(y), 1e-30) for y, stored in pairs)
        wrong = None if change > 1e-7 else "results are stored as they are"
        self.findings.append(("outputs", f"changes results by {change:.2g}", wrong))

    def holds(self, expected: Callable[[np.ndarray], np.ndarray]) -> None:
        """Requires that the results are those that NumPy computes.

        Args:
          expected: function of `[vectors, features]` that returns them as stored.
        """
        wrong = None
        for y, stored in [p for x in self._readings for p in (x[:2], x[2:])]:
            wide, stored = np.asarray(y, np.float64), np.asarray(stored)
            # A number between two levels may be stored as either.
            nudge = _NUDGE * np.abs(wide).max(axis=-1, keepdims=True, initial=0.0)
            right = np.stack([expected(wide + sign * nudge) for sign in (0, 1, -1)])
            errors = np.abs(_wide(stored) - _wide(right.astype(stored.dtype)))
            effect, error = _rms(right[0] - wide), _rms(errors.min(axis=0))
            if error > _TOLERANCE * effect + _ROUNDING * _rms(wide):
                wrong = f"they are off by {error:.2g}, and rounded by {effect:.2g}"
        self.findings.append(("outputs, levels", "as NumPy computes them", wrong))


def _wide(y: np.ndarray) -> np.ndarray:
    return y.astype(np.float64)


def _rms(y: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(y, np.float64)))))
