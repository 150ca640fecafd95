"""What happens to weights: noise in training, clipping, and a chip's mismatch."""

from typing import Literal, Self

import jax
import jax.numpy as jnp
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from hwtrain.hardware.configuration import CONFIG, NonNegative, Positive
from hwtrain.physics import clip, modifiers


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class WeightModifierParameter:
    r"""Noise on the weights, drawn anew at every training step.

    .. math::
        \text{add_normal:}\quad w' = w + \sigma A \xi \qquad
        \text{mult_normal:}\quad w' = w (1 + \sigma \xi)

    with :math:`\xi \sim N(0, 1)` for each weight and :math:`A` the largest absolute
    weight of its row tile. The gradient at the noisy weight is given to the nominal one
    (straight-through).

    >>> WeightModifierParameter(type="add_normal", std_dev=0.1).std_dev
    0.1

    References:
      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020.
    """

    type: Literal["none", "add_normal", "mult_normal"] = "none"
    """`"none"` turns the modifier off."""
    std_dev: NonNegative = 0.0
    """Standard deviation: relative to A for `add_normal`, to the weight for
    `mult_normal`. Zero turns the noise off."""
    per_column: bool = False
    """Take A for each column (output) instead of the whole tile."""
    rel_to_actual_wmax: bool = True
    """Take A from the weights; otherwise it is `assumed_wmax`."""
    assumed_wmax: Positive = 1.0
    """A, in units of the crossbar's weight, if `rel_to_actual_wmax` is false."""
    enable_during_test: bool = False
    """Draw the noise in `chip_mode` too."""

    @property
    def draws(self) -> bool:
        """Whether the modifier draws anything."""
        return self.type != "none" and self.std_dev > 0

    def __call__(self, key: jax.Array, w: jax.Array, w_max: jax.Array) -> jax.Array:
        """Returns the noisy weights.

        Args:
          key: a JAX key.
          w: weights of any shape, in units of the crossbar.
          w_max: A, broadcastable against `w`.
        """
        if not self.draws:
            return w
        if self.type == "mult_normal":
            return modifiers.mult_normal(key, w, std_dev=self.std_dev)
        return modifiers.add_normal(key, w, w_max, std_dev=self.std_dev)


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

    @property
    def active(self) -> bool:
        """Whether anything is clipped."""
        return self.type != "none"

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

    def bound(self, w: jax.Array, row_sizes: tuple[int, ...]) -> jax.Array:
        """Returns the bound c of weights, in units of the crossbar.

        Args:
          w: `[..., rows, columns]`, in units of the crossbar.
          row_sizes: rows of each row tile.

        Returns:
          `[..., row tiles, columns or 1]`; infinite where nothing is clipped.
        """
        if self.type == "layer_gaussian":
            return clip.layer_gaussian(
                w,
                row_sizes,
                sigma=self.sigma,
                limit=self.fixed_value,
                per_column=self.per_column,
            )
        value = self.fixed_value if self.type == "fixed_value" else None
        shape = (*w.shape[:-2], len(row_sizes), 1)
        return jnp.full(shape, jnp.inf if value is None else value, jnp.float32)


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
