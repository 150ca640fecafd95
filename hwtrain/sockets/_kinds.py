"""How layers multiply: the kinds that rows of the table, and manifests, name."""

from typing import NamedTuple

from hwtrain._plan.leaf_names import SHARED


class Kind(NamedTuple):
    """What an array has that a layer of this kind multiplies by.

    Attributes:
      window: whether it is the kernel of a convolution.
      local: whether each position has weights of its own.
      equation: whether an equation says its axes.
      arrays: the names that only arrays of this kind have; none if it may have any.
      named: what such a name is called.
      rows: its axes that are inputs, behind those of a stack, where all have the same.
      columns: its axes that are outputs, likewise.
    """

    window: bool = False
    local: bool = False
    equation: bool = False
    arrays: tuple[str, ...] = ()
    named: str = ""
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()


KINDS = {
    "dense": Kind(),
    "einsum": Kind(equation=True),
    "embed": Kind(
        arrays=("embedding",), named="the name embedding", rows=(1,), columns=(0,)
    ),
    "lora": Kind(arrays=SHARED, named="the name of a factor", rows=(0,), columns=(1,)),
    "raw": Kind(),
    "conv": Kind(window=True),
    "conv_transpose": Kind(window=True),
    "conv_local": Kind(window=True, local=True),
}
"""By name: words of the format, which stay. `raw` is no layer."""
