"""Sign analysis of a traced program: the signs of its results for all inputs.

Tracking zeros alone is not enough: whether a result is zero may depend on the sign of
another value, as in `clamp(-1, 0, 1)`, which is zero, and `clamp(1, 0, 2)`, which is
not. The result of an operation that is not listed here is unknown.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from hwtrain._flax.jaxprs import inner_jaxpr, scan_parts


class Fact(NamedTuple):
    """What is known about a value for all finite inputs.

    Attributes:
      least: whether no element is below zero.
      most: whether no element is above zero; for complex and unsigned values, whether
        all are zero.
      sources: paths of the parameters whose gradients the value depends on.
      parts: sizes and facts of the parts of a vector into which several parameters were
        concatenated, as by `optax.flatten`.
    """

    least: bool
    most: bool
    sources: frozenset[str] = frozenset()
    parts: tuple[tuple[int, "Fact"], ...] = ()

    @property
    def zero(self) -> bool:
        """Whether the value is zero."""
        return self.least and self.most

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of its parts."""
        return tuple(size for size, _ in self.parts)

    def of(self, sources: frozenset[str]) -> "Fact":
        """Returns the same signs with other sources, without parts."""
        return Fact(self.least, self.most, sources)

    def part(self, index: int) -> "Fact":
        """Returns the fact of a part; that of the whole if the parts are not known."""
        return self.parts[index][1] if self.parts else self


UNKNOWN = Fact(False, False)
_ZERO = Fact(True, True)
_AT_LEAST_ZERO = Fact(True, False)


def _constant(value: Any) -> Fact:
    array = np.asarray(value)
    if np.iscomplexobj(array):
        return UNKNOWN if np.any(array) else _ZERO
    return Fact(bool(np.all(array >= 0)), bool(np.all(array <= 0)))


def _joined(*facts: Fact) -> Fact:
    """Returns the fact of a value that may be any one of several values."""
    whole = Fact(
        all(fact.least for fact in facts),
        all(fact.most for fact in facts),
        frozenset[str]().union(*(fact.sources for fact in facts)),
    )
    return _by_part(lambda *parts: _joined(*parts), facts) or whole


def _by_part(function: Callable[..., Fact], facts: Sequence[Fact]) -> Fact | None:
    """Applies a function part by part; `None` unless all parts have the same sizes."""
    sizes = {fact.sizes for fact in facts if fact.parts}
    if len(sizes) != 1:
        return None
    (sizes,) = sizes
    return _in_parts(
        (size, function(*(fact.part(index) for fact in facts)))
        for index, size in enumerate(sizes)
    )


def _in_parts(parts: Iterable[tuple[int, Fact]]) -> Fact:
    parts = tuple(parts)
    return _joined(*(fact for _, fact in parts))._replace(parts=parts)


def invariant(
    step: Callable[[list[Fact]], list[Fact]], carried: list[Fact]
) -> list[Fact]:
    """Returns facts about a loop's carry that hold after any number of steps.

    By induction: a value that is zero at first and stays zero in a step is zero.

    Args:
      step: maps the facts before a step to those after it.
      carried: the facts before the first step.
    """
    while True:
        after = [_joined(*both) for both in zip(carried, step(carried), strict=True)]
        if after == carried:
            return carried
        carried = after


def facts(program: ClosedJaxpr | Jaxpr, inputs: list[Fact]) -> list[Fact]:
    """Returns the facts of a program's results."""
    jaxpr: Any = program
    known: dict[Any, Fact] = {}
    if isinstance(program, ClosedJaxpr):
        jaxpr = program.jaxpr
        for variable, value in zip(jaxpr.constvars, program.consts):
            concrete = isinstance(value, np.ndarray | np.generic | int | float)
            known[variable] = _constant(value) if concrete else UNKNOWN
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def fact(value: Any) -> Fact:
        return _constant(value.val) if isinstance(value, Literal) else known[value]

    for equation in jaxpr.eqns:
        operands = [fact(value) for value in equation.invars]
        known.update(zip(equation.outvars, _results(equation, operands), strict=True))
    return [fact(value) for value in jaxpr.outvars]


