"""IR drop along the columns of a tile that is driven by pulses of modulated width."""

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from pydantic import model_validator

from hwtrain._arrays import tiling
from hwtrain._errors import InputError
from hwtrain._parts.fields import NonNegative, Number, Positive, Size
from hwtrain._parts.part import Part
from hwtrain.periphery._written_weights import check_devices


def transmission(
    conductances_us: jax.Array, r_wire_mohm: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    r"""Returns which share of the segments' currents arrives at the end of a wire.

    .. math::
        \frac{1}{R_s} = G_s + \frac{1}{R_{s-1} + R}, \qquad
        V_s = R_s \left(G_s v_s + \frac{V_{s-1}}{R_{s-1} + R}\right), \qquad
        I = \frac{V_S}{R_S + R / 2} = \sum_s c_s\, G_s\, v_s

    with Thevenin's equivalent V, R of all segments up to s, and 0 V at the end.

    >>> share, total = transmission(jnp.array([[1.0], [1.0]]), 0.0)
    >>> print(share.ravel(), total)
    [1. 1.] [2.]

    Args:
      conductances_us: G, `[..., segments, columns]`, in µS; the last segment is next to
        the end. Those of a segment may be zero.
      r_wire_mohm: R, of the wire between two segments, in MOhm.

    Returns:
      c, `[..., segments, columns]`, and the conductance at the end, `[..., columns]`.
    """
    g = jnp.moveaxis(conductances_us, -2, 0)

    def join(before: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        # In conductances, which may be zero, unlike resistances.
        through = before / (1 + before * r_wire_mohm)
        return g + through, 1 / (1 + before * r_wire_mohm)

    total, passed = jax.lax.scan(join, jnp.zeros_like(g[0]), g)
    # A current into segment s leaves each later one by the wire or by its devices,
    # whose other ends are at 0 V: by the share of conductances.
    end = 1 / (1 + total * r_wire_mohm / 2)
    later = jnp.concatenate([passed[1:], end[None]])
    share = jnp.flip(jnp.cumprod(jnp.flip(later, 0), 0), 0)
    return jnp.moveaxis(share, 0, -2), total * end


class ColumnWires(Part):
    r"""Takes from outputs what the wires of the columns take, in segments of rows.

    Inputs are the lengths of pulses of one voltage: at each time, a row is on or off.
    The conductances of a column do not change with time, so that its circuit is linear,
    and the charge of an output is

    .. math::
        y_j = \sum_i c_{s(i) j}\, w_{ij}\, x_i - T\, \frac{v}{v_0}\,
        \frac{G_j}{g_\text{max} - g_\text{min}}

    with the share c of `transmission` for the segment s of a row, T steps of time, an
    offset v of the read voltage, and the conductance :math:`G_j` of a column at its
    ADC. Tiles stand in the middle of `rows` rows; ADCs of even columns are below the
    last row, those of odd ones above the first. Both devices of a weight hang on the
    column that they share. The gradient is the true one. Beside a converter, these must
    be the conductances that it writes, as for `WireResistance`.

    >>> ColumnWires(segments=8).describe()
    'column wires of 0.15 ohm'

    Raises:
      ValueError: if segments do not divide rows, or nothing would happen; at the call,
        for a tile of more rows.

    References:
      IBM aihwkit, `IOParametersIRDropT`: the same charge with
      `ir_drop_integration_sum`, without its `adc_quantization`.
    """

    r_wire_ohm: NonNegative = 0.15
    """Resistance of the wire of a column between two rows, in ohm. Zero turns it
    off."""
    segments: Size = 8
    """Segments of a column: rows of one are taken together."""
    rows: Size = 512
    """Rows of the physical tile, in whose middle the tile stands."""
    g_max_us: Positive = 25.0
    """Conductance of a device that holds a weight of 1, in µS."""
    g_min_us: NonNegative = 0.0
    """Conductance of a device that holds a weight of 0, in µS."""
    v_offset: Number = 0.0
    """Offset of the read voltage v, relative to the voltage v_0 of a pulse."""
    steps: Positive = 1.0
    """Time of integration T, in units of the pulse of an input of 1."""

    def check_hardware(self, hardware):
        """Raises if the converter writes other devices."""
        check_devices(self, hardware)

    def around(self, inner, x, ctx):
        """Subtracts the loss from the outputs, and the offset."""
        tall = ctx.crossbar.row_sizes[0]
        if tall > self.rows:
            raise InputError(
                f"a tile has {tall} rows, and column_wires says that the physical one "
                f"has {self.rows}: write rows={tall} or more, or limit tiles by "
                f"MappingParameter(max_input_size={self.rows})"
            )
        w = jnp.moveaxis(ctx.w.astype(jnp.float32), 2, 1)
        columns = ctx.valid_outputs(w[..., 0, :])
        share, end = self._shares(w, ctx.crossbar.row_sizes, columns)
        y = inner(x) - ctx.product(x, jnp.moveaxis(w * (1 - share), 1, 2))
        if self.v_offset == 0:
            return y
        span = self.g_max_us - self.g_min_us
        return y - tiling.over_batch(self.steps * self.v_offset / span * end, y)

    def _shares(
        self, w: jax.Array, row_sizes: tuple[int, ...], columns: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the shares of weights that arrive, and the conductances of columns.

        Args:
          w: `[row tiles, column tiles, rows, columns]`.
          row_sizes: rows of each row tile.
          columns: which columns are no padding.
        """
        span = self.g_max_us - self.g_min_us
        real = tiling.mask(row_sizes)[:, None, :, None] & columns[..., None, :]
        both = jnp.where(real, span * jnp.abs(w) + 2 * self.g_min_us, 0)
        places = np.stack([self._segments_of(rows, w.shape[2]) for rows in row_sizes])
        where = (places[..., None] == np.arange(self.segments)).astype(np.float32)
        g = jnp.einsum("rcij,ris->rcsj", both, where)
        wire = 1e-6 * self.r_wire_ohm * (self.rows // self.segments)
        down, up = transmission(g, wire), transmission(jnp.flip(g, -2), wire)
        odd = np.arange(w.shape[-1]) % 2 == 1
        share = jnp.where(odd, jnp.flip(up[0], -2), down[0])
        end = jnp.where(odd, up[1], down[1])
        return jnp.einsum("rcsj,ris->rcij", share, where), end

    def _segments_of(self, rows: int, most: int) -> np.ndarray:
        """Returns the segment of each row of a tile, `[most]`."""
        first = (self.rows - rows) // 2
        place = np.minimum(first + np.arange(most), self.rows - 1)
        return place // (self.rows // self.segments)

    def describe(self):
        """Returns its resistance."""
        offset = f", offset {self.v_offset:g}" if self.v_offset else ""
        return f"column wires of {self.r_wire_ohm:g} ohm{offset}"

    def proof(self, ctx):
        """Declares its measured effect: the outputs."""
        ctx.differs("column wires")
        ctx.responds(self._expected, "column wires")

    def _expected(self, x, tile):
        w = np.moveaxis(np.asarray(tile.w, np.float64), 2, 1)
        span, each = self.g_max_us - self.g_min_us, self.rows // self.segments
        wire = self.r_wire_ohm * each
        arriving, offsets = np.zeros_like(w), np.zeros(w.shape[:2] + w.shape[-1:])
        for i, rows in enumerate(tile.row_sizes):
            segment = ((self.rows - rows) // 2 + np.arange(rows)) // each
            for c, columns in enumerate(tile.column_sizes):
                for j in range(columns):
                    of_rows = 1e-6 * (span * abs(w[i, c, :rows, j]) + 2 * self.g_min_us)
                    g = np.bincount(segment, of_rows, self.segments)
                    place = segment
                    if j % 2:
                        g, place = g[::-1], self.segments - 1 - segment
                    # The voltages of the nodes for a current into each, by Kirchhoff.
                    nodes = np.diag(g)
                    if wire > 0:
                        laplace = np.zeros_like(nodes)
                        for s in range(self.segments - 1):
                            cut = np.ix_([s, s + 1], [s, s + 1])
                            laplace[cut] += np.array([[1, -1], [-1, 1]]) / wire
                        laplace[-1, -1] += 2 / wire
                        share = np.linalg.inv(nodes + laplace)[-1] * 2 / wire
                    else:
                        share = np.ones(self.segments)
                    arriving[i, c, :rows, j] = w[i, c, :rows, j] * share[place]
                    offsets[i, c, j] = 1e6 * (g * share).sum() / span
        y = tile.product(x, np.moveaxis(arriving, 1, 2))
        return y - self.steps * self.v_offset * offsets

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.r_wire_ohm == self.v_offset == 0:
            raise InputError(
                "column wires without resistance and offset do nothing: write "
                "r_wire_ohm above 0, or leave the stage out"
            )
        if self.rows % self.segments:
            raise InputError(
                f"segments={self.segments} does not divide rows={self.rows}: segments "
                "have equal numbers of rows"
            )
        if self.g_min_us >= self.g_max_us:
            raise InputError(
                f"g_min_us={self.g_min_us:g} must be below g_max_us={self.g_max_us:g}"
            )
        return self
