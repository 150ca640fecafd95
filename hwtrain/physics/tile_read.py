"""One read of tiles: what they draw, the scale around them, and what distorts them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hwtrain.physics import tiling
from hwtrain.physics.converters import convert, exceeds, round_to_level
from hwtrain.physics.ir_drop import ir_drop
from hwtrain.physics.management import bound_scale, noise_scale, shift
from hwtrain.physics.modifiers import straight_through
from hwtrain.physics.output_stage import asymmetry, nonlinearity, voltage_offset
from hwtrain.physics.periphery import Periphery, effect_key
from hwtrain.physics.random import draw_key, fold_in, normal, once, uniform
from hwtrain.physics.tiled_matrix import TiledMatrix


def read_tiles(
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
      periphery: what surrounds the tiles.
      keys: `[effects]`, the `read_keys` of this read; `None` draws nothing.
      chip_key: JAX key of what is frozen in a chip; `None` for no spread.
      strength: factor on the standard deviation of all noise and spreads.
      deviation: returns the standard deviation of the outputs by noise of the weights;
        `None` for none.

    Returns:
      `(y, factor)`: `[..., row tiles, column tiles, columns]`, and what they are
      multiplied by after the clipping, `None` for 1.
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
        outputs=None
        if outputs is None
        else tiling.over_batch(frozen.outputs, outputs) * outputs,
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
    constant = tiles.fixed

    def read(number: Any, alpha: jax.Array) -> tuple[jax.Array, _Draws]:
        draws = draw(number)
        y = _before_clipping(fixed, alpha, constant, p, frozen, draws, deviation)
        valid = tiling.over_batch(tiling.mask(tiles.column_sizes), y)
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
    valid = tiling.over_batch(tiling.mask(column_sizes), values)
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
        valid = tiling.over_batch(tiling.mask(tiles.row_sizes)[:, None, :], x)
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
