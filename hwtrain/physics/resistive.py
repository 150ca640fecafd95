"""Resistive memory (ReRAM): measured noise and relaxation after programming."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hwtrain.physics.modifiers import polynomial
from hwtrain.physics.programmed import noise_growth

WAN_TIMES_S = (1.0, 86_400.0, 172_800.0)
"""When the spread was measured, in seconds after programming."""

WAN_COEFFICIENTS = (
    (0.348, 16.030, -43.853, 45.393, -16.815),
    (0.701, 22.086, -50.773, 47.095, -16.458),
    (0.782, 20.274, -43.507, 37.062, -11.934),
)
"""The spread at these times in µS, by powers of g / g_max, for a g_max of 40 µS."""

CMO_COEFFICIENTS = {0.2: (0.00081107, 0.00106879), 2.0: (0.0112185391, 0.01129027418)}
"""Programming noise in µS, by powers of g in µS, for each acceptance range in %."""

_CMO_T_READ_S = 1e-6
_CMO_LEVEL_FLOOR_US = 1e-6


def wan_sigma(a: jax.Array, t_s: ArrayLike) -> jax.Array:
    r"""Returns the spread of ReRAM around its target, for a g_max of 40 µS.

    A polynomial in the relative conductance was fitted at 1 s, 1 day and 2 days after
    programming. The standard deviation is linear in the logarithm of time between
    them, and constant outside.

    >>> print(wan_sigma(jnp.zeros(1), 1.0), wan_sigma(jnp.zeros(1), 1e9))
    [0.348] [0.782]

    Args:
      a: target conductance relative to g_max.
      t_s: time since programming, in seconds. May be traced; zero is taken as 1 s.

    Returns:
      In µS, of the shape of `a`.

    References:
      Wan et al., A compute-in-memory chip based on resistive random-access memory,
      Nature 2022.
    """
    knots = [jnp.maximum(polynomial(a, coeffs), 0) for coeffs in WAN_COEFFICIENTS]
    log_times = np.log(np.asarray(WAN_TIMES_S, np.float32))
    log_t = jnp.log(jnp.maximum(jnp.asarray(t_s, jnp.float32), WAN_TIMES_S[0]))
    first = jnp.clip((log_t - log_times[0]) / (log_times[1] - log_times[0]), 0, 1)
    second = jnp.clip((log_t - log_times[1]) / (log_times[2] - log_times[1]), 0, 1)
    return knots[0] + first * (knots[1] - knots[0]) + second * (knots[2] - knots[1])


def cmo_relaxation(xi: jax.Array, t_s: ArrayLike) -> jax.Array:
    r"""Returns how far the conductance of CMO/HfOx ReRAM has moved since programming.

    .. math:: \Delta g = -0.0890 \ln t + (0.0420 \ln t + 0.4118)\, \xi

    >>> print(f"{cmo_relaxation(jnp.array(0.0), 3600.0):.3f}")
    -0.729

    Args:
      xi: a standard normal number for each device.
      t_s: time since programming, in seconds. May be traced; below 1 s it is taken as
        1 s, where the fit begins.

    Returns:
      In µS.

    References:
      Falcone et al., All-in-one analog AI hardware: on-chip training and inference with
      conductive-metal-oxide/HfOx ReRAM devices, arXiv:2502.04524, 2025.
    """
    log_t = jnp.log(jnp.maximum(jnp.asarray(t_s, jnp.float32), 1))
    return -0.08900206 * log_t + (0.04201137 * log_t + 0.41183342) * xi


def cmo_read_sigma(g: jax.Array, t_s: ArrayLike) -> jax.Array:
    r"""Returns the read noise of CMO/HfOx ReRAM.

    .. math:: \sigma = 0.0277 \max(\log_{10} g, 0)
        \sqrt{\ln \frac{t + t_r}{2 t_r}}, \qquad t_r = 1\ \text{µs}

    >>> print(f"{cmo_read_sigma(jnp.array(88.2), 1.0):.3f}")
    0.195

    Args:
      g: conductance at the time of the read, in µS.
      t_s: time since programming, in seconds. May be traced; below 1 s it is taken as
        1 s.

    Returns:
      In µS, of the shape of `g`.

    References:
      Falcone et al., 2025.
    """
    level = jnp.maximum(jnp.log10(jnp.maximum(g, _CMO_LEVEL_FLOOR_US)), 0)
    t_s = jnp.maximum(jnp.asarray(t_s, jnp.float32), 1)
    return 0.0277316483 * level * noise_growth(t_s, _CMO_T_READ_S)
