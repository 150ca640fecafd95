"""Finds the connections of a model's layers in the traced program of a call.

The call marks the inputs and outputs of each layer (`entering`, `leaving`); a walk
through its jaxpr follows every value from one mark to the next. Every operation on the
way becomes a node, so that nothing is left out; an unknown operation keeps the name
that JAX gives it.
"""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import Literal

from hwtrain._flax.jaxprs import TRANSPARENT, casts_to, inner_jaxpr, mark, scan_parts

_MARK = "hwtrain layer"

_calls = itertools.count()

_ACTIVATIONS = inspect.getsourcefile(inspect.unwrap(jax.nn.gelu))
"""The source file of the functions of `jax.nn`."""


@dataclasses.dataclass(frozen=True)
class Connections:
    """Nodes with their kinds, and edges.

    Attributes:
      nodes: the kind of each node: "input", "output", "layer" (its name is its path),
        "identity" between two layers with nothing between them, or an operation.
      edges: pairs of a source and a target node.
    """

    nodes: dict[str, str]
    edges: tuple[tuple[str, str], ...]


def marked(call: Callable[..., Any], path: str, args: Any, kwargs: Any) -> Any:
    """Calls a layer with marks on its array arguments and its results."""
    number = next(_calls)
    args, kwargs = mark((args, kwargs), f"{_MARK} {number} in {path}")
    return mark(call(*args, **kwargs), f"{_MARK} {number} out {path}")


def connections_of(
    function: Callable[..., Any], held: Any, example: Sequence[Any]
) -> Connections:
    """Returns the connections of the layers that a function calls with marks.

    Args:
      function: called with `held` and the inputs.
      held: the model's variables, arrays or shapes and dtypes.
      example: the inputs, arrays or shapes and dtypes.
    """
    closed = jax.make_jaxpr(function)(held, *example)
    walk = _Walk()
    names = (
        ["input"] if len(example) == 1 else [f"input {i}" for i in range(len(example))]
    )
    inputs = [walk.node(("input", name), "input", name) for name in names]
    count = len(closed.jaxpr.invars) - len(inputs)
    fixed: list[Sources] = [{}] * count
    consts: list[Sources] = [{}] * len(closed.consts)
    args = [*fixed, *({node: None} for node in inputs)]
    outputs = walk.jaxpr(closed.jaxpr, consts, args, ())
    for number, sources in enumerate(outputs):
        name = "output" if len(outputs) == 1 else f"output {number}"
        if sources:
            walk.connect(sources, walk.node(("output", name), "output", name))
    return walk.result()


Sources = dict[Any, None]
"""The nodes whose sum a value is, in the order of the operands; empty if it does not
depend on the inputs. A set would be in another order in each process."""


@dataclasses.dataclass(frozen=True)
class _Within:
    """A value inside a layer."""

    number: str
    path: str


