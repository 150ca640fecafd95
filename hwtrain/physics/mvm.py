"""The analog multiplication of vectors by a matrix that lies on tiles.

Tiles are a batched axis. Every tile computes in normalised units, x/r and w/s, and has
converters of its own; the results of row tiles are added digitally.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from hwtrain.physics import tiling
from hwtrain.physics.average_maximum import record_maxima
from hwtrain.physics.converters import (
    convert,
    exceeds,
    round_to_level,
    saturate,
)
from hwtrain.physics.input_range import (
    RangeGradient,
    clip_to_range,
    clipped,
    count_outputs,
)
from hwtrain.physics.ir_drop import ir_drop
from hwtrain.physics.management import bound_scale, noise_scale, shift
from hwtrain.physics.modifiers import straight_through
from hwtrain.physics.output_stage import asymmetry, nonlinearity, voltage_offset
from hwtrain.physics.periphery import Periphery, effect_key
from hwtrain.physics.random import draw_key, fold_in, normal, once, uniform
from hwtrain.physics.tiled_matrix import TiledMatrix, cut_columns


def analog_mvm(
    x: jax.Array,
    w: jax.Array,
    periphery: Periphery,
    *,
    row_sizes: tuple[int, ...],
    column_sizes: tuple[int, ...],
    scale: jax.Array | None = None,
    output_scale: jax.Array | None = None,
    input_range: jax.Array | None = None,
    probe: jax.Array | None = None,
    keys: jax.Array | None = None,
    chip_key: jax.Array | None = None,
    deviation: Callable[[jax.Array, TiledMatrix], jax.Array] | None = None,
    strength: ArrayLike = 1.0,
    gradient: RangeGradient = RangeGradient(),  # noqa: B008 an immutable value
    dot_general: Callable[..., jax.Array] = jax.lax.dot_general,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    r"""Multiplies by a matrix on tiles, through DAC, crossbar and ADC.

    .. math::
        y_c = \sum_r s_{rc}\, r_{rc}\, \alpha_{rc}\;
        \mathrm{ADC}\!\left(\frac{W_{rc}}{s_{rc}}\, \mathrm{DAC}\!\left(
        \frac{\mathrm{clip}(x_r, -r_{rc}, r_{rc})}{r_{rc}\, \alpha_{rc}}\right)\right)

    In this order: management's scale, rounding and clipping of the DAC, input noise,
    input asymmetry, multiplication, weight noise, IR drop, voltage offset, read noise,
    saturation, output asymmetry, output noise, rounding and clipping of the ADC, output
    scale.

    The gradient passes straight through rounding and noise, is zero beyond the bounds
    and exact elsewhere; input range, mapping scale and the management's scale are
    constants to it, except for the gradient of the range by `clip_to_range`.

    >>> from hwtrain.physics.converters import Converter
    >>> three_levels = Periphery(dac=Converter(bound=1.0, res=1 / 2))
    >>> analog_mvm(jnp.array([[0.4, -3.0]]), jnp.ones((2, 1)), three_levels,
    ...            row_sizes=(2,), column_sizes=(1,))
    Array([[-1.]], dtype=float32)

    Args:
      x: `[..., rows]`.
      w: `[rows, columns]`.
      periphery: what surrounds the tiles.
      row_sizes: rows of each row tile.
      column_sizes: columns of each column tile.
      scale: `[row tiles, columns, column tiles or 1]`, s of the nominal weights; `None`
        for 1.
      output_scale: `[row tiles, columns or 1]`, a learned factor on the outputs, which
        gets its gradient; `None` for 1.
      input_range: `[row tiles, column tiles]`, r in units of the input; `None` for no
        clipping, and 1. With the management `"average_abs_max"`, the average that
        inputs are divided by, without clipping to it.
      probe: `[row tiles, column tiles, 6]`; `None` for plain JAX operations, which
        forward-mode differentiation needs, without statistics.
      keys: `[effects]`, the `read_keys` of this read; `None` draws nothing.
      chip_key: JAX key of what is frozen in a chip; `None` for no spread.
      deviation: returns the standard deviation of the tiles' outputs by noise of the
        weights, from inputs in normalised units and the tiles; `None` for none.
      strength: factor on the standard deviation of all noise and spreads.
      gradient: how the range's gradient is taken.
      dot_general: what multiplies, called as `jax.lax.dot_general`.
      dtype: dtype of the result; `None` for that of a plain multiplication. The
        periphery computes in float32, the multiplication in the dtype of `x`.

    Returns:
      `[..., columns]`.

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023.
    """
    inputs: Any = tiling.cut(x, row_sizes, axis=-1)[..., None, :]
    volume: Any = 1.0
    if input_range is not None:
        r = jax.lax.stop_gradient(input_range)[..., None].astype(jnp.float32)
        if periphery.management.noise == "average_abs_max":
            if probe is not None:
                inputs = record_maxima(inputs, input_range, probe)
        elif probe is None:
            through = gradient.straight_through
            inputs = clipped(inputs, r.astype(x.dtype), straight_through=through)
        else:
            inputs = clip_to_range(inputs, input_range, probe, row_sizes, gradient)
        volume = r
        inputs = inputs.astype(jnp.float32) / r
    inputs = inputs.astype(jnp.float32)

    tiles = TiledMatrix.cut(w, scale, row_sizes, column_sizes, dot_general, x.dtype)
    y: Any
    y, factor = _read(inputs, tiles, periphery, keys, chip_key, strength, deviation)
    bound = periphery.adc.bound
    if bound is not None and probe is not None:
        y = count_outputs(y, probe, bound, column_sizes)
    y = saturate(y, bound) * (volume * periphery.out_scale)
    y = y if factor is None else y * factor
    y = y * tiles.scale
    if output_scale is not None:
        y = y * cut_columns(output_scale, column_sizes)
    y = tiling.add_tiles(y, -3)
    return tiling.join(y, column_sizes, axis=-1).astype(dtype or jnp.result_type(x, w))


def tile_responses(
    w: jax.Array,
    periphery: Periphery,
    *,
    row_sizes: tuple[int, ...],
    column_sizes: tuple[int, ...],
    keys: jax.Array | None = None,
    chip_key: jax.Array | None = None,
) -> jax.Array:
    r"""Returns what every tile answers to one row driven by 1 after the other.

    .. math:: y_{jc} = \mathrm{ADC}\big(e_j\, w_c\big), \qquad
        e_j = \mathrm{DAC}(1) \text{ in row } j

    through the whole periphery, in normalised units. Without one, these are the weights
    of the tiles. Padding answers nothing.

    >>> w = jnp.array([[0.26, -0.6], [0.1, 2.0]])
    >>> from hwtrain.physics.converters import Converter
    >>> coarse = Periphery(adc=Converter(bound=1.0, res=1 / 4))
    >>> print(tile_responses(w, coarse, row_sizes=(2,), column_sizes=(2,))[0, 0])
    [[ 0.5 -0.5]
     [ 0.   1. ]]

    Args:
      w: `[rows, columns]`, in units of the crossbar.
      periphery: what surrounds the tiles.
      row_sizes: rows of each row tile.
      column_sizes: columns of each column tile.
      keys: `[effects]`, the `read_keys` of this read; `None` draws nothing.
      chip_key: JAX key of what is frozen in a chip; `None` for no spread.

    Returns:
      `[row tiles, column tiles, rows, columns]`, padded with zeros.
    """
    tiles = TiledMatrix.cut(w, None, row_sizes, column_sizes)
    rows = row_sizes[0]
    driven = jnp.eye(rows, dtype=jnp.float32)[:, None, None, :]
    inputs = jnp.broadcast_to(driven, (rows, len(row_sizes), 1, rows))
    y, factor = _read(inputs, tiles, periphery, keys, chip_key, 1.0, None)
    y = saturate(y, periphery.adc.bound) * periphery.out_scale
    y = jnp.moveaxis(y if factor is None else y * factor, 0, -2)
    real = tiling.mask(row_sizes)[:, None, :, None]
    return jnp.where(real & tiling.mask(column_sizes)[:, None, :], y, 0)


def _read(
    inputs: jax.Array,
    tiles: TiledMatrix,
    periphery: Periphery,
    keys: jax.Array | None,
    chip_key: jax.Array | None,
    strength: ArrayLike,
    deviation: Callable[[jax.Array, TiledMatrix], jax.Array] | None,
) -> tuple[Any, jax.Array | None]:
    """Returns the outputs of tiles before the clipping of the ADC, and their factor.

    Args:
      inputs: `[..., row tiles, column tiles or 1, rows]`, in normalised units.
      tiles: the weights.
      periphery: as above, like the others.
      keys: keys of the read.
      chip_key: key of the chip.
      strength: factor on noise.
      deviation: deviation of outputs by weight noise.
    """
    batch = inputs.shape[:-3]
    frozen = _frozen(periphery, chip_key, strength, tiles)

    def draw(number: Any) -> _Draws:
        drawn = batch, tiles, deviation is not None
        return _draw(periphery, keys, number, frozen, strength, *drawn)

    alpha, factor, draws = _managed(inputs, tiles, periphery, frozen, deviation, draw)
    y = _before_clipping(inputs, alpha, tiles, periphery, frozen, draws, deviation)
    return y, factor


class _Frozen(NamedTuple):
    """What is frozen in a chip, in normalised units."""

    outputs: Any
    offset: Any
    saturation: Any


class _Draws(NamedTuple):
    """What a read draws, in normalised units; `None` is nothing."""

    inputs: jax.Array | None
    inputs_uniform: jax.Array | None
    weights: jax.Array | None
    read: jax.Array | None
    outputs: jax.Array | None
    outputs_uniform: jax.Array | None


def _frozen(
    p: Periphery, chip_key: jax.Array | None, strength: ArrayLike, tiles: TiledMatrix
) -> _Frozen:
    grid = (len(tiles.row_sizes), len(tiles.column_sizes))

    def spread(std: float, effect: str) -> Any:
        if std == 0 or chip_key is None:
            return 0.0
        unit = normal(draw_key(chip_key, "", effect), (*grid, tiles.column_sizes[0]))
        return std * (jnp.asarray(strength) * unit)

    saturation = abs(1 + spread(p.out_nonlinearity_std, "output_nonlinearity"))
    return _Frozen(
        outputs=p.out_noise * abs(1 + spread(p.out_noise_std, "output_noise_spread")),
        offset=jnp.maximum(spread(p.v_offset_std, "voltage_offset"), 0.0),
        saturation=p.out_nonlinearity * saturation,
    )


def _draw(
    p: Periphery,
    keys: jax.Array | None,
    number: Any,
    frozen: _Frozen,
    strength: ArrayLike,
    batch: tuple[int, ...],
    tiles: TiledMatrix,
    deviates: bool,
) -> _Draws:
    """Returns the draws of a read: number 0 is the first, of the keys themselves."""
    grid = (len(tiles.row_sizes), len(tiles.column_sizes))
    input_shape = (*batch, *grid, tiles.row_sizes[0])
    output_shape = (*batch, *grid, tiles.column_sizes[0])
    if keys is not None and not (isinstance(number, int) and number == 0):
        keys = fold_in(keys, number)

    def drawn(on: bool, kind, effect: str, shape: tuple[int, ...]):
        if not on or keys is None:
            return None
        return once(effect_key(keys, effect), lambda key: kind(key, shape))

    def scaled(on: bool, effect: str, shape: tuple[int, ...]):
        noise = drawn(on, normal, effect, shape)
        return None if noise is None else jnp.asarray(strength) * noise

    outputs = scaled(p.out_noise > 0, "output_noise", output_shape)
    return _Draws(
        inputs=scaled(p.inp_noise > 0, "input_noise", input_shape),
        inputs_uniform=drawn(
            p.dac.stochastic, uniform, "input_stochastic_rounding", input_shape
        ),
        weights=scaled(deviates, "weight_noise", output_shape),
        read=scaled(p.w_noise_type != "none", "read", output_shape),
        outputs=None if outputs is None else frozen.outputs * outputs,
        outputs_uniform=drawn(
            p.adc.stochastic, uniform, "output_stochastic_rounding", output_shape
        ),
    )


def _managed(
    x: jax.Array,
    tiles: TiledMatrix,
    p: Periphery,
    frozen: _Frozen,
    deviation: Any,
    draw: Callable[[Any], _Draws],
) -> tuple[jax.Array | None, jax.Array | None, _Draws]:
    """Returns the scales before and after the tile, and the draws of its last read."""
    manage = p.management
    # An average stands in the place of the input range.
    fixed_scale = manage.noise in ("none", "average_abs_max")
    if fixed_scale and not manage.iterative:
        return None, None, draw(0)
    fixed = jax.lax.stop_gradient(x)

    def scale_by(kind: str) -> jax.Array:
        return noise_scale(
            fixed,
            tiles.row_sizes,
            kind=kind,
            threshold=manage.threshold if kind == manage.noise else 0.0,
            assumed_wmax=manage.assumed_wmax,
            out_bound=p.adc.bound,
        )

    alpha = scale_by("constant" if fixed_scale else manage.noise)
    # An input of zeros gives an output of zeros, unless it gets noise of its own.
    silent = (alpha == 0) & (p.inp_noise == 0)
    alpha = jnp.where(alpha == 0, 1, alpha)
    bound = p.adc.bound
    if not manage.iterative or bound is None:
        return alpha, jnp.where(silent, 0, alpha), draw(0)
    shape = (*x.shape[:-3], len(tiles.row_sizes), len(tiles.column_sizes), 1)
    valid = tiling.mask(tiles.column_sizes)
    constant = tiles.fixed

    def read(number: Any, alpha: jax.Array) -> tuple[jax.Array, _Draws]:
        draws = draw(number)
        y = _before_clipping(fixed, alpha, constant, p, frozen, draws, deviation)
        clips = jnp.any(exceeds(y, bound) & valid, axis=-1, keepdims=True)
        return clips & ~silent, draws

    limit = manage.max_factor
    if p.dac.step is not None:
        limit = min(limit, manage.max_resolution / p.dac.step)
    worst = None
    if manage.bound == "iterative_worst_case":
        worst = jnp.broadcast_to(scale_by("abs_max_np_sum"), shape)
    alpha = jnp.broadcast_to(alpha, shape)
    alpha, draws = bound_scale(alpha, read, limit=limit, worst_case=worst)
    return alpha, jnp.where(silent, 0, alpha), draws


def _mean_of_columns(values: Any, column_sizes: tuple[int, ...]) -> Any:
    """Returns the mean over the columns of each tile, of a number the number itself."""
    if jnp.ndim(values) == 0:
        return values
    valid = tiling.mask(column_sizes)
    return jnp.mean(values, axis=-1, keepdims=True, where=valid)


def _before_clipping(
    x: jax.Array,
    alpha: jax.Array | None,
    tiles: TiledMatrix,
    p: Periphery,
    frozen: _Frozen,
    draws: _Draws,
    deviation: Any,
) -> jax.Array:
    """Returns the outputs after the rounding of the ADC, before its clipping."""
    x = x if alpha is None else x / alpha
    x = convert(x, p.dac, uniform=draws.inputs_uniform)
    if draws.inputs is not None:
        valid = tiling.mask(tiles.row_sizes)[:, None, :]
        x = x + jnp.where(valid, p.inp_noise * draws.inputs, 0)
    x = asymmetry(x, p.inp_asymmetry)

    y = tiles.multiply(x)
    if draws.weights is not None:
        y = y + _scaled(deviation(x, tiles), draws.weights)
    if p.ir_drop > 0:
        y = y - ir_drop(
            x,
            tiles.multiply,
            tiles.multiply_absolute,
            tiles.row_sizes,
            ir_drop=p.ir_drop,
            g_ratio=p.ir_drop_g_ratio,
        )
    if p.offsets:
        y = voltage_offset(
            y, x, offset=frozen.offset, w_min=p.v_offset_w_min, r_series=p.r_series
        )
    if draws.read is not None:
        y = straight_through(y, y + read_deviation(x, tiles, p) * draws.read)
    if p.out_nonlinearity > 0 or p.r_series > 0:
        y = nonlinearity(
            y,
            p.adc.bound or np.inf,
            strength=frozen.saturation,
            mean_strength=_mean_of_columns(frozen.saturation, tiles.column_sizes),
            r_series=p.r_series,
            slope_calibration=p.slope_calibration,
        )
    y = asymmetry(y, p.out_asymmetry)
    if draws.outputs is not None:
        y = y + draws.outputs
    if p.management.bound == "shift" and p.adc.bound is not None:
        y = shift(y, tiles.column_sizes, bound=p.adc.bound)
    return round_to_level(y, p.adc, uniform=draws.outputs_uniform)


def _scaled(deviation: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns noise times its deviation, `[..., row tiles, column tiles, columns]`."""
    if noise.shape[-3:-1] != (1, 1):
        return deviation * noise
    # The derivative to the deviation is a sum over columns, which takes XLA's CPU
    # backend ten times as long with the axes of one tile in between.
    return (deviation[..., 0, 0, :] * noise[..., 0, 0, :])[..., None, None, :]


def read_deviation(x: jax.Array, tiles: TiledMatrix, p: Periphery) -> jax.Array:
    r"""Returns the standard deviation of the outputs by read noise of the weights.

    .. math::
        \text{additive_constant:}\ \sigma \sqrt{\textstyle\sum_j x_j^2} \qquad
        \text{pcm_read:}\ \sigma \sqrt{\textstyle\sum_j |w_{ij}| x_j^2}

    Args:
      x: `[..., row tiles, column tiles or 1, rows]`.
      tiles: the weights.
      p: the periphery.
    """
    square = jnp.square(jax.lax.stop_gradient(x))
    if p.w_noise_type == "additive_constant":
        return p.w_noise * jnp.sqrt(jnp.sum(square, axis=-1, keepdims=True))
    return p.w_noise * jnp.sqrt(tiles.fixed.multiply_absolute(square))
