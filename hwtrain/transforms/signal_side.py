"""The signal side: what stands between a layer's input and its matrix multiplication.

The pieces that Linen and NNX share. Each framework finds the leaves its own way.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain.physics.input_range import PROBE_SIZE, RangeGradient, ranged_matmul
from hwtrain.plan import AnalogWeight


def initial_leaves(weight: AnalogWeight, kernel: jax.Array) -> dict[str, jax.Array]:
    """Returns the leaves that a layer needs beside its kernel, with initial values.

    Args:
      weight: the plan of the kernel.
      kernel: the nominal kernel, as stored.
    """
    leaves = {}
    if weight.ranged:
        shape = (*weight.stack, *weight.tiles)
        parameter = weight.hardware.input_range
        value = parameter.init_value if parameter is not None else 0.0
        leaves["input_range"] = jnp.full(shape, value, jnp.float32)
        leaves["probe"] = jnp.zeros((*shape, PROBE_SIZE), jnp.float32)
    if weight.hardware.stores_scale:
        matrix = weight.to_matrix(kernel)
        scale = weight.derived_scale(matrix)
        if scale is None:
            scale = np.ones((*weight.stack, weight.tiles[0], 1), np.float32)
        leaves["mapping_scale"] = jnp.asarray(scale, jnp.float32)
    return leaves


def analog_dot_general(
    weight: AnalogWeight,
    mode: str,
    input_range: jax.Array,
    probe: jax.Array,
    dot_general: Callable[..., jax.Array],
) -> Callable[..., jax.Array]:
    """Returns a stand-in for a dense layer's `dot_general`.

    Args:
      weight: the plan of the kernel.
      mode: the mode; `"eval"` uses plain JAX operations throughout.
      input_range: `[row tiles, column tiles]`.
      probe: `[row tiles, column tiles, 6]`.
      dot_general: what the layer used before.
    """
    parameter = weight.hardware.input_range
    gradient = RangeGradient()
    if parameter is not None:
        gradient = RangeGradient(
            parameter.gradient_scale,
            parameter.gradient_relative,
            parameter.straight_through,
        )

    def ranged(x, w, dimension_numbers, **options):
        last = ((x.ndim - 1,), (0,)), ((), ())
        if dimension_numbers != last:
            raise ValueError(
                f"{weight.layer_path}: an analog dense layer contracts the last axis "
                f"of its input with the first of its kernel, {last}; got "
                f"{dimension_numbers}. Keep this layer digital with "
                f"Rule({weight.layer_path!r}, None)"
            )
        return ranged_matmul(
            x,
            w,
            input_range,
            None if mode == "eval" else probe,
            row_sizes=weight.row_sizes,
            column_sizes=weight.column_sizes,
            gradient=gradient,
            dot_general=lambda a, b, numbers: dot_general(a, b, numbers, **options),
        )

    return ranged


def missing_leaf(path: str, leaf: str) -> ValueError:
    """Returns the error of an analog layer with a plain one's parameters."""
    return ValueError(
        f"{path}: the parameters have no {leaf!r}. They seem to come from the plain "
        "model; write params = hwtrain.adopt(analog, params, *example) first"
    )


def missing_stream(mode: str) -> ValueError:
    """Returns the error of a drawing mode without a stream to draw from."""
    return ValueError(
        f"this model is in {mode}_mode, whose hardware draws noise, and has no rng "
        'stream "mismatch". Linen: pass rngs={"mismatch": key} to apply. NNX: '
        "analogize(model, hardware, rngs=nnx.Rngs(mismatch=seed)). Without noise: "
        "hwtrain.eval_mode(model)"
    )


def behind_the_root(path: str) -> ValueError:
    """Returns the error of a layer called around the root that draws its noise."""
    return ValueError(
        f"{path or 'this layer'} was called around its analog model, which draws its "
        "noise: it would run clean. Call a method of the model that analogize "
        "returned, or analogize this layer itself"
    )
