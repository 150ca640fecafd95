"""Tells which modules in a call belong to an analog Linen root.

Inside a root's call, a user may run other models: a frozen teacher with its own
`apply`, a clone of a layer with its own variables, or a module bound elsewhere. Their
paths start anew, so by path they could be mistaken for the root's layers and get
converters. The root's modules are recognised by their scopes instead: scopes inherit
flags, also through lifted transforms.
"""

import contextlib
from collections.abc import Callable, Iterator

from flax import linen as nn

from hwtrain._flax.linen import flax_internals as internals
from hwtrain._flax.linen.call_record import call, changed


@contextlib.contextmanager
def belonging(root: nn.Module) -> Iterator[Callable[[nn.Module], bool]]:
    """Yields a function that tells whether a module in a call is the root's.

    Args:
      root: a bound module, before or in its call.
    """
    # The flag is named by depth, not uniquely: flags are part of the key of `nn.jit`,
    # and equal calls must share it.
    depth = call().depth
    flag = f"hwtrain root {depth}"
    undo = _flagged(root, flag)
    try:
        with changed(depth=depth + 1):
            yield lambda module: internals.has_flag(module, flag)
    finally:
        for step in undo:
            step()


def before_the_call(module: nn.Module) -> bool:
    """Treats modules whose `setup` runs before their root's method as the root's."""
    return True


def _flagged(root: nn.Module, flag: str) -> list[Callable[[], None]]:
    """Sets a flag on the scopes of a module and of its existing submodules.

    Returns:
      Functions that remove the flags, to be called in this order.
    """
    undo, waiting, seen = [], [root], set()
    while waiting:
        module = waiting.pop()
        scope = internals.scope_of(module)
        if scope is None or id(module) in seen:
            continue
        seen.add(id(module))
        undo.append(internals.flag(scope, flag))
        waiting += internals.children_of(module)
    return undo[::-1]
