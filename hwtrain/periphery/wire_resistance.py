"""Loss of voltage along the wires of a crossbar, from the resistance of the wires."""

import functools
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from pydantic import model_validator

from hwtrain._arrays import tiling
from hwtrain._errors import InputError
from hwtrain._parts.fields import NonNegative, Positive
from hwtrain._parts.part import Part
from hwtrain.periphery._written_weights import check_devices
from hwtrain.periphery.circuit import crossbar_currents, wire_resistances

_CROSS = 2 / 3
"""Fitted to `crossbar_currents`; see `apparent_conductances`."""

_SOLVED_AT_ONCE = 16
"""Rows whose circuits are solved at once: more need more memory."""


def apparent_conductances(
    conductances_s: ArrayLike,
    *,
    r_wire_ohm: ArrayLike,
    r_source_ohm: ArrayLike = 0.0,
    r_sink_ohm: ArrayLike = 0.0,
) -> jax.Array:
    r"""Returns conductances that a crossbar with ideal wires would need.

    .. math::
        \tilde G = \frac{G}{1 + a + b + \frac{2}{3} a b}, \qquad
        a_{ij} = \sum_k A_{jk} G_{ik}, \qquad b_{ij} = \sum_k B_{ik} G_{kj}

    with the resistances A and B of `wire_resistances`: a is the drop along the row, if
    all of its devices had the full voltage, and b that along the column. The currents
    :math:`V \tilde G` equal those of `crossbar_currents` to first order in the
    resistances. The factor of ab is fitted: to crossbars of 64 to 256 rows and pairs of
    columns, wires of 0.3 to 3 ohm, and uniform, normal and sparse weights of at most
    50 µS. There, the error is below :math:`0.3\, \bar\rho^2` of the standard deviation
    of the outputs, with :math:`\bar\rho < 1` the mean of a + b: 0.3 % where the wires
    take about 10 % of the voltage, 3 % where they take 30 %.

    >>> g = jnp.full((2, 3), 1e-4)
    >>> seen = apparent_conductances(g, r_wire_ohm=10.0)
    >>> print(*[f"{1e6 * current:.2f}" for current in jnp.array([0.2, 0.1]) @ seen])
    29.83 29.77 29.74

    Args:
      conductances_s: G, `[..., rows, columns]`, in siemens, at least 0.
      r_wire_ohm: resistance of the wire between two devices, in ohm.
      r_source_ohm: resistance of each driver, in ohm.
      r_sink_ohm: resistance of each sink, in ohm.

    Returns:
      The apparent conductances, of the same shape.
    """
    g = jnp.asarray(conductances_s)
    along_row, along_column = wire_resistances(
        *g.shape[-2:],
        r_wire_ohm=r_wire_ohm,
        r_source_ohm=r_source_ohm,
        r_sink_ohm=r_sink_ohm,
    )
    a, b = g @ along_row, along_column @ g
    return g / (1 + a + b + _CROSS * a * b)


