"""What a noise model around another one declares of it, changed."""

from collections.abc import Callable
from typing import Any


class ChangedProof:
    """A context of a proof that changes what NumPy draws before it is compared."""

    def __init__(self, ctx: Any, change: Callable[[Any], Any]) -> None:
        """Takes the context, and a function from one sample to another."""
        self._ctx, self._change = ctx, change

    def behaves(self, sample: Callable[..., Any]) -> None:
        """Requires that devices are distributed as the changed sample draws them."""
        self._ctx.behaves(self._change(sample))
