"""Guards modules with raw parameters on hardware against calls without the root.

The root adds noise to a raw parameter; without it, a module would run clean. Layers
detect this by the key that the root puts beside their kernels.
"""

import functools
from typing import Any

from hwtrain._flax.errors import behind_the_root
from hwtrain._flax.nnx.layers import (
    mode_property,
    public_methods,
    reduce_by_base,
    view_setter,
)
from hwtrain._plan.weight import AnalogWeight


def make_guarded(owner: Any, weight: AnalogWeight, mode: str) -> None:
    """Guards the methods of a module that holds a raw parameter, in place."""
    held = getattr(owner, "analog_raw", ())
    if not held:
        owner.__class__ = guarded_class(type(owner))
    owner.analog_raw = (*held, weight)
    owner.hardware_mode = mode


@functools.cache
def guarded_class(base: type) -> type:
    """Returns the guarded class of a module's class."""
    namespace = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__reduce_ex__": reduce_by_base,
        "deterministic": mode_property(base),
        "set_view": view_setter(base),
        "_hwtrain_base": base,
        "_hwtrain_rebuild": guarded_class,
        **{name: _guarded(base, name) for name in public_methods(base)},
    }
    return type(base.__name__, (base,), namespace)


def _guarded(base: type, name: str) -> Any:
    original = getattr(base, name)

    def method(self, *args, **kwargs):
        if not self.__dict__.get("analog_running"):
            for weight in self.analog_raw:
                if weight.hardware.needs_root(self.hardware_mode):
                    raise behind_the_root(weight.layer_path)
        return original(self, *args, **kwargs)

    return functools.update_wrapper(method, original, updated=())
