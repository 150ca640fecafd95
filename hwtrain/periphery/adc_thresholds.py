"""An ADC whose thresholds are not at equal distances: INL and DNL of a table."""

import itertools
from typing import Annotated, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from hwtrain._errors import InputError
from hwtrain._parts.fields import Number, Positive
from hwtrain._parts.part import Part
from hwtrain.periphery._same_adc import check_adc
from hwtrain.periphery.adc import Adc

Table = Annotated[tuple[Number, ...], Field(max_length=2**16)]


def straightened(y: jax.Array, inl_lsb: tuple[float, ...], bound: float) -> jax.Array:
    r"""Returns outputs that an even ADC converts as an uneven one converts `y`.

    .. math:: y' = y - \Delta\, \mathrm{INL}(y), \qquad
        \mathrm{INL}(T_k) = \frac{T_k - \bar T_k}{\Delta}, \qquad
        \bar T_k = -b + \left(k + \tfrac{1}{2}\right) \Delta, \quad
        \Delta = \frac{2 b}{n}

    with the n thresholds T of the ADC, the even ones :math:`\bar T`, and INL linear
    between thresholds, constant beyond them. An output passes a threshold of an even
    converter behind it exactly where it passes that of the uneven one.

    >>> y = jnp.array([-0.6, 0.45, 0.55])
    >>> print(jnp.round(straightened(y, (0.0, 0.1), 1.0)))
    [-1.  0.  0.]

    Args:
      y: outputs in normalised units.
      inl_lsb: INL of the thresholds, the lowest first, in steps.
      bound: b, the full scale.
    """
    step = 2 * bound / len(inl_lsb)
    even = -bound + (np.arange(len(inl_lsb)) + 0.5) * step
    error = np.asarray(inl_lsb) * step
    return y - jnp.interp(y, jnp.asarray(even + error), jnp.asarray(error))


class AdcThresholds(Part):
    r"""Moves the thresholds of the ADC by a measured table.

    `straightened` has the equation; the `Adc` that rounds and clips stands around it.
    The INL of a threshold is its distance from the even one, in steps; the DNL that of
    the distance of two neighbours from one step: :math:`\mathrm{INL}_k = \sum_{l \le k}
    \mathrm{DNL}_l`. The gradient is that of the piecewise linear curve.

    >>> AdcThresholds(bound=1.0, dnl_lsb=(0.0, 0.25, -0.5, 0.0)).inl
    (0.0, 0.25, -0.25, -0.25)

    Raises:
      ValueError: for both tables or none, for thresholds that do not increase, or if
        the ADC around has another bound or number of steps.

    References:
      IEEE standard for terminology and test methods for analog-to-digital converters,
      IEEE Std 1241-2010.
    """

    whole = True
    stays_static: ClassVar = {"bound": "is the full scale of the ADC around"}
    keeps_static: ClassVar = ("forward.out_bound", "forward.out_res")
    bound: Positive
    """Full scale of the ADC, in normalised units: `IOParameters.out_bound`."""
    inl_lsb: Table = ()
    """INL of each threshold, the lowest first, in steps: 2^bits - 2 of them."""
    dnl_lsb: Table = ()
    """DNL of each step, in place of `inl_lsb`; the first is that of the lowest
    threshold from where it should be."""

    @property
    def inl(self) -> tuple[float, ...]:
        """INL of each threshold, in steps."""
        return self.inl_lsb or tuple(itertools.accumulate(self.dnl_lsb))

    def check_hardware(self, hardware):
        """Raises if the ADC around has other steps."""
        check_adc(self, hardware, self.bound, len(self.inl), required=False)

    def around(self, inner, x, ctx):
        """Moves the outputs."""
        return straightened(inner(x), self.inl, self.bound)

    def describe(self):
        """Returns the largest of its table."""
        return f"ADC thresholds, INL to {max(map(abs, self.inl)):.3g} steps"

    def proof(self, ctx):
        """Declares its measured effect: codes of an ADC with its thresholds."""
        count, bound = len(self.inl), self.bound
        step = 2 * bound / count
        even = np.arange(count) + 0.5
        thresholds = -bound + (even + np.asarray(self.inl)) * step

        def codes(x, tile):
            y = tile.multiply(x)
            return -bound + np.searchsorted(thresholds, y) * step

        def even_codes(x, tile):
            y = tile.multiply(x)
            return np.clip(np.rint((y + bound) / step) * step - bound, -bound, bound)

        ctx.responds(
            codes,
            "ADC thresholds",
            Adc(bound=bound, res=1 / count),
            self,
            rest=even_codes,
            outputs=bound / 3,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.inl_lsb) == bool(self.dnl_lsb):
            raise InputError(
                "expected one table, inl_lsb or dnl_lsb, of an entry for each of the "
                f"2^bits - 2 thresholds; got {len(self.inl_lsb)} and "
                f"{len(self.dnl_lsb)} entries"
            )
        if not any(self.inl):
            raise InputError("a table of zeros does nothing: leave the stage out")
        places = np.arange(len(self.inl)) + np.asarray(self.inl)
        if np.any(np.diff(places) <= 0):
            low = int(np.argmin(np.diff(places)))
            raise InputError(
                f"thresholds {low} and {low + 1} are in the wrong order: their INL of "
                f"{self.inl[low]:g} and {self.inl[low + 1]:g} steps moves one past the "
                "other. A DNL is above -1"
            )
        return self
