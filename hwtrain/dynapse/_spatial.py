"""Spatially correlated mismatch of neighbours on a chip."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpatialCorrelation:
    r"""Normal numbers that are correlated between nearby devices.

    The entries of an array's last axis are devices on a grid, row by row, `width` in a
    row; the other axes are independent.

    .. math::
        \xi_i = \sqrt{1 - s}\, \eta_i + \sqrt{s}\, \zeta_i, \quad
        \mathrm{cov}(\zeta_i, \zeta_j) = e^{-(|x_i - x_j| + |y_i - y_j|) / \ell}

    >>> SpatialCorrelation(width=16, length=4.0).share
    1.0

    Args:
      width: devices in a row of the grid.
      length: the correlation length, in units of the distance between neighbours.
      share: s, the share of the variance that is correlated, up to 1.

    Raises:
      ValueError: for a width or length that is not positive, or a share outside (0, 1].

    References:
      Pelgrom et al., Matching properties of MOS transistors, IEEE JSSC 1989: a local
      part, and one that grows with the distance.
    """

    width: int
    length: float
    share: float = 1.0

    def __post_init__(self):
        if self.width < 1 or not 0 < self.length < math.inf:
            raise InputError(
                "SpatialCorrelation needs at least one device in a row and a finite "
                f"length greater than 0; got width={self.width}, length={self.length}"
            )
        if not 0 < self.share <= 1:
            raise InputError(
                f"share is a share of the variance, in (0, 1]; got {self.share}. "
                "Without correlation, leave the SpatialCorrelation out"
            )

    def normal(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws standard normal numbers with this correlation, in float32.

        Args:
          key: a JAX key.
          shape: shape of the array; its last axis counts the devices.

        Raises:
          ValueError: for a scalar, which has no place on a chip.
        """
        if not shape:
            raise InputError("a scalar has no place on a chip; got shape ()")
        rows = -(-shape[-1] // self.width)
        local_key, field_key = jax.random.split(key)
        grid = jax.random.normal(
            field_key, (*shape[:-1], rows, self.width), jnp.float32
        )
        field = jnp.einsum(
            "ij,...jk,lk->...il",
            _factor(rows, self.length),
            grid,
            _factor(self.width, self.length),
            precision=jax.lax.Precision.HIGHEST,
        )
        field = field.reshape(*shape[:-1], rows * self.width)[..., : shape[-1]]
        if self.share == 1:
            return field
        local = jax.random.normal(local_key, shape, jnp.float32)
        return math.sqrt(1 - self.share) * local + math.sqrt(self.share) * field


@functools.cache
def _factor(size: int, length: float) -> np.ndarray:
    """Returns L with L L^T = exp(-|i - j| / length): its Cholesky factor, `[n, n]`."""
    rho = math.exp(-1 / length)
    i, j = np.indices((size, size))
    innovation = np.where(j == 0, 1.0, math.sqrt(1 - rho**2))
    lower = np.where(i >= j, rho ** np.abs(i - j) * innovation, 0.0)
    return lower.astype(np.float32)
