"""The weights as a crossbar holds them: without their mapping scale."""

import jax

from hwtrain.physics import tiling
from hwtrain.plan import AnalogWeight


def on_crossbar(
    weight: AnalogWeight, kernel: jax.Array, scale: jax.Array | None
) -> tuple[jax.Array, jax.Array | float]:
    r"""Returns the weights as the crossbar holds them, and what multiplies them.

    .. math:: w = W / s

    Args:
      weight: the plan of the array.
      kernel: the stored array, nominal.
      scale: the stored mapping scale, if the array has one; otherwise it is derived.

    Returns:
      `(w, s)`: an array like `kernel`, and a scale broadcastable against it, 1 where
      there is none. No gradient passes through the scale.
    """
    if scale is None:
        scale = weight.derived_scale(weight.to_matrix(kernel))
    if scale is None:
        return kernel, 1.0
    scale = jax.lax.stop_gradient(weight.spread(scale)).astype(kernel.dtype)
    return kernel / scale, scale


def largest_weight(
    weight: AnalogWeight, w: jax.Array, *, per_column: bool
) -> jax.Array:
    """Returns max |w| of each row tile, broadcastable against the stored array."""
    matrix = weight.to_matrix(w)
    w_max = tiling.absolute_maximum(matrix, weight.row_sizes, per_column=per_column)
    return weight.spread(w_max)
