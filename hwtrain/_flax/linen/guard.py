"""Guards the submodules of an analog Linen model.

A submodule that is called without the root would run as a plain layer, without noise.
So accessing it is an error unless a method of the root is running.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from hwtrain._flax.errors import behind_the_root
from hwtrain._flax.linen import flax_internals as internals
from hwtrain._flax.linen.call_record import call, changed


def is_running(root: nn.Module) -> bool:
    """Whether a method of an analog root is already running."""
    return any(
        running == _identity(root) and (ours is None or ours(root))
        for running, ours in call().running
    )


def entered(
    root: nn.Module, ours: Callable[[nn.Module], bool] | None = None
) -> contextlib.AbstractContextManager[None]:
    """Lets a method of an analog root access its submodules.

    Args:
      root: the root.
      ours: tells whether a module of the root's class and path is this root, not one of
        another model; `None` for only the root, outside a call.
    """
    return changed(running=(*call().running, (_identity(root), ours)))


def _identity(root: nn.Module) -> Any:
    scope = internals.scope_of(root)
    return type(root), scope and internals.path_of(scope)


@nn.nowrap
def guarded_getattribute(self, name: str) -> Any:
    """Replaces `__getattribute__` of a root."""
    return _guard(self, name, object.__getattribute__(self, name))


@nn.nowrap
def guarded_getattr(self, name: str) -> Any:
    """Replaces `__getattr__` of a root."""
    # Python calls this for attributes that setup() has not defined yet.
    return _guard(self, name, nn.Module.__getattr__(self, name))


def _guard(root: nn.Module, name: str, value: Any) -> Any:
    """Raises for access to a submodule that would then run as a plain layer."""
    if name.startswith("_") or name == "parent" or not _holds_layers(value):
        return value
    bound = internals.scope_of(root) is not None
    if not bound or internals.in_setup(root) or is_running(root):
        return value
    raise behind_the_root(f"{type(root).__name__}.{name}")


def _holds_layers(value: Any) -> bool:
    """Whether a value is a bound module, or a container of them."""
    if isinstance(value, nn.Module):
        return internals.scope_of(value) is not None
    if isinstance(value, list | tuple):
        return any(map(_holds_layers, value))
    return isinstance(value, dict) and any(map(_holds_layers, value.values()))


def unguarded(base: type, name: str):
    """Returns a method of Flax's own bookkeeping that may access the submodules."""
    original = getattr(base, name)

    @nn.nowrap
    def method(self, *args, **kwargs):
        with entered(self):
            return original(self, *args, **kwargs)

    functools.update_wrapper(method, original, updated=())
    return method
