"""Checks whether layers multiply by stored parameters or by weights derived from them.

A call of the plain model marks the arrays that each layer multiplies by
(`Operands.marked`). A walk through its jaxpr follows every stored parameter to these
marks, and from there to a product. Operations that keep every number in its place do
not count: casts, entries of a stack, and the boundaries of calls and loops. Any other
operation before a mark makes a derived weight. Weights that are changed after the mark,
cannot be followed, or depend on the call's arguments cannot be held by a crossbar.
"""

import itertools
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Literal

from hwtrain._flax.jaxprs import TRANSPARENT, casts_to, inner_jaxpr, mark, scan_parts
from hwtrain._flax.origins import (
    INPUT,
    Origin,
    Origins,
    changed,
    chosen,
    either,
    parameters,
    passages,
)
from hwtrain._flax.own_products import Passages, collects
from hwtrain._flax.stack_axis import NAME, stack_axis_first

_MARK = "hwtrain operand"
_SAME = TRANSPARENT | {
    "device_put",
    "expand_dims",
    "mesh_cast",
    "pvary",
    "reshape",
    "reshard",
    "squeeze",
    NAME,
}
"""Operations that keep the numbers and their order."""

_MOVES = {"broadcast_in_dim", "dynamic_slice", "rev", "slice", "split", "transpose"}
"""Operations that keep the numbers; a product may move its operands by them."""

_PRODUCTS = {
    "conv_general_dilated",
    "dot_general",
    "gather",
    "ragged_dot",
    "ragged_dot_general",
}
"""Operations by which a layer uses its array, including look-ups."""

_numbers = itertools.count()


class Provenance(NamedTuple):
    """The origins of the arrays that the layers of a call multiply by, by path.

    Attributes:
      derived: the reason why a layer multiplies by a derived weight.
      lost: the reason why an array is not known or no crossbar can hold it.
      around: parameters that inputs are also multiplied by outside of their layers.
      nonlinear: the reason why the product of a layer is not linear.
    """

    derived: dict[str, str]
    lost: dict[str, str]
    around: set[str]
    nonlinear: dict[str, str]


class Operands:
    """The arrays that the layers of a call multiply by, marked."""

    def __init__(self):
        self.paths: dict[int, str] = {}
        self.ranks: dict[int, int] = {}

    def marked(self, path: str, array: Any) -> Any:
        """Returns the array that a layer uses for a parameter, marked."""
        number = next(_numbers)
        self.paths[number], self.ranks[number] = path, array.ndim
        return mark(stack_axis_first(array), f"{_MARK} {number}")

    def followed(
        self,
        jaxpr: Any,
        stored: Sequence[str],
        shapes: Mapping[str, tuple[int, ...]],
        inputs: Sequence[bool],
        planned: Container[str] = (),
    ) -> Provenance:
        """Returns the origins of the marked arrays.

        Args:
          jaxpr: the closed jaxpr of the call.
          stored: the kinds of its inputs: paths of parameters, or empty strings.
          shapes: shapes of the stored parameters by path.
          inputs: whether each of its inputs is an argument of the call, or random.
          planned: paths of parameters of layers that the call uses but need not reach.
        """
        known = {n: path for n, path in self.paths.items() if path in shapes}
        paths = set(known.values())
        walk = _Walk(known, shapes, self.ranks)
        args: list[Origins] = [
            frozenset(
                {INPUT} if given else {Origin(p)} if p in paths or p in planned else ()
            )
            for p, given in zip(stored, inputs, strict=True)
        ]
        nothing: list[Origins] = [frozenset()] * len(jaxpr.consts)
        walk.jaxpr(jaxpr.jaxpr, nothing, args)
        lost = {p: _LOST for p in sorted(paths - {self.paths[n] for n in walk.used})}
        lost |= {p: _BOTH for p in sorted(walk.plain & walk.derived.keys())}
        lost |= walk.found
        nonlinear = walk.passages.nonlinear
        return Provenance(walk.derived, lost, walk.around, nonlinear)


