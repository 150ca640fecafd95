"""Weights of one bit, as cells of SRAM hold them."""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._errors import InputError
from hwtrain._parts.registry import register
from hwtrain.weights.bases import WeightContext, WeightModifier


@register("modifier", "binary")
class BinaryWeights(WeightModifier):
    r"""Reduces weights to their signs, in training and on chips.

    .. math:: w' = \begin{cases} A & w \ge 0 \\ -A & w < 0 \end{cases}

    with A the largest absolute weight of the row tile. With `weight_scaling_omega=1`
    that is 1 on the crossbar, and the digital scale behind the ADC has its size in the
    model: that of the tile, or with `weight_scaling_columnwise` of each column.

    A chip is written once with these weights, as with the levels of
    `WeightModifierParameter(type="discretize", enable_during_test=True)`: its mismatch
    comes after, and `export` keeps the nominal weights beside. In `eval_mode`, which
    has no modifier, weights are not reduced.

    The gradient passes straight through to all weights, because none is larger than A.
    A learned clip is refused beside it: its bounds would have no meaning.

    >>> import jax
    >>> w = jnp.array([[0.5], [0.0], [-0.2]])
    >>> print(BinaryWeights()(jax.random.key(0), w, jnp.array(0.5)))
    [[ 0.5]
     [ 0.5]
     [-0.5]]

    References:
      Courbariaux et al., Binarized neural networks: training deep neural networks with
      weights and activations constrained to +1 or -1, 2016, arXiv:1602.02830.
    """

    type: Literal["binary"] = "binary"
    enable_during_test: ClassVar[bool] = True
    rounds_chips: ClassVar[bool] = True

    @property
    def without_levels(self) -> None:
        """Nothing, for weights that were reduced before."""
        return None

    def on_weight(self, w: jax.Array, ctx: WeightContext) -> jax.Array:
        """Returns the weights with the largest size, and their own signs."""
        return jnp.where(w < 0, -ctx.w_max, ctx.w_max)

    def check_hardware(self, hardware: Any) -> None:
        """Raises beside a learned clip, whose bounds would not be those of columns."""
        if hardware.learns_clip:
            raise InputError(
                f"modifier={self.type!r} gives all weights of a tile one size, so the "
                f"bounds that clip={hardware.clip.type!r} learns would have no effect "
                "of their own: leave one of the two out"
            )

    def describe(self) -> str:
        """Returns what it does."""
        return "binary, signs alone"

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: the weights that NumPy computes."""
        ctx.becomes(lambda rng, w, w_max: np.where(w < 0, -w_max, w_max))
