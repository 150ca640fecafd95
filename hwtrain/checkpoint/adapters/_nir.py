"""Exports and imports graphs of the Neuromorphic Intermediate Representation (NIR)."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import paths
from hwtrain._arrays.windows import Window
from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._reader import HardwareCheckpoint
from hwtrain.checkpoint.adapters._arrays import in_numpy
from hwtrain.checkpoint.adapters._nir_graph import edges_of
from hwtrain.checkpoint.adapters._nir_order import (
    Layout,
    layouts,
    to_channels_first,
    to_channels_last,
)
from hwtrain.dynapse._layout import quantity_names
from hwtrain.weights.mapping import OUTPUT_SCALE

Edges = Iterable[tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NirNetwork:
    """A NIR graph in the conventions of Flax.

    Attributes:
      params: for each layer its parameters: `kernel` `[in, out]` or `[*taps, in, out]`
        and `bias`, or those of NIR's neurons or Scale, in the units of the file.
      windows: the window of each convolution.
      edges: pairs of a source and a target node.
      inputs: shapes of the input nodes, channels first.
      outputs: shapes of the output nodes; `None` if NIR infers it.
      operations: operations of the other nodes: "flatten" or a pool, as in a `Graph`.
    """

    params: Mapping[str, Mapping[str, np.ndarray]]
    windows: Mapping[str, Window]
    edges: tuple[tuple[str, str], ...]
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...] | None]
    operations: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def layouts(self) -> dict[str, Layout]:
        """The layout of each node's input."""
        return layouts(
            self.params, self.windows, self.operations, self.edges, self.inputs
        )


def to_nir(
    checkpoint: HardwareCheckpoint,
    out: Path,
    *,
    chip: int | None = None,
    edges: Edges | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> None:
    """Writes a checkpoint as a NIR graph, one HDF5 file.

    A dense layer becomes Linear or Affine, a convolution Conv1d or Conv2d, and a module
    with the parameters of one of NIR's neurons becomes that neuron. In names, dots
    replace slashes. NIR has floating-point weights and no hardware: conductances,
    scales, ranges, converters and formats of results are lost. NIR has no ReLU either:
    two linear layers in a row are written only if the checkpoint's graph has "identity"
    between them, as from `trace_graph` if the model's program has nothing there.

    Args:
      checkpoint: from `hwtrain.load`.
      out: the file to write; must not exist.
      chip: the seed of a frozen chip, whose weights just after programming are
        written; `None` for the nominal ones.
      edges: pairs of a source and a target layer, by their names in the checkpoint, and
        `"input"` and `"output"` for the first and last layers. `None`: the graph that
        the checkpoint was exported with; a single layer needs none. Edges into and out
        of neurons are not checked.
      input_shape: shape of the input, channels first; needed before a convolution.

    Raises:
      HardwareCheckpointError: naming the node that NIR cannot express; or if the
        connections of the layers are unknown, the file cannot be written, or there is
        no `nir` package.

    References:
      Pedersen et al., Neuromorphic intermediate representation, Nature Communications
      2024.
    """
    params, windows = _layers(checkpoint, chip)
    linear = [
        layer for layer, found in params.items() if {*found} & {"kernel", "scale"}
    ]
    found, operations = edges_of(checkpoint.manifest.graph, edges, params, linear)
    params = {_named(layer): arrays for layer, arrays in params.items()}
    named = tuple((_named(a), _named(b)) for a, b in found)
    nodes = [*params, *map(_named, operations)]
    first = [name for name in nodes if name not in {after for _, after in named}]
    last = [name for name in nodes if name not in {before for before, _ in named}]
    named += tuple(("input", name) for name in first)
    named += tuple((name, "output") for name in last)
    shape = input_shape
    for before, after in named:
        if shape is None and before == "input":
            known = params.get(after, {})
            shape = _input_shape(after, known, after in windows or not known)
    if shape is None:
        raise HardwareCheckpointError(
            f"no edge leads from the input to one of {', '.join(params)}; give "
            'to_nir(checkpoint, out, edges=[("input", layer), ...])'
        )
    write_nir(
        NirNetwork(
            params=params,
            windows=windows,
            edges=named,
            inputs={"input": tuple(shape)},
            outputs={"output": None},
            operations={_named(name): what for name, what in operations.items()},
        ),
        out,
    )


def write_nir(network: NirNetwork, out: Path) -> None:
    """Writes a NIR graph.

    Args:
      network: the contents of the graph.
      out: the file to write; must not exist.

    Raises:
      HardwareCheckpointError: naming the node that NIR cannot express, if the file
        cannot be written, or if there is no `nir` package.
    """
    nir, nodes_of = _nir_package()
    nodes = {
        name: nir.Input(input_type=np.array(shape))
        for name, shape in network.inputs.items()
    }
    # Windows first: if NIR lacks a convolution, its layouts cannot be computed.
    for name, window in network.windows.items():
        nodes[name] = nodes_of.to_node(name, dict(network.params[name]), window)
    found = network.layouts
    for name, params in network.params.items():
        if name not in network.windows:
            params = dict(params)
            if name in found and len(found[name].whole) > 1:
                params = to_channels_first(name, params, found[name])
            nodes[name] = nodes_of.to_node(name, params, None)
    for name, what in network.operations.items():
        *sizes, channels = found[name].shape
        nodes[name] = nodes_of.to_operation(what, (channels, *sizes))
    for name in network.outputs:
        # NIR infers the shape.
        nodes[name] = nir.Output(output_type=None)
    try:
        graph = nir.NIRGraph(nodes=nodes, edges=list(network.edges))
    except (ValueError, IndexError) as error:
        raise HardwareCheckpointError(
            f"NIR does not take this graph: {error}"
        ) from error
    with destination.new(out) as partial:
        nir.write(partial, graph)


def from_nir(path: str | os.PathLike[str]) -> NirNetwork:
    """Reads a NIR graph.

    Args:
      path: the HDF5 file.

    Returns:
      The parameters of every node, by its name in the file, as for a Flax model of the
      same layers, and the connections of the nodes.

    Raises:
      HardwareCheckpointError: naming a node of a type that hwtrain does not have; or if
        the file is not a NIR graph, or there is no `nir` package.
    """
    nir, nodes_of = _nir_package()
    try:
        graph = nir.read(path)
    except (OSError, KeyError, AssertionError, TypeError, ValueError) as error:
        raise HardwareCheckpointError(
            f"{path} cannot be read as a NIR graph: {error}. Write it with nir.write"
        ) from error
    inputs, outputs, params, windows, operations = {}, {}, {}, {}, {}
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Input):
            inputs[name] = tuple(map(int, node.input_type["input"]))
        elif isinstance(node, nir.Output):
            outputs[name] = tuple(map(int, node.output_type["output"]))
        elif (what := nodes_of.from_operation(name, node)) is not None:
            operations[name] = what
        else:
            params[name], window = nodes_of.from_node(name, node)
            if window is not None:
                windows[name] = window
    network = NirNetwork(
        params=params,
        windows=windows,
        edges=tuple((before, after) for before, after in graph.edges),
        inputs=inputs,
        outputs=outputs,
        operations=operations,
    )
    for name, layout in network.layouts.items():
        if name in params and name not in windows and len(layout.whole) > 1:
            params[name] = to_channels_last(params[name], layout)
    return network


