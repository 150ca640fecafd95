"""Frozen mismatch of a chip's weights."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from pydantic import model_validator

from hwtrain._errors import InputError
from hwtrain._parts.constant import with_straight_through
from hwtrain._parts.fields import Deviation, configuration
from hwtrain._parts.part import Described
from hwtrain._parts.registry import register_types
from hwtrain._parts.texts import in_microsiemens
from hwtrain.weights import noises


@register_types("mismatch")
@configuration
class MismatchParameter(Described):
    r"""Frozen device mismatch: drawn once for each chip and constant afterwards.

    .. math::
        \text{add_normal:}\quad w' = w + \sigma A \xi \qquad
        \text{mult_normal:}\quad w' = w (1 + \sigma \xi)

    with :math:`w = W / s` a weight in units of the crossbar, :math:`A` the largest
    absolute nominal weight of the row tile, or 1, and :math:`\xi` a function of the
    chip's seed, the parameter's path and the element. The deviation of :math:`W` is
    therefore relative to :math:`s A`: the largest weight of the row tile without weight
    scaling, of the physical tile with a `weight_scaling_omega`, and of the column of
    the tile with `weight_scaling_columnwise` as well.

    >>> MismatchParameter(type="mult_normal", std_dev=0.1).draws
    True

    References:
      Pelgrom et al., Matching properties of MOS transistors, IEEE JSSC 1989.
    """

    type: Literal["add_normal", "mult_normal"]
    std_dev: Deviation
    """Standard deviation: relative to A for `add_normal`, to the weight for
    `mult_normal`. Zero turns the mismatch off."""
    per_column: bool = False
    """Take A from each column (output) instead of the whole tile."""
    rel_to_actual_wmax: bool = True
    """Take A from the weights; otherwise A is 1, for arrays with a unit of their own,
    such as the logarithms of a DynapSim's currents, which are initially zero."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.rel_to_actual_wmax and (
            self.per_column or self.type == "mult_normal"
        ):
            other = "per_column=True" if self.per_column else 'type="mult_normal"'
            raise InputError(
                f"rel_to_actual_wmax=False does nothing with {other}: the deviation is "
                'that of A = 1. Write type="add_normal" alone, or leave it out'
            )
        if self.per_column and self.type == "mult_normal":
            raise InputError(
                'per_column=True does nothing with type="mult_normal", which is '
                "relative to each weight; leave it out or write "
                'type="add_normal"'
            )
        return self

    @property
    def draws(self) -> bool:
        """Whether chips differ at all."""
        return self.std_dev > 0

    def describe(self) -> str:
        """Returns its type and strength."""
        if not self.draws:
            return ""
        unit = "" if self.rel_to_actual_wmax else " absolute"
        each = " per column" if self.per_column else ""
        return f"{self.type} {self.std_dev:g}{unit}{each}"

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its table cells: its description, and its deviation in µS."""
        relative = self.draws and self.rel_to_actual_wmax
        noise = in_microsiemens("mismatch", self.std_dev, ctx) if relative else {}
        return {ctx.column: self.describe(), **noise}

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: its deviation."""
        ctx.differs()
        if self.type == "mult_normal":
            sigma = ctx.w
        else:
            sigma = ctx.w_max if self.rel_to_actual_wmax else 1.0
        ctx.deviates(self.std_dev * sigma)

    def __call__(self, key: jax.Array, w: jax.Array, w_max: jax.Array) -> jax.Array:
        """Returns the weights of one chip; arguments as `WeightModifierParameter`."""
        if not self.draws:
            return w

        def change(w: jax.Array, w_max: jax.Array, true: bool = True) -> jax.Array:
            noise: Any = {"std_dev": self.std_dev, "reparameterized": true}
            if self.type == "mult_normal":
                return noises.mult_normal(key, w, **noise)
            largest = w_max if self.rel_to_actual_wmax else jnp.ones_like(w_max)
            return noises.add_normal(key, w, largest, **noise)

        new = with_straight_through(self, change, w, w_max)
        return change(w, w_max, true=False) if new is None else new
