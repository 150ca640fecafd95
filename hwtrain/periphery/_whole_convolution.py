"""Runs a convolution between the stages of its crossbars by XLA's own convolution.

Windows are not materialised. This requires that an input value is treated alike in
every window, which each stage declares by `whole`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from hwtrain._arrays.tiling import over_batch
from hwtrain._arrays.windows import Window
from hwtrain._parts.constant import filled, split, static
from hwtrain._parts.slot import home
from hwtrain.periphery._pipeline import Context, run
from hwtrain.periphery._range_gradient import count_outputs
from hwtrain.periphery._ranges_of_windows import (
    clipped_inputs,
    convolution,
    ranged_convolution,
)
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
    r"""Convolves through DAC, crossbar and ADC, with one tile for each group.

    .. math::
        y = s\, r\, \alpha\, \mathrm{ADC}\!\left(\frac{W}{s} *
        \mathrm{DAC}\!\left(\frac{\mathrm{clip}(x, -r, r)}{r}\right)\right)

    It equals `analog_mvm` of every group's windows, including the gradients, the sums
    of the probe and the frozen spreads, but materialises no window.

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
      scale: `[groups, 1, features of a group or 1]`, s; `None` for 1.
      output_scale: likewise, a learned factor on the outputs; `None` for 1.
      input_range: `[groups, 1, 1]`, r, for the stage `Range`; `None` without it.
      probe: `[groups, 1, 1, 6]`; `None` for plain JAX operations, without statistics.
      leaves: the leaves of users' stages by name, `[groups, 1, ...]`.
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
    first, *inner = stages if stages else (None,)
    if not isinstance(first, Range):
        first, inner = None, list(stages)
    outside, constants = split(tuple(inner))
    drive = Drive(outside)
    of_drive = (precision, dtype)
    if first is None:
        inside = drive(x, jnp.ones(x.shape[-1]), *constants).astype(x.dtype)
        y = convolution(inside, kernel, window, *of_drive)
    else:
        assert input_range is not None
        y = ranged_convolution(
            x,
            kernel,
            input_range,
            probe,
            window,
            first.gradient,
            *of_drive,
            drive,
            constants,
        )
    s: Any = 1.0 if scale is None else jax.lax.stop_gradient(scale)
    crossbar = WholeKernel(kernel, s, window, precision, x.dtype, y)
    given = {RANGE.name: input_range, PROBE.name: probe, **leaves}
    ctx = Context(
        crossbar=crossbar,
        leaves={name: leaf for name, leaf in given.items() if leaf is not None},
        keys=keys,
        chip_key=chip_keys,
        strength=strength,
    )
    y = run(stages, x if first else x.astype(jnp.float32), ctx)
    y = y * over_batch(s, y)
    if output_scale is not None:
        y = y * over_batch(output_scale.astype(jnp.float32), y)
    return jax.lax.collapse(y, -3).astype(dtype or jnp.result_type(x, kernel))


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
        raise ValueError(
            f"a stage with whole = True asks for {name!r} of its weights before it "
            "calls inner(x): do that after the call, or leave whole out"
        )


