"""The layout of weights on tiles, and their scales."""

from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from pydantic import model_validator

from hwtrain._arrays import statistics
from hwtrain._errors import InputError
from hwtrain._parts.fields import Limit, NonNegative, configuration
from hwtrain._parts.leaf import LeafSpec, Shapes, When, not_positive
from hwtrain._parts.part import Described

_ROUNDING = 1.02
"""Tolerance: a narrow dtype may round weights beyond their bound."""


def _is_there(weight: Any, when: When) -> bool:
    chip, layer = weight.hardware, weight.kind != "raw"
    if when == "model":
        return weight.stores_scale
    return layer and (chip.derives_chip_scale if when == "chip" else chip.converts)


def _shapes(weight: Any) -> Shapes:
    columns = sum(weight.column_sizes)
    # The last one is for files of format 1.1: one scale for all column tiles.
    last = dict.fromkeys((weight.tiles[1], columns, 1))
    return tuple((weight.tiles[0], size) for size in last)


def largest_stored(weight: Any) -> float | None:
    r"""Returns the largest weight that training can reach, in units of a stored scale.

    A scale is initialised such that the largest weight is omega. Remapping comes last
    in an update and leaves the largest at `remapped_wmax`, whatever the clip; without
    it, the scale stays, and a fixed value bounds the weights. Averages of such weights
    do not exceed the average of their bounds.

    Returns:
      `None` if the scale is derived or nothing bounds the weights: without omega, since
      the first scale is 1 for weights of any size; with an average of channels alone,
      whose bound grows with the weights; with `max_scale_range`, which limits scales.
    """
    mapping, chip = weight.hardware.mapping, weight.hardware
    omega = 0.0 if mapping is None else mapping.weight_scaling_omega
    if not weight.stores_scale or omega == 0:
        return None
    bounds = [omega]
    if chip.clip is not None and chip.clip.fixed_value is not None:
        bounds.append(chip.clip.fixed_value)
    if chip.remap is not None and chip.remap.active:
        if chip.remap.max_scale_range:
            return None
        bounds.append(chip.remap.remapped_wmax)
    return max(bounds) if len(bounds) > 1 else None


def _misfit(weight: Any, scale: Any, kernel: Any) -> str:
    """Returns a description of the fault of a stored scale; empty if it fits."""
    return (
        not_positive(weight, scale, kernel)
        or _moved_from_one(weight, scale)
        or ("" if kernel is None else _too_small(weight, scale, kernel))
    )


def _moved_from_one(weight: Any, scale: Any) -> str:
    """Returns the fault of a scale that differs from 1 although nothing changes it."""
    mapping, chip = weight.hardware.mapping, weight.hardware
    if chip.remaps or (mapping is not None and mapping.weight_scaling_omega):
        return ""
    found = jnp.asarray(scale, jnp.float32)
    far = max(
        float(jnp.min(found)), float(jnp.max(found)), key=lambda value: abs(value - 1)
    )
    if abs(far - 1) < _ROUNDING - 1:
        return ""
    return (
        f"is {far:.3g}, but the hardware of {weight.path} has no weight_scaling_omega "
        "and no remap: its scale is 1. It seems to come from other hardware"
    )


def _too_small(weight: Any, scale: Any, kernel: Any) -> str:
    """Returns the fault of a scale that is too small for its weights."""
    largest = largest_stored(weight)
    if largest is None:
        return ""
    matrix = weight.to_matrix(jnp.asarray(kernel, jnp.float32))
    w_max = statistics.absolute_maximum(matrix, weight.row_sizes, per_column=True)
    found = float(jnp.max(w_max / weight.of_columns(jnp.asarray(scale))))
    if found <= _ROUNDING * largest:
        return ""
    return (
        f"belongs to other weights than {weight.path}: in its unit the largest is "
        f"{found:.3g}, where clip and mapping allow at most {largest:g}"
    )


def _has_output_scale(weight: Any, when: When) -> bool:
    return weight.kind != "raw" and weight.hardware.scales_outputs


