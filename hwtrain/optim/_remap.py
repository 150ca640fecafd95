"""Rescales crossbars so that training keeps using their full range."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._crossbar import on_crossbar
from hwtrain.optim._leaves import check, require
from hwtrain.weights.mapping import MAPPING_SCALE


def remap_weights(plan: Plan) -> optax.GradientTransformationExtraArgs:
    r"""Changes the updates of mapping scales so that crossbars use their full range.

    .. math:: u_s = s' - s, \qquad s' = s \max |w| / w_\text{max}, \qquad
        w = (W + u) / s

    with :math:`s'` from the hardware's `remap`, for each tile or each of its columns.
    The kernel :math:`W`, the logical weight, does not change: afterwards the crossbar
    holds :math:`W / s'`. Place this after `keep_weights_clipped`; a crossbar weight
    that `max_scale_range` leaves beyond 1 is clipped at the next step.

    >>> from flax import linen as nn
    >>> import hwtrain
    >>> x = jnp.ones((1, 3))
    >>> remap = hwtrain.WeightRemapParameter(type="layerwise_symmetric")
    >>> analog = hwtrain.analogize(nn.Dense(4), hwtrain.Hardware(remap=remap))
    >>> params = analog.init(jax.random.key(0), x)["params"]
    >>> params["kernel"] = jnp.full((3, 4), 0.25)
    >>> tx = remap_weights(hwtrain.plan(analog, params, x))
    >>> zeros = jax.tree.map(jnp.zeros_like, params)
    >>> updates, _ = tx.update(zeros, tx.init(params), params)
    >>> print(optax.apply_updates(params, updates)["mapping_scale"])
    [[0.25]]

    Args:
      plan: the plan of the model; weights without a remap pass unchanged.

    Returns:
      A stateless gradient transformation. It needs the parameters in `update`.

    Raises:
      ValueError: from `init` if the parameters lack a leaf of the plan, from `update`
        without parameters, or if a mapping scale does not fit its remapping.

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023.
    """
    weights = {
        weight.leaf(MAPPING_SCALE): weight
        for weight in plan.trained.weights
        if weight.hardware.remaps and weight.stores_scale
    }

    def init(params: optax.Params) -> optax.EmptyState:
        check(plan, params)
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args
        require(params, "remap_weights")
        values, steps = paths.leaves(params), paths.leaves(updates)

        def remapped(path: str, leaf: jax.Array) -> jax.Array:
            weight = weights.get(path)
            if weight is None:
                return leaf
            # The sum as the parameters will store it, rounded to their dtype.
            kernel = values[weight.path]
            kernel = (kernel + steps[weight.path]).astype(kernel.dtype)
            new = _new_scale(weight, kernel, values[path])
            return (new - values[path]).astype(leaf.dtype)

        return paths.map_leaves(remapped, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _new_scale(weight: AnalogWeight, kernel: jax.Array, scale: jax.Array) -> jax.Array:
    remap = weight.hardware.remap
    if remap is None:
        return scale
    w, _ = on_crossbar(weight, kernel.astype(jnp.float32), scale)
    sizes = weight.row_sizes, weight.column_sizes
    new = remap.scale(weight.to_matrix(w), scale, *sizes)
    if new.shape != scale.shape:
        raise InputError(
            f"{weight.leaf(MAPPING_SCALE)} should have the shape {new.shape} for "
            f"{remap.type!r}, got {scale.shape}. It seems to come from other hardware; "
            "remove it and write params = hwtrain.adopt(analog, params, *example)"
        )
    return new
