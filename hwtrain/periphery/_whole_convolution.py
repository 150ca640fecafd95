"""Runs a convolution between the stages of its crossbars by XLA's own convolution.

Windows are not materialised. This requires that an input value is treated alike in
every window, which each stage declares by `whole`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from hwtrain._arrays.tiling import over_batch
from hwtrain._arrays.windows import Window
from hwtrain._errors import InputError
from hwtrain._parts.constant import filled, split, static
from hwtrain._parts.slot import home
from hwtrain.periphery._pipeline import Context, run
from hwtrain.periphery._range_gradient import RangeGradient
from hwtrain.periphery._ranges_of_windows import (
    ranged_convolution,
)
from hwtrain.periphery._tiled_matrix import cut_columns
from hwtrain.periphery._whole_kernel import WholeKernel
from hwtrain.periphery.input_range import PROBE, RANGE, Range


def runs_whole(stages: Sequence[Any]) -> bool:
    """Whether every stage can be run around a convolution as a whole.

    >>> from hwtrain.periphery.ir_drop import IrDrop
    >>> from hwtrain.periphery.output_noise import OutputNoise
    >>> runs_whole([OutputNoise(sigma=0.1)]), runs_whole([IrDrop(strength=1.0)])
    (True, False)
    """
    known = static(tuple(stages))
    return all(stage.runs_whole() for stage in known) and _keeps_zero(known)


@functools.lru_cache(maxsize=256)
def _keeps_zero(stages: tuple[Any, ...]) -> bool:
    """Whether the zero padding of an input is also zero at the crossbars."""
    if not any(home(type(stage)) for stage in stages):
        return True  # every built-in stage maps zero to zero
    inner = stages[1:] if isinstance(stages[0], Range) else stages
    with jax.ensure_compile_time_eval():
        driven = Drive(inner)(jnp.zeros((1, 1)), jnp.ones(1))
        return not bool(jnp.any(driven != 0))


def converted_convolution(
    x: jax.Array,
    kernel: jax.Array,
    stages: Sequence[Any],
    window: Window,
    *,
    row_sizes: tuple[int, ...] | None = None,
    column_sizes: tuple[int, ...] | None = None,
    scale: jax.Array | None = None,
    output_scale: jax.Array | None = None,
    input_range: jax.Array | None = None,
    probe: jax.Array | None = None,
    leaves: Mapping[str, jax.Array] = {},  # noqa: B006 it is only read
    keys: jax.Array | None = None,
    chip_keys: jax.Array | None = None,
    strength: ArrayLike = 1.0,
    precision: Any = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    r"""Convolves through DAC, crossbars and ADC, by a convolution for each tile.

    .. math::
        y = s\, r\, \alpha\, \mathrm{ADC}\!\left(\frac{W}{s} *
        \mathrm{DAC}\!\left(\frac{\mathrm{clip}(x, -r, r)}{r}\right)\right)

    It equals `analog_mvm` of every group's windows, including the gradients, the sums
    of the probe and the frozen spreads, but materialises no window. Either groups or
    tiles are one.

    >>> from hwtrain.periphery.dac import Dac
    >>> three_levels = Dac(bound=1.0, res=1 / 2)
    >>> x = jnp.array([[0.4, -3.0]])[..., None]
    >>> y = converted_convolution(
    ...     x, jnp.ones((2, 1, 1)), (three_levels,), Window.of((2,)))
    >>> print(y.ravel())
    [-1.]

    Args:
      x: `[batch, *spatial, channels]`, including its border.
      kernel: `[*taps, channels of a group, features]`.
      stages: the stages around the tiles, outermost first; `runs_whole` must hold for
        them. A range comes first.
      window: the window, neither `flipped` nor `local`.
      row_sizes: rows of each row tile of a group; `None` for one row tile.
      column_sizes: columns of each column tile of a group; `None` for one.
      scale: `[groups, row tiles, columns or column tiles of a group]`, s; `None` for 1.
      output_scale: likewise, a learned factor on the outputs; `None` for 1.
      input_range: `[groups, row tiles, column tiles]`, r, for the stage `Range`; `None`
        without it.
      probe: `[groups, row tiles, column tiles, 6]`; `None` for plain JAX operations,
        without statistics.
      leaves: the leaves of users' stages by name, `[groups, row tiles, column tiles,
        ...]`.
      keys: `[effects]`, the `read_keys` of this read; `None` draws nothing.
      chip_keys: `[groups]` JAX keys of a chip's frozen quantities; `None` for no
        spread.
      strength: factor on the standard deviation of all noise and spreads,
        broadcastable against `[groups, 1, features of a group]`.
      precision: precision of the multiplication.
      dtype: dtype of the result; `None` for that of a plain multiplication.

    Returns:
      `[batch, *positions, features]`.
    """
    row_sizes = row_sizes or (math.prod(kernel.shape[:-1]),)
    column_sizes = column_sizes or (kernel.shape[-1] // window.groups,)
    given = {RANGE.name: input_range, PROBE.name: probe, **leaves}
    given = {k: jax.lax.collapse(v, 0, 2) for k, v in given.items() if v is not None}

    def of_outputs(factor: jax.Array | None) -> Any:
        if factor is None:
            return 1.0
        return cut_columns(jax.lax.collapse(factor, 0, 2), column_sizes)

    crossbar = WholeKernel(
        kernel,
        of_outputs(scale),
        window,
        row_sizes,
        column_sizes,
        precision,
        x.dtype,
    )
    first, *inner = stages if stages else (None,)
    if isinstance(first, Range):
        outside, constants = split(tuple(inner))
        of_drive = (Drive(outside), constants, dtype)
        y = _of_ranges(x, crossbar, given, first.gradient, *of_drive)
    else:
        x = crossbar.of_tiles(x.astype(jnp.float32))
        outside, constants = split(tuple(stages))
        inside = Drive(outside)(x, jnp.ones(x.shape[-1]), *constants)
        y = crossbar.convolve(inside, crossbar.kernels, dtype)
    ctx = Context(
        crossbar=crossbar._replace(convolved=y),
        leaves=given,
        keys=keys,
        chip_key=chip_keys,
        strength=strength,
    )
    y = run(stages, x, ctx)
    y = y * over_batch(crossbar.scale, y) * over_batch(of_outputs(output_scale), y)
    return crossbar.added(y).astype(dtype or jnp.result_type(x, kernel))


def clipped_convolution(
    x: jax.Array,
    kernel: jax.Array,
    window: Window,
    *,
    row_sizes: tuple[int, ...],
    column_sizes: tuple[int, ...],
    input_range: jax.Array,
    probe: jax.Array | None,
    gradient: RangeGradient,
    precision: Any = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Convolves inputs clipped to the range of each tile; as `ranged_matmul`.

    Arguments as in `converted_convolution`, and `gradient` as in `ranged_convolution`.
    """
    given = {RANGE.name: input_range, PROBE.name: probe}
    given = {k: jax.lax.collapse(v, 0, 2) for k, v in given.items() if v is not None}
    crossbar = WholeKernel(
        kernel, 1.0, window, row_sizes, column_sizes, precision, x.dtype
    )
    # Partial sums of several tiles are rounded once, when they have been added.
    inner = jnp.float32 if len(row_sizes) > 1 and x.dtype.itemsize < 4 else dtype
    y = _of_ranges(x, crossbar, given, gradient, None, (), inner)
    return crossbar.added(y).astype(dtype or jnp.result_type(x, kernel))


def _of_ranges(
    x: jax.Array,
    crossbar: WholeKernel,
    leaves: Mapping[str, jax.Array],
    gradient: RangeGradient,
    drive: "Drive | None",
    constants: tuple[jax.Array, ...],
    dtype: DTypeLike | None,
) -> jax.Array:
    """Returns the product of inputs clipped to the range of each tile.

    Args:
      x: `[batch, *spatial, channels]`.
      crossbar: the kernel.
      leaves: the leaves, `[groups or row tiles, column tiles, ...]`.
      gradient: options of the range's gradient.
      drive: as in `ranged_convolution`.
      constants: as in `ranged_convolution`.
      dtype: dtype of the product; `None` for that of a plain multiplication.

    Returns:
      `[batch, *positions, groups or row tiles, column tiles, features]`.
    """
    r, probe = leaves[RANGE.name], leaves.get(PROBE.name)
    if probe is None and drive is not None:
        r = jax.lax.stop_gradient(r)  # as in `input_range.ranged`
    outputs = [
        ranged_convolution(
            x[..., tile.channels],
            tile.kernel(crossbar.kernel),
            r[tile.place][..., None],
            None if probe is None else probe[tile.place][..., None, :],
            crossbar.window,
            gradient,
            crossbar.precision,
            dtype,
            drive,
            constants,
            tile.rows,
        )
        for tile in crossbar.tiles
    ]
    return crossbar.together(outputs)


class _Reached(Exception):  # noqa: N818 it is not an error
    """Carries the inputs that reach the crossbars out of the stages."""


@dataclasses.dataclass(frozen=True)
class Drive:
    """The effect of the stages on inputs before the crossbars multiply them.

    Attributes:
      stages: the stages, outermost first, without a range, and with holes for traced
        constants.
    """

    stages: tuple[Any, ...]

    def __call__(self, x: jax.Array, r: jax.Array, *constants: jax.Array) -> jax.Array:
        """Returns the inputs of the crossbars, in normalised units and float32.

        Args:
          x: `[..., channels]`, in units of the input.
          r: `[channels]`, the range.
          *constants: values for the holes.
        """
        x = x.astype(jnp.float32) / over_batch(r.astype(jnp.float32), x)
        try:
            stages = filled(self.stages, constants)
            run(stages, x, Context(crossbar=_End()))  # type: ignore[arg-type]
        except _Reached as reached:
            return reached.args[0]
        raise AssertionError("no stage multiplied")


class _End:
    """Stands in for the crossbar, and stops where it would multiply."""

    whole = True

    def read(self, x: jax.Array) -> jax.Array:
        raise _Reached(x)

    def __getattr__(self, name: str) -> Any:
        raise InputError(
            f"a stage with whole = True asks for {name!r} of its weights before it "
            "calls inner(x): do that after the call, or leave whole out"
        )