class WireResistance(Part):
    r"""Takes from outputs what the wires of a crossbar take from its devices.

    A weight w lies on a pair of devices in neighbouring columns, 2j and 2j + 1:

    .. math::
        G^\pm = g_\text{min} + (g_\text{max} - g_\text{min})\, \max(\pm w, 0), \qquad
        y = x \frac{\tilde G^+ - \tilde G^-}{g_\text{max} - g_\text{min}}

    with the `apparent_conductances` of the whole tile, or, if `solved`, those of its
    circuit, `crossbar_currents`. The circuit is linear, so neither depends on the
    inputs. The gradient is the true one. `IOParameters(ir_drop=)` is another model:
    aihwkit's, of single columns with drops that depend on the inputs.

    Beside a converter, these must be the conductances that it writes: of a single pair,
    with `weight_scaling_omega` in the mapping, so that each largest weight is known.

    >>> WireResistance(r_wire_ohm=1.0, r_sink_ohm=50.0).describe()
    'wires of 1 ohm, sinks of 50'

    Raises:
      ValueError: if all resistances are zero, or `g_min_us` is not below `g_max_us`.
    """

    r_wire_ohm: NonNegative
    """Resistance of the wire between two neighbouring devices, in ohm."""
    r_source_ohm: NonNegative = 0.0
    """Resistance of each driver of a row, in ohm. Zero turns it off."""
    r_sink_ohm: NonNegative = 0.0
    """Resistance of each sink of a column, in ohm. Zero turns it off."""
    g_max_us: Positive = 25.0
    """Conductance of a device that holds a weight of 1, in µS."""
    g_min_us: NonNegative = 0.0
    """Conductance of a device that holds a weight of 0, in µS."""
    solved: bool = False
    """Solve the circuit of each tile instead of the fitted approximation: exact, and
    as much work as a few hundred multiplications for each row of a tile. For
    evaluation rather than training."""

    def check_hardware(self, hardware):
        """Raises if the converter writes other devices."""
        check_devices(self, hardware)

    def around(self, inner, x, ctx):
        """Subtracts the loss from the outputs."""
        w = jnp.moveaxis(ctx.w.astype(jnp.float32), 2, 1)
        seen = self._seen(w, ctx.crossbar.row_sizes, ctx.valid_outputs(w[..., 0, :]))
        return inner(x) - ctx.product(x, jnp.moveaxis(w - seen, 1, 2))

    def _seen(
        self, tiles: jax.Array, row_sizes: tuple[int, ...], columns: Any
    ) -> jax.Array:
        """Returns the weights that the wires leave.

        Args:
          tiles: `[row tiles, column tiles, rows, columns]`.
          row_sizes: rows of each row tile.
          columns: which columns are no padding, `[row tiles or 1, column tiles,
            columns]`.
        """
        span_s = (self.g_max_us - self.g_min_us) * 1e-6
        pair = jnp.stack([jnp.maximum(tiles, 0), jnp.maximum(-tiles, 0)], axis=-1)
        g = self.g_min_us * 1e-6 + span_s * pair
        # What only fills up a tile has no devices, and no wire to the sinks.
        real = tiling.mask(row_sizes)[:, None, :, None] & columns[..., None, :]
        g = g * real[..., None]
        missing = np.float32(row_sizes[0]) - np.asarray(row_sizes, np.float32)
        sinks = self.r_sink_ohm - self.r_wire_ohm * jnp.asarray(missing)
        rows = _each(self._of_tile, self.solved)
        seen = rows(g.reshape(*tiles.shape[:-1], -1), sinks).reshape(pair.shape)
        return (seen[..., 0] - seen[..., 1]) / span_s

    def _of_tile(self, g: jax.Array, r_sink_ohm: jax.Array) -> jax.Array:
        """Returns the apparent conductances of a tile."""
        wires = {
            "r_wire_ohm": jnp.asarray(self.r_wire_ohm),
            "r_source_ohm": jnp.asarray(self.r_source_ohm),
            "r_sink_ohm": r_sink_ohm,
        }
        if not self.solved:
            return apparent_conductances(g, **wires)
        solve = functools.partial(crossbar_currents, g, **wires)
        return jax.lax.map(solve, jnp.eye(len(g)), batch_size=_SOLVED_AT_ONCE)

    def describe(self):
        """Returns its resistances."""
        ends = [
            f", {end} of {ohm:g}"
            for end, ohm in (("drivers", self.r_source_ohm), ("sinks", self.r_sink_ohm))
            if ohm > 0
        ]
        how = ", solved" if self.solved else ""
        return f"wires of {self.r_wire_ohm:g} ohm{''.join(ends)}{how}"

    def proof(self, ctx):
        """Declares its measured effect: the outputs."""
        ctx.differs("wire resistance")
        if not self.solved:
            ctx.responds(self._expected, "wire resistance")

    def _expected(self, x, tile):
        w = np.moveaxis(np.asarray(tile.w, np.float64), 2, 1)
        seen = np.zeros_like(w)
        span = self.g_max_us - self.g_min_us
        for i, rows in enumerate(tile.row_sizes):
            row, column = np.arange(rows), np.arange(2 * tile.column_sizes[0])
            along_row = self.r_wire_ohm * (np.minimum.outer(column, column) + 1)
            along_row += self.r_source_ohm
            along_column = self.r_wire_ohm * (rows - np.maximum.outer(row, row))
            along_column += self.r_sink_ohm
            for j, columns in enumerate(tile.column_sizes):
                real = w[i, j, :rows, :columns]
                g = np.stack([real.clip(0), (-real).clip(0)], axis=-1) * span
                g = 1e-6 * (self.g_min_us + g.reshape(rows, -1))
                a = g @ along_row[: 2 * columns, : 2 * columns]
                b = along_column @ g
                left = (g / (1 + a + b + 2 / 3 * a * b)).reshape(*real.shape, 2)
                seen[i, j, :rows, :columns] = 1e6 / span * (left[..., 0] - left[..., 1])
        return tile.product(x, np.moveaxis(seen, 1, 2))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.r_wire_ohm == self.r_source_ohm == self.r_sink_ohm == 0:
            raise InputError(
                "wires without resistance do nothing: write r_wire_ohm, r_source_ohm "
                "or r_sink_ohm above 0, or leave the stage out"
            )
        if self.g_min_us >= self.g_max_us:
            raise InputError(
                f"g_min_us={self.g_min_us:g} must be below g_max_us={self.g_max_us:g}"
            )
        return self


def _each(
    function: Callable[[jax.Array, jax.Array], jax.Array], in_turn: bool
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the function for `[row tiles, column tiles, ...]` and `[row tiles]`."""

    def of_row(g: jax.Array, r_sink_ohm: jax.Array) -> jax.Array:
        def of_tile(g: jax.Array) -> jax.Array:
            return function(g, r_sink_ohm)

        return jax.lax.map(of_tile, g) if in_turn else jax.vmap(of_tile)(g)

    if in_turn:
        return lambda g, sinks: jax.lax.map(lambda pair: of_row(*pair), (g, sinks))
    return jax.vmap(of_row)