class WholeKernel(NamedTuple):
    """A kernel with one tile per group, which convolves in normalised units.

    Attributes:
      kernel: `[*taps, channels of a group, features]`.
      scale: s, `[groups, 1, 1 or features of a group]`, or 1.
      window: the window.
      precision: precision of the multiplication.
      dtype: dtype in which inputs are multiplied.
      convolved: `[batch, *positions, features]`, the convolved inputs of this read.
        Computed in advance, because the gradient of a range depends on each window.
    """

    kernel: jax.Array
    scale: Any
    window: Window
    precision: Any
    dtype: Any
    convolved: jax.Array

    @property
    def row_sizes(self) -> tuple[int, ...]:
        """Rows of each row tile."""
        return (math.prod(self.kernel.shape[:-1]),)

    @property
    def fixed(self) -> "WholeKernel":
        """The same without gradients of the kernel."""
        return self._replace(kernel=jax.lax.stop_gradient(self.kernel))

    @property
    def weights(self) -> jax.Array:
        """The weights in units of the crossbar, as `product` takes them."""
        if isinstance(self.scale, float):
            return self.kernel.astype(jnp.float32)
        width = self.kernel.shape[-1] // self.window.groups
        each = jnp.broadcast_to(self.scale[:, 0], (self.window.groups, width)).ravel()
        return self.kernel.astype(jnp.float32) / over_batch(each, self.kernel)

    @property
    def whole(self) -> bool:
        """Whether it is a convolution as a whole: true."""
        return True

    def read(self, x: jax.Array) -> jax.Array:
        """Returns the product of this read, computed in advance."""
        del x  # `convolved` was computed from it
        return self._normalised(self.convolved)

    def multiply(self, x: jax.Array) -> jax.Array:
        """Returns inputs times the weights."""
        return self._normalised(self._convolved(x, self.kernel))

    def multiply_absolute(self, x: jax.Array) -> jax.Array:
        """Returns inputs times the absolute weights."""
        return self._normalised(self._convolved(x, jnp.abs(self.kernel)))

    def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """Returns inputs times other weights, of the shape of `weights`."""
        return self._by_group(convolution(x, w, self.window, self.precision))

    def total(self, x: jax.Array) -> jax.Array:
        """Returns the sum of the inputs of each tile, with a last axis of 1."""
        shape = (*self.kernel.shape[:-1], self.window.groups)
        return self._by_group(self._convolved(x, jnp.ones(shape, self.kernel.dtype)))

    def ranged(
        self, stage: Range, x: jax.Array, leaves: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns inputs clipped to their range, and the range of each channel."""
        of_groups = leaves[RANGE.name]
        inside = clipped_inputs(x, of_groups, None)
        r = jax.lax.stop_gradient(of_groups).astype(jnp.float32)
        return inside, jnp.repeat(r.ravel(), x.shape[-1] // r.size)

    def of_range(self, r: jax.Array) -> jax.Array:
        """Returns the range of each output, from that of each input."""
        groups = self.window.groups
        return r.reshape(groups, -1)[:, :1, None]

    def counted(self, y: jax.Array, probe: jax.Array, bound: Any) -> jax.Array:
        """Returns the outputs, and counts them in the gradient of the probe."""
        # Groups are counted like row tiles.
        probe = probe.reshape(self.window.groups, 1, -1)
        return count_outputs(y, probe, bound, (y.shape[-1],))

    def inputs_of(self, x: jax.Array) -> tuple[tuple[int, ...], Any]:
        """Returns the shape of inputs per tile, and which inputs are not padding."""
        return x.shape, True

    def real_outputs(self, y: jax.Array) -> Any:
        """Returns which outputs are not padding."""
        return True

    def of_outputs(
        self, draw: Callable[[jax.Array, Sequence[int]], jax.Array], key: jax.Array
    ) -> jax.Array:
        """Returns a draw for each output, without batch axes."""
        shape = (1, self.kernel.shape[-1] // self.window.groups)
        return jax.vmap(lambda key: draw(key, shape))(key)

    def of_inputs(
        self, draw: Callable[[Any, Sequence[int]], jax.Array], key: Any
    ) -> jax.Array:
        """Raises: a whole convolution has inputs, and no rows."""
        raise ValueError("the rows of a convolution as a whole are not its inputs")

    def _convolved(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolution(x.astype(self.dtype), kernel, self.window, self.precision)

    def _by_group(self, y: jax.Array) -> jax.Array:
        groups = self.window.groups
        y = y.reshape(*y.shape[:-1], groups, 1, y.shape[-1] // groups)
        return y.astype(jnp.float32)

    def _normalised(self, y: jax.Array) -> jax.Array:
        y = self._by_group(y)
        return y / over_batch(self.scale, y)
