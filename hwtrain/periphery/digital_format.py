"""The number formats in which digital units store results."""

import abc
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from hwtrain._arrays.derivatives import straight_through
from hwtrain._arrays.rounding import round_to
from hwtrain._parts.fields import Positive
from hwtrain._parts.part import Part
from hwtrain._parts.registry import register
from hwtrain.periphery._converter import Converter, convert, from_bits

Bits = Annotated[int, Field(ge=2, le=24)]


def to_integers(y: jax.Array, bits: int, full_scale: float | None = None) -> jax.Array:
    r"""Rounds numbers to integers of a few bits, times a step.

    .. math:: \hat y = \mathrm{clip}(\Delta\,\mathrm{round}(y / \Delta), -F, F), \qquad
        \Delta = F / (2^{b-1} - 1)

    Ties go to the even level. The gradient passes straight through the rounding, and is
    zero beyond the full scale F, as that of an ADC. Without a given full scale, F is
    the largest absolute value of each vector, without gradient. The result is computed
    in float32 at least, and has the dtype of `y`.

    A NaN stays NaN. With a given F, infinities become F or -F; without one, a vector
    with a NaN or an infinity has no full scale, and all of it becomes NaN.

    >>> print(to_integers(jnp.array([0.3, -0.6, 5.0]), bits=3, full_scale=3.0))
    [ 0. -1.  3.]
    >>> print(to_integers(jnp.array([[1.2, -3.0], [1.2, -30.0]]), bits=3))
    [[  1.  -3.]
     [  0. -30.]]

    Args:
      y: `[..., features]`, in any unit.
      bits: b, including the sign.
      full_scale: F, in the unit of `y`; `None` for that of each vector, over the last
        axis. A vector of zeros stays zero, and a vector of one number, or a number
        without axes, as it is.
    """
    wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    if full_scale is not None:
        stored = convert(wide, Converter(full_scale, from_bits(bits)))
        return stored.astype(y.dtype)
    rows = jnp.atleast_1d(wide)
    given = jax.lax.stop_gradient(rows)
    largest = jnp.max(jnp.abs(given), axis=-1, keepdims=True, initial=0.0)
    # Exact powers of two keep the step and its inverse among the normal numbers.
    down = jnp.where(largest > 2.0**64, 2.0**-64, jnp.ones_like(largest))
    unit = jnp.where(largest < 2.0**-32, 2.0**64, down)
    step = largest * unit / (2 ** (bits - 1) - 1)
    step = jnp.where(step == 0, jnp.ones_like(step), step)
    # The highest level times the step may exceed F by a rounding, even to infinity.
    levels = jnp.clip(round_to(given * unit, step) / unit, -largest, largest)
    return straight_through(rows, levels).reshape(y.shape).astype(y.dtype)


class OutputFormat(Part):
    """How a digital unit stores results: the base class of your own formats."""

    draws: ClassVar = "none"
    """A format rounds the same number in the same way: it has no key."""

    @property
    def per_vector(self) -> bool:
        """Whether a number is stored relative to the others of its vector.

        Then a module must return vectors of features: a result of one axis, which may
        be that of examples, is refused unless the module was given no more axes.
        """
        return False

    @abc.abstractmethod
    def store(self, y: jax.Array) -> jax.Array:
        """Returns results as they are stored, of the same shape and dtype.

        Args:
          y: `[..., features]`, real floating-point numbers in the unit of the model.
            Let no example depend on another one.
        """

    def proof(self, ctx: Any) -> None:
        """Declares the effect that `assert_active` measures: that results change.

        To have it compared with NumPy, state a function of `[vectors, features]` too:
        `ctx.holds(function)`.
        """
        ctx.differs()


@register("output_format", "integer")
class DigitalFormat(OutputFormat):
    r"""Integers of a few bits, times a step.

    .. math:: \hat y = \mathrm{clip}(\Delta\,\mathrm{round}(y / \Delta), -F, F), \qquad
        \Delta = F / (2^{b-1} - 1)

    as computed by `to_integers`, in all modes. `Hardware(outputs=None)` turns it off.

    >>> print(DigitalFormat(bits=3, full_scale=3.0).store(jnp.array([0.6, -5.0])))
    [ 1. -3.]

    References:
      Jacob et al., Quantization and training of neural networks for efficient
      integer-arithmetic-only inference, CVPR 2018: integers times a step, and gradients
      straight through the rounding; here symmetric, without a zero point.
      Le Gallo et al., A 64-core mixed-signal in-memory compute chip based on
      phase-change memory for deep neural network inference, Nature Electronics 2023:
      digital units behind the ADCs that scale, add and activate, and pass 8-bit results
      on.
    """

    type: Literal["integer"] = "integer"
    bits: Bits = 8
    """Bits of a stored number, including its sign."""
    full_scale: Positive | None = None
    """Largest number that can be stored, in the unit of the results; larger ones are
    clipped. `None`: the largest absolute value of each vector (over the last axis), at
    every call. The last axis must then be that of features, of which there are two at
    least: a single one is its own full scale, and is not rounded."""

    stays_static: ClassVar = {
        "full_scale": "belongs to the digital units, which take no traced constants"
    }

    @property
    def per_vector(self):
        """Whether each vector has its own full scale."""
        return self.full_scale is None

    def store(self, y):
        """Returns the rounded and clipped numbers."""
        return to_integers(y, self.bits, self.full_scale)

    def describe(self):
        """Returns its bits and full scale."""
        scale = "of each vector" if self.full_scale is None else f"{self.full_scale:g}"
        return f"{self.bits} bits, full scale {scale}"

    def proof(self, ctx):
        """Declares its measured effect: its levels."""
        ctx.differs()
        steps = 2 ** (self.bits - 1) - 1

        def levels(y: np.ndarray) -> np.ndarray:
            largest = np.abs(y).max(axis=-1, keepdims=True, initial=0.0)
            full = largest if self.full_scale is None else self.full_scale
            step = np.where(np.asarray(full) > 0, full, 1.0) / steps
            return np.clip(step * np.rint(y / step), -full, full)

        ctx.holds(levels)