def _output_shapes(weight: Any) -> Shapes:
    mapping = weight.hardware.mapping
    each = mapping is not None and mapping.out_scaling_columnwise
    return ((weight.tiles[0], sum(weight.column_sizes) if each else 1),)


def _in_kernel(weight: Any, kernel: jax.Array, leaf: jax.Array) -> jax.Array:
    if weight.derived:
        raise InputError(
            f"{weight.leaf(OUTPUT_SCALE)} cannot become part of {weight.stored}, "
            f"which its {weight.layer} does not multiply by: {weight.derived}. "
            "Keep the analog parameters, or train without learn_out_scaling"
        )
    return (kernel * weight.spread(leaf)).astype(kernel.dtype)


MAPPING_SCALE = LeafSpec(
    name="mapping_scale",
    when=("model", "chip", "step"),
    there=_is_there,
    shapes=_shapes,
    initial=lambda weight, matrix: weight.initial_scale(matrix),
    trained="remap",
    positive=True,
    unit="unit of the nominal weight per unit of crossbar weight",
    fits=_misfit,
)
"""Logical weight per unit of crossbar weight, for each tile or column.

A model stores it only if a clip or remapping needs it. The scale of a chip, and of a
step, is that of the nominal weights.
"""

OUTPUT_SCALE = LeafSpec(
    name="output_scale",
    there=_has_output_scale,
    shapes=_output_shapes,
    unit="1",
    in_kernel=_in_kernel,
)
"""Learned factor on the outputs of each row of tiles, `[row tiles, columns or 1]`."""


@configuration
class MappingParameter(Described):
    r"""The layout of a weight matrix on crossbars.

    The matrix is cut into tiles of at most `max_input_size` x `max_output_size`, of
    balanced sizes. A crossbar holds :math:`w = W / s` with
    :math:`s = \max |W| / \omega` of its row tile, so that its largest weight is
    :math:`\omega`. The output is multiplied by :math:`s` and optionally by a learned
    :math:`\gamma`: :math:`y = \sum_r \gamma_r s_r (w_r x_r) + b`.

    >>> MappingParameter(weight_scaling_omega=1.0).max_input_size
    512

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """

    max_input_size: Limit = 512
    """Maximum number of rows (inputs) of a tile; `None` for no limit."""
    max_output_size: Limit = 512
    """Maximum number of columns (outputs) of a tile; `None` for no limit."""
    weight_scaling_omega: NonNegative = 0.0
    """The largest weight on a crossbar. Zero turns scaling off: s = 1."""
    weight_scaling_columnwise: bool = False
    """Use a separate scale for each column (output)."""
    learn_out_scaling: bool = False
    """Multiply the outputs of each row of tiles digitally by a learned factor,
    initially 1. Biases are always digital."""
    out_scaling_columnwise: bool = False
    """Learn a separate factor for each column (output)."""

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its table cells: the scale of crossbars, and that of outputs."""
        output = "column" if self.out_scaling_columnwise else "row tile"
        learned = f"learned per {output}" if self.learn_out_scaling else ""
        return {ctx.column: self._scale(ctx.weight.hardware), "output scale": learned}

    def _scale(self, chip: Any) -> str:
        if self.weight_scaling_omega == 0:
            start = "stored, 1 at first, remapped" if chip.remaps else "stored, 1"
            return start if chip.stores_scale else ""
        each = "column" if self.weight_scaling_columnwise else "tile"
        how = "stored, remapped" if chip.remaps else "stored"
        how = how if chip.stores_scale else "derived"
        return f"max|W|/{self.weight_scaling_omega:g} per {each}, {how}"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weight_scaling_columnwise and not self.weight_scaling_omega:
            raise InputError(
                "weight_scaling_columnwise=True does nothing with "
                "weight_scaling_omega=0; leave it out or write "
                "weight_scaling_omega=1.0"
            )
        if self.out_scaling_columnwise and not self.learn_out_scaling:
            raise InputError(
                "out_scaling_columnwise=True does nothing without "
                "learn_out_scaling=True: write it beside, or leave it out"
            )
        return self
