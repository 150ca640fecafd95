"""Drift compensation: a digital factor that undoes the mean drift of a tile."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain._parts.registry import register
from hwtrain.devices.bases import DriftCompensation

# A tile of zeros has no response, and its factor would be infinite.
_RESPONSE_FLOOR = 1e-4


def response(y: jax.Array, *, per_column: bool = False) -> jax.Array:
    r"""Returns the mean response of a tile to its inputs, driven one at a time.

    .. math:: R = \max(\overline{|y|},\ 10^{-4})

    >>> print(response(jnp.array([[0.5, -1.5], [1.0, 1.0]])))
    1.0

    Args:
      y: `[..., rows, columns]`, the tile's outputs for one-hot inputs, one row driven
        at a time. Without noise and converters these are its weights: the target
        weights give the exact reference.
      per_column: take the mean over the rows of each column, or else over both.

    Returns:
      `[...]`, or `[..., columns]` per column.
    """
    mean = jnp.mean(jnp.abs(y), axis=-2 if per_column else (-2, -1))
    return jnp.maximum(mean, _RESPONSE_FLOOR)


def gain(baseline: ArrayLike, now: ArrayLike) -> jax.Array:
    r"""Returns the factor on a tile's output.

    .. math:: \alpha = R_0 / R(t)

    >>> print(gain(1.0, 0.8))
    1.25

    Args:
      baseline: the response just after programming, or of the target weights.
      now: the response at the time of use.

    References:
      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020.
    """
    return jnp.asarray(baseline) / now


@register("drift_compensation", "global")
class GlobalDriftCompensation(DriftCompensation):
    r"""One factor per tile, relative to its response just after programming.

    .. math:: \alpha = \overline{|y_0|} \,/\, \overline{|y(t)|}

    >>> import jax.numpy as jnp
    >>> compensation, y = GlobalDriftCompensation(), jnp.ones((4, 3))
    >>> print(compensation.factor(compensation.baseline(y, y), 0.5 * y))
    2.0

    References:
      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020.
    """

    type: Literal["global"] = "global"

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: the mean that it preserves."""
        ctx.keeps_mean()

    def describe(self) -> str:
        """Returns its type."""
        return self.type

    def baseline(self, y: jax.Array, w: jax.Array) -> jax.Array:
        """Returns the reference to store after a tile has been programmed, `[...]`.

        Args:
          y: `[..., rows, columns]`, the tile's outputs just after programming, one row
            driven by 1 at a time.
          w: `[..., rows, columns]`, the target weights.
        """
        return response(y)

    def factor(self, baseline: jax.Array, y: jax.Array) -> jax.Array:
        """Returns the factor on the tile's output, `[...]`.

        Args:
          baseline: the reference that `baseline` returned.
          y: `[..., rows, columns]`, its current outputs, one row driven by 1 at a time.
        """
        return gain(baseline, response(y))


@register("drift_compensation", "global_exact_reference")
class GlobalDriftCompensationWithExactReference(DriftCompensation):
    r"""One factor per tile, relative to the response of its target weights.

    .. math:: \alpha = \overline{|w|} \,/\, \overline{|y(t)|}

    It therefore also corrects the effect of programming on the mean.

    >>> GlobalDriftCompensationWithExactReference().type
    'global_exact_reference'

    References:
      Joshi et al., Nature Communications 2020.
    """

    type: Literal["global_exact_reference"] = "global_exact_reference"

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: the mean that it preserves."""
        ctx.keeps_mean(of_target=True)

    def describe(self) -> str:
        """Returns its type."""
        return self.type

    def baseline(self, y: jax.Array, w: jax.Array) -> jax.Array:
        """Returns the response of the target weights; see `GlobalDriftCompensation`."""
        return response(w)

    def factor(self, baseline: jax.Array, y: jax.Array) -> jax.Array:
        """Returns the factor on the tile's output; see `GlobalDriftCompensation`."""
        return gain(baseline, response(y))


@register("drift_compensation", "per_column")
class PerColumnDriftCompensation(DriftCompensation):
    r"""One factor per column, relative to its response just after programming.

    .. math:: \alpha_j = \overline{|y_{0,j}|} \,/\, \overline{|y_j(t)|}

    >>> PerColumnDriftCompensation().type
    'per_column'

    References:
      Joshi et al., Nature Communications 2020.
    """

    type: Literal["per_column"] = "per_column"

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: the mean that it preserves."""
        ctx.keeps_mean(per_column=True)

    def describe(self) -> str:
        """Returns its type."""
        return self.type

    def baseline(self, y: jax.Array, w: jax.Array) -> jax.Array:
        """Returns `[..., columns]`; arguments as in `GlobalDriftCompensation`."""
        return response(y, per_column=True)

    def factor(self, baseline: jax.Array, y: jax.Array) -> jax.Array:
        """Returns `[..., columns]`; arguments as in `GlobalDriftCompensation`."""
        now = response(y, per_column=True)
        return gain(baseline, now)
