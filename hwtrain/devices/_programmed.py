"""Programmed conductances, and their change over time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from hwtrain._arrays.random import stored_normal
from hwtrain._errors import InputError
from hwtrain._parts.fields import MOST

_PROGRAMMING, _DEVICE = range(2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Programmed:
    """Devices after programming, including everything random about them.

    Attributes:
      g_target: the target conductance, in µS.
      g_prog: the conductance reached by programming, in µS.
      nu: drift exponent of each device, for models with a power law; else `None`.
      xi: standard normal number of each device that determines its relaxation, for
        models with one; else `None`.
      life: standard normal number of each device that determines when it fails, for
        models with failures; else `None`.
      pulses: number of pulses that wrote each device, for models that count them; else
        `None`.
      flicker: random number of each device, from which its 1/f noise at any time
        follows, for models with a memory between reads; else `None`.
      stuck: state of each device, as in `hwtrain.devices.stuck`; `None` if none can be
        stuck.
      set_factor: factor of each device on its steps by set pulses, for models with one;
        else `None`. Corrections of a new chip need it; checkpoints do not hold it.
      reset_factor: likewise by reset pulses.
    """

    g_target: jax.Array
    g_prog: jax.Array
    nu: jax.Array | None = None
    xi: jax.Array | None = None
    life: jax.Array | None = None
    pulses: jax.Array | None = None
    flicker: jax.Array | None = None
    stuck: jax.Array | None = None
    set_factor: jax.Array | None = None
    reset_factor: jax.Array | None = None


def check_time(t_s: ArrayLike, most: float = MOST) -> None:
    """Checks a time, unless it is traced.

    Args:
      t_s: time since programming, in seconds.
      most: the largest time that is taken.

    Raises:
      ValueError: if it is no real number, negative, infinite or larger.
    """
    if isinstance(t_s, Tracer):
        return
    if isinstance(t_s, jax.Array) and not t_s.is_fully_addressable:
        return
    value = np.asarray(t_s)
    if value.dtype.kind not in "iuf" or not np.all((value >= 0) & (value <= most)):
        raise InputError(
            "t_s is the time since programming in seconds, a number of at least 0 and "
            f"at most {most:g}; got {t_s!r}"
        )


def noisy(g: jax.Array, sigma: ArrayLike, xi: ArrayLike) -> jax.Array:
    r"""Adds noise to conductances and clips them at zero.

    .. math:: g' = \max(g + \sigma \xi, 0)

    >>> print(noisy(jnp.array([1.0, 10.0]), 2.0, -1.0))
    [0. 8.]

    Args:
      g: the conductance to write or read, in µS.
      sigma: standard deviation of the noise, in µS. Zero turns it off.
      xi: a standard normal number for each device.
    """
    return jnp.maximum(g + sigma * jnp.asarray(xi), 0)


def exponent(mean: ArrayLike, std: ArrayLike, xi: ArrayLike) -> jax.Array:
    r"""Returns the drift exponents of devices, which are never negative.

    .. math:: \nu = |\mu + \sigma \xi|

    >>> print(exponent(0.05, 0.1, -1.0))
    0.05

    Args:
      mean: mean exponent.
      std: standard deviation of the exponent over devices.
      xi: a standard normal number for each device.
    """
    return jnp.abs(mean + std * jnp.asarray(xi))


def two_normals(key: jax.Array, shape: tuple[int, ...]) -> list[jax.Array]:
    """Returns the numbers of programming and of what follows, drawn independently."""
    keys = (jax.random.fold_in(key, part) for part in (_PROGRAMMING, _DEVICE))
    return [stored_normal(key, shape) for key in keys]


def power_law(
    g_prog: jax.Array, nu: ArrayLike, *, t_s: ArrayLike, t0_s: float
) -> jax.Array:
    r"""Returns conductances `t_s` seconds after programming.

    Structural relaxation lowers the conductance as a power law,

    .. math:: g(t) = g_\text{prog} \left(\frac{t + t_0}{t_0}\right)^{-\nu}.

    >>> g = power_law(jnp.array([[25.0]]), jnp.array([[0.05]]), t_s=86_400.0, t0_s=20.0)
    >>> print(f"{g[0, 0]:.2f}")
    16.45

    Args:
      g_prog: programmed conductance, in µS.
      nu: drift exponent of each device. Zero turns drift off.
      t_s: time since the end of programming, in seconds. May be traced.
      t0_s: time of the reference read after programming, in seconds.

    Raises:
      ValueError: for a time that is negative, infinite or not a number, unless it is
        traced.

    References:
      Nandakumar et al., Phase-change memory models for deep learning training and
      inference, ICECS 2019.
    """
    check_time(t_s)
    return g_prog * jnp.asarray((t_s + t0_s) / t0_s) ** -jnp.asarray(nu)


def noise_growth(t_s: ArrayLike, t_read_s: float) -> jax.Array:
    r"""Returns the growth of 1/f noise, integrated since programming.

    .. math:: \sqrt{\ln \frac{t + t_r}{2 t_r}}

    >>> print(f"{noise_growth(20.0, 250e-9):.3f}")
    4.184

    Args:
      t_s: time since the first read, in seconds. May be traced; below `t_read_s` there
        is no noise.
      t_read_s: duration of a read, in seconds.
    """
    ratio = (jnp.asarray(t_s) + t_read_s) / (2 * t_read_s)
    return jnp.sqrt(jnp.log(jnp.maximum(ratio, 1)))


def _relaxation(programmed: Programmed) -> jax.Array:
    if programmed.xi is None:
        raise InputError(
            "these devices do not relax; they were programmed by another noise model. "
            "Use that one, or call program again"
        )
    return programmed.xi
