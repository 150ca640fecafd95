"""NNX modules whose results are stored in few bits."""

import functools
from collections.abc import Callable
from typing import Any

from hwtrain._flax.attributes import plain_class
from hwtrain._flax.nnx.layers import reduce_by_base, returning_methods
from hwtrain._flax.stored_outputs import stored
from hwtrain._plan.outputs import StoredOutput


def make_storing(module: Any, output: StoredOutput) -> None:
    """Has a module return its results as they are stored, in place.

    It comes last: the class of a module may be an analog one already.

    Args:
      module: the module.
      output: its entry in the plan.
    """
    module.__class__ = storing_class(type(module))
    module.analog_outputs = output


@functools.cache
def storing_class(base: type) -> type:
    """Returns the class of a module that stores its results, by the class it had."""
    made_by = getattr(base, "_hwtrain_rebuild", _itself)
    namespace = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__reduce_ex__": reduce_by_base,
        "_hwtrain_base": plain_class(base),
        "_hwtrain_rebuild": functools.partial(_rebuilt, made_by),
        **{name: _storing(base, name) for name in returning_methods(base)},
    }
    return type(base.__name__, (base,), namespace)


def _storing(base: type, name: str) -> Callable[..., Any]:
    original = getattr(base, name)

    def method(self, *args, **kwargs):
        found = original(self, *args, **kwargs)
        return stored(self.analog_outputs, found, (args, kwargs))

    return functools.update_wrapper(method, original, updated=())


def _itself(base: type) -> type:
    return base


def _rebuilt(made_by: Callable[[type], type], base: type) -> type:
    return storing_class(made_by(base))
