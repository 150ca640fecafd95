"""Frozen mismatch that neighbours, rows, columns and tiles share."""

from typing import Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from pydantic import model_validator

from hwtrain._arrays import tiling
from hwtrain._errors import InputError
from hwtrain._parts.fields import NonNegative, PositiveDeviation, Share
from hwtrain._parts.registry import register
from hwtrain.weights.bases import Mismatch


def correlation_root(size: int, length: ArrayLike) -> jax.Array:
    r"""Returns a root of the correlation of devices in a line.

    .. math:: (L L^T)_{ij} = e^{-|i - j| / \ell}, \qquad
        L_{i0} = a^i, \quad L_{ij} = a^{i - j} \sqrt{1 - a^2} \ (0 < j \le i), \quad
        a = e^{-1 / \ell}

    >>> import math
    >>> print(correlation_root(2, -1 / math.log(0.6)).round(1))
    [[1.  0. ]
     [0.6 0.8]]

    Args:
      size: number of devices.
      length: l, in devices, above zero.
    """
    decay = jnp.exp(-1 / jnp.asarray(length, jnp.float32))
    apart = np.subtract.outer(np.arange(size), np.arange(size))
    root = jnp.where(apart >= 0, decay ** np.maximum(apart, 0), 0.0)
    later = np.arange(size) > 0
    return root * jnp.where(later, jnp.sqrt(1 - decay**2), 1.0)


@register("mismatch", "correlated")
class CorrelatedMismatch(Mismatch):
    r"""Frozen mismatch of which devices share a part.

    .. math::
        w' = w + \sigma A\, \delta, \qquad
        \delta_{ij} = \sqrt{\rho_t}\, \zeta + \sqrt{\rho_r}\, \zeta_i
        + \sqrt{\rho_c}\, \zeta_j + \sqrt{1 - \rho_t - \rho_r - \rho_c}\, \xi_{ij}

    with A the weight itself (`mult_normal`) or the largest weight of its row tile
    (`add_normal`), and standard normal numbers that are drawn once for each chip:
    :math:`\zeta` of each tile, :math:`\zeta_i` of each row and :math:`\zeta_j` of each
    column of a tile, :math:`\xi_{ij}` of each device, whose correlation falls with the
    distance, :math:`\exp(-(|\Delta i| + |\Delta j|) / \ell)`. Each deviation is normal
    with standard deviation :math:`\sigma` as in `MismatchParameter`; those of different
    tiles are independent.

    >>> CorrelatedMismatch(std_dev=0.1, of_column=0.5).describe()
    'correlated mult_normal 0.1: 50% of a column'

    Raises:
      ValueError: if shares add up to more than 1, or nothing is shared.

    References:
      Pelgrom et al., Matching properties of MOS transistors, IEEE JSSC 1989: deviations
      of single devices, and gradients over the chip.
      Xiong, Zolotov and He, Robust extraction of spatial correlation, IEEE Transactions
      on Computer-Aided Design 2007: correlations that fall with the distance.
    """

    type: Literal["correlated"] = "correlated"
    std_dev: PositiveDeviation
    """Standard deviation, relative to A."""
    kind: Literal["mult_normal", "add_normal"] = "mult_normal"
    """What A is."""
    of_tile: Share = 0.0
    """Share of the variance that all devices of a tile have in common."""
    of_row: Share = 0.0
    """Share of the variance that the devices of a row of a tile have in common."""
    of_column: Share = 0.0
    """Share of the variance that the devices of a column of a tile have in common."""
    length: NonNegative = 0.0
    """Distance, in devices, over which the correlation of the rest falls to 1 / e. Zero
    for independent devices."""

    def on_weight(self, w, ctx):
        """Returns the weights of one chip."""
        deviation = ctx.weight.from_matrix(self._deviations(w, ctx))
        amplitude = w if self.kind == "mult_normal" else ctx.w_max
        return w + self.std_dev * amplitude * deviation

    def _deviations(self, w: jax.Array, ctx) -> jax.Array:
        """Returns the deviations of unit variance, `[..., rows, columns]`."""
        weight = ctx.weight
        rows, columns = weight.row_sizes, weight.column_sizes
        lead = weight.to_matrix(w).shape[:-2]
        grid = (*lead, len(rows), rows[0], len(columns), columns[0])
        rest = 1 - self.of_tile - self.of_row - self.of_column
        total = jnp.sqrt(jnp.maximum(rest, 0.0)) * self._spread_out(
            ctx.normal("device", grid), rows[0], columns[0]
        )
        for share, name, axes in (
            (self.of_tile, "tile", (-3, -1)),
            (self.of_row, "row", (-1,)),
            (self.of_column, "column", (-3,)),
        ):
            if share > 0:
                shape = list(grid)
                for axis in axes:
                    shape[axis] = 1
                total = total + jnp.sqrt(share) * ctx.normal(name, shape)
        joined = tiling.join(total, columns, axis=-1)
        return tiling.join(joined, rows, axis=-2)

    def _spread_out(self, xi: jax.Array, rows: int, columns: int) -> jax.Array:
        """Returns device numbers, correlated over a tile."""
        if self.length == 0:
            return xi
        down, across = (correlation_root(n, self.length) for n in (rows, columns))
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("ij,...rjcl,kl->...rick", down, xi, across, precision=highest)

    def describe(self):
        """Returns its strength, and what is shared."""
        shared = [
            f"{share:.0%} of a {name}"
            for share, name in (
                (self.of_tile, "tile"),
                (self.of_row, "row"),
                (self.of_column, "column"),
            )
            if share
        ]
        near = [f"over {self.length:g} devices"] if self.length else []
        what = ", ".join([*shared, *near])
        return f"correlated {self.kind} {self.std_dev:g}: {what}"

    @model_validator(mode="after")
    def _check(self) -> Self:
        shared = self.of_tile + self.of_row + self.of_column
        if shared > 1 + 1e-9:
            raise InputError(
                f"of_tile, of_row and of_column add up to {shared:g}: expected shares "
                "of one variance, at most 1 together"
            )
        if shared == 0 and self.length == 0:
            raise InputError(
                "nothing is shared: write of_tile, of_row, of_column or length, or use "
                f'MismatchParameter(type="{self.kind}")'
            )
        return self
