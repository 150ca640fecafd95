"""What is frozen in a chip, over a tree of parameters: its key and its mismatch."""

import math

import jax
import jax.numpy as jnp

from hwtrain import paths
from hwtrain.clip_bounds import with_clipped, with_open_bounds
from hwtrain.crossbar import largest_weight, on_crossbar
from hwtrain.physics.random import draw_key, fold_in
from hwtrain.plan import AnalogWeight, Plan


def chip_key(chip_seed: jax.typing.ArrayLike) -> jax.Array:
    """Returns the key of a chip: everything frozen is drawn from it.

    Args:
      chip_seed: the chip's number, from 0 to 2^32 - 1. May be traced.

    Raises:
      ValueError: for a number outside: JAX would take it modulo 2^32.
    """
    if isinstance(chip_seed, int) and not 0 <= chip_seed < 2**32:
        raise ValueError(f"a chip's seed must be in [0, 2^32); got {chip_seed}")
    return jax.random.key(chip_seed, impl="threefry2x32")


def frozen_keys(weight: AnalogWeight, key: jax.Array) -> jax.Array:
    """Returns the key data of what is frozen in a layer's periphery.

    Args:
      weight: the plan of the layer's array.
      key: the key of the chip.

    Returns:
      `uint32`, `[*stack, 2]`: threefry key data, one for each layer of a stack.
    """
    key = draw_key(key, weight.owner, "frozen_periphery")
    keys = fold_in(key, jnp.arange(math.prod(weight.stack)))
    # The words of the other generators are threefry keys, one after the other.
    data = jax.random.key_data(keys)[..., :2]
    return data.reshape(*weight.stack, 2)


def with_chip_keys(params: paths.Tree, plan: Plan, key: jax.Array) -> paths.Tree:
    """Returns the parameters with the key of a chip beside the layers that need it.

    From it a layer in chip mode draws what is frozen in its periphery. Without such
    layers, the parameters come back as they are.

    Args:
      params: parameters of the root, nested mappings.
      plan: the plan.
      key: `chip_key(chip_seed)`.
    """
    entries = {
        weight.leaf("chip_key").removeprefix(f"{plan.prefix}/"): frozen_keys(
            weight, key
        )
        for weight in plan.weights
        if weight.kind != "raw" and weight.hardware.freezes("chip")
    }
    return paths.insert(params, entries) if entries else params


def with_nominal_scales(
    params: paths.Tree, plan: Plan, nominal: paths.Tree
) -> paths.Tree:
    """Returns a chip's parameters with the mapping scales of the nominal ones.

    A scale that is derived from the kernel would follow the chip's drift, as if the
    converters around its tiles were adjusted to it.

    Args:
      params: parameters of the root as a chip has them, nested mappings.
      plan: the plan.
      nominal: its nominal parameters.
    """
    kernels, entries = paths.leaves(with_clipped(nominal, plan)), {}
    for weight in plan.weights:
        if weight.hardware.derives_chip_scale and weight.kind != "raw":
            matrix = weight.to_matrix(kernels[weight.path])
            entries[weight.leaf("mapping_scale")] = weight.derived_scale(matrix)
    return paths.insert(params, entries) if entries else params


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

    Raises:
      ValueError: if the parameters lack a weight of the plan.
    """
    plan.check_weights(params)
    params = with_clipped(params, plan)
    by_path = paths.leaves(params)
    weights = {w.path: w for w in plan.weights if w.hardware.mismatch is not None}

    def chip_value(path: str, leaf: jax.Array) -> jax.Array:
        weight = weights.get(path)
        if weight is None:
            return leaf
        scale = weight.stored_scale(by_path)
        kernel = mismatched(weight, jnp.asarray(leaf, jnp.float32), scale, key)
        return kernel.astype(leaf.dtype)

    return with_open_bounds(paths.map_leaves(chip_value, params), plan)


def mismatched(
    weight: AnalogWeight, kernel: jax.Array, scale: jax.Array | None, key: jax.Array
) -> jax.Array:
    """Returns one array as a chip has it; as it is, if it has no mismatch.

    Args:
      weight: the plan of the array.
      kernel: the stored array, nominal, in float32.
      scale: the stored mapping scale, if the array has one.
      key: `chip_key(chip_seed)`.
    """
    return deviated(weight, kernel, scale, draw_key(key, weight.path, "mismatch"))


def deviated(
    weight: AnalogWeight, kernel: jax.Array, scale: jax.Array | None, key: jax.Array
) -> jax.Array:
    """As `mismatched`, for the key of the draw itself: no name of the array is needed.

    Args:
      weight: the plan of the array.
      kernel: the stored array, nominal, in float32.
      scale: the stored mapping scale, if the array has one.
      key: the key of this array's mismatch.
    """
    mismatch = weight.hardware.mismatch
    if mismatch is None:
        return kernel
    w, s = on_crossbar(weight, kernel, scale)
    w_max = largest_weight(weight, w, per_column=mismatch.per_column)
    return mismatch(key, w, w_max) * s