_UNSIGNED = (jnp.complexfloating, jnp.unsignedinteger)
_BY_ELEMENT = frozenset(
    "abs add add_any clamp convert_element_type copy div eq exp ge gt integer_pow "
    "is_finite le log lt max min mul ne neg pow rsqrt select_n sign sqrt square "
    "stop_gradient sub tanh".split()
)
_CALLS = frozenset(
    "jit pjit closed_call core_call custom_jvp_call custom_vjp_call checkpoint remat "
    "remat2 shard_map".split()
)


def _results(equation: Any, operands: list[Fact]) -> list[Fact]:
    """Returns the facts of the results of one operation."""
    name, parameters = equation.primitive.name, equation.params
    if name == "cond":
        index, *inputs = operands
        branches = [facts(branch, inputs) for branch in parameters["branches"]]
        return [_chosen(index, *facts) for facts in zip(*branches, strict=True)]
    if name == "scan":
        return _scanned(equation, operands)
    if name == "while":
        return _repeated(parameters, operands)
    if name in _CALLS:
        inner = (x for x in parameters.values() if isinstance(x, ClosedJaxpr | Jaxpr))
        return facts(next(inner), operands)
    if name == "optimization_barrier":
        return operands
    if not equation.outvars:
        return []
    if name in ("concatenate", "slice", "split") and equation.outvars[0].aval.ndim == 1:
        return _pieces(equation, operands)

    def result(*operands: Fact) -> Fact:
        sources = frozenset[str]().union(*(operand.sources for operand in operands))
        sign = _SIGNS[name](list(operands)) if name in _SIGNS else UNKNOWN
        if name == "integer_pow" and parameters["y"] <= 0:
            sign = UNKNOWN
        dtype = equation.outvars[0].aval.dtype
        if not sign.zero and any(jnp.issubdtype(dtype, kind) for kind in _UNSIGNED):
            sign = UNKNOWN
        return sign.of(sources)

    one = _by_part(result, operands) if name in _BY_ELEMENT else None
    return [one or result(*operands)] * len(equation.outvars)


def _pieces(equation: Any, operands: list[Fact]) -> list[Fact]:
    """Returns the facts of vectors that are concatenated or cut."""
    name, parameters = equation.primitive.name, equation.params
    if name == "concatenate":
        sizes = [value.aval.size for value in equation.invars]
        parts = [fact.parts or ((n, fact),) for n, fact in zip(sizes, operands)]
        return [_in_parts(itertools.chain.from_iterable(parts))]
    if name == "slice":
        first, last = parameters["start_indices"][0], parameters["limit_indices"][0]
        return [_between(first, last, *operands)]
    ends = [0, *itertools.accumulate(parameters["sizes"])]
    return [_between(*span, *operands) for span in itertools.pairwise(ends)]


def _between(first: int, last: int, vector: Fact) -> Fact:
    """Returns the fact of a vector's elements from `first` up to `last`."""
    if not vector.parts:
        return vector
    ends = [0, *itertools.accumulate(vector.sizes)]
    spans = zip(itertools.pairwise(ends), vector.parts, strict=True)
    return _joined(*(x for (a, b), (_, x) in spans if a < last and b > first))


def _scanned(equation: Any, operands: list[Fact]) -> list[Fact]:
    constants, carries = scan_parts(equation, inner_jaxpr(equation.params))
    fixed, slices = operands[:constants], operands[constants + carries :]

    def step(carried: list[Fact]) -> list[Fact]:
        return facts(equation.params["jaxpr"], [*fixed, *carried, *slices])

    carried = invariant(
        lambda before: step(before)[:carries], operands[constants : constants + carries]
    )
    return [*carried, *step(carried)[carries:]]


