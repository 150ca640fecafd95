"""Weights as single phase-change devices, as seen by one training step."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain._arrays.derivatives import modified
from hwtrain._arrays.polynomials import PCM_COEFFICIENTS, polynomial
from hwtrain._arrays.random import stored_normal, uniform

_T_READ_S = 250e-9
"""t_r, the duration of a read, in seconds."""

_PROGRAMMING, _DRIFT, _READ, _STUCK, _LEVEL = range(5)


def pcm_noise(
    key: jax.Array,
    w: jax.Array,
    w_max: ArrayLike,
    *,
    std_dev: ArrayLike,
    g_max: float = 25.0,
    t_inference_s: ArrayLike = 0.0,
    t0_s: float = 20.0,
    zero_threshold: float = 0.0,
    prob_at_reset: ArrayLike = 0.0,
    prob_at_gmax: ArrayLike = 0.0,
    prob_at_random: ArrayLike = 0.0,
    nu_scale: ArrayLike = 1.0,
    reparameterized: bool = False,
) -> jax.Array:
    r"""Programs each weight into one phase-change device, lets it drift, and reads it.

    .. math::
        g_p &= |g| + s\,(0.263 + 1.965 a - 1.173 a^2)\,\xi_1, \qquad a = |g| / g_\max \\
        g_d &= g_p\, (t / t_0)^{-\nu}, \qquad
        \nu = |\xi_2\, \mathrm{clip}(-0.0125 \ln a_p - 0.0059, 0.008, 0.045)| \\
        g_r &= g_d + s\,|g_d|\,\min(0.0088 / a_p^{0.65}, 0.2)
        \sqrt{\ln \frac{t + t_r}{2 t_r}}\; \xi_3

    with :math:`g = w\, g_\max / A`, :math:`a_p = |g_p| / g_\max`,
    :math:`t = t_\text{inference} + t_0` and :math:`t_r = 250` ns. The weight is
    :math:`w' = \mathrm{sign}(g)\, |g_r| A / g_\max`. The mean drift is left out,
    because drift compensation removes it; a device at zero stays at zero.

    >>> w = jnp.array([0.0, 0.5, -1.0])
    >>> noisy = pcm_noise(jax.random.key(0), w, 1.0, std_dev=1.0)
    >>> bool((jnp.sign(noisy) == jnp.sign(w)).all())
    True

    Args:
      key: a JAX key.
      w: weights, of any shape. Weights beyond A are clipped to it.
      w_max: A, broadcastable against `w`, in units of `w`; zero is replaced by 1.
      std_dev: s, a factor on programming and read noise. Zero turns both off.
      g_max: conductance of the largest weight, in µS.
      t_inference_s: time since programming, in seconds. Zero turns drift off.
      t0_s: time between programming and the reference read, in seconds.
      zero_threshold: conductances up to this many times s * 0.263 µS become zero.
      prob_at_reset: probability of a device stuck at zero.
      prob_at_gmax: probability of a device stuck at g_max, of either sign.
      prob_at_random: probability of a device stuck at a uniformly drawn level in 0 to
        g_max, of the weight's sign.
      nu_scale: a factor on the drift exponents. Zero turns drift off.
      reparameterized: differentiate at fixed random numbers.

    Returns:
      The weights as read, of the shape and dtype of `w`.

    References:
      Nandakumar et al., Phase-change memory models for deep learning training and
      inference, ICECS 2019.
    """
    keys = [jax.random.fold_in(key, part) for part in range(5)]
    w_max = jnp.asarray(w_max, jnp.float32)
    w_max = jnp.where(w_max > 0, w_max, 1)
    g = jnp.clip(w.astype(jnp.float32) * (g_max / w_max), -g_max, g_max)
    g = jnp.where(jnp.abs(g) <= zero_threshold * std_dev * PCM_COEFFICIENTS[0], 0, g)
    g = _stick(keys, g, g_max, (prob_at_reset, prob_at_gmax, prob_at_random))

    sigma = polynomial(jnp.abs(g) / g_max, PCM_COEFFICIENTS)
    xi_1 = stored_normal(keys[_PROGRAMMING], w.shape)
    g_prog = jnp.abs(g) + std_dev * jnp.maximum(sigma, 0) * xi_1
    level = jnp.maximum(jnp.abs(g_prog) / g_max, 1e-6)

    nu_std = jnp.clip(-0.0125 * jnp.log(level) - 0.0059, 0.008, 0.045)
    nu = jnp.abs(nu_std * (nu_scale * stored_normal(keys[_DRIFT], w.shape)))
    t = t_inference_s + t0_s
    g_drift = g_prog * (t / t0_s) ** -nu

    read = jnp.minimum(0.0088 / jnp.maximum(level**0.65, 1e-3), 0.2)
    read = read * jnp.sqrt(jnp.log((t + _T_READ_S) / (2 * _T_READ_S)))
    xi_3 = stored_normal(keys[_READ], w.shape)
    g_read = g_drift + std_dev * jnp.abs(g_drift) * read * xi_3

    noisy = jnp.sign(g) * jnp.abs(g_read) * (w_max / g_max)
    return modified(w, noisy, reparameterized=reparameterized)


def _stick(
    keys: list[jax.Array], g: jax.Array, g_max: float, shares: tuple[ArrayLike, ...]
) -> jax.Array:
    """Returns conductances with some devices stuck at zero, at g_max, at any level."""
    if all(isinstance(share, float) and share == 0 for share in shares):
        return g
    reset, at_gmax, at_random = shares
    u = uniform(keys[_STUCK], g.shape)
    level = 2 * uniform(keys[_LEVEL], g.shape) - 1
    stuck_high = jnp.where(level < 0, -g_max, g_max)
    stuck = g_max * jnp.where(g == 0, level, jnp.sign(g) * jnp.abs(level))
    g = jnp.where(u < reset + at_gmax + at_random, stuck, g)
    g = jnp.where(u < reset + at_gmax, stuck_high, g)
    return jnp.where(u < reset, 0, g)
