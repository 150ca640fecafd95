"""Which modules of a call belong to an analog Linen root.

Inside a root's call, a user may run other models: a frozen teacher by its own `apply`,
a clone of a layer with variables of its own, or a module that is bound elsewhere. Their
paths begin anew, so that by path they would be taken for the root's layers, and get
converters that are not theirs. What belongs to the root is known by its scope: Flax
hands the flags of a scope on to those within, also through lifted transforms.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

from flax import linen as nn

_depth: contextvars.ContextVar[int] = contextvars.ContextVar("hwtrain_depth", default=0)


@contextlib.contextmanager
def belonging(root: nn.Module) -> Iterator[Callable[[nn.Module], bool]]:
    """Gives a function that says of a module in a call whether it is the root's.

    Args:
      root: a bound module, before or in its call.
    """
    # By depth: equal calls are to be equal, since flags are part of a key of `nn.jit`.
    depth = _depth.get()
    flag = f"hwtrain root {depth}"
    token = _depth.set(depth + 1)
    before = _flagged(root, flag)
    try:
        yield lambda module: module.scope is not None and module.scope.has_flag(flag)
    finally:
        _depth.reset(token)
        for scope, flags in before:
            scope.flags = flags


def before_the_call(module: nn.Module) -> bool:
    """Says of a module whose `setup` runs before its root's method that it is ours."""
    return True


def _flagged(root: nn.Module, flag: str) -> list[tuple[Any, Any]]:
    """Puts a flag on the scopes of a module and of what it holds already.

    Returns:
      The scopes, each with its flags before.
    """
    before, waiting, seen = [], [root], set()
    while waiting:
        module = waiting.pop()
        scope = object.__getattribute__(module, "scope")
        if scope is None or id(module) in seen:
            continue
        seen.add(id(module))
        before.append((scope, scope.flags))
        scope.flags = scope.flags.copy({flag: True})
        children = object.__getattribute__(module, "_state").children.values()
        waiting += [child for child in children if isinstance(child, nn.Module)]
    return before[::-1]
