"""A clip bound per column, learned together with the weights."""

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import tiling
from hwtrain._arrays.derivatives import custom_vjp


@custom_vjp(nondiff_argnums=(2, 3))
def learned_clip(
    w: jax.Array,
    bound: jax.Array,
    row_sizes: tuple[int, ...],
    steps: float | None = None,
) -> jax.Array:
    r"""Clips weights to a learned bound and rounds them to levels within it.

    .. math::
        \hat w = \Delta\, \mathrm{clip}(\lfloor w / \Delta \rceil, -q, q), \qquad
        \Delta = c / q, \quad q = \text{steps} / 2

    or, without levels, :math:`\hat w = \mathrm{clip}(w, -c, c)`. The weight's gradient
    passes where :math:`|w| \le c`. The bound's is, summed over the rows of the tile,

    .. math:: \frac{\partial L}{\partial c} = \gamma \sum
        \frac{\partial L}{\partial \hat w} \begin{cases}
        q & w > c \\ -q & w < -c \\
        \lfloor w / \Delta \rceil - w / \Delta & \text{else}\end{cases}

    with :math:`\gamma = 1 / \sqrt{q n}` for a tile of n weights; without levels, q = 1
    and the last case is zero. The factor :math:`\gamma` makes the bound learn about as
    fast as the weights.

    >>> w, c = jnp.array([[0.2], [-0.9]]), jnp.array([[0.5]])
    >>> print(learned_clip(w, c, (2,)))
    [[ 0.2]
     [-0.5]]
    >>> print(jax.grad(lambda c: learned_clip(w, c, (2,)).sum())(c))
    [[-0.70710677]]

    Args:
      w: `[..., rows, columns]`, weights.
      bound: c, `[..., row tiles, columns]`, positive, in units of `w`.
      row_sizes: rows of each row tile.
      steps: number of levels between -c and c, minus one; `None` does not round.

    Returns:
      The weights, of the shape and dtype of `w`.

    References:
      Esser et al., Learned step size quantization, ICLR 2020.

      Liu et al., ParetoQ: improving scaling laws in extremely low-bit LLM
      quantization, NeurIPS 2025.
    """
    return _forward(w, bound, row_sizes, steps)


def _forward(
    w: jax.Array, bound: jax.Array, row_sizes: tuple[int, ...], steps: float | None
) -> jax.Array:
    c = tiling.expand_rows(bound, row_sizes).astype(jnp.float32)
    wide = w.astype(jnp.float32)
    if steps is None:
        return jnp.clip(wide, -c, c).astype(w.dtype)
    step = c * (2 / steps)
    # With an odd number of steps, half a step is left at each end: clip after rounding.
    level = jnp.clip(jnp.round(wide / step), -steps / 2, steps / 2)
    return (level * step).astype(w.dtype)


def _save(w, bound, row_sizes, steps):
    return _forward(w, bound, row_sizes, steps), (w, bound)


def _gradients(row_sizes, steps, saved, cotangent):
    w, bound = saved
    c = tiling.expand_rows(bound, row_sizes).astype(jnp.float32)
    largest = 1.0 if steps is None else steps / 2
    level = w.astype(jnp.float32) / c * largest
    inside = 0.0 if steps is None else jnp.round(level) - level
    slope = jnp.where(jnp.abs(level) > largest, jnp.sign(level) * largest, inside)
    terms = tiling.cut(cotangent.astype(jnp.float32) * slope, row_sizes, axis=-2)
    count = np.asarray(row_sizes, np.float32)[:, None] * np.float32(w.shape[-1])
    total = jnp.sum(terms, axis=-2) / np.sqrt(largest * count)
    bound_gradient = total.astype(bound.dtype)
    within = jnp.abs(w.astype(jnp.float32)) <= c
    passed = jnp.where(within, cotangent, 0).astype(w.dtype)
    return tiling.placed_like(passed, w), tiling.placed_like(bound_gradient, bound)


learned_clip.defvjp(_save, _gradients)
