"""Converts layers to nodes of the Neuromorphic Intermediate Representation (NIR)."""

from typing import Any

import nir
import numpy as np

from hwtrain._arrays.windows import Window
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint.adapters._nir_pools import pool, pool_named

_NEURONS: dict[str, tuple[type, tuple[str, ...]]] = {
    "LIF": (nir.LIF, ("tau", "r", "v_leak", "v_threshold", "v_reset")),
    "LI": (nir.LI, ("tau", "r", "v_leak")),
    "IF": (nir.IF, ("r", "v_threshold", "v_reset")),
    "CubaLIF": (
        nir.CubaLIF,
        ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
    ),
    "CubaLI": (nir.CubaLI, ("tau_syn", "tau_mem", "r", "v_leak", "w_in")),
    "Scale": (nir.Scale, ("scale",)),
}
"""Nodes with the same parameters as a module: their type and parameters, by name."""

_OPTIONAL = {"v_reset", "w_in"}

Params = dict[str, np.ndarray]


def to_node(name: str, params: Params, window: Window | None) -> nir.NIRNode:
    """Returns the node of a layer.

    Args:
      name: the layer's name, for the message.
      params: for a dense layer or a convolution, `kernel` (as in Flax, inputs before
        outputs) and `bias`; for neurons and scales, the parameters of NIR's node.
      window: the window of a convolution.

    Raises:
      HardwareCheckpointError: naming the node, if NIR has none like it.
    """
    if set(params) in ({"kernel"}, {"kernel", "bias"}):
        kernel, bias = params["kernel"], params.get("bias")
        if window is not None:
            return _convolution(name, kernel, bias, window)
        if kernel.ndim != 2:
            raise _impossible(name, f"a kernel of {kernel.ndim} axes")
        if bias is None:
            return nir.Linear(weight=kernel.T)
        return nir.Affine(weight=kernel.T, bias=bias)
    for kind, names in _NEURONS.values():
        if set(names) - _OPTIONAL <= set(params) <= set(names):
            arrays = np.broadcast_arrays(*params.values())
            return kind(**{key: np.array(a) for key, a in zip(params, arrays)})
    raise _impossible(name, f"a layer with {', '.join(sorted(params))}")


def from_node(name: str, node: nir.NIRNode) -> tuple[Params, Window | None]:
    """Inverse of `to_node`."""
    kind = type(node).__name__
    fields: dict[str, Any] = vars(node)
    if kind in ("Linear", "Affine"):
        if fields["weight"].ndim != 2:
            raise _impossible(name, f"a weight of {fields['weight'].ndim} axes")
        params = {"kernel": fields["weight"].T}
        return (params | {"bias": fields["bias"]} if kind == "Affine" else params), None
    if kind in ("Conv1d", "Conv2d"):
        weight = fields["weight"]
        axes = weight.ndim - 2
        window = Window.of(
            weight.shape[2:],
            strides=_each(fields["stride"], axes),
            padding=_padding(fields["padding"], axes),
            kernel_dilation=_each(fields["dilation"], axes),
            groups=int(fields["groups"]),
        )
        kernel = np.transpose(weight, (*range(2, weight.ndim), 1, 0))
        return {"kernel": kernel, "bias": fields["bias"]}, window
    if kind in _NEURONS:
        return {key: fields[key] for key in _NEURONS[kind][1]}, None
    raise _impossible(name, f"a node of NIR's type {kind}", "read")


def to_operation(what: str, shape: tuple[int, ...]) -> nir.NIRNode:
    """Returns the node of an operation, which has no parameters.

    Args:
      what: "flatten" or a pool, as in a checkpoint's graph.
      shape: shape of the input, channels first.
    """
    if what == "flatten":
        # NIR's shapes have no batch axis.
        return nir.Flatten(
            input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1
        )
    kind, (kernel, stride, padding) = pool(what)
    node: Any = nir.SumPool2d if kind == "sum" else nir.AvgPool2d
    return node(
        kernel_size=np.array(kernel), stride=np.array(stride), padding=np.array(padding)
    )


def from_operation(name: str, node: nir.NIRNode) -> str | None:
    """Inverse of `to_operation`; `None` for a layer."""
    kind = type(node).__name__
    fields: dict[str, Any] = vars(node)
    if kind in ("SumPool2d", "AvgPool2d"):
        sizes = [_each(fields[x], 2) for x in ("kernel_size", "stride", "padding")]
        return pool_named(kind[:3].lower(), tuple((a, b) for a, b in sizes))
    if kind != "Flatten":
        return None
    shape = np.atleast_1d(fields["input_type"]["input"])
    start, end = (int(fields[x]) % len(shape) for x in ("start_dim", "end_dim"))
    if start or end != len(shape) - 1:
        raise _impossible(
            name, f"a flattening of the axes {start} to {end} of {len(shape)}", "read"
        )
    return "flatten"


def _convolution(
    name: str, kernel: np.ndarray, bias: np.ndarray | None, window: Window
) -> nir.NIRNode:
    axes = len(window.sizes)
    plain = Window.of(
        window.sizes,
        strides=window.strides,
        padding=window.padding,
        kernel_dilation=window.kernel_dilation,
        groups=window.groups,
    )
    if axes not in (1, 2) or window != plain:
        raise _impossible(
            name,
            f"a convolution along {axes} axes with {window}; NIR's go along 1 or 2 "
            "axes, with zeros around the input, no input dilation and no mask",
        )
    if window.groups > 1 or len(set(window.sizes)) > 1:
        # When nir 1.0.8 infers shapes, it takes a group's channels for all channels and
        # the first tap size for all axes, and then rejects the file or the graph.
        raise _impossible(
            name,
            f"a convolution of {window.groups} groups with the taps {window.sizes}; "
            "the nir package gets the shapes of one group and square windows right",
        )
    padding: Any = window.padding
    if padding == "SAME" and set(window.strides) == {1}:
        padding = "same"
    elif padding == "VALID":
        padding = (0,) * axes
    elif isinstance(padding, str) or any(low != high for low, high in padding):
        raise _impossible(
            name,
            f"padding {padding!r} with strides {window.strides}; NIR's is equal on "
            "both sides, or 'SAME' with strides of one",
        )
    else:
        padding = tuple(low for low, _ in padding)
    weight = np.transpose(kernel, (axes + 1, axes, *range(axes)))
    options: dict[str, Any] = {
        "stride": window.strides,
        "padding": padding,
        "dilation": window.kernel_dilation,
    }
    if axes == 1:
        options = {k: v if isinstance(v, str) else v[0] for k, v in options.items()}
    bias = np.zeros(weight.shape[0], weight.dtype) if bias is None else bias
    node: Any = nir.Conv1d if axes == 1 else nir.Conv2d
    return node(
        input_shape=None, weight=weight, bias=bias, groups=window.groups, **options
    )


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = np.broadcast_to(np.asarray(value), axes)
    return tuple(int(number) for number in values)


def _padding(value: Any, axes: int) -> Any:
    if isinstance(value, str):
        return value.upper()
    return tuple((size, size) for size in _each(value, axes))


def _impossible(name: str, what: str, verb: str = "expressed") -> Exception:
    return HardwareCheckpointError(
        f"the node {name!r} cannot be {verb}: it is {what}. NIR and hwtrain have in "
        "common Linear, Affine, Conv1d, Conv2d, Flatten, SumPool2d, AvgPool2d, "
        f"{', '.join(_NEURONS)}"
    )
