"""The columns of `inspect`, as described by the parts of a weight's hardware."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hwtrain._flax.weight_side import local
from hwtrain._parts.leaf import LeafSpec
from hwtrain._parts.part import Described
from hwtrain._parts.texts import span
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.weights import MappingParameter

PERIPHERY = "periphery"

COLUMNS = {
    "modifier": "weight noise",
    "clip": "clip",
    "remap": "remap",
    "drift": "training drift",
    "mismatch": "mismatch",
    "converter": "conductances",
    "noise_model": "programming",
    "drift_compensation": "programming",
    "stuck": "stuck",
    "noise_current": "noise current",
}
"""The columns of parts that act on weights, by the field of `Hardware`."""


@dataclasses.dataclass(frozen=True)
class Cells:
    """The context in which a part describes itself.

    Attributes:
      column: the column of this kind of part.
      weight: the plan of the weight.
      plan: the plan of the model.
      values: the parameters by path.
    """

    column: str
    weight: AnalogWeight
    plan: Plan
    values: Mapping[str, Any]

    missing = "missing: see hwtrain.adopt"
    """Text for a missing leaf."""

    def leaf(self, name: str) -> np.ndarray | None:
        """Returns a leaf beside the weight, or `None`."""
        value = self.values.get(local(self.plan, self.weight.leaf(name)))
        return None if value is None else np.asarray(value)


def columns(weight: AnalogWeight, plan: Plan, values: dict[str, Any]) -> dict[str, str]:
    """Returns the columns of a weight by name.

    Args:
      weight: the weight.
      plan: its plan.
      values: the parameters by path.
    """
    cells = collections.defaultdict(list)
    for column, part in _parts(weight):
        said = part.describe_in(Cells(column, weight, plan, values))
        for name, text in said.items():
            cells[name] += [text] if text else []
    if weight.kind == "embed" and cells[PERIPHERY]:
        # A look-up reads weights without multiplying by them.
        cells[PERIPHERY].append("in attend only")

    def of(*names: str, none: str = "none") -> dict[str, str]:
        return {name: ", ".join(cells[name]) or none for name in names}

    own = any(other.own_leaves for other in plan.weights)
    return {
        "weight": weight.path,
        "layer": _layer(weight),
        "derived": weight.derived or "no",
        "shape": "x".join(map(str, weight.shape)),
        "tiles": _tiles(weight),
        **of("scale", "output scale", none="1"),
        **of("input range", "bits", PERIPHERY, "weight noise", "clip", "remap"),
        **of("training drift", "mismatch", "conductances", "programming"),
        **of("noise at g_max", "stuck"),
        **(of("noise current") if "noise current" in cells else {}),
        **({"leaves": _leaves(weight, plan, values)} if own else {}),
        "by": weight.rule,
    }


def _parts(weight: AnalogWeight) -> Iterator[tuple[str, Described]]:
    """Yields the parts of a weight's hardware, with the column of each."""
    chip = weight.hardware
    yield "scale", chip.mapping or MappingParameter()
    if weight.kind != "raw":  # which has no periphery
        if chip.averages:
            yield "input range", chip.range
        elif chip.input_range is not None:
            yield "input range", chip.input_range
        given = () if chip.forward is None else chip.forward.stages
        for stage in chip.stages:
            if stage not in given:  # made from the periphery's own fields
                yield "", stage
        if chip.forward is not None:
            yield PERIPHERY, chip.forward
        for stage in given:
            yield PERIPHERY, stage
    for field, column in COLUMNS.items():
        part = getattr(chip, field)
        if part is not None:
            yield column, part


def _layer(weight: AnalogWeight) -> str:
    """Returns the layer's class, and the window of a convolution."""
    window = weight.window
    if window is None:
        return weight.layer or "parameter"
    steps = (
        ("stride", window.strides),
        ("dilation", window.kernel_dilation),
        ("input dilation", window.input_dilation),
    )
    padding = window.border_mode if window.border else window.padding
    facts = [f"{weight.layer} {'x'.join(map(str, window.sizes))}"]
    facts += [f"{name} {'x'.join(map(str, s))}" for name, s in steps if max(s) > 1]
    facts += [f"padding {padding}"]
    facts += [f"{window.groups} groups"] if window.groups > 1 else []
    facts += ["weights of its own at each position"] if window.local else []
    facts += ["masked"] if window.mask else []
    return ", ".join(facts)


def _tiles(weight: AnalogWeight) -> str:
    rows, columns = weight.tiles
    largest = f"{weight.row_sizes[0]}x{weight.column_sizes[0]}"
    stack = f"{math.prod(weight.stack)} x " if weight.stack else ""
    said = f"{stack}{rows}x{columns} of {largest}"
    mapping = weight.hardware.mapping
    high = mapping.max_input_size if mapping else None
    wide = mapping.max_output_size if mapping else None
    share = sum(weight.row_sizes) / (rows * high) if high else 1.0
    share *= sum(weight.column_sizes) / (columns * wide) if wide else 1.0
    if high and wide:
        return f"{said}, {share:.0%} of the limit of {high}x{wide}"
    limits = [f"{high} rows"] if high else [f"{wide} columns"] if wide else []
    return ", ".join([said, *(f"{share:.0%} of the limit of {x}" for x in limits)])


def _leaves(weight: AnalogWeight, plan: Plan, values: dict[str, Any]) -> str:
    """Returns the leaves of users' parts."""
    found = []
    for leaf in weight.own_leaves:
        value = np.asarray(values[local(plan, weight.leaf(leaf))], np.float32)
        value = value[..., _real_outputs(weight)] if _padded(weight, leaf) else value
        found.append(f"{leaf.name} {span(value.min(), value.max())} ({leaf.unit})")
    return ", ".join(found) or "none"


def _padded(weight: AnalogWeight, leaf: LeafSpec) -> bool:
    """Whether a leaf has a number for each output of tiles of several widths."""
    widths = weight.column_sizes
    of_outputs = (*weight.tiles, max(widths))
    return len(set(widths)) > 1 and leaf.shapes(weight) == (of_outputs,)


def _real_outputs(weight: AnalogWeight) -> np.ndarray:
    """Returns a mask `[row tiles, column tiles, outputs]` of outputs not of padding."""
    widths = np.array(weight.column_sizes)
    real = np.arange(widths.max()) < widths[:, None]
    return np.broadcast_to(real, (weight.tiles[0], *real.shape))
