"""Noise on weights, with straight-through gradients by default."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain._arrays.derivatives import modified
from hwtrain._arrays.polynomials import (
    PCM_COEFFICIENTS,
    PCM_RELATIVE_COEFFICIENTS,
    polynomial,
)
from hwtrain._arrays.random import normal, uniform


def add_normal(
    key: jax.Array,
    w: jax.Array,
    w_max: ArrayLike,
    *,
    std_dev: ArrayLike,
    reparameterized: bool = False,
) -> jax.Array:
    r"""Adds normal noise, relative to the largest weight.

    .. math:: w' = w + \sigma A \xi

    >>> w = add_normal(jax.random.key(0), jnp.zeros(10_000), 2.0, std_dev=0.1)
    >>> print(f"{w.std():.2f}")
    0.20

    Args:
      key: a JAX key.
      w: weights, of any shape.
      w_max: A, broadcastable against `w`, in units of `w`.
      std_dev: standard deviation relative to A. Zero turns the noise off.
      reparameterized: differentiate the noise through A too.

    Returns:
      The noisy weights, of the shape and dtype of `w`.

    References:
      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020.
    """
    scale = std_dev * jnp.asarray(w_max, jnp.float32)
    noise = jnp.asarray(scale * normal(key, w.shape))
    return w + _noise(noise, w, reparameterized=reparameterized)


def mult_normal(
    key: jax.Array,
    w: jax.Array,
    *,
    std_dev: ArrayLike,
    reparameterized: bool = False,
) -> jax.Array:
    r"""Multiplies by one plus normal noise.

    .. math:: w' = w (1 + \sigma \xi)

    >>> w = mult_normal(jax.random.key(0), jnp.full(10_000, 2.0), std_dev=0.1)
    >>> print(f"{w.std():.2f}")
    0.20

    Args:
      key: a JAX key.
      w: weights, of any shape.
      std_dev: standard deviation, relative to each weight. Zero turns the noise off.
      reparameterized: differentiate the noise too: the gradient is multiplied by
        :math:`1 + \sigma \xi`.

    Returns:
      The noisy weights, of the shape and dtype of `w`.
    """
    noise = jnp.asarray(std_dev * w.astype(jnp.float32) * normal(key, w.shape))
    return w + _noise(noise, w, reparameterized=reparameterized)


def poly_sigma(w: jax.Array, w_max: ArrayLike, *, coeffs: Sequence[float]) -> jax.Array:
    r"""Returns a standard deviation that is a polynomial of the weight.

    .. math:: \sigma(w) = A \max\Big(\sum_k c_k \Big(\frac{|w|}{A}\Big)^k, 0\Big)

    >>> print(poly_sigma(jnp.array([0.0, 1.0, -2.0]), 2.0, coeffs=(0.1, 0.2)))
    [0.2 0.4 0.6]

    Args:
      w: weights, of any shape.
      w_max: A, broadcastable against `w`, in units of `w`; zero is replaced by 1.
      coeffs: `c_0, c_1, ...`, dimensionless.

    Returns:
      The standard deviation in units of `w`, float32.
    """
    a = _positive(w_max)
    relative = polynomial(jnp.abs(w).astype(jnp.float32) / a, coeffs)
    return a * jnp.maximum(relative, 0)


def poly(
    key: jax.Array,
    w: jax.Array,
    w_max: ArrayLike,
    *,
    std_dev: ArrayLike,
    coeffs: Sequence[float] = PCM_RELATIVE_COEFFICIENTS,
    reparameterized: bool = False,
) -> jax.Array:
    r"""Adds normal noise with a standard deviation that depends on the weight.

    .. math:: w' = w + s\, \sigma(w)\, \xi

    with :math:`\sigma(w)` from `poly_sigma`.

    >>> w = poly(jax.random.key(0), jnp.zeros(10_000), 2.0, std_dev=1.0, coeffs=(0.1,))
    >>> print(f"{w.std():.2f}")
    0.20

    Args:
      key: a JAX key.
      w: weights, of any shape.
      w_max: A, broadcastable against `w`, in units of `w`.
      std_dev: s, a factor on the noise. Zero turns it off.
      coeffs: coefficients of the polynomial, dimensionless. The default is for
        phase-change memory with a largest conductance of 25 µS.
      reparameterized: differentiate the noise through the weight and A.

    Returns:
      The noisy weights, of the shape and dtype of `w`.

    References:
      Nandakumar et al., Phase-change memory models for deep learning training and
      inference, ICECS 2019.
    """
    sigma = std_dev * poly_sigma(w, w_max, coeffs=coeffs)
    noisy = w.astype(jnp.float32) + sigma * normal(key, w.shape)
    return modified(w, noisy, reparameterized=reparameterized)


def prog_noise(
    key: jax.Array,
    w: jax.Array,
    w_max: ArrayLike,
    *,
    std_dev: ArrayLike,
    coeffs: Sequence[float] = PCM_COEFFICIENTS,
    g_max: float = 25.0,
    reparameterized: bool = False,
) -> jax.Array:
    r"""Adds programming noise to the conductance, which keeps the sign of the weight.

    .. math:: w' = \mathrm{sign}(w)\, | w + s\, \sigma(w)\, \xi |

    with :math:`\sigma(w)` from `poly_sigma`, its coefficients divided by g_max. A
    weight of zero gets a random sign.

    >>> w = prog_noise(jax.random.key(0), jnp.full(1000, 0.01), 1.0, std_dev=1.0)
    >>> bool((w >= 0).all())
    True

    Args:
      key: a JAX key.
      w: weights, of any shape.
      w_max: A, broadcastable against `w`, in units of `w`.
      std_dev: s, a factor on the noise. Zero turns it off.
      coeffs: coefficients of the polynomial, in µS.
      g_max: conductance of the largest weight, in µS.
      reparameterized: differentiate the noise through the weight and A.

    Returns:
      The noisy weights, of the shape and dtype of `w`.

    References:
      Nandakumar et al., Phase-change memory models for deep learning training and
      inference, ICECS 2019.
    """
    relative = [coefficient / g_max for coefficient in coeffs]
    sigma = std_dev * poly_sigma(w, w_max, coeffs=relative)
    w32 = w.astype(jnp.float32)
    noisy = w32 + sigma * normal(key, w.shape)
    # The noise on a weight of zero is symmetric, so its sign is already random.
    kept = jnp.where(w == 0, noisy, jnp.sign(w32) * jnp.abs(noisy))
    return modified(w, kept, reparameterized=reparameterized)


def drop_connect(
    key: jax.Array,
    w: jax.Array,
    *,
    pdrop: ArrayLike,
    reparameterized: bool = False,
) -> jax.Array:
    r"""Sets weights to zero at random; the others are not rescaled.

    .. math:: w' = w \cdot [u \ge p], \qquad u \sim U(0, 1)

    >>> w = drop_connect(jax.random.key(0), jnp.ones(10_000), pdrop=0.3)
    >>> print(f"{w.mean():.2f}")
    0.70

    Args:
      key: a JAX key.
      w: weights, of any shape.
      pdrop: p, the probability of zero. Zero turns dropping off.
      reparameterized: give dropped weights no gradient.

    Returns:
      The remaining weights, of the shape and dtype of `w`.

    References:
      Wan et al., Regularization of neural networks using DropConnect, ICML 2013.
    """
    kept = jnp.where(uniform(key, w.shape) >= pdrop, w, 0)
    return modified(w, kept, reparameterized=reparameterized)


def _noise(noise: jax.Array, w: jax.Array, *, reparameterized: bool) -> jax.Array:
    if not reparameterized:
        noise = jax.lax.stop_gradient(noise)
    return noise.astype(w.dtype)


def _positive(w_max: ArrayLike) -> jax.Array:
    w_max = jnp.asarray(w_max, jnp.float32)
    return jnp.where(w_max > 0, w_max, 1)
