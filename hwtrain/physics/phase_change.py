"""Measured curves of phase-change memory, over the relative conductance a = g / g_max.

Every curve is a fit to measurements of one technology: programming noise by
`modifiers.polynomial`, and here drift exponent and read noise.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain.physics.modifiers import polynomial

# Below this the logarithms of the fits are not meant, and at zero they are infinite.
_LEVEL_FLOOR = 1e-7


def relative(g: ArrayLike, g_max: float) -> jax.Array:
    """Returns |g| / g_max, at least 1e-7."""
    return jnp.maximum(jnp.abs(jnp.asarray(g)) / g_max, _LEVEL_FLOOR)


def pcm_drift_mean(a: jax.Array) -> jax.Array:
    r"""Returns the mean drift exponent of PCM.

    .. math:: \mu_\nu = \mathrm{clip}(-0.0155 \ln a + 0.0244,\ 0.049,\ 0.1)

    >>> print(pcm_drift_mean(jnp.array([1e-7, 1.0])))
    [0.1   0.049]

    Args:
      a: relative conductance, positive.

    References:
      Nandakumar et al., Phase-change memory models for deep learning training and
      inference, ICECS 2019.
    """
    return jnp.clip(-0.0155 * jnp.log(a) + 0.0244, 0.049, 0.1)


def pcm_drift_std(a: jax.Array) -> jax.Array:
    r"""Returns the standard deviation of the drift exponent of PCM.

    .. math:: \sigma_\nu = \mathrm{clip}(-0.0125 \ln a - 0.0059,\ 0.008,\ 0.045)

    >>> print(pcm_drift_std(jnp.array([1e-7, 1.0])))
    [0.045 0.008]

    Args:
      a: relative conductance, positive.

    References:
      Nandakumar et al., ICECS 2019.
    """
    return jnp.clip(-0.0125 * jnp.log(a) - 0.0059, 0.008, 0.045)


def pcm_read_level(a: jax.Array) -> jax.Array:
    r"""Returns the read noise of PCM relative to the conductance.

    .. math:: Q = \min(0.0088 / a^{0.65},\ 0.2)

    >>> print(pcm_read_level(jnp.array([1e-7, 1.0])))
    [0.2    0.0088]

    Args:
      a: relative conductance, positive.

    References:
      Nandakumar et al., ICECS 2019.
    """
    return jnp.minimum(0.0088 / a**0.65, 0.2)


def hermes_drift_mean(a: jax.Array) -> jax.Array:
    r"""Returns the mean drift exponent of the Hermes chip.

    .. math:: \mu_\nu = \begin{cases}
        \mathrm{clip}(-0.0387 \ln a - 0.0182,\ 0.072,\ 0.13) & a < 0.0945 \\
        0.0736 - 0.0126 a - 0.0436 a^2 & \text{else}\end{cases}

    >>> print(f"{hermes_drift_mean(jnp.array(1.0)):.4f}")
    0.0174

    Args:
      a: relative conductance, positive.

    References:
      Le Gallo et al., A 64-core mixed-signal in-memory compute chip based on
      phase-change memory for deep neural network inference, Nature Electronics 2023.
    """
    low = jnp.clip(-0.0387 * jnp.log(a) - 0.0182, 0.0720, 0.13)
    return jnp.where(a < 0.0945, low, polynomial(a, (0.0736, -0.0126, -0.0436)))


def hermes_drift_std(a: jax.Array, *, num_devices: int) -> jax.Array:
    r"""Returns the standard deviation of the drift exponent of the Hermes chip.

    A logarithm up to a = 0.3039 (one device) or 0.3055 (two), then a parabola.

    >>> print(f"{hermes_drift_std(jnp.array(1.0), num_devices=2):.4f}")
    0.0048

    Args:
      a: relative conductance, positive.
      num_devices: devices that hold a conductance together, 1 or 2.

    References:
      Le Gallo et al., Nature Electronics 2023.
    """
    if num_devices == 1:
        low = jnp.clip(-0.0120 * jnp.log(a) - 0.0023, 0.0124, 0.04)
        return jnp.where(a < 0.3039, low, polynomial(a, (0.0104, 0.0116, -0.0165)))
    low = jnp.clip(-0.0117 * jnp.log(a) - 0.0057, 0.0091, 0.04)
    return jnp.where(a < 0.3055, low, polynomial(a, (0.0073, 0.0093, -0.0118)))


def hermes_read_level(a: jax.Array, *, num_devices: int) -> jax.Array:
    r"""Returns the read noise of the Hermes chip relative to the conductance.

    A logarithm up to a = 0.1591 (one device) or 0.16 (two), then a cubic.

    >>> print(f"{hermes_read_level(jnp.array(1.0), num_devices=2):.4f}")
    0.0123

    Args:
      a: relative conductance, positive.
      num_devices: devices that hold a conductance together, 1 or 2.

    References:
      Le Gallo et al., Nature Electronics 2023.
    """
    if num_devices == 1:
        low = jnp.clip(-0.0078 * jnp.log(a) + 0.0038, 0.0179, 0.04)
        high = polynomial(a, (0.0088, 0.0768, -0.1352, 0.0664))
        return jnp.where(a < 0.1591, low, high)
    low = jnp.clip(-0.0117 * jnp.log(a) - 0.0069, 0.015, 0.04)
    high = polynomial(a, (0.0123, 0.0211, -0.0280, 0.0069))
    return jnp.where(a < 0.16, low, high)
