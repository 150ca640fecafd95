"""Checks that the fields of an analog weight agree on its geometry."""

import math
import re

from hwtrain._arrays.windows import Window
from hwtrain._errors import InputError
from hwtrain._plan.weight import AnalogWeight
from hwtrain.sockets._kinds import KINDS
from hwtrain.weights import MappingParameter

_LARGEST = 2**31 - 1
"""The largest number that XLA accepts in a window."""


def check_geometry(weight: AnalogWeight, tiles: tuple[int, int]) -> None:
    """Raises unless the fields of a weight agree with each other.

    Nothing of the claimed size is allocated before this check.

    Args:
      weight: the plan of the array.
      tiles: the claimed numbers of row tiles and column tiles.

    Raises:
      ValueError: naming the weight and the fields.
    """
    path = weight.path
    if any(size < 1 for size in weight.shape):
        raise InputError(
            f"{path}: an analog weight must not be empty; got {weight.shape=}"
        )
    _check_kind(weight)
    _check_tiles(weight, tiles)
    if weight.window is not None:
        _check_window(weight, weight.window)


def _check_kind(weight: AnalogWeight) -> None:
    kind, name = weight.kind, weight.array
    if weight.pending:
        raise InputError(
            f"{weight.path}: the path of a derived weight must be "
            f"{weight.effective_path}, whose array its layer multiplies by"
        )
    if kind not in KINDS:
        raise InputError(
            f"{weight.path}: kind should be one of {', '.join(KINDS)}, got "
            f"{kind[:40]!r}"
        )
    analog, own = kind != "raw", KINDS[kind]
    signs = {
        "a window": (weight.window is not None, own.window),
        "an equation": (bool(weight.equation), own.equation),
        "a layer": (bool(weight.layer), analog),
        "a local window": (
            weight.window is not None and weight.window.local,
            own.local,
        ),
        "an input range": (weight.ranged, analog and weight.hardware.ranged),
    }
    if analog and not own.equation:  # a user's layer may give its arrays any name
        signs |= {
            other.named: (name in other.arrays, other is own)
            for other in KINDS.values()
            if other.arrays
        }
    for sign, (has, should) in signs.items():
        if has != should:
            raise InputError(
                f"{weight.path}: with the kind {kind!r} and its hardware it should "
                f"{'have' if should else 'not have'} {sign}"
            )
    if own.rows:
        _check_axes(weight, own.rows, own.columns)
    elif own.equation:
        _check_equation(weight)


def _check_equation(weight: AnalogWeight) -> None:
    """Raises unless rows and columns match the equation."""
    operands = re.fullmatch(r"([A-Za-z.]+),([A-Za-z]+)->([A-Za-z.]*)", weight.equation)
    if operands is None:
        raise InputError(
            f"{weight.path}: equation should be such as 'bte,ehd->bthd', got "
            f"{weight.equation[:80]!r}"
        )
    inputs, kernel, output = operands.groups()
    lead = len(weight.shape) - len(kernel)
    rows = tuple(lead + i for i, name in enumerate(kernel) if name not in output)
    columns = tuple(lead + i for i, name in enumerate(kernel) if name not in inputs)
    if (weight.rows, weight.columns) != (rows, columns):
        raise InputError(
            f"{weight.path}: rows and columns of {weight.equation!r} should be "
            f"{(rows, columns)}, they are {(weight.rows, weight.columns)}"
        )


def _check_axes(
    weight: AnalogWeight, rows: tuple[int, ...], columns: tuple[int, ...]
) -> None:
    """Raises unless rows and columns are these axes, after those of the stack."""
    lead = len(weight.shape) - len(rows) - len(columns)
    expected = tuple(tuple(lead + axis for axis in axes) for axes in (rows, columns))
    if (weight.rows, weight.columns) != expected:
        raise InputError(
            f"{weight.path}: rows and columns of the kind {weight.kind!r} and shape "
            f"{weight.shape} should be {expected}, they are "
            f"{(weight.rows, weight.columns)}"
        )


def _check_tiles(weight: AnalogWeight, tiles: tuple[int, int]) -> None:
    no_limit = MappingParameter(max_input_size=None, max_output_size=None)
    mapping = weight.hardware.mapping or no_limit
    sides = (
        (weight.rows, 1, mapping.max_input_size),
        (weight.columns, weight.groups, mapping.max_output_size),
    )
    expected = []
    for axes, groups, limit in sides:
        size = math.prod(weight.shape[axis] for axis in axes) // groups
        expected.append(1 if limit is None else max(-(-size // limit), 1))
    if tuple(expected) != tiles:
        raise InputError(
            f"{weight.path}: its shape and mapping give {expected[0]} x {expected[1]} "
            f"tiles, row_sizes and column_sizes are {tiles[0]} x {tiles[1]}"
        )


def _check_window(weight: AnalogWeight, window: Window) -> None:
    path, taps = weight.path, len(window.sizes)
    pairs = () if isinstance(window.padding, str) else window.padding
    ends = [abs(end) for pair in (*pairs, *window.border) for end in pair]
    steps = (*window.strides, *window.input_dilation, *window.kernel_dilation)
    if any(number > _LARGEST for number in (*steps, *ends)):
        raise InputError(f"{path}: a number of its window exceeds {_LARGEST}")
    if window.local:
        lead = len(weight.shape) - 2
        _check_axes(weight, rows=(0,), columns=(1,))
        if lead < taps or weight.shape[lead] % window.taps or window.groups != 1:
            raise InputError(
                f"{path}: a local convolution with {window.taps} taps needs a number "
                f"of rows that is a multiple of {window.taps}, after {taps} position "
                f"axes, and 1 group; got shape {weight.shape} and {window.groups} "
                "groups"
            )
    else:
        lead = len(weight.shape) - taps - 2
        spatial = tuple(range(lead, lead + taps))
        sizes = tuple(weight.shape[axis] for axis in weight.rows[1:])
        if weight.rows[1:] != spatial or sizes != window.sizes:
            raise InputError(
                f"{path}: a window of {window.sizes} taps needs rows of channels and "
                f"then the axes {spatial} of these sizes; got shape {weight.shape} and "
                f"rows {weight.rows}"
            )
    if len(weight.columns) != 1:
        raise InputError(f"{path}: a convolution must have one axis of features")
    if weight.kind == "conv_transpose" and set(window.strides) != {1}:
        raise InputError(
            f"{path}: a transposed convolution must be written as the convolution of "
            f"stride 1 that it equals, got strides {window.strides}"
        )
    if weight.kind != "conv_transpose" and window.flipped:
        raise InputError(f"{path}: only a transposed convolution has flipped taps")
    _check_mask(weight, window)


def _check_mask(weight: AnalogWeight, window: Window) -> None:
    if not window.mask:
        return
    bits = math.prod(weight.shape[-len(window.sizes) - 2 :])
    digits = 2 * -(-bits // 8)
    padding = digits * 4 - bits
    right = len(window.mask) == digits and set(window.mask) <= set("0123456789abcdef")
    if not right or int(window.mask[-2:], 16) & (2**padding - 1):
        raise InputError(
            f"{weight.path}: mask should be the {bits} bits of its kernel as {digits} "
            f"hexadecimal digits, got {len(window.mask)} characters "
            f"{window.mask[:40]!r}"
        )
