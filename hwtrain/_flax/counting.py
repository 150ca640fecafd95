"""Counts the multiplications of a call of an analog model, by tracing it.

Nothing is computed, so variables and inputs may be shapes. A call is traced with
products of crossbars marked; a walk through its jaxpr counts them, and the products
that stay digital, as often as the loops around them run.
"""

import collections
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._flax.calls import Forward, divided, through
from hwtrain._flax.functional import as_function
from hwtrain._flax.jaxprs import TRANSPARENT, inner_jaxpr, scan_parts
from hwtrain._flax.observation import Multiplication, observed

_MARK = "hwtrain_product_"
_KEEPS = TRANSPARENT | {
    "broadcast_in_dim",
    "dynamic_slice",
    "reshape",
    "slice",
    "squeeze",
    "transpose",
}
"""Operations whose result is still the parameter that they take, or a part of it."""

_numbers = itertools.count()

Path = str


class Multiplications(NamedTuple):
    """Multiplications of one call.

    Attributes:
      products: products of a vector and a matrix of a crossbar, by the path of the
        stored array.
      digital: multiplications and additions of digital products, by the path of the
        parameter that is multiplied by; `""` for products of two results.
    """

    products: Mapping[Path, int]
    digital: Mapping[Path, int]


def multiplications(
    analog: Any,
    variables: Any,
    *args: Any,
    forward: Forward | None = None,
    **kwargs: Any,
) -> Multiplications:
    """Returns how often a call of an analog model multiplies.

    Args:
      analog: the analog model.
      variables: Linen: its variables, or their shapes. NNX: `None`, or as for
        `as_function`.
      *args: arguments of the call, or their shapes.
      forward: `(apply, inputs) -> outputs`, which calls the model for the first
        argument; `None` for a call with the arguments.
      **kwargs: keyword arguments of the call.

    Raises:
      ValueError: for a product in a loop whose number of steps depends on values, or on
        each device of a mesh.
    """
    function, tree = as_function(analog, "eval", variables)
    arrays, static = divided(kwargs)
    if forward is not None:
        function = through(function, forward)
    calls: dict[str, tuple[Path, int]] = {}

    def observe(call: Multiplication) -> jax.Array:
        name = f"{_MARK}{next(_numbers)}"
        calls[name] = (call.weight.stored, sum(call.weight.column_sizes))
        dtype = call.dtype
        if dtype is None:
            dtype = jnp.result_type(call.x, call.w)

        def product(x: jax.Array, w: jax.Array) -> jax.Array:
            numbers = (((x.ndim - 1,), (0,)), ((), ()))
            x, w = x.astype(dtype), w.astype(dtype)
            return jax.lax.dot_general(x, w, numbers)

        product.__name__ = name
        return jax.jit(product)(call.x, call.w)

    def program(params: Any, others: Any, key: Any, arrays: Any, *args: Any) -> Any:
        called = {**others, "params": params}
        return function(called, key, *args, **arrays, **static)

    params = tree["params"]
    others = {name: value for name, value in tree.items() if name != "params"}
    with observed(observe):
        traced = jax.make_jaxpr(program)(
            params, others, jax.random.key(0), arrays, *args
        )
    named = jax.tree.leaves(paths.map_leaves(lambda path, _: path, params))
    walk = _Walk(calls)
    rest = [""] * (len(traced.jaxpr.invars) - len(named))
    walk.jaxpr(traced.jaxpr, [*named, *rest], 1)
    return Multiplications(walk.products, walk.digital)


