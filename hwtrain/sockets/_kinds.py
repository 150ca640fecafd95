"""The kinds of products, as rows of the table and manifests name them."""

from typing import NamedTuple

from hwtrain._plan.leaf_names import SHARED


class Kind(NamedTuple):
    """Properties of the arrays that layers of one kind multiply by.

    Attributes:
      window: whether the array is the kernel of a convolution.
      local: whether each output position has its own weights.
      equation: whether an equation defines the axes.
      arrays: names reserved for arrays of this kind; empty if any name is allowed.
      named: description of such a name, for messages.
      rows: input axes, counted behind the stack axes, if all arrays of the kind share
        them.
      columns: output axes, likewise.
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
"""By name. The names are part of the file format and must not change. `raw` is
not a layer."""