class _Walk:
    """Follows values through a jaxpr and collects nodes and edges."""

    def __init__(self):
        self.nodes: dict[Any, tuple[str, str]] = {}
        self.edges: dict[tuple[Any, Any], None] = {}
        self.calls: dict[str, list[str]] = {}
        self.before: dict[Any, set[Any]] = {}

    def node(self, key: Any, what: str, name: str) -> Any:
        self.nodes.setdefault(key, (what, name))
        return key

    def connect(self, sources: Iterable[Any], node: Any) -> None:
        for source in sources:
            self.edges[source, node] = None
            self.before.setdefault(node, set()).add(source)

    def jaxpr(self, jaxpr: Any, consts: list, args: list, where: tuple) -> list:
        """Returns the sources of a jaxpr's outputs."""
        known: dict[Any, Sources] = {}
        known.update(zip(jaxpr.constvars, consts))
        known.update(zip(jaxpr.invars, args))

        def read(atom: Any) -> Sources:
            return {} if isinstance(atom, Literal) else known[atom]

        for number, equation in enumerate(jaxpr.eqns):
            values = [read(atom) for atom in equation.invars]
            found = self.equation(equation, values, (*where, number))
            known.update(zip(equation.outvars, found))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, values: list[Sources], where: tuple) -> list:
        """Returns the sources of the results of one equation."""
        name, params = equation.primitive.name, equation.params
        results = len(equation.outvars)
        if name == "name" and str(params["name"]).startswith(_MARK):
            return [self.mark(str(params["name"]), values[0])]
        together = _together(values)
        within = {s: None for s in together if isinstance(s, _Within)}
        if within:
            return [within] * results
        if not together:
            return [together] * results
        if name in TRANSPARENT and results == len(values) and not casts_to(equation):
            return values
        if name == "scan":
            return self.scan(equation, values, where)
        if name in ("while", "cond"):
            return self.branches(equation, values, where)
        inner = inner_jaxpr(params)
        if inner is not None:
            return self.call(equation, inner, values, where)
        if (
            name in ("add", "add_any")
            and all(values)
            and not (values[0].keys() & values[1].keys())
        ):
            return [together]
        if name == "transpose" and tuple(params["permutation"]) == (1, 0, 2):
            return values  # batch and time, around a loop over time
        if name in ("div", "mul") and (pooled := self.average(equation, values, where)):
            return [pooled]
        what = _operation(equation)
        if what == "identity":
            return values
        node = self.node(where, what, what.partition("(")[0])
        self.connect(together, node)
        return [{node: None}] * results

    def mark(self, mark: str, sources: Sources) -> Sources:
        _, number, way, *path = mark.removeprefix(_MARK).split(" ", 3)
        layer = path[0] if path else ""
        numbers = self.calls.setdefault(layer, [])
        if number not in numbers:
            numbers.append(number)
        again = numbers.index(number)
        key = ("layer", layer, again)
        if way == "in":
            # A layer's output that it receives again at the next step is its state.
            if sources.keys() != {key}:
                self.connect(sources, key)
            return {_Within(number, layer): None} if sources else sources
        self.node(key, "another call of " + layer if again else "layer", layer)
        return {key: None}

    def scan(self, equation: Any, values: list[Sources], where: tuple) -> list[Any]:
        inner = inner_jaxpr(equation.params)
        consts, carries = scan_parts(equation, inner)
        fixed, first = values[:consts], values[consts : consts + carries]
        carry: list[Sources] = [{}] * carries
        while True:
            # Initial and later carries are alternatives, not a sum: a node joins them.
            begun = [
                self.begin(old, new, (*where, number)) if old else new
                for number, (old, new) in enumerate(zip(first, carry))
            ]
            args = [*fixed, *begun, *values[consts + carries :]]
            found = self.jaxpr(inner, _none(inner), args, (*where, "body"))
            grown = [old | new for old, new in zip(carry, found[:carries])]
            if grown == carry:
                return [*begun, *found[carries:]]
            carry = grown

    def begin(self, first: Sources, carry: Sources, where: tuple) -> Sources:
        if carry.keys() <= first.keys():
            return first
        node = self.node(where, "scan", "scan")
        self.connect(first | carry, node)
        return {node: None}

    def branches(self, equation: Any, values: list[Sources], where: tuple) -> list:
        """Treats a `while` or a `cond` as a single operation."""
        name = equation.primitive.name
        node = self.node(where, name, name)
        self.connect(_together(values), node)
        return [{node: None}] * len(equation.outvars)

    def call(
        self, equation: Any, inner: Any, values: list[Sources], where: tuple
    ) -> list:
        """Walks through a called function, unless it is a single named operation."""
        trial = _Walk()
        trial.nodes, trial.edges = dict(self.nodes), dict(self.edges)
        trial.calls = {path: list(numbers) for path, numbers in self.calls.items()}
        trial.before = {node: set(found) for node, found in self.before.items()}
        found = trial.jaxpr(inner, _none(inner), values, where)
        new = [node for node in trial.nodes if node not in self.nodes]
        name = str(equation.params.get("name") or _custom_name(equation, inner))
        pools = {trial.nodes[node][1] for node in new} <= {"avg_pool", "sum_pool"}
        marks = trial.calls != self.calls
        if new and name and not marks and not pools and len(equation.outvars) == 1:
            node = self.node(where, name.strip("_"), name.strip("_"))
            self.connect(_together(values), node)
            return [{node: None}]
        self.nodes, self.edges = trial.nodes, trial.edges
        self.calls, self.before = trial.calls, trial.before
        return found

    def average(self, equation: Any, values: list[Sources], where: tuple) -> Any:
        """Returns an average pool if a sum over windows is divided by their size."""
        pool, number = values[0], equation.invars[1]
        if len(pool) != 1 or not isinstance(number, Literal):
            return None
        (node,) = pool
        what = self.nodes.get(node, ("", ""))[0]
        if not what.startswith("sum_pool("):
            return None
        taps = math.prod(
            map(int, what.partition("kernel=")[2].split(",")[0].split("x"))
        )
        factor = float(number.val)
        if equation.primitive.name == "div":
            factor = 1 / factor
        if not math.isclose(factor * taps, 1, rel_tol=1e-6):
            return None
        what = what.replace("sum_pool", "avg_pool")
        average = self.node(where, what, "avg_pool")
        self.connect(self.before[node], average)
        return {average: None}

    def result(self) -> Connections:
        """Returns the named nodes and edges on all ways to an output."""
        needed, waiting = (
            set(),
            [k for k, (what, _) in self.nodes.items() if what == "output"],
        )
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += self.before.get(node, ())
        names: dict[Any, str] = {}
        taken: set[str] = set()
        # Layers first, because their names must be their paths.
        ordered = [key for key in self.nodes if key in needed]
        for key in sorted(ordered, key=lambda key: self.nodes[key][0] != "layer"):
            names[key] = _free(self.nodes[key][1], taken)
        nodes = {names[key]: self.nodes[key][0] for key in ordered}
        edges = []
        for before, after in self.edges:
            if after not in needed:
                continue
            pair = names[before], names[after]
            if {self.nodes[before][0], self.nodes[after][0]} == {"layer"}:
                between = _free("identity", taken)
                nodes[between] = "identity"
                edges += [(pair[0], between), (between, pair[1])]
            else:
                edges.append(pair)
        return Connections(nodes, tuple(edges))