_LOST = "what it multiplies by cannot be followed"
_BOTH = "it multiplies by that in one call, and by what is made of it in another"
_GIVEN = (
    "what it multiplies by is made of inputs or random numbers of the call too, and a "
    "crossbar's weights stay"
)


class _Walk:
    """Follows parameters through a jaxpr.

    Attributes:
      found: by path, the reason why no crossbar can hold a layer's array.
      derived: by path, the operation between a parameter and its layer.
      plain: paths of parameters that a layer multiplies by unchanged.
      used: the marks whose arrays reach a product.
      around: paths of parameters that inputs are multiplied by without a mark.
      stopped: for a value with stopped gradient, the original value.
      passages: the ways of inputs and results through users' products.
    """

    def __init__(
        self,
        paths: Mapping[int, str],
        shapes: Mapping[str, tuple[int, ...]],
        ranks: Mapping[int, int],
    ):
        self.paths, self.shapes, self.ranks = paths, shapes, ranks
        self.found: dict[str, str] = {}
        self.derived: dict[str, str] = {}
        self.plain: set[str] = set()
        self.used: set[int] = set()
        self.around: set[str] = set()
        self.stopped: dict[Any, Any] = {}
        self.passages = Passages()

    def jaxpr(self, jaxpr: Any, consts: list, args: list) -> list[Origins]:
        """Returns the origins of a jaxpr's outputs."""
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
        for equation in jaxpr.eqns:
            values = [
                frozenset() if isinstance(atom, Literal) else known[atom]
                for atom in equation.invars
            ]
            known.update(zip(equation.outvars, self.equation(equation, values)))
        return [
            frozenset() if isinstance(atom, Literal) else known[atom]
            for atom in jaxpr.outvars
        ]

    def equation(self, equation: Any, values: list[Origins]) -> list[Origins]:
        """Returns the origins of the results of one equation."""
        name, params = equation.primitive.name, equation.params
        results = len(equation.outvars)
        if name == "name" and str(params["name"]).startswith(_MARK):
            return [self.mark(equation, values[0])]
        if name == "name":
            behind = self.passages.marked(str(params["name"]), values[0])
            return values if behind is None else [behind]
        if name == "scan":
            return self.scan(equation, values)
        if name == "while":
            return self.loop(params, values)
        if name == "cond":
            branches = [self.inside(b, values[1:]) for b in params["branches"]]
            found = [either(found, name) for found in zip(*branches)]
            return [chosen(origins, values[0]) for origins in found]
        if name == "stop_gradient":
            self.stopped[equation.outvars[0]] = equation.invars[0]
        if name == "select_n" and self.same(equation.invars[1:]):
            return [values[1]]
        inner = inner_jaxpr(params)
        if inner is not None and len(inner.invars) == len(values):
            return self.inside(inner, values)
        together: Origins = frozenset().union(*values)
        if not together:
            return [together] * results
        if name in _PRODUCTS:
            through = self.product(name, values)
            return [together & {INPUT} | through] * results
        if collects(name, together) and results == len(values):
            return values
        if name in _SAME and results == len(values) and not casts_to(equation):
            return values
        if self.moves(equation, values):
            # The start of a slice does not contribute to its values.
            return [together if name == "concatenate" else values[0]] * results
        return [changed(together, name)] * results

    def same(self, cases: Sequence[Any]) -> bool:
        """Whether a selection is between a value and itself.

        Mapping a branch creates one for each operand, with stopped gradients for the
        branch not taken.
        """
        values = [atom for atom in cases if not isinstance(atom, Literal)]
        found = {self.stopped.get(atom, atom) for atom in values}
        return len(values) == len(cases) and len(found) == 1

    def inside(self, inner: Any, values: list[Origins]) -> list[Origins]:
        inner = getattr(inner, "jaxpr", inner)
        return self.jaxpr(inner, [frozenset()] * len(inner.constvars), values)

    def mark(self, equation: Any, origins: Origins) -> Origins:
        """Compares an array that a layer multiplies by with the stored one."""
        number = int(str(equation.params["name"]).removeprefix(_MARK))
        if number not in self.paths:  # of an outer walk, or of no parameter
            return origins
        path, shape = self.paths[number], tuple(equation.outvars[0].aval.shape)
        stored, weights = self.shapes[path], origins - {INPUT, *passages(origins)}
        changes = {o.by for o in weights if o.source == path}
        others = sorted(str(o.source) for o in weights if o.source != path)
        by = max(changes, default="") or "join"
        why = f"the operation {by!r} stands between the two"
        rank = self.ranks[number]  # without the axes of enclosing maps
        stacked = len(stored) > rank
        if not changes:
            from_others = f"it multiplies by what comes from {', '.join(others)}"
            self.found.setdefault(path, from_others if others else _LOST)
        elif INPUT in origins:
            self.found.setdefault(path, _GIVEN)
        elif by == "transpose" and stacked:
            why += ", as where layers are stacked on another axis than 0"
            self.found.setdefault(path, why)
        elif rank > len(stored) or shape[-len(stored) :] != stored[-len(shape) :]:
            self.found.setdefault(path, f"it multiplies by a part of shape {shape}")
        elif changes != {""} or others:
            self.derived.setdefault(path, why)
        else:
            self.plain.add(path)
        return frozenset({Origin(number)})

    def product(self, name: str, values: list[Origins]) -> Origins:
        """Returns the passages of the result of a product."""
        if name != "gather" and any(INPUT in value for value in values):
            weights = [value for value in values if INPUT not in value]
            self.around |= {str(o.source) for o in parameters(weights)}
        found = set()
        for origin in frozenset().union(*values):
            if not isinstance(origin.source, int):
                continue
            self.used.add(origin.source)
            path = self.paths[origin.source]
            found.add(path)
            if origin.by:
                self.found.setdefault(
                    path, f"the operation {origin.by!r} stands between the two"
                )
        return self.passages.product(name, values, found)

    def moves(self, equation: Any, values: list[Origins]) -> bool:
        """Whether an operation takes entries of a stack, or moves a layer's values."""
        name, params = equation.primitive.name, equation.params
        marked = all(isinstance(o.source, int) for value in values for o in value)
        inside = [bool(passages(value)) for value in values]
        if name == "concatenate":
            return (marked and all(values)) or all(inside)
        if name not in _MOVES or any(inside[1:]):  # an input sets the start
            return False
        if marked or inside[0] or name == "split":
            return marked or inside[0]
        old = tuple(equation.invars[0].aval.shape)
        new = tuple(equation.outvars[0].aval.shape)
        if name == "transpose":
            order = [axis for axis in params["permutation"] if old[axis] != 1]
            return order == sorted(order)
        if name == "broadcast_in_dim":
            axes = tuple(params["broadcast_dimensions"])
            copied = axes == tuple(range(len(new) - len(old), len(new)))  # by a map
            same = math.prod(old) == math.prod(new)
            return same or (copied and new[-len(old) :] == old)
        if name == "rev" or set(params.get("strides") or (1,)) != {1}:
            return False
        cut = [axis for axis in range(len(old)) if old[axis] != new[axis]]
        return all(new[axis] == 1 for axis in range(max(cut, default=0)))

    def scan(self, equation: Any, values: list[Origins]) -> list[Origins]:
        inner = inner_jaxpr(equation.params)
        consts, carries = scan_parts(equation, inner)
        fixed, carry = values[:consts], values[consts : consts + carries]
        scanned = values[consts + carries :]
        while True:
            found = self.inside(inner, [*fixed, *carry, *scanned])
            grown = [either(pair, "scan") for pair in zip(carry, found)]
            if grown == carry:
                return [*carry, *found[carries:]]
            carry = grown

    def loop(self, params: Any, values: list[Origins]) -> list[Origins]:
        of_condition, of_body = params["cond_nconsts"], params["body_nconsts"]
        fixed = values[of_condition : of_condition + of_body]
        carry = values[of_condition + of_body :]
        while True:
            found = self.inside(params["body_jaxpr"], [*fixed, *carry])
            grown = [either(pair, "while") for pair in zip(carry, found)]
            if grown == carry:
                given = [*values[:of_condition], *carry]
                (goes_on,) = self.inside(params["cond_jaxpr"], given)
                return [chosen(origins, goes_on) for origins in carry]
            carry = grown
