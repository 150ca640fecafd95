"""A flash ADC for each column, whose comparators have offsets of their own."""

import math
from typing import Annotated, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from pydantic import Field, model_validator

from hwtrain._arrays.derivatives import straight_through
from hwtrain._arrays.tiling import over_batch
from hwtrain._errors import InputError
from hwtrain._parts.fields import NonNegative, Positive
from hwtrain._parts.part import Part
from hwtrain.periphery._same_adc import check_adc
from hwtrain.periphery.adc import Adc


def counted(y: jax.Array, offsets: ArrayLike, bound: float, count: int) -> jax.Array:
    r"""Returns the levels of outputs, by counting the thresholds below them.

    .. math:: y' = -b + \Delta\, \#\{k : y > T_k + o_k\}, \qquad
        T_k = -b + \left(k + \tfrac{1}{2}\right) \Delta, \quad \Delta = \frac{2 b}{n}

    Outputs beyond b stay as they are if they pass all thresholds, or none: they are
    clipped, and counted as such, by the `Adc` around. NaN stays NaN. The gradient
    passes straight through.

    >>> y = jnp.array([-0.6, 0.2, 0.45, 3.0])
    >>> print(counted(y, 0.0, 1.0, 2))
    [-1.  0.  0.  3.]
    >>> print(counted(y, jnp.array([0.0, -0.4]), 1.0, 2))
    [-1.  1.  1.  3.]

    Args:
      y: outputs in normalised units.
      offsets: o, `[..., count]`, the lowest threshold first, broadcastable against the
        outputs with one more axis at the end; or a number.
      bound: b, the full scale.
      count: n, the number of thresholds.
    """
    step = 2 * bound / count
    now = jax.lax.stop_gradient(y)
    even = jnp.asarray((np.arange(count) + 0.5 - count / 2) * step, now.dtype)
    offsets = jnp.asarray(offsets, now.dtype)
    thresholds = over_batch(even, offsets if offsets.ndim else even) + offsets
    passed = jnp.sum(now[..., None] > over_batch(thresholds, now[..., None]), axis=-1)
    level = ((passed - count / 2) * step).astype(now.dtype)
    above, below = (now > bound) & (passed == count), (now < -bound) & (passed == 0)
    kept = above | below | jnp.isnan(now)
    return straight_through(y, jnp.where(kept, now, level))


class ComparatorOffsets(Part):
    r"""Converts outputs by flash ADCs whose comparators have frozen offsets.

    .. math:: y' = -b + \Delta\, \#\{k : y > T_k + \sigma\, \xi_k\}, \qquad
        T_k = -b + \left(k + \tfrac{1}{2}\right) \Delta, \quad \Delta = \frac{2 b}{n},
        \quad \xi_k \sim \mathcal{N}(0, 1)

    with a number :math:`\xi_k` for each of the n thresholds of each column of each
    tile, drawn once for each chip, and in training at each step; in `eval_mode` it is
    zero. The result is a count of ones, as of a Wallace tree behind the comparators:
    offsets may put one threshold past another, and no code is missing then.

    It stands just inside the `Adc` of the same bound and steps, which finds values at
    its levels and changes nothing but clipping what lies beyond. The gradient passes
    straight through, and is zero where the `Adc` clips. An `AdcThresholds` inside moves
    the thresholds of all columns alike.

    >>> ComparatorOffsets(bound=65.0, steps=10, offset_std=0.89).describe()
    'comparator offsets 0.89 of 10 thresholds'

    Raises:
      ValueError: for an odd number of steps, an ADC with other ones around, or a
        second stage of its kind.

    References:
      Jiang et al., C3SRAM: an in-memory-computing SRAM macro based on robust capacitive
      coupling computing mechanism, IEEE Journal of Solid-State Circuits 2020,
      doi:10.1109/JSSC.2020.2992886: an ADC for each column. The equation is that of its
      authors' Monte Carlo model, `quantization_by_column_2d` at
      github.com/ShihuiYin/BinaryNet_with_quantized_partial_sum.
    """

    whole = True
    draws = "chip"
    without_slope: ClassVar = {"offset_std": "an output is at one level or at another"}
    stays_static: ClassVar = {"bound": "is the full scale of the ADC around"}
    keeps_static: ClassVar = ("forward.out_bound", "forward.out_res")
    bound: Positive
    """Full scale of the ADC, in normalised units: `IOParameters.out_bound`."""
    steps: Annotated[int, Field(ge=2, le=254)]
    """Thresholds of each column, one less than levels: `IOParameters.out_res` as a
    number of steps, or 2^`out_bits` - 2."""
    offset_std: NonNegative
    """Standard deviation of the offsets, in normalised units: largest input times
    largest weight. Zero turns the stage off."""

    def draws_at(self, when):
        """Whether it draws: for a chip, if there are offsets."""
        return super().draws_at(when) and self.offset_std > 0

    @property
    def unrounded(self):
        """The same turned off."""
        return ComparatorOffsets(bound=self.bound, steps=self.steps, offset_std=0.0)

    def check_hardware(self, hardware):
        """Raises if the ADC around has other thresholds."""
        if self.offset_std == 0:
            return
        check_adc(self, hardware, self.bound, self.steps, required=True)
        if sum(isinstance(x, ComparatorOffsets) for x in hardware.stages) > 1:
            raise InputError(
                f"the stage {self.type!r} is there twice, and a column has one ADC: "
                "leave one out"
            )

    def around(self, inner, x, ctx):
        """Converts the outputs."""
        y = inner(x)
        if self.offset_std == 0:
            return y
        offsets = ctx.spread(self.offset_std, "comparator_offset", self.steps)
        return counted(y, offsets, self.bound, self.steps)

    def describe(self):
        """Returns the deviation of its offsets."""
        return f"comparator offsets {self.offset_std:g} of {self.steps} thresholds"

    def proof(self, ctx):
        """Declares its measured effect: its thresholds, and the deviation of codes."""
        if self.offset_std == 0:
            return
        count, bound = self.steps, self.bound
        step = 2 * bound / count
        thresholds = -bound + (np.arange(count) + 0.5) * step

        def codes(x, tile):
            return -bound + np.searchsorted(thresholds, tile.multiply(x)) * step

        exact = ComparatorOffsets(bound=bound, steps=count, offset_std=1e-9 * bound)
        adc = Adc(bound=bound, res=1 / count)
        within = {
            "rest": lambda x, tile: np.clip(tile.multiply(x), -bound, bound),
            "outputs": bound / 3,
        }
        ctx.responds(codes, "comparator thresholds", adc, exact, **within)
        # With steps of half a deviation, the code of an output of zero is a sum of
        # enough draws to be nearly normal, whatever the real steps are.
        dense, fine = 16, 0.5 * self.offset_std
        below = [
            0.5 * (1 + math.erf((k + 0.5 - dense / 2) / 2 / math.sqrt(2)))
            for k in range(dense)
        ]
        size = fine * math.sqrt(sum(p * (1 - p) for p in below))
        top = fine * dense / 2
        ctx.spreads(
            lambda x: size + 0 * ctx.product(x, ctx.w),
            "comparator_offsets",
            of=ComparatorOffsets(bound=top, steps=dense, offset_std=self.offset_std),
            around=(Adc(bound=top, res=1 / dense),),
            inputs=0.0,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.steps % 2:
            raise InputError(
                f"steps={self.steps} leaves no level at zero between those at both "
                f"bounds: write an even number, such as {self.steps + 1}"
            )
        return self
