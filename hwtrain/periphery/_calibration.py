"""Estimates of input ranges from batches of data, for every row tile."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hwtrain._arrays import tiling

METHODS = ("max", "moving_std", "moving_quantile", "cache_quantile")


def batch_range(
    x: jax.Array,
    row_sizes: tuple[int, ...],
    *,
    method: str,
    quantile: float,
    std_alpha: float,
) -> jax.Array:
    r"""Returns the input range of every row tile that fits one batch.

    .. math::
        \text{max:}\ \max |x| \qquad
        \text{moving_std:}\ \alpha\, \mathrm{std}(x) \qquad
        \text{moving_quantile:}\ Q_q(|x|)

    Vectors that are zero on a tile, such as padding, are not counted there. The
    standard deviation is that of the pool (N); for nearly constant inputs see
    `spread_range`.

    >>> x = jnp.array([[1.0, -3.0], [0.0, 0.0]])
    >>> print(batch_range(x, (2,), method="moving_std", quantile=1.0, std_alpha=2.0))
    [4.]

    Args:
      x: `[..., rows]`.
      row_sizes: rows of each row tile.
      method: one of the above.
      quantile: q, from 0 to 1.
      std_alpha: alpha, in standard deviations.

    Returns:
      `[row tiles]`, float32; zero where all inputs are zero.

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023.
    """
    x = jax.lax.collapse(x, 0, -1).astype(jnp.float32)
    tiles = jnp.swapaxes(tiling.cut(x, row_sizes, axis=-1), 0, 1)
    counts = jnp.any(tiles != 0, axis=-1, keepdims=True)
    counts = counts & tiling.mask(row_sizes)[:, None, :]
    tiles, counts = jax.lax.collapse(tiles, 1), jax.lax.collapse(counts, 1)
    if method == "max":
        return jnp.max(jnp.abs(tiles), axis=-1, initial=0)
    if method == "moving_std":
        square, variance = (
            jnp.nan_to_num(f(values, axis=-1, where=counts))
            for f, values in ((jnp.mean, jnp.square(tiles)), (jnp.var, tiles))
        )
        return spread_range(square, variance, std_alpha=std_alpha)
    kept = jnp.where(counts, jnp.abs(tiles), jnp.nan)
    return jnp.nan_to_num(jnp.nanquantile(kept, quantile, axis=-1))


_CONSTANT = 1e-5


def spread_range(
    square: jax.Array, variance: jax.Array, *, std_alpha: ArrayLike
) -> jax.Array:
    r"""Returns the range that fits the spread of inputs.

    .. math:: r = \alpha\,\mathrm{std}(x), \qquad
        r = \sqrt{\overline{x^2}}\,(1 + \alpha\,10^{-2.5})
        \text{ where } \mathrm{var}(x) \le 10^{-5}\, \overline{x^2}

    The second case is for nearly constant inputs: their deviation does not reflect
    their size, and is lost in rounding if it is computed from two sums.

    >>> square = jnp.array([1.0, 25.0, 0.0])
    >>> print(spread_range(square, jnp.array([1.0, 0.0, 0.0]), std_alpha=3.0))
    [3.       5.047434 0.      ]

    Args:
      square: mean square of the inputs.
      variance: their variance about the mean.
      std_alpha: alpha, in standard deviations.

    Returns:
      The range; zero for inputs of zeros.
    """
    nearly = jnp.sqrt(square) * (1 + jnp.asarray(std_alpha) * _CONSTANT**0.5)
    spread = jnp.asarray(std_alpha) * jnp.sqrt(jnp.maximum(variance, 0))
    return jnp.where(variance > _CONSTANT * square, spread, nearly)


class RowSample:
    """A random sample of bounded size of the input rows of a tile.

    Every row gets a random number, and the rows with the smallest ones stay, so that
    all rows are equally likely to be kept.

    Args:
      size: maximum number of rows to keep.
      generator: source of the random numbers.
    """

    def __init__(self, size: int, generator: np.random.Generator):
        self._size, self._generator = size, generator
        self._rows: np.ndarray | None = None
        self._order = np.zeros(0)

    def add(self, rows: np.ndarray) -> None:
        """Adds rows `[count, rows]`; rows of zeros are ignored."""
        rows = rows[np.any(rows != 0, axis=1)]
        order = self._generator.random(len(rows))
        if self._rows is not None:
            rows = np.concatenate([self._rows, rows])
            order = np.concatenate([self._order, order])
        kept = np.argsort(order)[: self._size]
        self._rows, self._order = rows[kept], order[kept]

    def quantile(self, quantile: float) -> float:
        """Returns the quantile of the absolute values; zero without rows."""
        if self._rows is None or not self._rows.size:
            return 0.0
        return float(np.quantile(np.abs(self._rows), quantile))