def _repeated(parameters: Any, operands: list[Fact]) -> list[Fact]:
    of_test, of_body = parameters["cond_nconsts"], parameters["body_nconsts"]
    tested, fixed = operands[:of_test], operands[of_test : of_test + of_body]

    def step(carried: list[Fact]) -> list[Fact]:
        # All that the loop changes depends on how often it runs.
        (test,) = facts(parameters["cond_jaxpr"], [*tested, *carried])
        after = facts(parameters["body_jaxpr"], [*fixed, *carried])
        return [_chosen(test, fact) for fact in after]

    return invariant(step, operands[of_test + of_body :])


def _chosen(index: Fact, *facts: Fact) -> Fact:
    """Returns the fact of the value that an index selects."""
    one = _joined(*facts)
    return one.of(one.sources | index.sources)


def _kept(operands: list[Fact]) -> Fact:
    return operands[0]


def _kept_if_zero(operands: list[Fact]) -> Fact:
    return _ZERO if operands[0].zero else UNKNOWN


def _turned(operands: list[Fact]) -> Fact:
    return Fact(operands[0].most, operands[0].least)


def _at_least_zero(operands: list[Fact]) -> Fact:
    return _ZERO if operands[0].zero else _AT_LEAST_ZERO


def _positive(operands: list[Fact]) -> Fact:
    del operands
    return _AT_LEAST_ZERO


def _difference(operands: list[Fact]) -> Fact:
    return _joined(operands[0], _turned(operands[1:]))


def _product(operands: list[Fact]) -> Fact:
    one, other = operands[:2]
    if one.zero or other.zero:
        return _ZERO
    same = one.least and other.least or one.most and other.most
    opposite = one.least and other.most or one.most and other.least
    return Fact(same, opposite)


def _quotient(operands: list[Fact]) -> Fact:
    if operands[0].zero:
        return _ZERO
    return UNKNOWN if operands[1].zero else _product(operands)


def _larger(operands: list[Fact]) -> Fact:
    one, other = operands
    return Fact(one.least or other.least, one.most and other.most)


def _smaller(operands: list[Fact]) -> Fact:
    one, other = operands
    return Fact(one.least and other.least, one.most or other.most)


def _clamped(operands: list[Fact]) -> Fact:
    low, value, high = operands
    return _smaller([_larger([value, low]), high])


_SIGNS: dict[str, Callable[[list[Fact]], Fact]] = {
    # These depend on the first operand alone.
    **dict.fromkeys(
        "broadcast_in_dim cbrt ceil convert_element_type copy copy_p cummax cummin "
        "cumsum device_put dynamic_slice erf expand_dims expm1 floor gather log1p "
        "pvary reduce_max reduce_min reduce_precision reduce_sum reshape reshard rev "
        "round sharding_constraint sign sinh slice split squeeze stop_gradient tanh "
        "transpose asinh atan psum psum_invariant all_gather".split(),
        _kept,
    ),
    **dict.fromkeys(
        "asin atanh conj cumprod imag integer_pow real reduce_and reduce_or "
        "reduce_prod rem sin tan".split(),
        _kept_if_zero,
    ),
    "pow": lambda operands: Fact(operands[0].least, False),
    "neg": _turned,
    **dict.fromkeys(("abs", "sqrt", "square"), _at_least_zero),
    **dict.fromkeys(("exp", "exp2", "rsqrt", "logistic"), _positive),
    # These depend on several operands.
    **dict.fromkeys(("mul", "dot_general"), _product),
    "and": lambda operands: _ZERO if any(x.zero for x in operands) else UNKNOWN,
    "div": _quotient,
    "sub": _difference,
    "max": _larger,
    "min": _smaller,
    "clamp": _clamped,
    **dict.fromkeys(
        ("add", "add_any", "complex", "concatenate", "or", "pad", "sort"),
        lambda operands: _joined(*operands),
    ),
    "dynamic_update_slice": lambda operands: _joined(*operands[:2]),
    **dict.fromkeys(
        ("scatter", "scatter-add", "scatter_add"),
        lambda operands: _joined(operands[0], operands[2]),
    ),
    "select_n": lambda operands: _joined(*operands[1:]),
}
