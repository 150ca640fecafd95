"""Analog multiplication of vectors by a matrix that lies on tiles.

Tiles are a batched axis. Every tile computes in normalised units, x/r and w/s, with its
own converters; the results of row tiles are added digitally.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from hwtrain._arrays import tiling
from hwtrain.periphery._pipeline import Context, run
from hwtrain.periphery._tiled_matrix import TiledMatrix, cut_columns
from hwtrain.periphery.input_range import PROBE, RANGE


def analog_mvm(
    x: jax.Array,
    w: jax.Array,
    stages: Sequence[Any],
    *,
    row_sizes: tuple[int, ...],
    column_sizes: tuple[int, ...],
    scale: jax.Array | None = None,
    output_scale: jax.Array | None = None,
    input_range: jax.Array | None = None,
    probe: jax.Array | None = None,
    leaves: Mapping[str, jax.Array] = {},  # noqa: B006 it is only read
    keys: jax.Array | None = None,
    chip_key: jax.Array | None = None,
    strength: ArrayLike = 1.0,
    dot_general: Callable[..., jax.Array] = jax.lax.dot_general,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    r"""Multiplies by a matrix on tiles, through DAC, crossbar and ADC.

    .. math::
        y_c = \sum_r s_{rc}\, f\!\left(x_r, \frac{W_{rc}}{s_{rc}}\right)

    with f the multiplication of a tile with its stages. The effects, in order: range,
    scale of the management, rounding and clipping of the DAC, input noise, input
    asymmetry, multiplication, weight noise, IR drop, voltage offset, read noise,
    saturation, output asymmetry, output noise, rounding and clipping of the ADC, output
    scale.

    The gradient passes straight through rounding and noise, is zero beyond the bounds
    and exact elsewhere. Input range and the scale of the management are constants to
    it, except for the gradient of the range by `clip_to_range`.

    >>> from hwtrain.periphery.dac import Dac
    >>> three_levels = Dac(bound=1.0, res=1 / 2)
    >>> analog_mvm(jnp.array([[0.4, -3.0]]), jnp.ones((2, 1)), (three_levels,),
    ...            row_sizes=(2,), column_sizes=(1,))
    Array([[-1.]], dtype=float32)

    Args:
      x: `[..., rows]`.
      w: `[rows, columns]`.
      stages: the stages around the tiles, outermost first.
      row_sizes: rows of each row tile.
      column_sizes: columns of each column tile.
      scale: `[row tiles, columns, column tiles or 1]`, s of the nominal weights; `None`
        for 1. In training it is a constant: `jax.lax.stop_gradient`.
      output_scale: `[row tiles, columns or 1]`, a learned factor on the outputs,
        differentiated; `None` for 1.
      input_range: `[row tiles, column tiles]`, r in units of the input, for the stage
        `Range`; `None` without it. If the stage averages, inputs are divided by the
        average but not clipped to it.
      probe: `[row tiles, column tiles, 6]`; `None` for plain JAX operations, which
        forward-mode differentiation needs, without statistics.
      leaves: the leaves of users' stages by name, `[row tiles, column tiles, ...]`.
      keys: `[effects]`, the `read_keys` of this read; `None` draws nothing.
      chip_key: JAX key of a chip's frozen quantities; `None` for no spread.
      strength: factor on the standard deviation of all noise and spreads.
      dot_general: the product to use, called as `jax.lax.dot_general`.
      dtype: dtype of the result; `None` for that of a plain multiplication. The
        periphery computes in float32, the multiplication in the dtype of `x`.

    Returns:
      `[..., columns]`.

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023.
    """
    inputs = tiling.cut(x, row_sizes, axis=-1)[..., None, :]
    if input_range is None:
        inputs = inputs.astype(jnp.float32)
    tiles = TiledMatrix.cut(w, scale, row_sizes, column_sizes, dot_general, x.dtype)
    given = {RANGE.name: input_range, PROBE.name: probe, **leaves}
    ctx = Context(
        crossbar=tiles,
        leaves={name: leaf for name, leaf in given.items() if leaf is not None},
        keys=keys,
        chip_key=chip_key,
        strength=strength,
    )
    y = run(stages, inputs, ctx)
    y = y * tiling.over_batch(tiles.scale, y)
    if output_scale is not None:
        y = y * tiling.over_batch(cut_columns(output_scale, column_sizes), y)
    y = tiling.add_tiles(y, -3)
    return tiling.join(y, column_sizes, axis=-1).astype(dtype or jnp.result_type(x, w))


def tile_responses(
    w: jax.Array,
    stages: Sequence[Any],
    *,
    row_sizes: tuple[int, ...],
    column_sizes: tuple[int, ...],
    leaves: Mapping[str, jax.Array] = {},  # noqa: B006 it is only read
    keys: jax.Array | None = None,
    chip_key: jax.Array | None = None,
) -> jax.Array:
    r"""Returns the responses of every tile to its rows driven by 1, one at a time.

    .. math:: y_{jc} = \mathrm{ADC}\big(e_j\, w_c\big), \qquad
        e_j = \mathrm{DAC}(1) \text{ in row } j

    through the whole periphery, in normalised units. Without a periphery, these are the
    weights of the tiles. Padding responds with zeros.

    >>> w = jnp.array([[0.26, -0.6], [0.1, 2.0]])
    >>> from hwtrain.periphery.adc import Adc
    >>> coarse = Adc(bound=1.0, res=1 / 4)
    >>> print(tile_responses(w, (coarse,), row_sizes=(2,), column_sizes=(2,))[0, 0])
    [[ 0.5 -0.5]
     [ 0.   1. ]]

    Args:
      w: `[rows, columns]`, in units of the crossbar.
      stages: the stages around the tiles, outermost first, without a range.
      row_sizes: rows of each row tile.
      column_sizes: columns of each column tile.
      leaves: the leaves of users' stages by name, `[row tiles, column tiles, ...]`.
      keys: `[effects]`, the `read_keys` of this read; `None` draws nothing.
      chip_key: JAX key of a chip's frozen quantities; `None` for no spread.

    Returns:
      `[row tiles, column tiles, rows, columns]`, padded with zeros.
    """
    rows = row_sizes[0]
    driven = jnp.eye(rows, dtype=jnp.float32)[:, None, :]
    y = tile_outputs(
        w,
        jnp.broadcast_to(driven, (rows, len(row_sizes), rows)),
        stages,
        row_sizes=row_sizes,
        column_sizes=column_sizes,
        leaves=leaves,
        keys=keys,
        chip_key=chip_key,
    )
    y = jnp.moveaxis(y, 0, -2)
    return jnp.where(tiling.mask(row_sizes)[:, None, :, None], y, 0)


def tile_outputs(
    w: jax.Array,
    inputs: jax.Array,
    stages: Sequence[Any],
    *,
    row_sizes: tuple[int, ...],
    column_sizes: tuple[int, ...],
    leaves: Mapping[str, jax.Array] = {},  # noqa: B006 it is only read
    keys: jax.Array | None = None,
    chip_key: jax.Array | None = None,
) -> jax.Array:
    """Returns the outputs of every tile for inputs of its own, in normalised units.

    >>> w = jnp.array([[0.25, -0.5], [0.5, 2.0]])
    >>> x = jnp.array([[[1.0], [-1.0]]])
    >>> print(tile_outputs(w, x, (), row_sizes=(1, 1), column_sizes=(2,)))
    [[[[ 0.25 -0.5 ]]
    <BLANKLINE>
      [[-0.5  -2.  ]]]]

    Args:
      w: `[rows, columns]`, in units of the crossbar.
      inputs: `[batch, row tiles, rows of the largest tile]`.
      stages: the stages around the tiles, outermost first, without a range.
      row_sizes: rows of each row tile.
      column_sizes: columns of each column tile.
      leaves: the leaves of users' stages by name, `[row tiles, column tiles, ...]`.
      keys: `[effects]`, the `read_keys` of this read; `None` draws nothing.
      chip_key: JAX key of a chip's frozen quantities; `None` for no spread.

    Returns:
      `[batch, row tiles, column tiles, columns]`, padded with zeros.
    """
    tiles = TiledMatrix.cut(w, None, row_sizes, column_sizes)
    ctx = Context(crossbar=tiles, leaves=leaves, keys=keys, chip_key=chip_key)
    inputs = jnp.where(tiling.mask(row_sizes), inputs, 0)
    y = run(stages, inputs[:, :, None, :], ctx)
    return jnp.where(tiling.mask(column_sizes), y, 0)
