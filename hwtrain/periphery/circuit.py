"""The currents of a crossbar whose wires have a resistance."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from hwtrain._errors import InputError

_TOLERANCE = 1e-7
"""Residual at which the iteration ends, relative to the right-hand side. The system has
no eigenvalue below 1, so the error of its solution is at most as large."""


def crossbar_currents(
    conductances_s: ArrayLike,
    voltages_v: ArrayLike,
    *,
    r_wire_ohm: ArrayLike,
    r_source_ohm: ArrayLike = 0.0,
    r_sink_ohm: ArrayLike = 0.0,
) -> jax.Array:
    r"""Returns the currents out of a crossbar, with the resistance of its wires.

    Drivers stand at column 0 of the wires of the rows, sinks at 0 V below the last row
    of those of the columns. The current :math:`I_{ij}` of a device follows from the
    voltage that is left for it:

    .. math::
        \frac{I_{ij}}{G_{ij}} = V_i
        - \sum_k \big(R_s + R\,(\min(j, k) + 1)\big)\, I_{ik}
        - \sum_k \big(R_t + R\,(n - \max(i, k))\big)\, I_{kj},
        \qquad I_j = \sum_i I_{ij}

    with rows and columns counted from 0, :math:`n` rows, the wire R between two
    devices, and :math:`R_s, R_t` of a driver and a sink. These are Kirchhoff's laws of
    the whole circuit with the voltages of the wires eliminated, which leaves a
    symmetric system in :math:`I / \sqrt{G}` without differences of nearly equal
    numbers: conjugate gradients converge in float32 in about
    :math:`\sqrt{1 + G R n^2}` iterations without a preconditioner.

    Gradients are those of the solution, with respect to all arguments, by the implicit
    function theorem, in forward and reverse mode. The currents are linear in the
    voltages; those for the rows of `jnp.eye` are the conductances that the crossbar
    seems to have.

    >>> g = jnp.full((2, 3), 1e-4)
    >>> ideal = crossbar_currents(g, jnp.array([0.2, 0.1]), r_wire_ohm=0.0)
    >>> print(*[f"{1e6 * current:.2f}" for current in ideal])
    30.00 30.00 30.00
    >>> dropped = crossbar_currents(g, jnp.array([0.2, 0.1]), r_wire_ohm=10.0)
    >>> print(*[f"{1e6 * current:.2f}" for current in dropped])
    29.83 29.77 29.74

    Args:
      conductances_s: G, of the devices, `[rows, columns]`, in siemens, at least 0.
      voltages_v: V, of the drivers, `[..., rows]`, in volt.
      r_wire_ohm: R, of the wire between two devices, and from the driver to the first
        and from the last to the sink, in ohm. Zero for ideal wires.
      r_source_ohm: resistance of each driver, in ohm.
      r_sink_ohm: resistance of each sink, in ohm.

    Returns:
      The currents into the sinks, `[..., columns]`, in ampere, float32 (float64 for
      arguments of that dtype). Relative to the largest, they are good to 1e-5 where
      the wires take half of the voltage.

    Raises:
      ValueError: for shapes that do not fit, and for negative or non-finite
        conductances or resistances that are not traced.

    References:
      Chen, A comprehensive crossbar array model with solutions for line resistance and
      nonlinear device characteristics, IEEE Transactions on Electron Devices 2013, for
      the circuit; Hestenes and Stiefel, Methods of conjugate gradients for solving
      linear systems, 1952, for the solution.
    """
    resistances = {
        "r_wire_ohm": r_wire_ohm,
        "r_source_ohm": r_source_ohm,
        "r_sink_ohm": r_sink_ohm,
    }
    _check(conductances_s, voltages_v, resistances)
    dtype = jnp.promote_types(jnp.result_type(conductances_s, voltages_v), jnp.float32)
    g = jnp.asarray(conductances_s, dtype)
    v = jnp.asarray(voltages_v, dtype)
    along_row, along_column = wire_resistances(
        *g.shape, **{name: jnp.asarray(r, dtype) for name, r in resistances.items()}
    )

    def dropped(current: jax.Array) -> jax.Array:
        """Returns the voltages that the wires take from the devices."""
        dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        return dot(current, along_row) + dot(along_column, current)

    solve = functools.partial(_device_voltages, g, dropped)
    flat = v.reshape(-1, v.shape[-1])
    left = jax.vmap(lambda v: solve(jnp.broadcast_to(v[:, None], g.shape)))(flat)
    return jnp.sum(g * left, axis=-2).reshape(*v.shape[:-1], g.shape[1])


def wire_resistances(
    rows: int,
    columns: int,
    *,
    r_wire_ohm: ArrayLike,
    r_source_ohm: ArrayLike = 0.0,
    r_sink_ohm: ArrayLike = 0.0,
) -> tuple[jax.Array, jax.Array]:
    r"""Returns the resistances that the currents of two devices on a wire share.

    .. math:: A_{jk} = R_s + R\,(\min(j, k) + 1), \qquad
        B_{ik} = R_t + R\,(n - \max(i, k))

    >>> along_row, along_column = wire_resistances(2, 2, r_wire_ohm=1.0)
    >>> print(along_row, along_column)
    [[1. 1.]
     [1. 2.]] [[2. 1.]
     [1. 1.]]

    Args:
      rows: n, the number of rows.
      columns: the number of columns.
      r_wire_ohm: R, of the wire between two devices, in ohm.
      r_source_ohm: :math:`R_s`, of a driver, in ohm.
      r_sink_ohm: :math:`R_t`, of a sink, in ohm.

    Returns:
      A, `[columns, columns]`, of two devices of a row, and B, `[rows, rows]`, of two
      devices of a column, in ohm.
    """
    row, column = np.arange(rows), np.arange(columns)
    shared = np.minimum.outer(column, column) + 1.0
    below = rows - np.maximum.outer(row, row) * 1.0
    along_row = jnp.asarray(r_wire_ohm) * jnp.asarray(shared, jnp.float32)
    along_column = jnp.asarray(r_wire_ohm) * jnp.asarray(below, jnp.float32)
    return jnp.asarray(r_source_ohm) + along_row, jnp.asarray(r_sink_ohm) + along_column


def _device_voltages(
    g: jax.Array, dropped: Callable[[jax.Array], jax.Array], v: jax.Array
) -> jax.Array:
    """Returns the voltages D of devices, `[rows, columns]`: D + dropped(G D) = V."""

    def symmetric(root: jax.Array, b: jax.Array) -> jax.Array:
        """Solves z + root dropped(root z) = b."""

        def system(z: jax.Array) -> jax.Array:
            return z + root * dropped(root * z)

        return jax.scipy.sparse.linalg.cg(system, b, tol=_TOLERANCE)[0]

    # Outside of the solution, because a root has no derivative at 0; G has.
    root = jax.lax.stop_gradient(jnp.sqrt(g))

    def solve(_, v: jax.Array) -> jax.Array:
        return v - dropped(root * symmetric(root, root * v))

    def transposed(_, v: jax.Array) -> jax.Array:
        return v - root * symmetric(root, root * dropped(v))

    return jax.lax.custom_linear_solve(
        lambda d: d + dropped(g * d), v, solve=solve, transpose_solve=transposed
    )


def _check(
    conductances: ArrayLike, voltages: ArrayLike, resistances: dict[str, ArrayLike]
) -> None:
    """Raises for arguments of a wrong shape, or that no circuit has."""
    shape, of_inputs = jnp.shape(conductances), jnp.shape(voltages)
    if len(shape) != 2:
        raise InputError(
            f"conductances_s has shape {shape}: expected [rows, columns] of one "
            "crossbar; jax.vmap runs over several"
        )
    if not of_inputs or of_inputs[-1] != shape[0]:
        raise InputError(
            f"voltages_v has shape {of_inputs}: expected [..., {shape[0]}], a voltage "
            "for each row of conductances_s"
        )
    for name, value in {"conductances_s": conductances, **resistances}.items():
        if name != "conductances_s" and jnp.shape(value):
            raise InputError(f"{name} has shape {jnp.shape(value)}: expected a number")
        if isinstance(value, Tracer):
            continue
        least = np.min(value, initial=0.0)
        if not np.all(np.isfinite(value)) or least < 0:
            raise InputError(
                f"{name} is {least:g} at least, or not finite: expected numbers of at "
                "least 0. A negative weight is the difference of two columns"
            )
