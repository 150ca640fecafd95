"""Undocumented parts of NNX that hwtrain uses.

No other module of the package uses any. Each function says why documented ways do not
suffice; `tests/_flax/test_flax_internals.py` tests what they expect of Flax.
"""

from typing import Any

from flax.nnx.nn import linear


def canonical_padding(padding: Any, rank: int) -> Any:
    """Returns the padding of a convolution in the form that its layer passes on."""
    return linear.canonicalize_padding(padding, rank)


def shallow_copy(module: Any, cls: type, **attributes: Any) -> Any:
    """Returns a module of another class that shares a module's variables.

    `nnx.clone` copies them, and merging a split creates new ones.

    Args:
      module: the module.
      cls: its class, or another of the same layout.
      **attributes: attributes to set on the copy.
    """
    copy = object.__new__(cls)
    copy.__dict__.update(module.__dict__, **attributes)
    return copy
