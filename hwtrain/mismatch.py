"""The frozen mismatch of a chip, over a tree of parameters."""

import jax
import jax.numpy as jnp

from hwtrain import paths
from hwtrain.crossbar import largest_weight, on_crossbar
from hwtrain.physics.random import draw_key
from hwtrain.plan import Plan


def chip_key(chip_seed: jax.typing.ArrayLike) -> jax.Array:
    """Returns the key of a chip: everything frozen is drawn from it.

    Args:
      chip_seed: the chip's number, a non-negative integer. May be traced.
    """
    return jax.random.key(chip_seed, impl="threefry2x32")


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
