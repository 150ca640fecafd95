"""All that hwtrain needs of NNX beyond what Flax documents.

Nothing else in the package touches it. Each function says why the documented way does
not do; `tests/transforms/test_flax_internals.py` says what each expects of Flax.
"""

from typing import Any

from flax.nnx.nn import linear


def canonical_padding(padding: Any, rank: int) -> Any:
    """Returns the padding of a convolution as its layer hands it on."""
    return linear.canonicalize_padding(padding, rank)


def shallow_copy(module: Any, cls: type, **attributes: Any) -> Any:
    """Returns a module of another class that shares a module's variables.

    `nnx.clone` copies them, and a merge of a split gives new ones.

    Args:
      module: the module.
      cls: its class, or another of the same layout.
      **attributes: what the copy has instead.
    """
    copy = object.__new__(cls)
    copy.__dict__.update(module.__dict__, **attributes)
    return copy
