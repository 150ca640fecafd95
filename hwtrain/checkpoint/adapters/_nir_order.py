"""Converts between NIR's channels-first and Flax's channels-last order."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

from hwtrain._arrays.windows import Window
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint.adapters._nir_pools import pool_sizes

Params = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of a node's input for one example.

    Attributes:
      shape: the shape, channels last as in Flax.
      flattened: the shape before flattening, if it was flattened.
    """

    shape: tuple[int, ...]
    flattened: tuple[int, ...] | None = None

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape before flattening."""
        return self.flattened or self.shape

    @property
    def order(self) -> np.ndarray | None:
        """The index in Flax's order of each entry of a vector in NIR's order."""
        if self.flattened is None or len(self.flattened) < 2:
            return None
        places = np.arange(math.prod(self.flattened)).reshape(self.flattened)
        return np.moveaxis(places, -1, 0).ravel()


def layouts(
    params: Params,
    windows: Mapping[str, Window],
    operations: Mapping[str, str],
    edges: Iterable[tuple[str, str]],
    inputs: Mapping[str, tuple[int, ...]],
) -> dict[str, Layout]:
    """Returns the layout of each node's input, starting from the input shapes.

    Args:
      params: the parameters of each layer, in Flax's shapes or NIR's.
      windows: the window of each convolution.
      operations: the operations of nodes that are not layers.
      edges: pairs of a source and a target node.
      inputs: shapes of the inputs, channels first.

    Raises:
      HardwareCheckpointError: naming the edge at which NIR expects another shape.
    """
    edges = list(edges)
    found: dict[str, Layout] = {}
    waiting = [
        (name, Layout((*shape[1:], shape[0]) if len(shape) > 1 else shape))
        for name, shape in inputs.items()
    ]
    while waiting:
        node, layout = waiting.pop()
        for before, after in edges:
            if before == node and after not in found:
                if after in params or after in operations:
                    found[after] = layout
                    _check(node, after, layout, params, windows, operations)
                    out = _behind(after, layout, params, windows, operations)
                    waiting.append((after, out))
    return found


def _check(
    before: str,
    node: str,
    layout: Layout,
    params: Params,
    windows: Mapping[str, Window],
    operations: Mapping[str, str],
) -> None:
    axes = len(layout.shape) - 1
    if node in windows:
        wanted = len(windows[node].sizes)
    elif operations.get(node, "flatten") != "flatten":
        wanted = 2
    elif node in params and "kernel" in params[node] and axes:
        raise HardwareCheckpointError(
            f"the edge {before!r} to {node!r} cannot be expressed: NIR's dense layers "
            f"take vectors, not the shape {layout.shape}; with a flattening between "
            "them, export the model with graph=hwtrain.checkpoint.trace_graph(...)"
        )
    else:
        return
    if axes != wanted:
        raise HardwareCheckpointError(
            f"the node {node!r} cannot be expressed: it takes {wanted} axes and "
            f"channels, and gets the shape {layout.shape} from {before!r}. Give "
            "to_nir(checkpoint, out, input_shape=(channels, height, width))"
        )


def _behind(
    node: str,
    layout: Layout,
    params: Params,
    windows: Mapping[str, Window],
    operations: Mapping[str, str],
) -> Layout:
    *sizes, channels = layout.shape
    if node in windows:
        kernel = params[node]["kernel"]
        return Layout((*windows[node].output_sizes(tuple(sizes)), kernel.shape[-1]))
    what = operations.get(node)
    if what == "flatten":
        return Layout((math.prod(layout.shape),), layout.shape)
    if what is not None:
        return Layout((*pool_sizes(what, tuple(sizes)), channels))
    if "kernel" in params[node]:
        return Layout(params[node]["kernel"].shape[-1:])
    return layout


def to_channels_first(name: str, params: Mapping, layout: Layout) -> dict:
    """Returns the parameters of a layer, except a convolution, in NIR's order."""
    order = layout.order
    if "kernel" in params:
        kernel = params["kernel"] if order is None else params["kernel"][order]
        return {**params, "kernel": kernel}
    try:
        arrays = {k: np.broadcast_to(v, layout.shape) for k, v in params.items()}
    except ValueError as error:
        raise HardwareCheckpointError(
            f"the node {name!r} cannot be expressed: its parameters do not have the "
            f"shape {layout.shape} of its inputs: {error}"
        ) from error
    if len(layout.shape) > 1:
        return {key: np.moveaxis(array, -1, 0) for key, array in arrays.items()}
    if order is not None:
        return {key: array[order] for key, array in arrays.items()}
    return arrays


def to_channels_last(params: Mapping, layout: Layout) -> dict:
    """Inverse of `to_channels_first`."""
    order = layout.order
    if "kernel" in params:
        back = (
            params["kernel"] if order is None else params["kernel"][np.argsort(order)]
        )
        return {**params, "kernel": back}
    if len(layout.shape) > 1:
        return {
            key: np.moveaxis(array, 0, -1) if np.ndim(array) > 1 else array
            for key, array in params.items()
        }
    if order is not None:
        return {key: array[np.argsort(order)] for key, array in params.items()}
    return dict(params)
