"""Checks the edges of a NIR graph, from a checkpoint's graph or given by the caller.

NIR has no ReLU and hardly any other operation, so every operation between two layers
must be known: one that is left out would be lost silently.
"""

from collections.abc import Collection, Iterable

from hwtrain.checkpoint._description import Graph
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint.adapters._nir_pools import is_operation

Edges = tuple[tuple[str, str], ...]
ENDS = ("input", "output")

_TRACE = "export(..., graph=hwtrain.checkpoint.trace_graph(model, variables, example))"

_BETWEEN = (
    "Put neurons of NIR in its place (LIF, IF, ...: docs/deployment.md), or convert to "
    "another target, such as npz"
)
_READOUT = (
    "It stands behind the last layer, as a readout does: leave it to who runs the "
    "network. Trace the graph of the model without it, or export without graph= and "
    "give to_nir(checkpoint, out, edges=[...])"
)


def edges_of(
    graph: Graph | None,
    given: Iterable[tuple[str, str]] | None,
    layers: Collection[str],
    linear: Collection[str],
) -> tuple[Edges, dict[str, str]]:
    """Returns the edges of a checkpoint's layers, and operations of other nodes.

    Args:
      graph: the checkpoint's graph, if it has one.
      given: the caller's edges, if any; they must equal those of the graph.
      layers: paths of the layers.
      linear: the linear layers; two in a row are suspicious.

    Raises:
      HardwareCheckpointError: naming the node or the two layers, if NIR cannot express
        the graph, or an operation may be missing between the layers.
    """
    edges = None if given is None else tuple((a, b) for a, b in given)
    if graph is None:
        if edges is None and len(layers) == 1:
            return (), {}
        if edges is None:
            raise HardwareCheckpointError(
                f"nothing says how {', '.join(layers)} are connected: {_TRACE}, or "
                "give to_nir(checkpoint, out, edges=[...])"
            )
        _check_names(edges, layers)
        _check_linear(edges, linear)
        return edges, {}
    _check_operations(graph)
    found, operations = _contracted(graph)
    left_out = [layer for layer in layers if layer not in graph.nodes]
    if left_out:
        raise HardwareCheckpointError(
            f"the checkpoint's graph leaves out {', '.join(left_out)}: {_TRACE}"
        )
    _check_linear([edge for edge in found if edge in graph.edges], linear)
    if edges is not None:
        _check_names(edges, {*layers, *operations})
        ours, theirs = (
            {edge for edge in each if not {*edge} & {*ENDS}} for each in (found, edges)
        )
        for before, after in sorted(ours ^ theirs):
            which = "has" if (before, after) in ours else "does not have"
            raise HardwareCheckpointError(
                f"the checkpoint's graph {which} the edge {before!r} to {after!r}, "
                "unlike edges=; leave edges= out"
            )
    return found, operations


def _check_names(edges: Edges, layers: Collection[str]) -> None:
    named = {node for edge in edges for node in edge}
    unknown = named - {*layers, *ENDS}
    if unknown:
        raise HardwareCheckpointError(
            f"an edge leads to {', '.join(sorted(unknown))}; there are input, output, "
            f"{', '.join(layers)}"
        )
    alone = [layer for layer in layers if layer not in named]
    if alone and len(layers) > 1:
        raise HardwareCheckpointError(
            f"no edge leads to or from {', '.join(alone)}; say how they are connected "
            'with all of the others, with "input" and "output" at the ends'
        )


def _check_linear(edges: Iterable[tuple[str, str]], linear: Collection[str]) -> None:
    for before, after in edges:
        if before in linear and after in linear:
            raise HardwareCheckpointError(
                f"{before!r} leads straight to {after!r}, and both are linear: nothing "
                "proves that no activation lies between them, which NIR would lose. "
                f"Let the model's own program say it: {_TRACE}"
            )


def _check_operations(graph: Graph) -> None:
    for end in ENDS:
        several = [name for name, what in graph.nodes.items() if what == end]
        if len(several) > 1:
            raise HardwareCheckpointError(
                f"the model has several {end}s ({', '.join(several)}), and an export "
                f"to NIR has one {end}"
            )
    for name, what in graph.nodes.items():
        if what in (*ENDS, "layer", "identity") or is_operation(what):
            continue
        before, after = _nearest(graph, name, back=True), _nearest(graph, name)
        where = f" from {_listed(before)} to {_listed(after)}"
        kind = what.partition("(")[0]
        readout = all(graph.nodes[node] == "output" for node in after)
        raise HardwareCheckpointError(
            f"the node {name!r}{where if before and after else ''} cannot be "
            f"expressed: NIR has no {kind!r}. {_READOUT if readout else _BETWEEN}"
        )


def _listed(nodes: Iterable[str]) -> str:
    return ", ".join(map(repr, nodes))


def _nearest(graph: Graph, node: str, *, back: bool = False) -> list[str]:
    """Returns the layers or ends next to an operation, before or after it."""
    edges = [(b, a) for a, b in graph.edges] if back else graph.edges
    found, waiting, seen = [], [node], {node}
    while waiting:
        current = waiting.pop()
        for following in [b for a, b in edges if a == current and b not in seen]:
            seen.add(following)
            layer = graph.nodes[following] in (*ENDS, "layer")
            (found if layer else waiting).append(following)
    return found


def _contracted(graph: Graph) -> tuple[Edges, dict[str, str]]:
    """Returns the edges with identities contracted, and the operations."""
    names = {name: what if what in ENDS else name for name, what in graph.nodes.items()}
    after: dict[str, list[str]] = {}
    for first, second in graph.edges:
        after.setdefault(first, []).append(second)

    def reached(node: str, seen: frozenset[str] = frozenset()) -> Iterable[str]:
        for following in after.get(node, ()):
            if graph.nodes[following] != "identity":
                yield names[following]
            elif following not in seen:
                yield from reached(following, seen | {following})

    edges = []
    for node, what in graph.nodes.items():
        if what != "identity":
            edges += [(names[node], following) for following in reached(node)]
    operations = {
        name: what for name, what in graph.nodes.items() if is_operation(what)
    }
    return tuple(dict.fromkeys(edges)), operations