def _nir_package():
    try:
        import nir

        from hwtrain.checkpoint.adapters import _nir_nodes as nir_nodes
    except ImportError as error:
        raise HardwareCheckpointError(
            "NIR needs the nir package: pip install hwtrain[nir]"
        ) from error
    return nir, nir_nodes


def _layers(
    checkpoint: HardwareCheckpoint, chip: int | None
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Window]]:
    """Returns the parameters and the windows of every layer by its name in NIR."""
    others = [name for name, tree in checkpoint.variables.items() if paths.leaves(tree)]
    if others != ["params"]:
        others.remove("params")
        raise HardwareCheckpointError(
            f"NIR has no place for the collection {', '.join(others)}: fold batch "
            "statistics into the weights before the export"
        )
    params = checkpoint.params if chip is None else checkpoint.chip(chip)
    layers: dict[str, dict[str, np.ndarray]] = {}
    for path, value in paths.leaves(params).items():
        layer, _, leaf = path.rpartition("/")
        layers.setdefault(layer, {})[leaf] = in_numpy(value)
    windows = {}
    for weight in checkpoint.plan.weights:
        layer, leaf = layers[weight.layer_path], weight.array
        if weight.derived:  # the node holds the weights that the layer multiplies by
            layer[leaf] = layer.pop(weight.path.rpartition("/")[2])
        if weight.hardware.scales_outputs:
            scale = weight.spread(jnp.asarray(layer.pop(OUTPUT_SCALE.name)))
            layer[leaf] = layer[leaf] * np.asarray(scale)
        for name in weight.beside:
            layer.pop(weight.leaf_name(name), None)
        if weight.kind not in ("dense", "conv") or weight.path.endswith("/embedding"):
            raise HardwareCheckpointError(
                f"the node {weight.layer_path!r} cannot be expressed: NIR has nothing "
                f"like {weight.layer or 'an array that a rule names'}"
            )
        if weight.window is not None:
            windows[_named(weight.layer_path)] = weight.window
        elif weight.rows != (0,) or weight.columns != (1,):
            raise HardwareCheckpointError(
                f"the node {weight.layer_path!r} cannot be expressed: NIR's Linear has "
                f"one axis of inputs and one of outputs, {weight.layer} has the shape "
                f"{weight.shape}"
            )
    _check_dynapse(layers)
    _check_scales(checkpoint, layers)
    return layers, windows


def _named(layer: str) -> str:
    # In HDF5, a slash would create a group.
    return layer.replace("/", ".") or "layer"


def _check_dynapse(layers: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Raises for DynapSim neurons, which have their own export."""
    quantities = {f"log_{name}" for name in quantity_names()}
    for layer, found in layers.items():
        if len(quantities & {*found}) > 1:
            raise HardwareCheckpointError(
                f"the node {layer!r} cannot be expressed: NIR has no DynapSim neurons. "
                "Write them for their chip: export_dynapse of "
                "hwtrain.checkpoint._dynapse (docs/deployment.md)"
            )


def _check_scales(
    checkpoint: HardwareCheckpoint, layers: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Raises for a lone `scale` that may belong to a normalisation."""
    for layer, found in layers.items():
        path = f"{layer}/scale" if layer else "scale"
        reasons = [d.reason for d in checkpoint.plan.digital if d.path == path]
        if set(found) == {"scale"} and not any(r.startswith("Scale:") for r in reasons):
            why = f" ({reasons[0]})" if reasons else ""
            raise HardwareCheckpointError(
                f"the node {layer!r} cannot be expressed: its only parameter is a "
                f"'scale'{why}, as that of a normalisation is, which NIR does not "
                "have; a module that multiplies by it must be of a class Scale"
            )


def _input_shape(
    name: str, params: Mapping[str, np.ndarray], convolution: bool
) -> tuple[int, ...]:
    if convolution:
        raise HardwareCheckpointError(
            f"{name!r} comes first and works on windows, so NIR needs the shape of its "
            "input: to_nir(checkpoint, out, input_shape=(channels, height, width))"
        )
    if "kernel" in params:
        return params["kernel"].shape[:1]
    return np.broadcast_shapes(*(array.shape for array in params.values()))
