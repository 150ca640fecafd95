"""The plan of one array of weights on crossbars. Plain, static, hashable data.

Column noise, the maximum of each layer of a stack, tiling, clipping and the export all
depend on the layer behind an array. They read it from here instead of guessing from
names or ranks.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hwtrain._arrays import statistics, tiling
from hwtrain._arrays.random import draw_name
from hwtrain._arrays.windows import Window, unpack
from hwtrain._errors import InputError
from hwtrain._parts.leaf import LeafSpec, Shapes, When
from hwtrain._parts.part import Part
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.leaf_names import (
    BUILT_IN,
    EFFECTIVE,
    OF_A_STEP,
    OWNERS,
    SHARED,
    reserved,
)
from hwtrain._plan.quantities import quantity_of
from hwtrain.weights import MappingParameter
from hwtrain.weights.clip import CLIP_BOUND
from hwtrain.weights.mapping import MAPPING_SCALE

FROZEN = ", frozen=True)"
"""Ending of the text of a rule that freezes its arrays."""


# For JSON input: no unknown fields, and no strings or booleans in place of numbers.
_STRICT = {"strict": True, "extra": "forbid", "allow_inf_nan": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalogWeight:
    """One array of weights that lies on crossbars.

    Attributes:
      path: path of the array, such as `"hidden/kernel"`.
      kind: how its layer multiplies: `"dense"`, `"einsum"`, `"embed"`, `"lora"`,
        `"conv"`, `"conv_transpose"` or `"conv_local"`; or `"raw"` for an array that a
        rule names.
      layer: class name of the layer; empty for a raw array.
      shape: shape of the stored array.
      rows: input axes of the stored array.
      columns: output axes of the stored array. The remaining axes lead, and count the
        layers of a stack.
      hardware: the chip it lies on.
      rule: the rule that put it there, as text.
      ranged: whether the layer clips its inputs to a learned range.
      window: for a convolution, how its window moves over the input.
      equation: for an einsum, its equation.
      derived: why its layer multiplies by weights computed from the stored ones, such
        as `"a WeightNorm computes that from it at every call"`; `None` if it multiplies
        by the stored ones.
    """

    __pydantic_config__ = _STRICT

    path: str
    kind: str
    layer: str
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    hardware: Hardware
    rule: str
    ranged: bool
    window: Window | None = None
    equation: str = ""
    derived: str | None = None

    def __post_init__(self):
        lead = tuple(range(len(self.shape) - len(self.rows) - len(self.columns)))
        if sorted(lead + self.rows + self.columns) != list(range(len(self.shape))):
            raise InputError(
                f"{self.path}: the axes of a stack of layers must lead, and every "
                f"other axis be a row or a column; got shape {self.shape}, rows "
                f"{self.rows}, columns {self.columns}. Stack on axis 0 "
                "(variable_axes={'params': 0}, in_axes=0)"
            )
        if self._size(self.columns) % self.groups:
            raise InputError(
                f"{self.path}: {self._size(self.columns)} outputs cannot be divided "
                f"into {self.groups} groups"
            )
        self._check_logarithm()
        self._check_own_leaves()
        if self.kind == "raw" and self.hardware.remaps:
            raise InputError(
                f"{self.path}: remapping needs a mapping scale beside the kernel of a "
                "layer, but a parameter named by a rule has none. Give its rule a "
                "Hardware without remap"
            )

    def _check_own_leaves(self) -> None:
        """Raises for leaves of users' parts whose names are not theirs alone."""
        taken = {leaf.name for leaf in BUILT_IN}
        for leaf in self.hardware.leaves(self):
            why, meaning = leaf.own_fault, reserved(leaf.name)
            why = why or leaf.shapes_fault(self) or self._modifier_fault(leaf)
            if meaning:
                why = f"this name {meaning}; call it otherwise"
            if leaf.name in taken:
                why = "another leaf has that name; choose another one"
            if self.kind == "raw":
                why = (
                    "a parameter named by a rule has no leaves beside it. Give its "
                    "rule a Hardware without that part"
                )
            if why:
                raise InputError(f"{self.path}: the leaf {leaf.name!r}: {why}")
            taken.add(leaf.name)

    def _modifier_fault(self, leaf: LeafSpec) -> str:
        """The reason why the shape of a modifier's leaf is invalid, if it is one."""
        modifier: Any = self.hardware.modifier
        own = modifier.leaves(self) if isinstance(modifier, Part) else ()
        if leaf.name not in {x.name for x in own}:
            return ""
        columns = (self.tiles[0], sum(self.column_sizes))
        wrong = [x for x in leaf.shapes(self) if x not in (self.tiles, columns)]
        if not wrong:
            return ""
        return (
            f"{type(modifier).__name__} gives it the shape {wrong[0]}, but a leaf of a "
            f"modifier is [row tiles, column tiles], {self.tiles}, or [row tiles, "
            f"columns], {columns}"
        )

    def _check_logarithm(self) -> None:
        """Raises for noise relative to a logarithm, which is zero at first."""
        if self.kind != "raw" or quantity_of(self.path.rpartition("/")[2]) is None:
            return
        for name, kind in (
            ("mismatch", "MismatchParameter"),
            ("modifier", "WeightModifierParameter"),
        ):
            noise = getattr(self.hardware, name)
            if noise is None or noise.type not in ("add_normal", "mult_normal"):
                continue
            if noise.type == "mult_normal" or noise.rel_to_actual_wmax:
                raise InputError(
                    f"{self.path}: this is the logarithm of a quantity, zero at first, "
                    f"and a {name} relative to it does nothing there; write "
                    f'Hardware({name}={kind}(type="add_normal", std_dev=..., '
                    "rel_to_actual_wmax=False)), the quantity's relative deviation"
                )

    @property
    def nameless(self) -> "AnalogWeight":
        """Copy without names: equal for all arrays of one shape on one hardware."""
        return dataclasses.replace(self, path="", layer="", rule="", derived=None)

    @property
    def layer_path(self) -> str:
        """Path of the layer that the array belongs to."""
        return self.path.rpartition("/")[0]

    @property
    def owner(self) -> str:
        """Name of its periphery's draws: its layer's path, or its own if not alone."""
        return self.layer_path if self.alone else self.path

    @property
    def step_draws(self) -> tuple[str, ...]:
        """The names from which its draws of a step derive their keys."""
        of_layer = ("periphery", "frozen_periphery")
        return (
            draw_name(self.path, "weight_noise"),
            draw_name(self.path, "noise_current"),
            *(draw_name(self.owner, effect) for effect in of_layer),
        )

    @property
    def groups(self) -> int:
        """Number of channel groups, each with its own matrix."""
        return self.window.groups if self.window is not None else 1

    @property
    def stack(self) -> tuple[int, ...]:
        """Sizes of the leading axes of `to_matrix`, which count the matrices.

        They are the layers of a stack, the output positions of a convolution without
        shared weights, and the groups of a convolution if it has several.
        """
        return (*self._leading, self.groups) if self.groups > 1 else self._leading

    @property
    def parallel(self) -> tuple[int, ...]:
        """The last sizes of `stack`: the matrices of one layer, if it has several."""
        count = int(self.groups > 1)
        if self.window is not None and self.window.local:
            count = len(self.window.sizes)
        return self.stack[len(self.stack) - count :]

    @property
    def _leading(self) -> tuple[int, ...]:
        return self.shape[: len(self.shape) - len(self.rows) - len(self.columns)]

    @property
    def row_sizes(self) -> tuple[int, ...]:
        """Number of rows of each row tile."""
        limit = self._mapping.max_input_size
        return tiling.split_sizes(self._size(self.rows), limit)

    @property
    def column_sizes(self) -> tuple[int, ...]:
        """Number of columns of each column tile."""
        limit = self._mapping.max_output_size
        return tiling.split_sizes(self._size(self.columns) // self.groups, limit)

    @property
    def tiles(self) -> tuple[int, int]:
        """Number of row tiles and column tiles."""
        return len(self.row_sizes), len(self.column_sizes)

    @property
    def _mapping(self) -> MappingParameter:
        no_limit = MappingParameter(max_input_size=None, max_output_size=None)
        return self.hardware.mapping or no_limit

    def _sizes(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in axes)

    def _size(self, axes: tuple[int, ...]) -> int:
        return math.prod(self._sizes(axes))

    @property
    def array(self) -> str:
        """Name of the array in its layer, such as `"kernel"`."""
        name = self.path.rpartition("/")[2]
        return name.removeprefix(EFFECTIVE) if self.derived else name

    @property
    def stored(self) -> str:
        """Path of the array that the model stores, even if this one is effective."""
        return f"{self.layer_path}/{self.array}".removeprefix("/")

    @property
    def effective(self) -> "AnalogWeight":
        """The plan of the weights that its layer uses, as `materialize` stores them."""
        return dataclasses.replace(self, path=self.effective_path)

    @property
    def effective_path(self) -> str:
        """Path of the leaf for the weights that its layer uses, if they are derived."""
        return f"{self.layer_path}/{EFFECTIVE}{self.array}".removeprefix("/")

    @property
    def pending(self) -> bool:
        """Whether the weights that its layer uses are derived and not stored yet."""
        return bool(self.derived) and self.path == self.stored

    def leaf(self, leaf: LeafSpec | str) -> str:
        """Returns the path of a leaf beside the array, from its spec or name."""
        name = self.leaf_name(leaf)
        return f"{self.layer_path}/{name}" if self.layer_path else name

    def leaf_name(self, leaf: LeafSpec | str) -> str:
        """Returns the name of a leaf in the layer, such as `"lora_a_probe"`."""
        name = leaf if isinstance(leaf, str) else leaf.name
        # A neuron has several capacitances, each with noise of its own.
        shared = self.alone and not (self.kind == "raw" and name in OF_A_STEP)
        return name if shared else f"{self.array}_{name}"

    def leaves(self, when: When = "model") -> tuple[LeafSpec, ...]:
        """Returns the leaves that lie beside the array.

        Args:
          when: `"model"` for the parameters of the model, `"chip"` for those that a
            chip adds, `"step"` for those that exist during a step.
        """
        every = (*BUILT_IN, *self.hardware.leaves(self))
        return tuple(x for x in every if when in x.when and x.there(self, when))

    @property
    def own_leaves(self) -> tuple[LeafSpec, ...]:
        """The leaves of users' parts that lie beside the array."""
        return tuple(x for x in self.leaves() if x not in BUILT_IN)

    def value_of(
        self, leaf: LeafSpec, leaves: Mapping[str, Any], prefix: str = ""
    ) -> Any:
        """Returns the value of a leaf of the model; `None` if it is not there.

        Args:
          leaf: the leaf.
          leaves: the leaves of the parameters, by path.
          prefix: prefix of the plan's paths that the paths of `leaves` lack.
        """
        path = self.leaf(leaf).removeprefix(f"{prefix}/")
        return leaves[path] if path in leaves and leaf.there(self, "model") else None

    @property
    def alone(self) -> bool:
        """Whether its leaves and draws are named after its layer, not after itself."""
        if self.kind == "raw":
            return self.array not in SHARED
        return self.array in OWNERS

    @property
    def frozen(self) -> bool:
        """Whether its rule keeps the array and its leaves from being trained."""
        return self.rule.endswith(FROZEN)

    @property
    def differs(self) -> bool:
        """Whether chips differ in it, or in what is frozen around its tiles."""
        around = self.kind != "raw" and self.hardware.freezes("chip")
        return self.hardware.frozen or around

    @property
    def stores_scale(self) -> bool:
        """Whether a leaf beside the array holds its mapping scale."""
        return self.kind != "raw" and self.hardware.stores_scale

    def stored_scale(self, leaves: Mapping[str, Any], prefix: str = "") -> Any:
        """Returns the stored mapping scale; `None` if it is derived.

        Args:
          leaves: the leaves of the parameters, by path.
          prefix: prefix of the plan's paths that the paths of `leaves` lack.
        """
        return self.value_of(MAPPING_SCALE, leaves, prefix)

    @property
    def leaf_shapes(self) -> dict[str, Shapes]:
        """The possible shapes of each leaf beside the array, by name."""
        return {leaf.name: leaf.shapes_of(self) for leaf in self.leaves()}

    @property
    def beside(self) -> frozenset[str]:
        """The names of all leaves that its hardware may ever put beside the array.

        Those in the model's parameters, in a chip's, and during a step.
        """
        every: tuple[When, ...] = ("model", "chip", "step")
        return frozenset(leaf.name for when in every for leaf in self.leaves(when))

    @property
    def owned(self) -> frozenset[str]:
        """The paths of all leaves that its hardware may ever put into the layer."""
        paths = {self.leaf(name) for name in self.beside}
        return frozenset(paths | ({self.effective_path} if self.derived else set()))

    def stored_bound(self, leaves: Mapping[str, Any], prefix: str = "") -> Any:
        """Returns the learned clip bound; `None` if there is none."""
        return self.value_of(CLIP_BOUND, leaves, prefix)

    def to_matrix(self, array: jax.Array) -> jax.Array:
        """Returns the stored array as `[*stack, rows, columns]`.

        Weights that the layer's mask leaves out are zero.
        """
        if self.window is not None and self.window.mask:
            seen = self.shape[-len(self.window.sizes) - 2 :]
            array = jnp.where(unpack(self.window.mask, seen), array, 0)
        array, depth = jnp.transpose(array, self._order), len(self._leading)
        array = tiling.merged(array, depth + len(self.rows), array.ndim)
        matrix = tiling.merged(array, depth, array.ndim - 1)
        if self.groups == 1:
            return matrix
        width = matrix.shape[-1] // self.groups
        matrix = tiling.gathered(tiling.gathered(matrix, -1), -2)
        matrix = tiling.parted(matrix, depth + 1, (self.groups, width))
        return jnp.moveaxis(matrix, -2, -3)

    def from_matrix(self, matrix: jax.Array) -> jax.Array:
        """Undoes `to_matrix`."""
        depth = len(self._leading)
        if self.groups > 1:
            matrix = jnp.moveaxis(matrix, -3, -2)
            for axis in range(depth, matrix.ndim):
                matrix = tiling.gathered(matrix, axis)
            matrix = tiling.merged(matrix, depth + 1, depth + 3)
        rows, columns = self._sizes(self.rows), self._sizes(self.columns)
        array = tiling.parted(matrix, depth + 1, columns)
        array = tiling.parted(array, depth, rows)
        return jnp.transpose(array, self._inverse)

    @property
    def _order(self) -> tuple[int, ...]:
        return (*range(len(self._leading)), *self.rows, *self.columns)

    @property
    def _inverse(self) -> tuple[int, ...]:
        return tuple(sorted(range(len(self.shape)), key=self._order.__getitem__))

    def spread(self, statistic: jax.Array) -> jax.Array:
        """Returns a statistic of tiles, broadcastable against the stored array.

        Args:
          statistic: `[*stack, row tiles, columns, column tiles or 1]`.
        """
        statistic = self.of_columns(statistic)
        rows = tiling.expand_rows(statistic, self.row_sizes)
        if self.groups > 1:
            width = self._size(self.columns) // self.groups
            rows = jnp.moveaxis(rows, -3, -2)  # [*layers, rows, groups, columns]
            rows = jnp.broadcast_to(rows, (*rows.shape[:-1], width))
            rows = tiling.merged(rows, rows.ndim - 2, rows.ndim)
        depth = len(self._leading)
        for axis, axes in ((depth + 1, self.columns), (depth, self.rows)):
            sizes = self._sizes(axes) if rows.shape[axis] > 1 else (1,) * len(axes)
            rows = tiling.parted(rows, axis, sizes)
        return jnp.transpose(rows, self._inverse)

    def of_columns(self, statistic: jax.Array) -> jax.Array:
        """Expands a statistic of tiles to columns, `[..., columns or 1]`.

        Args:
          statistic: `[*stack, row tiles, columns, column tiles or 1]`.
        """
        return tiling.expand_columns(statistic, self.column_sizes)

    def derived_scale(
        self,
        matrix: jax.Array,
        bound: jax.Array | None = None,
        *,
        update: jax.Array | None = None,
    ) -> jax.Array | None:
        r"""Returns the mapping scale of nominal weights, or `None` for 1.

        .. math:: s = \max |W| / \omega \quad\text{or}\quad s = c / \omega

        of each physical tile, or of each of its columns.

        Args:
          matrix: `[*stack, rows, columns]`.
          bound: c, `[*stack, row tiles, columns]`, the learned clip bound, used as the
            full scale; `None` to use the largest weights.
          update: added to the matrix, of its shape; `None` for none.

        Returns:
          `[*stack, row tiles, columns or column tiles]`; 1 where all weights are zero.
        """
        mapping = self._mapping
        omega, columnwise = (
            mapping.weight_scaling_omega,
            mapping.weight_scaling_columnwise,
        )
        if omega == 0:
            return None
        if bound is not None:
            w_max = jnp.abs(bound)
        else:
            each = columnwise or self.tiles[1] > 1
            w_max = statistics.absolute_maximum(
                matrix, self.row_sizes, per_column=each, update=update
            )
        if not columnwise and w_max.shape[-1] > 1:
            w_max = tiling.over_columns(jnp.max, w_max, self.column_sizes)
        return jnp.where(w_max > 0, w_max / omega, 1).astype(jnp.float32)

    def initial_bound(self, matrix: jax.Array) -> jax.Array:
        """Returns the initial value of the learned clip bound: the largest weights.

        Args:
          matrix: `[*stack, rows, columns]`, nominal weights.

        Returns:
          `[*stack, row tiles, columns]`; 1 where all weights are zero.
        """
        w_max = statistics.absolute_maximum(matrix, self.row_sizes, per_column=True)
        return jnp.where(w_max > 0, w_max, 1).astype(jnp.float32)

    @property
    def unit_scale(self) -> jax.Array:
        """The mapping scale of unscaled weights, `[*stack, *tiles]`."""
        return jnp.ones((*self.stack, *self.tiles), jnp.float32)

    def initial_scale(self, matrix: jax.Array) -> jax.Array:
        """Returns the initial value of a stored mapping scale.

        Args:
          matrix: `[*stack, rows, columns]`, nominal weights.

        Returns:
          The derived scale, or 1 without scaling: `[*stack, row tiles, columns]` if the
          mapping or the remapping has a scale per column, else
          `[*stack, row tiles, column tiles]`.
        """
        scale = self.derived_scale(matrix)
        scale = self.unit_scale if scale is None else scale
        remap = self.hardware.remap
        if remap is not None and remap.per_column:
            scale = self.of_columns(scale)
            return jnp.broadcast_to(scale, (*scale.shape[:-1], matrix.shape[-1]))
        return scale


def acts_in_product(weight: AnalogWeight) -> bool:
    """Whether hardware acts in the product, and not only on the array before it."""
    chip = weight.hardware
    around = weight.ranged or chip.converts or chip.scales_outputs
    return around or chip.modifies_in_layer("train")
