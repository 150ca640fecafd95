"""The values that the variables of an NNX state store."""

from typing import Any

from flax import nnx


def stored(state: Any) -> dict[str, Any]:
    """Returns the values of a state as nested dicts, as they are stored.

    A variable with a `get_value` of its own gives others to who reads it.

    Args:
      state: an `nnx.State`.
    """
    return nnx.to_pure_dict(
        state, lambda x: x.get_raw_value() if isinstance(x, nnx.Variable) else x
    )
