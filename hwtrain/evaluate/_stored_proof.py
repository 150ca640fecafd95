"""Checks that digital units store the results of modules in their format."""

import math
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

_NUMBERS = 256
"""At least so many numbers of our own are compared."""

_OCTAVES = 26
"""How far below the largest our own numbers reach: below a step of 24 bits."""


class Readings(NamedTuple):
    """A result of a module, and numbers of our own, before and after they are stored.

    Attributes:
      axes: number of axes of the result.
      y: `[vectors, features]`, the result as it was computed.
      stored: the same as the module returned it.
      test: `[vectors, features]`, numbers between minus and plus twice the largest
        result, of its dtype.
      stored_test: the same, stored; results may already be on the levels.
    """

    axes: int
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
    finite = jnp.where(jnp.isfinite(y), y, jnp.zeros_like(y))
    largest = jnp.max(jnp.abs(finite), initial=0.0).astype(jnp.float32)
    numbers = irregular(y.shape[-1] if y.ndim else 1)
    test = numbers * jnp.where(largest > 0, largest, 1.0)
    most = float(jnp.finfo(y.dtype).max)
    test = jnp.clip(test, -most, most).astype(y.dtype)
    return Readings(y.ndim, _rows(y), _rows(stored), test, output.format.store(test))


def irregular(features: int) -> np.ndarray:
    """Returns numbers from -2 to 2 that are no levels of any format.

    Every other one is smaller by up to 2^26, so that each step shows.

    Args:
      features: length of a vector.

    Returns:
      `[vectors, features]`, float32.
    """
    shape = (max(4, -(-_NUMBERS // max(features, 1))), features)
    k = np.arange(math.prod(shape), dtype=np.float64)
    golden, root = (np.modf(k * x + 0.3)[0] for x in ((5**0.5 - 1) / 2, 2**0.5))
    scale = np.where(k % 2 == 0, 1.0, 2.0 ** (-_OCTAVES * root))
    return ((4 * golden - 2) * scale).astype(np.float32).reshape(shape)


def _rows(y: jax.Array) -> jax.Array:
    y = jnp.atleast_1d(y)
    return y.reshape(math.prod(y.shape[:-1]), y.shape[-1])[:_VECTORS]


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
        self._readings = [x for x in readings if np.size(x.y)]
        self._per_vector = output.format.per_vector
        self.findings: list[tuple[str, str, str | None]] = []
        if self._readings:
            output.format.proof(self)
        elif readings:
            why = (
                "the results of the example are empty, of no vectors or no features: "
                "give an example of one vector at least"
            )
            self.findings.append(("outputs", "", why))
        else:
            why = (
                "no call was seen: the module is called around its model, or not at all"
            )
            self.findings.append(("outputs", "", why))

    def differs(self) -> None:
        """Requires that results, or else our own numbers, are not stored unchanged."""
        pairs = [_finite(p) for x in self._readings for p in (x[1:3], x[3:])]
        change = max(_rms(stored - y) / max(_rms(y), 1e-30) for y, stored in pairs)
        amount, wrong = f"changes results by {change:.2g}", None
        if not any(_changed(*pair) for pair in pairs):
            wrong = "results are stored as they are"
            if self._per_vector and all(x.y.shape[-1] == 1 for x in self._readings):
                wrong += (
                    ": the only feature of a vector is its own full scale. State it: "
                    "DigitalFormat(full_scale=...)"
                )
        elif self._per_vector and any(int(x.axes) == 1 for x in self._readings):
            amount += ", with one full scale for each result of one axis"
        self.findings.append(("outputs", amount, wrong))

    def holds(self, expected: Callable[[np.ndarray], np.ndarray]) -> None:
        """Requires that the results are those that NumPy computes.

        Args:
          expected: function of `[vectors, features]` that returns them as stored.
        """
        wrong = None
        for x in self._readings:
            y, test = _finite(x[1:3]), _finite(x[3:])
            largest = np.abs(_wide(y[0])).max(axis=-1, keepdims=True, initial=0.0)
            # A result may have been computed twice; our own numbers are the same.
            for pair, scale in ((y, largest), (test, np.abs(_wide(test[0])))):
                wrong = _off(*pair, expected, scale) or wrong
        self.findings.append(("outputs, levels", "as NumPy computes them", wrong))


def _off(
    y: np.ndarray,
    stored: np.ndarray,
    expected: Callable[[np.ndarray], np.ndarray],
    scale: np.ndarray,
) -> str | None:
    """Returns how stored numbers differ from the expected ones, or `None`.

    Args:
      y: `[vectors, features]`.
      stored: the same, stored.
      expected: as of `holds`.
      scale: what rounding errors of float32 are relative to.
    """
    wide = _wide(y)
    # A number between two levels may be stored as either.
    right = np.stack([expected(wide + sign * _NUDGE * scale) for sign in (0, 1, -1)])
    errors = np.abs(_wide(stored) - _wide(right.astype(stored.dtype)))
    errors = np.maximum(errors.min(axis=0) - _ROUNDING * scale, 0.0)
    effect, error = _rms(right[0] - wide), _rms(errors)
    if error > _TOLERANCE * effect:
        return f"they are off by {error:.2g}, and rounded by {effect:.2g}"
    return None


def _changed(y: np.ndarray, stored: np.ndarray) -> bool:
    """Returns whether a number changes by more than its dtype's rounding errors."""
    rounding = 4 * float(jnp.finfo(y.dtype).eps)
    return bool((np.abs(_wide(stored) - _wide(y)) > rounding * np.abs(_wide(y))).any())


def _finite(pair: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the vectors without NaN and infinities, before and after."""
    y, stored = map(np.asarray, pair)
    rows = np.isfinite(_wide(y)).all(axis=-1)
    return y[rows], stored[rows]


def _wide(y: np.ndarray) -> np.ndarray:
    return np.asarray(y).astype(np.float64)


def _rms(y: Any) -> float:
    return float(np.sqrt(np.mean(np.square(_wide(y))))) if np.size(y) else 0.0
