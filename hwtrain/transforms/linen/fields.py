"""Fields of a bound Linen module, replaced for a call."""

import contextlib
from typing import Any

from flax import linen as nn


@contextlib.contextmanager
def replaced_fields(module: nn.Module, **fields: Any):
    """Sets fields of a frozen, bound module for the duration of a call."""
    before = {name: getattr(module, name) for name in fields}
    try:
        for name, value in fields.items():
            object.__setattr__(module, name, value)
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)
