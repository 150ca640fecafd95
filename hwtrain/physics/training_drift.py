"""Drift of weights during training, as a step on an explicit state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

_RATIO_FLOOR = 1e-7


class DriftState(NamedTuple):
    """What drift must remember of each weight. All but `now` have the weights' shape.

    Attributes:
      start: the weight when it was last set.
      previous: the weight that the last step returned.
      set_at: when the weight was last set, in units of t_0.
      nu: the weight's drift exponent.
      now: `[]`, the time, in units of t_0.
    """

    start: jax.Array
    previous: jax.Array
    set_at: jax.Array
    nu: jax.Array
    now: jax.Array


def begin(w: jax.Array, nu: ArrayLike) -> DriftState:
    """Returns the state of weights that were set just now.

    >>> begin(jnp.ones(3), 0.1).now
    Array(0., dtype=float32)

    Args:
      w: weights, of any shape.
      nu: drift exponent, one or for each weight.
    """
    # Copies: a buffer can be donated once, and the weights are donated beside.
    return DriftState(
        start=jnp.array(w),
        previous=jnp.array(w),
        set_at=jnp.zeros(w.shape, jnp.float32),
        nu=jnp.broadcast_to(jnp.asarray(nu, jnp.float32), w.shape),
        now=jnp.zeros((), jnp.float32),
    )


def drift(
    state: DriftState,
    w: jax.Array,
    dt_s: ArrayLike,
    *,
    t0_s: float,
    reset_tol: ArrayLike,
    nu: ArrayLike | None = None,
    offset: ArrayLike = 0.0,
) -> tuple[jax.Array, DriftState]:
    r"""Lets weights drift for a while.

    .. math:: w(t) = (w_0 + b) \max\Big(\frac{t - t_\text{set}}{t_0}, 1\Big)^{-\nu} - b

    A weight that somebody has changed since the last step starts anew, at the end of
    this one. Nothing drifts before :math:`t_0`.

    >>> w = jnp.array([1.0])
    >>> w, state = drift(begin(w, 0.1), w, 1000.0, t0_s=1.0, reset_tol=1e-7)
    >>> print(f"{w[0]:.3f}")
    0.501

    Args:
      state: the state, from `begin` or from the last step.
      w: the weights now, of any shape.
      dt_s: time since the last step, in seconds. May be traced.
      t0_s: t_0, in seconds.
      reset_tol: a weight that differs by more than this from what the last step
        returned was changed. A smaller change is lost: the device was not written.
      nu: exponents of this step; `None` takes the state's.
      offset: b, the weight of a conductance of zero, times -1.

    Returns:
      `(w, state)`: the weights after drift, and the state.

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """
    now = state.now + jnp.asarray(dt_s, jnp.float32) / t0_s
    changed = jnp.abs(state.previous - w) > reset_tol
    set_at = jnp.where(changed, now, state.set_at)
    start = jnp.where(changed, w, state.start)
    exponent = state.nu if nu is None else nu
    decay = jnp.maximum(now - set_at, 1) ** -jnp.asarray(exponent)
    drifted = jnp.where(changed, w, start * decay + offset * (decay - 1))
    drifted = drifted.astype(w.dtype)
    return drifted, DriftState(start, drifted, set_at, state.nu, now)


def state_dependent(
    nu: ArrayLike, g: jax.Array, *, nu_k: float, log_g0: float
) -> jax.Array:
    r"""Returns exponents that fall with the conductance.

    .. math:: \nu' = \nu - k \ln \max(|g| / g_0,\ 10^{-7})

    >>> print(f"{state_dependent(0.1, jnp.array(25.0), nu_k=0.01, log_g0=0.0):.3f}")
    0.068

    Args:
      nu: exponent at g_0.
      g: conductance; only its magnitude counts.
      nu_k: k. Zero turns this off.
      log_g0: natural logarithm of g_0, in the unit of `g`.
    """
    ratio = jnp.maximum(jnp.abs(g) * jnp.exp(-log_g0), _RATIO_FLOOR)
    return jnp.asarray(nu) - nu_k * jnp.log(ratio)
