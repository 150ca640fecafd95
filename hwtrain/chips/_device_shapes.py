"""Programming and reads of devices, with the shapes of a user's noise model checked."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain._errors import InputError
from hwtrain._parts.slot import home
from hwtrain.devices._programmed import Programmed


def programmed_by(model: Any, key: jax.Array, g_target: jax.Array) -> Programmed:
    """Returns devices as a noise model programs them.

    Args:
      model: the noise model.
      key: a JAX key.
      g_target: the target conductances, in µS.

    Raises:
      ValueError: naming a method of a user's model that returns another shape.
    """
    if not home(type(model)):
        return model.program(key, g_target)
    for name in ("programming_sigma", "drift_mean", "drift_std"):
        if hasattr(model, name):
            _check_spread(model, name, getattr(model, name), g_target)
    device = model.program(key, g_target)
    if not isinstance(device, Programmed):
        raise InputError(
            f"{type(model).__name__}.program should return a Programmed, got a "
            f"{type(device).__name__}"
        )
    for field in ("g_target", "g_prog", "nu", "xi", "life", "flicker", "pulses"):
        value = getattr(device, field)
        if value is not None:
            _check(model, "program", jnp.shape(value), g_target.shape, field)
    return device


def read_by(
    model: Any, device: Programmed, t_s: ArrayLike, key: jax.Array | None
) -> jax.Array:
    """Returns devices as a noise model reads them, in µS.

    Args:
      model: the noise model.
      device: the devices.
      t_s: time since programming, in seconds.
      key: key of the read; `None` for a read without noise.

    Raises:
      ValueError: naming a method of a user's model that returns another shape.
    """
    own, shape = home(type(model)), device.g_target.shape
    if own:
        _check(model, "mean_at", _shape(model.mean_at, device, t_s), shape)
    if key is None:
        return model.mean_at(device, t_s)
    if own:
        _check_spread(model, "read_sigma", model.read_sigma, device, t_s)
    g = model.at(key, device, t_s)
    if own:
        _check(model, "at", jnp.shape(g), shape)
    return g


def _shape(function: Callable[..., Any], *args: Any) -> tuple[int, ...]:
    return jnp.shape(jax.eval_shape(function, *args))


def _check_spread(
    model: Any, method: str, function: Callable[..., Any], *args: Any
) -> None:
    """Raises unless a method returns one number, or one for each device."""
    target = args[0].g_target if isinstance(args[0], Programmed) else args[0]
    found = _shape(function, *args)
    if found:
        _check(model, method, found, target.shape)


def _check(
    model: Any,
    method: str,
    found: tuple[int, ...],
    expected: tuple[int, ...],
    field: str = "",
) -> None:
    if found != expected:
        what = f"a {field} of the shape" if field else "the shape"
        raise InputError(
            f"{type(model).__name__}.{method} should return {what} {expected}, one "
            f"number for each device, as the target conductances have; got {found}"
        )
