"""The frozen mismatch of a chip, over a tree of parameters."""

import jax
import jax.numpy as jnp

from hwtrain import paths
from hwtrain.physics import tiling
from hwtrain.physics.random import draw_key
from hwtrain.plan import AnalogWeight, Plan


def chip_key(chip_seed: jax.typing.ArrayLike) -> jax.Array:
    """Returns the key of a chip: everything frozen is drawn from it.

    Args:
      chip_seed: the chip's number, a non-negative integer. May be traced.
    """
    return jax.random.key(chip_seed, impl="threefry2x32")


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


def apply_mismatch(params: paths.Tree, plan: Plan, key: jax.Array) -> paths.Tree:
    """Returns the parameters as one chip has them: with its frozen mismatch.

    A pure function of the chip's key, each parameter's path and each element. The
    nominal parameters are not changed; what has no mismatch comes back as it is.

    Args:
      params: nominal parameters.
      plan: the plan.
      key: `chip_key(chip_seed)`.

    Returns:
      A tree like `params`.
    """
    by_path = paths.leaves(params)
    weights = {w.path: w for w in plan.weights if w.hardware.mismatch is not None}

    def chip_value(path: str, leaf: jax.Array) -> jax.Array:
        weight = weights.get(path)
        if weight is None or weight.hardware.mismatch is None:
            return leaf
        mismatch = weight.hardware.mismatch
        w, scale = on_crossbar(weight, leaf, by_path.get(weight.leaf("mapping_scale")))
        w_max = largest_weight(weight, w, per_column=mismatch.per_column)
        noisy = mismatch(draw_key(key, path, "mismatch"), w, w_max)
        return jnp.asarray(noisy * scale, leaf.dtype)

    return paths.map_leaves(chip_value, params)
