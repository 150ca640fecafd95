"""The running average of the largest inputs, recorded for the optimiser.

Noise management by an average divides all inputs of a tile by one number that follows
the data slowly. It is updated between steps, from sums in the probe's gradient.
"""

import math

import jax
import jax.numpy as jnp

from hwtrain._arrays.derivatives import custom_vjp
from hwtrain._arrays.tiling import over_batch
from hwtrain.periphery._range_gradient import PROBE_SCALE


@custom_vjp()
def record_maxima(x: jax.Array, average: jax.Array, probe: jax.Array) -> jax.Array:
    r"""Returns inputs unchanged, and their maxima in the gradient of the probe.

    With :math:`m_b = \max_j |x_{bj}|` of every input vector on a tile and :math:`a`
    the average so far, the first four sums of the probe become 2^-40 times

    .. math:: \sum_b 1, \quad \sum_b 1, \quad \sum_b m_b / a, \quad \sum_b (m_b / a)^2.

    The average itself gets no gradient.

    >>> x = jnp.array([[0.5, -4.0], [2.0, 0.0]]).reshape(2, 1, 1, 2)
    >>> loss = lambda probe: record_maxima(x, jnp.full((1, 1), 2.0), probe).sum()
    >>> print(jax.grad(loss)(jnp.zeros((1, 1, 6))).ravel() / PROBE_SCALE)
    [2. 2. 3. 5. 0. 0.]

    Args:
      x: `[..., row tiles, 1, rows]`, cut into row tiles by `tiling.cut`.
      average: a, `[row tiles, column tiles]`, positive, in units of the input.
      probe: `[row tiles, column tiles, 6]`; its value is not read.

    References:
      Gokmen et al., Training deep convolutional neural networks with resistive
      cross-point devices, Frontiers in Neuroscience 2017.
    """
    del average, probe
    return x


def _forward(x, average, probe):
    batch = tuple(range(x.ndim - 3))
    largest = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1)
    largest = largest / over_batch(average, largest)
    count = jnp.full_like(average, math.prod(x.shape[:-3]))
    none = jnp.zeros_like(count)
    total = jnp.sum(largest, axis=batch)
    square = jnp.sum(jnp.square(largest), axis=batch)
    sums = jnp.stack([count, count, total, square, none, none], axis=-1)
    return x, (average, (PROBE_SCALE * sums).astype(probe.dtype))


def _backward(residuals, d):
    average, sums = residuals
    return d, jnp.zeros_like(average), sums


record_maxima.defvjp(_forward, _backward)