class _Walk:
    """Counts through a jaxpr.

    Attributes:
      calls: by the name of a marked product, the path of its array, and its columns.
      products: as in `Multiplications`.
      digital: as in `Multiplications`.
    """

    def __init__(self, calls: Mapping[str, tuple[Path, int]]):
        self.calls = calls
        self.products: collections.Counter[Path] = collections.Counter()
        self.digital: collections.Counter[Path] = collections.Counter()

    def jaxpr(self, jaxpr: Any, args: list[Path], times: int) -> list[Path]:
        """Counts the products of a jaxpr.

        Args:
          jaxpr: the jaxpr.
          args: the parameter that each of its inputs is; `""` for none.
          times: how often it runs.

        Returns:
          The parameter that each of its results is.
        """
        known: dict[Any, Path] = dict(zip(jaxpr.invars, args))
        known |= dict.fromkeys(jaxpr.constvars, "")

        def of(atom: Any) -> Path:
            return "" if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            values = [of(atom) for atom in equation.invars]
            found = self.equation(equation, values, times)
            known |= dict(zip(equation.outvars, found))
        return [of(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, values: list[Path], times: int) -> list[Path]:
        """Counts the products of an equation, and returns as `jaxpr` does."""
        name, params = equation.primitive.name, equation.params
        none = [""] * len(equation.outvars)
        if params.get("name") in self.calls:
            path, columns = self.calls[params["name"]]
            size = math.prod(equation.outvars[0].aval.shape)
            self.products[path] += times * size // columns
            return none
        macs = _macs(equation)
        if macs:
            whose = next(filter(None, values[1::-1]), "")
            self.digital[whose] += times * macs
            return none
        inner = inner_jaxpr(params)
        if name == "scan":
            consts, carries = scan_parts(equation, inner)
            known = [
                "" if consts <= place < consts + carries else value
                for place, value in enumerate(values)
            ]
            found = self.jaxpr(inner, known, times * params["length"])
            return [*none[:carries], *found[carries:]]
        if name == "cond":
            return self.cond(params["branches"], values[1:], times)
        if name in ("while", "shard_map"):
            self.refuse(equation)
            return none
        if inner is not None and len(inner.invars) == len(values):
            found = self.jaxpr(inner, values, times)
            return found if len(found) == len(none) else none
        for other in _jaxprs(params):
            self.jaxpr(other, [""] * len(other.invars), times)
        keeps = name in _KEEPS and len(none) == 1
        return [values[0]] if keeps else none

    def cond(self, branches: Any, values: list[Path], times: int) -> list[Path]:
        """Counts the branch that multiplies most."""
        walks = []
        for branch in branches:
            walk = _Walk(self.calls)
            found = walk.jaxpr(branch.jaxpr, values, times)
            walks.append((walk, found))
        most, found = max(walks, key=lambda pair: pair[0].work)
        self.products += most.products
        self.digital += most.digital
        return [""] * len(found)

    @property
    def work(self) -> tuple[int, int]:
        """All products, and all digital multiplications."""
        return sum(self.products.values()), sum(self.digital.values())

    def refuse(self, equation: Any) -> None:
        """Raises if an equation whose number of runs is not known has products."""
        walk = _Walk(self.calls)
        for inner in _jaxprs(equation.params):
            walk.jaxpr(inner, [""] * len(inner.invars), 1)
        if walk.work == (0, 0):
            return
        where = next(iter(walk.products), "a digital layer")
        if equation.primitive.name == "while":
            raise InputError(
                f"the products of {where} cannot be counted: they stand in a loop "
                "(while_loop) whose number of steps depends on values. Count a model "
                "with a loop of fixed length, such as jax.lax.scan or a fori_loop "
                "between two numbers"
            )
        raise InputError(
            f"the products of {where} cannot be counted inside of a shard_map, where "
            "each device multiplies. Count the model without it: a chip multiplies as "
            "often on any mesh"
        )


def _jaxprs(params: Mapping[str, Any]) -> list[Any]:
    """Returns the jaxprs among the parameters of an equation."""
    found: list[Any] = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                found.append(one.jaxpr)
            elif isinstance(one, Jaxpr):
                found.append(one)
    return found


def _macs(equation: Any) -> int:
    """Returns the multiplications of an equation that is a product; 0 for others."""
    name, params = equation.primitive.name, equation.params
    if name not in ("dot_general", "conv_general_dilated", "ragged_dot_general"):
        return 0
    left, right = (atom.aval.shape for atom in equation.invars[:2])
    results = math.prod(equation.outvars[0].aval.shape)
    if name == "dot_general":
        (summed, _), _ = params["dimension_numbers"]
        return results * math.prod(left[axis] for axis in summed)
    if name == "ragged_dot_general":
        numbers = params["ragged_dot_dimension_numbers"].dot_dimension_numbers
        return results * math.prod(left[axis] for axis in numbers[0][0])
    features = right[params["dimension_numbers"].rhs_spec[0]]
    return results * math.prod(right) // features
