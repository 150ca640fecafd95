"""Gain and offset of the ADC of each column, frozen with the chip."""

import dataclasses
from typing import Self

import jax.numpy as jnp
from pydantic import model_validator

from hwtrain._arrays.tiling import over_batch
from hwtrain._errors import InputError
from hwtrain._parts.fields import Deviation, NonNegative
from hwtrain._parts.part import Part


class ColumnErrors(Part):
    r"""Gives the converter of every column of every tile a gain and an offset.

    .. math:: y' = (1 + \sigma_g\, \zeta)\, y + \sigma_o\, \eta, \qquad
        \zeta, \eta \sim \mathcal{N}(0, 1)

    with both numbers drawn once for each column of a chip, and in training at each
    step. The gradient passes through the gain.

    Raises:
      ValueError: if both are zero.

    References:
      Khaddam-Aljameh et al., HERMES-Core: a 1.59-TOPS/mm2 PCM on 14-nm CMOS in-memory
      compute core using 300-ps/LSB linearized CCO-based ADCs, IEEE Journal of
      Solid-State Circuits 2022: an ADC for each column, calibrated in gain and offset.
    """

    whole = True
    draws = "chip"
    gain_std: Deviation = 0.0
    """Relative spread of the gain over columns. Zero turns it off."""
    offset_std: NonNegative = 0.0
    """Spread of the offset over columns, in normalised units: largest input times
    largest weight. Zero turns it off."""

    def around(self, inner, x, ctx):
        """Applies the gain and the offset to the outputs."""
        y = inner(x)
        if self.gain_std > 0:
            y = y * over_batch(1 + ctx.spread(self.gain_std, "gain"), y)
        if self.offset_std > 0:
            y = y + over_batch(ctx.spread(self.offset_std, "offset"), y)
        return y

    def describe(self):
        """Returns its spreads."""
        return f"ADC gain {self.gain_std:g}, offset {self.offset_std:g}"

    def proof(self, ctx):
        """Declares its measured effect: the spread of both over columns."""
        if self.gain_std > 0:
            rest = dataclasses.replace(self, gain_std=0.0) if self.offset_std else None
            ctx.differs("gain_std", rest)
            ctx.spreads(
                lambda x: self.gain_std * jnp.abs(ctx.product(x, ctx.w)),
                "gain_std",
                of=ColumnErrors(gain_std=self.gain_std),
            )
        if self.offset_std > 0:
            rest = dataclasses.replace(self, offset_std=0.0) if self.gain_std else None
            ctx.differs("offset_std", rest)
            ctx.spreads(
                lambda x: self.offset_std + 0 * ctx.product(x, ctx.w),
                "offset_std",
                of=ColumnErrors(offset_std=self.offset_std),
            )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gain_std == self.offset_std == 0:
            raise InputError(
                "columns without spread do nothing: write gain_std or offset_std above "
                "0, or leave the stage out"
            )
        return self
