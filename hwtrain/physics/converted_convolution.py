"""A convolution between the converters of its crossbars, by XLA's own convolution."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from hwtrain.physics.converters import round_to_level, saturate
from hwtrain.physics.convolution import Window
from hwtrain.physics.input_range import RangeGradient, count_outputs
from hwtrain.physics.management import Management
from hwtrain.physics.modifiers import straight_through
from hwtrain.physics.output_stage import asymmetry, nonlinearity
from hwtrain.physics.periphery import Periphery, effect_key
from hwtrain.physics.random import draw_key, normal, once, uniform
from hwtrain.physics.ranged_convolution import (
    Drive,
    clipped_inputs,
    convolution,
    ranged_convolution,
)
from hwtrain.physics.tiling import over_batch


def converts_alike(periphery: Periphery) -> bool:
    """Whether every window sees a value of the input converted alike.

    So it is unless inputs are drawn, or depend on the rest of their window.

    >>> converts_alike(Periphery(out_noise=0.1)), converts_alike(Periphery(ir_drop=1.0))
    (True, False)
    """
    p, none = periphery, Management()
    manages = (p.management.noise, p.management.bound) != (none.noise, none.bound)
    drawn = p.inp_noise > 0 or p.dac.stochastic
    return not (drawn or manages or p.ir_drop > 0 or p.offsets)


def converted_convolution(
    x: jax.Array,
    kernel: jax.Array,
    periphery: Periphery,
    window: Window,
    *,
    scale: jax.Array | None = None,
    output_scale: jax.Array | None = None,
    input_range: jax.Array | None = None,
    probe: jax.Array | None = None,
    keys: jax.Array | None = None,
    chip_keys: jax.Array | None = None,
    strength: ArrayLike = 1.0,
    gradient: RangeGradient = RangeGradient(),  # noqa: B008 an immutable value
    precision: Any = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    r"""Convolves through DAC, crossbar and ADC, with one tile for each group.

    .. math::
        y = s\, r\, \alpha\, \mathrm{ADC}\!\left(\frac{W}{s} *
        \mathrm{DAC}\!\left(\frac{\mathrm{clip}(x, -r, r)}{r}\right)\right)

    It equals `analog_mvm` of every group's windows, with its gradients, the sums of the
    probe and the frozen spreads; no window is written out.

    >>> from hwtrain.physics.converters import Converter
    >>> three_levels = Periphery(dac=Converter(bound=1.0, res=1 / 2))
    >>> x = jnp.array([[0.4, -3.0]])[..., None]
    >>> y = converted_convolution(x, jnp.ones((2, 1, 1)), three_levels, Window.of((2,)))
    >>> print(y.ravel())
    [-1.]

    Args:
      x: `[batch, *spatial, channels]`, with its border.
      kernel: `[*taps, channels of a group, features]`.
      periphery: what surrounds the tiles, of which `converts_alike` must hold.
      window: the window, neither `flipped` nor `local`.
      scale: `[groups, 1, features of a group or 1]`, s; `None` for 1.
      output_scale: likewise, a learned factor on the outputs; `None` for 1.
      input_range: `[groups, 1, 1]`, r; `None` for no clipping, and 1.
      probe: `[groups, 1, 1, 6]`; `None` for plain JAX operations, without statistics.
      keys: `[effects]`, the `read_keys` of this read; `None` draws nothing.
      chip_keys: `[groups]` JAX keys of what is frozen in a chip; `None` for no spread.
      strength: factor on the standard deviation of all noise and spreads,
        broadcastable against `[groups, 1, features of a group]`.
      gradient: how the range's gradient is taken.
      precision: of the multiplication.
      dtype: of the result; `None` for that of a plain multiplication.

    Returns:
      `[batch, *positions, features]`.
    """
    p, groups = periphery, window.groups
    drive = Drive(p.dac, p.inp_asymmetry)
    s: Any = 1.0 if scale is None else jax.lax.stop_gradient(scale)
    if input_range is None:
        volume: Any = 1.0
        inside = drive(x, jnp.ones(x.shape[-1])).astype(x.dtype)
        y: Any = convolution(inside, kernel, window, precision, dtype)
    else:
        volume = jax.lax.stop_gradient(input_range)
        inside = clipped_inputs(x, input_range, drive)
        y = ranged_convolution(
            x, kernel, input_range, probe, window, gradient, precision, dtype, drive
        )

    def by_group(y: jax.Array) -> jax.Array:
        y = y.reshape(*y.shape[:-1], groups, 1, y.shape[-1] // groups)
        return y.astype(jnp.float32)

    y = by_group(y)
    y = y / over_batch(s, y)
    width = y.shape[-1]

    def noise(keys: jax.Array, effect: str) -> jax.Array:
        draw = functools.partial(normal, shape=y.shape)
        drawn = once(effect_key(keys, effect), draw)
        return over_batch(jnp.asarray(strength), drawn) * drawn

    def spread(std: float, effect: str) -> Any:
        if std == 0 or chip_keys is None:
            return 0.0
        draw = jax.vmap(lambda key: normal(draw_key(key, "", effect), (1, width)))
        return std * jnp.asarray(strength) * draw(chip_keys)

    if p.w_noise_type != "none" and keys is not None:
        square = jnp.square(jax.lax.stop_gradient(inside))
        weights = jnp.abs(jax.lax.stop_gradient(kernel))
        if p.w_noise_type == "additive_constant":
            weights, s_of = jnp.ones((*weights.shape[:-1], groups), kernel.dtype), 1.0
        else:
            s_of = s
        total = by_group(convolution(square, weights, window, precision))
        total = total / over_batch(s_of, total)
        deviation = p.w_noise * jnp.sqrt(jnp.maximum(total, 0))
        y = straight_through(y, y + deviation * noise(keys, "read"))
    if p.out_nonlinearity > 0:
        of_chip = 1 + spread(p.out_nonlinearity_std, "output_nonlinearity")
        strengths = p.out_nonlinearity * abs(of_chip)
        mean = (
            strengths if jnp.ndim(strengths) == 0 else strengths.mean(-1, keepdims=True)
        )
        y = nonlinearity(
            y,
            p.adc.bound or np.inf,
            strength=strengths,
            mean_strength=mean,
            slope_calibration=p.slope_calibration,
        )
    y = asymmetry(y, p.out_asymmetry)
    if p.out_noise > 0 and keys is not None:
        of_chip = 1 + spread(p.out_noise_std, "output_noise_spread")
        of_chip = over_batch(p.out_noise * abs(of_chip), y)
        y = y + of_chip * noise(keys, "output_noise")
    u = None
    if p.adc.stochastic and keys is not None:
        key = effect_key(keys, "output_stochastic_rounding")
        u = once(key, functools.partial(uniform, shape=y.shape))
    y = round_to_level(y, p.adc, uniform=u)
    if p.adc.bound is not None and input_range is not None and probe is not None:
        # Groups are counted as row tiles are.
        y = count_outputs(y, probe.reshape(groups, 1, -1), p.adc.bound, (width,))
    y = saturate(y, p.adc.bound) * over_batch(volume * p.out_scale, y)
    y = y * over_batch(s, y)
    if output_scale is not None:
        y = y * over_batch(output_scale.astype(jnp.float32), y)
    return jax.lax.collapse(y, -3).astype(dtype or jnp.result_type(x, kernel))
