"""A checkpoint as a graph of the Neuromorphic Intermediate Representation (NIR)."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from hwtrain import paths
from hwtrain.checkpoint import destination
from hwtrain.checkpoint.adapters.arrays import in_numpy
from hwtrain.checkpoint.errors import HardwareCheckpointError
from hwtrain.checkpoint.reader import HardwareCheckpoint
from hwtrain.physics.convolution import Window

Edges = Iterable[tuple[str, str]]
_ENDS = ("input", "output")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NirNetwork:
    """What a NIR graph holds, in the conventions of Flax.

    Attributes:
      params: for each node its parameters: `kernel` `[in, out]` or `[*taps, in, out]`
        and `bias`, or those of NIR's LIF and CubaLIF, in the units that the file has.
      windows: how the window of each convolution moves.
      edges: from which node to which.
      inputs: shapes of the input nodes, channels first.
      outputs: shapes of the output nodes; `None` is left to NIR to infer.
    """

    params: Mapping[str, Mapping[str, np.ndarray]]
    windows: Mapping[str, Window]
    edges: tuple[tuple[str, str], ...]
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...] | None]


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
    whose parameters are those of NIR's LIF or CubaLIF becomes that. Names have dots for
    slashes. NIR has floating-point weights and nothing of the chip: conductances,
    scales, ranges and converters are lost.

    Args:
      checkpoint: what `hwtrain.load` returned.
      out: the file to write; must not exist.
      chip: the seed of a frozen chip, whose weights just after programming are
        written; `None` for the nominal ones.
      edges: from which layer to which, in the names of the checkpoint, and `"input"`
        and `"output"`, which layers without edges get. `None`: the graph that the
        checkpoint was exported with; a single layer needs none.
      input_shape: shape of the input, channels first; needed before a convolution.

    Raises:
      HardwareCheckpointError: naming the node that NIR cannot express, if nothing says
        how the layers are connected, the file cannot be written, or there is no `nir`
        package.

    References:
      Pedersen et al., Neuromorphic intermediate representation, Nature Communications
      2024.
    """
    params, windows = _layers(checkpoint, chip)
    if edges is None:
        edges = _edges(checkpoint, list(params))
    named = tuple((_named(a), _named(b)) for a, b in edges)
    unknown = {node for edge in named for node in edge} - {*params, *_ENDS}
    if unknown:
        raise HardwareCheckpointError(
            f"an edge leads to {', '.join(sorted(unknown))}; there are input, output, "
            f"{', '.join(params)}"
        )
    _check_order(named, windows)
    first = [name for name in params if name not in {after for _, after in named}]
    last = [name for name in params if name not in {before for before, _ in named}]
    named += tuple(("input", name) for name in first)
    named += tuple((name, "output") for name in last)
    shape = input_shape
    for before, after in named:
        if shape is None and before == "input":
            shape = _input_shape(after, params[after], after in windows)
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
        ),
        out,
    )


def write_nir(network: NirNetwork, out: Path) -> None:
    """Writes a NIR graph.

    Args:
      network: what the graph shall hold.
      out: the file to write; must not exist.

    Raises:
      HardwareCheckpointError: naming the node that NIR cannot express, if the file
        cannot be written, or if there is no `nir` package.
    """
    nir, nodes_of = _nir()
    nodes = {
        name: nir.Input(input_type=np.array(shape))
        for name, shape in network.inputs.items()
    }
    for name, params in network.params.items():
        nodes[name] = nodes_of.to_node(name, dict(params), network.windows.get(name))
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
      The parameters of every node, by the name that the file has, as a Flax model of
      the same layers takes them, and how the nodes are connected.

    Raises:
      HardwareCheckpointError: naming the node that is none of Linear, Affine, Conv1d,
        Conv2d, LIF and CubaLIF, if the file is no NIR graph, or if there is no `nir`
        package.
    """
    nir, nodes_of = _nir()
    try:
        graph = nir.read(path)
    except (OSError, KeyError, AssertionError, TypeError, ValueError) as error:
        raise HardwareCheckpointError(
            f"{path} cannot be read as a NIR graph: {error}. Write it with nir.write"
        ) from error
    inputs, outputs, params, windows = {}, {}, {}, {}
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Input):
            inputs[name] = tuple(map(int, node.input_type["input"]))
        elif isinstance(node, nir.Output):
            outputs[name] = tuple(map(int, node.output_type["output"]))
        else:
            params[name], window = nodes_of.from_node(name, node)
            if window is not None:
                windows[name] = window
    return NirNetwork(
        params=params,
        windows=windows,
        edges=tuple((before, after) for before, after in graph.edges),
        inputs=inputs,
        outputs=outputs,
    )


def _nir():
    try:
        import nir

        from hwtrain.checkpoint.adapters import nir_nodes
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
        layer = layers[weight.layer_path]
        if weight.hardware.scales_outputs:
            scale = weight.spread(jnp.asarray(layer.pop("output_scale")))
            leaf = weight.path.rpartition("/")[2]
            layer[leaf] = layer[leaf] * np.asarray(scale)
        for leaf in ("input_range", "probe", "mapping_scale", "clip_bound"):
            layer.pop(leaf, None)
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
    return {_named(layer): found for layer, found in layers.items()}, windows


def _named(layer: str) -> str:
    # A slash would become a group of the HDF5 file.
    return layer.replace("/", ".") or "layer"


def _edges(checkpoint: HardwareCheckpoint, layers: list[str]) -> list[tuple[str, str]]:
    graph = checkpoint.manifest.graph
    if graph is None:
        if len(layers) == 1:
            return []
        raise HardwareCheckpointError(
            f"nothing says how {', '.join(layers)} are connected: export the model "
            "with graph=, or give to_nir(checkpoint, out, edges=[...])"
        )
    for name, what in graph.nodes.items():
        if what not in (*_ENDS, "layer"):
            raise HardwareCheckpointError(
                f"the node {name!r} cannot be expressed: NIR has no {what!r}"
            )
    names = {
        name: what if what in _ENDS else name for name, what in graph.nodes.items()
    }
    return [(names[before], names[after]) for before, after in graph.edges]


def _input_shape(
    name: str, params: Mapping[str, np.ndarray], convolution: bool
) -> tuple[int, ...]:
    if convolution:
        raise HardwareCheckpointError(
            f"the convolution {name!r} is the first layer, and NIR asks for the shape "
            "of its input: to_nir(checkpoint, out, input_shape=(channels, height, "
            "width))"
        )
    if "kernel" in params:
        return params["kernel"].shape[:1]
    return np.broadcast_shapes(*(array.shape for array in params.values()))


def _check_order(edges: Edges, windows: Mapping[str, Window]) -> None:
    """Raises where channels first, as NIR has them, would reorder a layer's inputs."""
    for before, after in edges:
        if before in windows and after not in (*windows, *_ENDS):
            raise HardwareCheckpointError(
                f"the edge {before!r} to {after!r} cannot be expressed: NIR flattens "
                "channels first, Flax channels last, so that the rows of the kernel "
                "would be in another order"
            )