def _free(name: str, taken: set[str]) -> str:
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name} {number}"
    taken.add(found)
    return found


def _together(values: Iterable[Sources]) -> Sources:
    """Returns all sources of several values, those of the first one first."""
    return {source: None for value in values for source in value}


def _none(jaxpr: Any) -> list[Sources]:
    """Returns the sources of a jaxpr's constants, which are empty."""
    return [{}] * len(jaxpr.constvars)


def _custom_name(equation: Any, inner: Any) -> str:
    """Returns the name of a function with a custom derivative."""
    if not equation.primitive.name.startswith("custom_"):
        return ""
    name = getattr(inner.debug_info, "func_name", "") or ""
    return name if name.isidentifier() else ""


def _activation(equation: Any) -> str:
    """Returns the name of the `jax.nn` function that contains an operation, if any."""
    trace = equation.source_info.traceback
    frames = [] if trace is None else trace.frames
    # The outermost one, because softplus and others call each other.
    names = [f.function_name for f in frames if f.file_name == _ACTIVATIONS]
    return names[-1].rpartition(".")[2].strip("_") if names else ""


def _operation(equation: Any) -> str:
    """Returns the name of an operation, with the sizes that NIR needs."""
    name, params = equation.primitive.name, equation.params
    if cast := casts_to(equation):
        return f"cast to {cast}"
    shape = tuple(equation.invars[0].aval.shape)
    new = tuple(equation.outvars[0].aval.shape)
    if (
        name in ("reshape", "squeeze", "transpose")
        and shape == new
        and name != "transpose"
    ):
        return "identity"
    if name == "reshape" and len(new) == 2 and len(shape) > 2 and new[0] == shape[0]:
        return "flatten"
    if name == "reduce_window_sum" and len(shape) == 4:
        window, strides = params["window_dimensions"], params["window_strides"]
        padding = params["padding"]
        plain = set(params["base_dilation"]) | set(params["window_dilation"]) == {1}
        equal = all(low == high for low, high in padding)
        if (
            plain
            and equal
            and window[0] == window[3] == 1
            and strides[0] == strides[3] == 1
        ):
            each = [window[1:3], strides[1:3], [low for low, _ in padding[1:3]]]
            sizes = ["x".join(map(str, pair)) for pair in each]
            return "sum_pool(kernel={}, stride={}, padding={})".format(*sizes)
    activation = _activation(equation)
    return f"{activation}({name})" if activation else name
