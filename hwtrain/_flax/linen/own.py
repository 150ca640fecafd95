"""Stated products in methods of Linen modules."""

from typing import Any

import jax
from flax import linen as nn
from flax.core import meta

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._flax.linen import flax_internals as internals
from hwtrain._flax.stated import Stated


def multiply(module: nn.Module, stated: Stated, x: Any) -> jax.Array:
    """Returns a product of a bound module.

    Interceptors, including an analog model's, see it as a method of the module.
    """
    return internals.intercepted(_stated_product, module, stated, x)


def _stated_product(module: nn.Module, stated: Stated, x: Any) -> jax.Array:
    return stated.plain(x, array_of(module, stated.array))


def is_stated(method: str) -> bool:
    """Whether a method is the one that `multiply` shows to interceptors."""
    return method == _stated_product.__name__


def array_of(module: nn.Module, name: str) -> jax.Array:
    """Returns an array of a bound module.

    Raises:
      ValueError: if there is no array of this name.
    """
    params = module.variables.get("params", {})
    if not hasattr(meta.unbox(params.get(name)), "shape"):
        raise InputError(
            f"{type(module).__name__} {paths.join(module.path)!r} has no array "
            f"parameter {name!r}: create it with self.param({name!r}, ...) first. It "
            f"has {sorted(params)}"
        )
    return meta.unbox(params[name])
