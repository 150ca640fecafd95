"""Operations, bytes and collectives of a compiled program, counted from its text."""

import math
import re
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8}
_BYTES |= {"u64": 8, "c64": 8, "c128": 16}
_OP = re.compile(
    r"\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = "
    r"(?P<result>.+?) (?P<kind>[\w\-]+)\((?P<rest>.*)"
)
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|\w+_computations?)=\{?%?([\w.\-]+)")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
COLLECTIVES += ("collective-permute",)
_FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant")


class Bytes(NamedTuple):
    """Bytes that operations move."""

    read: int = 0
    written: int = 0


class Traffic(NamedTuple):
    """What a program does."""

    operations: int
    """Multiplications and additions of its matrix products."""
    weights: Bytes
    """Of its operations without activations."""
    activations: Bytes
    """Of its operations with activations, without its products."""


class _Op(NamedTuple):
    kind: str
    arrays: list[tuple[int, ...]]
    """The shapes of its results."""
    sizes: list[int]
    """The bytes of its results."""
    operands: list[str]
    calls: str | None
    text: str


def traffic(text: str, batch: int) -> Traffic:
    """Counts the operations of a program's products, and the bytes of the others.

    Args:
      text: of the compiled program, `compiled.as_text()`.
      batch: number of examples, with an odd factor that no size of a weight has: that
        factor tells activations, however they are split and tiled.

    Returns:
      Operations and bytes. An operand that a fusion only slices counts as its slices.

    Raises:
      ValueError: for a batch that is a power of two.
    """
    odd = batch // (batch & -batch)
    if odd == 1:
        raise ValueError(
            f"expected a batch with an odd factor, which tells activations from "
            f"weights, not {batch}: take {batch * 3 // 4 or 3}"
        )
    computations = _computations(text)
    entry = computations[re.search(r"^ENTRY %?([\w.\-]+)", text, re.M)[1]]
    operations, weights, activations = 0, Bytes(), Bytes()
    for op in entry.values():
        if op.kind in _FREE:
            continue
        inner = computations.get(op.calls, {})
        products = [(inner, o) for o in inner.values() if o.kind == "dot"]
        products += [(entry, op)] if op.kind == "dot" else []
        operations += sum(_product(*product) for product in products)
        if products:
            continue
        read = sum(
            _read(entry, op, inner, number) for number in range(len(op.operands))
        )
        passed = [*op.arrays, *(s for o in op.operands for s in entry[o].arrays)]
        moved = Bytes(read, sum(op.sizes))
        # Small arrays, such as three keys, may have the factor too.
        if max(map(math.prod, passed)) % odd == 0:
            activations = Bytes(*map(sum, zip(activations, moved)))
        else:
            weights = Bytes(*map(sum, zip(weights, moved)))
    return Traffic(operations, weights, activations)


class Program(NamedTuple):
    """What a program does on each device, those in loops as often as they run."""

    operations: int
    """Multiplications and additions of its matrix products."""
    collectives: dict[str, tuple[int, int]]
    """The number of each kind, and the bytes of their results on a device."""


def program(text: str) -> Program:
    """Returns the operations and collectives of a program with loops.

    Args:
      text: the compiled program. Of a conditional, the first branch counts.

    Raises:
      ValueError: for a loop of an unknown length that multiplies or communicates.
    """
    computations = _computations(text)
    return _program(computations, re.search(r"^ENTRY %?([\w.\-]+)", text, re.M)[1])


def _program(computations: dict[str, dict[str, _Op]], name: str) -> Program:
    operations, collectives = 0, {}
    for op in computations[name].values():
        # The start of one that is waited for later returns its operands too.
        kind = op.kind.removesuffix("-done")
        if kind in COLLECTIVES:
            collectives = _sum(collectives, {kind: (1, sum(op.sizes))}, 1)
        if op.kind == "dot":
            operations += _product(computations[name], op)
        for inner in _CALLED.findall(op.text):
            found = _program(computations, inner)
            times = 1
            if op.kind == "while" and (found.operations or found.collectives):
                known = re.search(r'"known_trip_count":\{"n":"(\d+)"', op.text)
                if known is None:
                    raise ValueError(f"expected a loop of a known length: {op.text}")
                times = int(known[1])
            operations += times * found.operations
            collectives = _sum(collectives, found.collectives, times)
    return Program(operations, collectives)


def _sum(one: dict, other: dict, times: int) -> dict[str, tuple[int, int]]:
    """Returns the sum of two counts by kind, the second several times."""
    found = dict(one)
    for kind, (count, size) in other.items():
        before = found.get(kind, (0, 0))
        found[kind] = before[0] + times * count, before[1] + times * size
    return found


def _computations(text: str) -> dict[str, dict[str, _Op]]:
    found, current = {}, {}
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = found[head[1]] = {}
        elif op := _OP.match(line):
            current[op["name"]] = _op(op)
    return found


def _op(match: re.Match) -> _Op:
    arrays = [
        (dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(match["result"])
    ]
    given, _, rest = match["rest"].partition(")")
    calls = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", rest)
    return _Op(
        kind=match["kind"],
        arrays=[shape for _, shape in arrays],
        sizes=[_BYTES.get(dtype, 4) * math.prod(shape) for dtype, shape in arrays],
        operands=re.findall(r"%([\w.\-]+)", given),
        calls=calls[1] if calls else None,
        text=match["rest"],
    )


def _product(computation: dict[str, _Op], op: _Op) -> int:
    """Returns the multiplications and additions of a matrix product."""
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.text)[1]
    left = computation[op.operands[0]].arrays[0]
    return 2 * math.prod([*op.arrays[0], *(left[int(a)] for a in axes.split(","))])


def _read(entry: dict[str, _Op], op: _Op, inner: dict[str, _Op], number: int) -> int:
    """Returns the bytes that an operation reads of one of its operands."""
    whole = sum(entry[op.operands[number]].sizes)
    parameter = next(
        (
            name
            for name, o in inner.items()
            if o.kind == "parameter" and o.text.startswith(f"{number})")
        ),
        None,
    )
    uses = [o for o in inner.values() if parameter in o.operands]
    if uses and all(o.kind in ("slice", "dynamic-slice") for o in uses):
        return min(whole, sum(size for o in uses for size in o.sizes))
    return whole
