"""A convolution as a crossbar sees it: one window of the input after the other.

Every position of the window is one vector for the crossbar. Its rows are the channels,
and within each channel the taps of the window in the order of the spatial axes, the
last one fastest, as in `jax.lax.conv_general_dilated_patches` and in the unfolding of
the reference implementations. Beyond the border the window sees zeros, which are
converted and counted in statistics like every other input.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._errors import InputError

Pairs = tuple[tuple[int, int], ...]
_PADDINGS = ("SAME", "SAME_LOWER", "VALID")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """The window of a convolution and how it moves, static and hashable.

    The input is extended by its border, then dilated, then padded with zeros.

    >>> Window.of((3, 3), padding="SAME").output_sizes((8, 8))
    (8, 8)

    Attributes:
      sizes: taps along every spatial axis.
      strides: step of the window along every spatial axis.
      padding: number of zeros before and after every spatial axis, negative to crop; or
        `"SAME"`, `"SAME_LOWER"` or `"VALID"`, as in `jax.lax.conv_general_dilated`.
      input_dilation: distance between neighbouring inputs, with zeros in between.
      kernel_dilation: distance between neighbouring taps.
      groups: number of groups of channels, each with its own crossbars.
      flipped: whether the first tap of the kernel meets the last input of a window.
      border: number of elements that extend the input before and after every spatial
        axis, before all other operations; empty for none.
      border_mode: how these are filled: a mode of `jax.numpy.pad`.
      local: whether every output position has its own crossbars.
      mask: mask of the weights that the kernel has, by `pack`; empty for all.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str | Pairs
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int = 1
    flipped: bool = False
    border: Pairs = ()
    border_mode: Literal["constant", "wrap", "reflect"] = "constant"
    local: bool = False
    mask: str = ""

    # For JSON input: no unknown fields, and no strings or booleans in place of numbers.
    __pydantic_config__ = {"strict": True, "extra": "forbid"}

    def __post_init__(self):
        axes = len(self.sizes)
        for name in ("sizes", "strides", "input_dilation", "kernel_dilation"):
            numbers = getattr(self, name)
            if len(numbers) != axes or any(number < 1 for number in numbers):
                raise InputError(
                    f"{name} of a window of {axes} axes should be {axes} whole numbers "
                    f"of at least 1, got {numbers}"
                )
        if self.groups < 1:
            raise InputError(f"a window needs at least 1 group, got {self.groups}")
        if isinstance(self.padding, str):
            if self.padding.upper() not in _PADDINGS:
                raise InputError(
                    f"padding should be pairs or one of {', '.join(_PADDINGS)}, got "
                    f"{self.padding!r}"
                )
        elif len(self.padding) != axes:
            raise InputError(
                f"padding of a window of {axes} axes should be {axes} pairs, got "
                f"{self.padding}"
            )
        if self.border and len(self.border) != axes:
            raise InputError(
                f"border of a window of {axes} axes should be {axes} pairs or nothing, "
                f"got {self.border}"
            )
        if any(end < 0 for ends in self.border for end in ends):
            raise InputError(f"a border must not be negative, got {self.border}")

    @classmethod
    def of(
        cls,
        sizes: tuple[int, ...],
        *,
        strides: tuple[int, ...] | None = None,
        padding: str | Pairs = "VALID",
        input_dilation: tuple[int, ...] | None = None,
        kernel_dilation: tuple[int, ...] | None = None,
        groups: int = 1,
    ) -> "Window":
        """Returns a window; steps and dilations default to one."""
        ones = (1,) * len(sizes)
        return cls(
            sizes=sizes,
            strides=strides or ones,
            padding=padding,
            input_dilation=input_dilation or ones,
            kernel_dilation=kernel_dilation or ones,
            groups=groups,
        )

    @property
    def taps(self) -> int:
        """Number of taps."""
        return math.prod(self.sizes)

    @property
    def spans(self) -> tuple[int, ...]:
        """Extent of the dilated window along every spatial axis."""
        pairs = zip(self.sizes, self.kernel_dilation)
        return tuple((size - 1) * step + 1 for size, step in pairs)

    def pads(self, spatial: tuple[int, ...]) -> Pairs:
        """Returns the zeros before and after every axis of an input with its border.

        Args:
          spatial: its spatial sizes.
        """
        if not isinstance(self.padding, str):
            return self.padding
        pads = jax.lax.padtype_to_pads(spatial, self.spans, self.strides, self.padding)
        return tuple((int(low), int(high)) for low, high in pads)

    def output_sizes(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the number of positions of the window along every spatial axis.

        Args:
          spatial: spatial sizes of the input, without its border.
        """
        spatial = tuple(
            size + sum(ends) for size, ends in zip(spatial, self.border or ())
        ) or tuple(spatial)
        sizes = []
        for size, dilation, ends, span, stride in zip(
            spatial, self.input_dilation, self.pads(spatial), self.spans, self.strides
        ):
            padded = (size - 1) * dilation + 1 if size else 0
            sizes.append(max((padded + sum(ends) - span) // stride + 1, 0))
        return tuple(sizes)


def pack(mask: np.ndarray) -> str:
    """Encodes a mask as text: its bits in hexadecimal, in the order of the array.

    >>> pack(np.array([[True, False], [True, True]]))
    'b0'

    Args:
      mask: a boolean array.
    """
    return np.packbits(mask.astype(bool)).tobytes().hex()


@functools.lru_cache(maxsize=256)
def unpack(mask: str, shape: tuple[int, ...]) -> np.ndarray:
    """Inverse of `pack`.

    >>> unpack("b0", (2, 2))
    array([[ True, False],
           [ True,  True]])

    Args:
      mask: text returned by `pack`.
      shape: shape of the array.
    """
    bits = np.frombuffer(bytes.fromhex(mask), np.uint8)
    return np.unpackbits(bits, count=math.prod(shape)).astype(bool).reshape(shape)


def extend(x: jax.Array, window: Window) -> jax.Array:
    """Returns the input extended by its border.

    Args:
      x: `[batch, *spatial, channels]`.
      window: the window.
    """
    if not window.border:
        return x
    return jnp.pad(x, ((0, 0), *window.border, (0, 0)), mode=window.border_mode)


def patches(x: jax.Array, window: Window) -> jax.Array:
    r"""Returns the inputs that the window sees at each of its positions.

    .. math:: p_{n, o, (c, t)} = \tilde x_{n,\; o s + t d,\; c}

    with :math:`\tilde x` the dilated and padded input, :math:`s` the strides and
    :math:`d` the dilation of the kernel. Exact, since it only moves numbers. (It uses
    slices, because the gradient of `jax.lax.conv_general_dilated_patches`, a
    convolution with zeros and ones, takes twenty times as long on a CPU.)

    >>> x = jnp.arange(4.0).reshape(1, 4, 1)
    >>> print(patches(x, Window.of((2,), strides=(2,)))[0])
    [[0. 1.]
     [2. 3.]]

    Args:
      x: `[batch, *spatial, channels]`, including its border.
      window: the window; a `flipped` one sees its taps in reverse order.

    Returns:
      `[batch, *positions, channels * taps]`, the channels first.
    """
    spatial = x.shape[1:-1]
    plain = dataclasses.replace(window, border=())
    positions = plain.output_sizes(spatial)
    if 0 in positions:
        return jnp.zeros((x.shape[0], *positions, x.shape[-1] * window.taps), x.dtype)
    x = padded(x, window)
    # One spatial axis at a time; the taps become an axis behind the channels.
    for axis, (count, stride, step, size) in enumerate(
        zip(positions, window.strides, window.kernel_dilation, window.sizes), start=1
    ):
        starts = [tap * step for tap in range(size)]
        taps = [
            jax.lax.slice_in_dim(
                x, start, start + (count - 1) * stride + 1, stride, axis=axis
            )
            for start in (reversed(starts) if window.flipped else starts)
        ]
        x = jnp.stack(taps, axis=-1)
    return jax.lax.collapse(x, len(spatial) + 1)


def padded(x: jax.Array, window: Window) -> jax.Array:
    """Returns the dilated input, padded with zeros.

    Args:
      x: `[batch, *spatial, channels]`, including its border.
      window: the window.
    """
    config = [
        (low, high, dilation - 1)
        for (low, high), dilation in zip(
            window.pads(x.shape[1:-1]), window.input_dilation
        )
    ]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *config, (0, 0, 0)))


def transposed(
    sizes: tuple[int, ...],
    *,
    strides: tuple[int, ...],
    padding: str | Pairs,
    kernel_dilation: tuple[int, ...],
    flipped: bool,
) -> Window:
    r"""Returns the window of a transposed convolution, `jax.lax.conv_transpose`.

    A transposed convolution of stride s is a convolution of stride 1 over inputs with
    s - 1 zeros between them. With k the span of the window, it is padded by

    * `"VALID"`: k - 1 before, s - 1 + max(k - s, 0) after;
    * `"SAME"`: k + s - 2 in all, min(k - 1, ceil((k + s - 2) / 2)) of them before
      (k - 1 if s > k - 1);
    * `"CIRCULAR"`: none; the input is continued periodically.

    >>> transposed((3,), strides=(2,), padding="VALID", kernel_dilation=(1,),
    ...            flipped=False).output_sizes((4,))
    (9,)

    Args:
      sizes: taps along every spatial axis.
      strides: strides of the transposed convolution.
      padding: `"SAME"`, `"VALID"`, `"CIRCULAR"`, or the zeros of the convolution.
      kernel_dilation: distance between neighbouring taps.
      flipped: whether the kernel is that of the convolution to be transposed.
    """
    ones = (1,) * len(sizes)
    window = Window(
        sizes=sizes,
        strides=ones,
        padding="VALID" if padding == "CIRCULAR" else padding,
        input_dilation=strides,
        kernel_dilation=kernel_dilation,
        flipped=flipped,
    )
    spans = list(zip(window.spans, strides))
    if padding == "CIRCULAR":
        border, cut = zip(*(_periodic(k, s, flipped) for k, s in spans))
        return dataclasses.replace(
            window, padding=cut, border=border, border_mode="wrap"
        )
    if padding == "SAME":
        before = [k - 1 if s > k - 1 else -(-(k + s - 2) // 2) for k, s in spans]
        pads = tuple((low, k + s - 2 - low) for low, (k, s) in zip(before, spans))
    elif padding == "VALID":
        pads = tuple((k - 1, s - 1 + max(k - s, 0)) for k, s in spans)
    else:
        return window
    return dataclasses.replace(window, padding=pads)


def _periodic(
    span: int, stride: int, flipped: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the border of a periodic input, and the crop after its dilation."""
    overlap = max(span - stride, 0)
    shift = -(-overlap // 2) if flipped else overlap // 2
    before, after = span - 1 - shift, shift
    # In units of the dilated input, whose period ends with stride - 1 zeros.
    low, high = -(-before // stride), -(-(after + stride - 1) // stride)
    return (low, high), (before - low * stride, after + stride - 1 - high * stride)
