"""What happens to weights: clipping after an update, and a chip's mismatch."""

from typing import Literal, Self

import jax
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from hwtrain.hardware.configuration import CONFIG, NonNegative, Positive
from hwtrain.physics import modifiers


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class WeightClipParameter:
    r"""Clips the weights after every update, symmetrically about zero.

    .. math::
        \text{layer_gaussian:}\ c = \text{sigma} \cdot \mathrm{std}(w) \qquad
        \text{fixed_value:}\ c = \text{fixed_value}

    The standard deviation (N-1) is that of the row tile, and :math:`w` is the weight in
    units of the crossbar, the kernel divided by its mapping scale.

    >>> WeightClipParameter(type="layer_gaussian", sigma=2.0).sigma
    2.0

    References:
      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020.
    """

    type: Literal["none", "fixed_value", "layer_gaussian"] = "none"
    """`"none"` turns clipping off."""
    sigma: Positive = 2.5
    """The bound in standard deviations, for `layer_gaussian`."""
    fixed_value: Positive | None = None
    """The bound for `fixed_value`; for `layer_gaussian` an upper limit of the bound,
    `None` for no limit."""
    per_column: bool = False
    """Take the standard deviation of each column (output) alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.type == "fixed_value" and self.fixed_value is None:
            raise ValueError(
                'type="fixed_value" needs the bound: write fixed_value=1.0, or another '
                "positive number in units of the crossbar's weight"
            )
        if self.per_column and self.type != "layer_gaussian":
            raise ValueError(
                f'per_column=True does nothing with type="{self.type}"; leave it out '
                'or write type="layer_gaussian"'
            )
        return self


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class MismatchParameter:
    r"""Frozen device mismatch: drawn once for each chip, the same for ever.

    .. math::
        \text{add_normal:}\quad w' = w + \sigma A \xi \qquad
        \text{mult_normal:}\quad w' = w (1 + \sigma \xi)

    with :math:`A` the largest absolute nominal weight of the row tile, and
    :math:`\xi` a function of the chip's seed, the parameter's path and the element.

    >>> MismatchParameter(type="mult_normal", std_dev=0.1).draws
    True

    References:
      Pelgrom et al., Matching properties of MOS transistors, IEEE JSSC 1989.
    """

    type: Literal["add_normal", "mult_normal"]
    std_dev: NonNegative
    """Standard deviation: relative to A for `add_normal`, to the weight for
    `mult_normal`. Zero turns the mismatch off."""
    per_column: bool = False
    """Take A for each column (output) instead of the whole tile."""

    @property
    def draws(self) -> bool:
        """Whether chips differ at all."""
        return self.std_dev > 0

    def __call__(self, key: jax.Array, w: jax.Array, w_max: jax.Array) -> jax.Array:
        """Returns the weights of one chip; arguments as `WeightModifierParameter`."""
        if not self.draws:
            return w
        if self.type == "mult_normal":
            return modifiers.mult_normal(key, w, std_dev=self.std_dev)
        return modifiers.add_normal(key, w, w_max, std_dev=self.std_dev)
