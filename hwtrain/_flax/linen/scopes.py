"""Which modules of a call belong to an analog Linen root.

Inside a root's call, a user may run other models: a frozen teacher by its own `apply`,
a clone of a layer with variables of its own, or a module that is bound elsewhere. Their
paths begin anew, so that by path they would be taken for the root's layers, and get
converters that are not theirs. What belongs to the root is known by its scope: Flax
hands the flags of a scope on to those within, also through lifted transforms.
"""

import contextlib
from collections.abc import Callable, Iterator

from flax import linen as nn

from hwtrain._flax.linen import flax_internals as internals
from hwtrain._flax.linen.call_record import call, changed


@contextlib.contextmanager
def belonging(root: nn.Module) -> Iterator[Callable[[nn.Module], bool]]:
    """Gives a function that says of a module in a call whether it is the root's.

    Args:
      root: a bound module, before or in its call.
    """
    # By depth: equal calls are to be equal, since flags are part of a key of `nn.jit`.
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
    """Says of a module whose `setup` runs before its root's method that it is ours."""
    return True


def _flagged(root: nn.Module, flag: str) -> list[Callable[[], None]]:
    """Puts a flag on the scopes of a module and of what it holds already.

    Returns:
      What takes the flags away, in this order.
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
