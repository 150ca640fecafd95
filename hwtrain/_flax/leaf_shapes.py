"""Finds leaves of stages whose shapes do not fit the stage, before the first call."""

import functools
import re
from typing import Any

import jax

from hwtrain._errors import InputError
from hwtrain._parts.part import Part
from hwtrain._parts.source import reason
from hwtrain._plan.weight import AnalogWeight
from hwtrain.periphery import analog_mvm

_OF_SHAPES = re.compile(
    "broadcast|incompatible shapes|reshape|should return outputs of the shape",
    re.IGNORECASE,
)


@functools.lru_cache(maxsize=4096)
def check_stages(weight: AnalogWeight) -> None:
    """Raises for a stage that cannot compute with its leaves, by tracing it alone.

    Which shapes fit is known to the stage only: it may read a table, or index a leaf.

    Args:
      weight: the plan of an array.

    Raises:
      ValueError: naming the part, its leaves, and the shapes of an output.
    """
    for stage in weight.hardware.forward.stages if weight.hardware.forward else ():
        if stage.leaves(weight):
            _check(weight, stage)


def _check(weight: AnalogWeight, stage: Part) -> None:
    rows, columns = sum(weight.row_sizes), sum(weight.column_sizes)
    x = jax.ShapeDtypeStruct((2, rows), "float32")
    w = jax.ShapeDtypeStruct((rows, columns), "float32")
    specs = [leaf for leaf in stage.leaves(weight) if leaf.there(weight, "model")]
    shapes = {leaf.name: leaf.shapes(weight)[0] for leaf in specs}
    leaves = {x.name: jax.ShapeDtypeStruct(shapes[x.name], x.dtype) for x in specs}

    def call(x: Any, w: Any, leaves: Any) -> Any:
        return analog_mvm(
            x,
            w,
            (stage,),
            row_sizes=weight.row_sizes,
            column_sizes=weight.column_sizes,
            leaves=leaves,
        )

    try:
        jax.eval_shape(call, x, w, leaves)
    except Exception as error:
        # Another one may be due to what is left out here; if not, a call raises it.
        if _OF_SHAPES.search(str(error)):
            raise _misfit(weight, stage, shapes, reason(error)) from error


def _misfit(
    weight: AnalogWeight, stage: Part, shapes: dict[str, Any], why: str
) -> ValueError:
    tiles, width = weight.tiles, max(weight.column_sizes)
    given = " and ".join(f"{name!r} of the shape {shapes[name]}" for name in shapes)
    first = next(iter(shapes))
    wide = (*tiles, width)
    return InputError(
        f"{weight.path or weight.kind}: {type(stage).__name__} does not fit its leaf "
        f"{given} ({why}). The outputs of its tiles are [..., "
        f"{', '.join(map(str, wide))}], so give shapes= one of: {tiles}, a number for "
        f"each tile, read as ctx.leaf({first!r})[..., None]; {wide}, one for each "
        "output of a tile; (), one for all"
    )
