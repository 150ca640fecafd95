"""Which module of a file is which one of a model: by a table, or by order and shape."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hwtrain._errors import InputError
from hwtrain._parts.wording import suggestion
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint.importers._modules import Module

_NORM = ("scale", "bias", "mean", "var")
_KINDS = ("dense", "conv", "einsum")
"""Kinds of layers whose matrix has its rows and columns in PyTorch's order."""

Signature = tuple[Any, ...]
"""What a pair has in common: what it is, and its sizes."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """A module of a Flax model, or one of its arrays that belongs to none.

    Attributes:
      name: its path.
      arrays: the paths of its arrays by role: `kernel`, `embedding`, `array`, or those
        of a norm.
      signature: what a module of a file must have to fit.
      weight: the plan of its kernel.
    """

    name: str
    arrays: Mapping[str, str]
    signature: Signature
    weight: AnalogWeight | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """A module of a file, or one of its arrays that belongs to none of these kinds.

    Attributes:
      name: its name.
      module: the module.
      signatures: what it may be.
      array: the name of the array, of a single one.
    """

    name: str
    module: Module
    signatures: tuple[Signature, ...]
    array: str = ""


def places(shapes: Mapping[str, tuple[int, ...]], plan: Plan) -> list[Place]:
    """Returns the modules of a model.

    Args:
      shapes: of its parameters and other variables by path, in the order in which the
        model makes them, without the names of collections.
      plan: the plan of the model with all of its layers on hardware.
    """
    made: list[Place] = []
    kernels = {weight.stored: weight for weight in plan.weights}
    taken: set[str] = set()
    for path in shapes:
        if path in taken:
            continue
        owner, _, leaf = path.rpartition("/")
        inside = f"{owner}/" if owner else ""
        weight = kernels.get(path)
        of_norm = {x: f"{inside}{x}" for x in _NORM if f"{inside}{x}" in shapes}
        bias = f"{inside}bias" in shapes
        if leaf == "bias" and _has_kernel(inside, kernels):
            continue
        if weight is not None:
            found = Place(
                name=owner,
                arrays={"kernel": path} | ({"bias": f"{inside}bias"} if bias else {}),
                signature=_of_weight(weight, bias),
                weight=weight,
            )
        elif leaf == "embedding":
            found = Place(
                name=owner,
                arrays={"embedding": path},
                signature=("embedding", *shapes[path]),
            )
        elif leaf in _NORM and len({shapes[x] for x in of_norm.values()}) == 1:
            roles = ", ".join(of_norm)
            size = math.prod(shapes[path])
            found = Place(name=owner, arrays=of_norm, signature=("norm", size, roles))
        else:
            signature = ("array", *shapes[path])
            found = Place(name=path, arrays={"array": path}, signature=signature)
        made.append(found)
        taken.update(found.arrays.values())
    return made


def _has_kernel(inside: str, kernels: Mapping[str, AnalogWeight]) -> bool:
    return any(path.rpartition("/")[0] == inside.rstrip("/") for path in kernels)


def _of_weight(weight: AnalogWeight, bias: bool) -> Signature:
    depth = len(weight.shape) - len(weight.rows) - len(weight.columns)
    if weight.kind not in _KINDS or depth or weight.derived:
        why = weight.kind
        if depth:
            why = f"a stack of {weight.shape[0]} layers in one array"
        if weight.derived:
            why = "weights that are computed from stored ones"
        return ("no layer of PyTorch", why, *weight.shape)
    rows = math.prod(weight.shape[axis] for axis in weight.rows)
    columns = math.prod(weight.shape[axis] for axis in weight.columns)
    return ("weights", rows, columns, bias)


def entries(modules: Sequence[Module]) -> list[Entry]:
    """Returns the modules of a file, and its single arrays."""
    made = []
    for module in modules:
        arrays, shape = module.arrays, module.shape
        bias = "bias" in arrays
        known = {"weight", "bias"}
        signatures: list[Signature] = []
        if module.tiles or len(shape) >= 2:
            signatures = [("weights", math.prod(shape[1:]), shape[0], bias)]
            if len(shape) == 2 and not bias and not module.tiles:
                signatures.append(("embedding", *shape))
        elif set(arrays) & {"scale", "mean", "var"}:
            roles = ", ".join(x for x in _NORM if x in arrays)
            size = next(arrays[x] for x in _NORM if x in arrays).size
            signatures, known = [("norm", size, roles)], set(_NORM)
            if size == 1 and roles == "scale":
                # The slope of a PReLU, which is no array of an axis in Flax.
                signatures.append(("array",))
        if signatures:
            made.append(
                Entry(name=module.name, module=module, signatures=tuple(signatures))
            )
        for name, array in arrays.items():
            if not signatures or name not in known:
                whole = f"{module.name}.{name}" if module.name else name
                signature = ("array", *array.shape)
                made.append(
                    Entry(
                        name=whole, module=module, signatures=(signature,), array=name
                    )
                )
    return made


def pairs(
    found: Sequence[Entry], there: Sequence[Place], names: Mapping[str, str]
) -> list[tuple[Entry, Place]]:
    """Returns each module of a file with that of the model.

    Args:
      found: the modules of the file, in its order.
      there: those of the model, in its order.
      names: names of the model by names of the file; the others are paired by order
        among those of equal sizes.

    Raises:
      ValueError: naming what is left over or ambiguous on both sides.
    """
    made = _named(found, there, names)
    left = [entry for entry in found if all(entry is not x for x, _ in made)]
    free = [place for place in there if all(place is not x for _, x in made)]
    wanted = {place.signature for place in free}
    groups: dict[Signature, tuple[list[Entry], list[Place]]] = {}
    for place in free:
        groups.setdefault(place.signature, ([], []))[1].append(place)
    unclear: list[Entry] = []
    for entry in left:
        fitting = [x for x in entry.signatures if x in wanted]
        if len(fitting) == 1:
            groups[fitting[0]][0].append(entry)
        else:
            unclear.append(entry)
    for signature, (ours, theirs) in groups.items():
        single = signature[0] != "array" or len(ours) == 1
        if len(ours) != len(theirs) or not single:
            unclear += ours
        else:
            made += zip(ours, theirs)
    if len(made) != len(found) or len(made) != len(there):
        paired = {id(place) for _, place in made}
        over = [place for place in there if id(place) not in paired]
        raise InputError(_left_over(unclear, over) + _twice(unclear))
    _check_order(found, there, made, names)
    for entry, place in made:
        _check_window(entry, place)
    order = {id(entry): number for number, entry in enumerate(found)}
    return sorted(made, key=lambda pair: order[id(pair[0])])


def _named(
    found: Sequence[Entry], there: Sequence[Place], names: Mapping[str, str]
) -> list[tuple[Entry, Place]]:
    ours = {entry.name: entry for entry in found}
    theirs = {place.name: place for place in there}
    made = []
    for one, other in names.items():
        for name, known, side in ((one, ours, "file"), (other, theirs, "model")):
            if name not in known:
                raise InputError(
                    f"names: {one!r} = {other!r}: the {side} has no {name!r}; it has "
                    f"{', '.join(map(repr, known))}{suggestion(name, known)}"
                )
        entry, place = ours[one], theirs[other]
        if place.signature not in entry.signatures:
            raise InputError(
                f"names: {one!r} = {other!r}: they do not fit, the file has "
                f"{_text(entry.signatures[0])}, the model {_text(place.signature)}"
            )
        made.append((entry, place))
    if len({id(place) for _, place in made}) < len(made):
        raise InputError("names: two modules of the file have one of the model")
    return made


def _check_order(
    found: Sequence[Entry],
    there: Sequence[Place],
    made: Sequence[tuple[Entry, Place]],
    names: Mapping[str, str],
) -> None:
    """Raises if modules of equal sizes were paired by an order that differs."""
    first = {id(entry): number for number, entry in enumerate(found)}
    second = {id(place): number for number, place in enumerate(there)}
    counts: dict[Signature, int] = {}
    for _, place in made:
        counts[place.signature] = counts.get(place.signature, 0) + 1
    free = [pair for pair in made if pair[0].name not in names]
    for kind in {place.signature[0] for _, place in free}:
        chosen = [pair for pair in free if pair[1].signature[0] == kind]
        chosen.sort(key=lambda pair: first[id(pair[0])])
        order = [second[id(place)] for _, place in chosen]
        several = [pair for pair in chosen if counts[pair[1].signature] > 1]
        if order != sorted(order) and several:
            raise InputError(
                "the file and the model have their modules in different orders, so "
                "those of equal sizes are ambiguous: "
                + _left_over([x for x, _ in several], [x for _, x in several])
            )


def _check_window(entry: Entry, place: Place) -> None:
    window = None if place.weight is None else place.weight.window
    sizes = () if window is None else window.sizes
    shape = entry.module.shape
    if entry.array or place.weight is None or not shape[2:]:
        return
    if shape[2:] != sizes:
        raise InputError(
            f"{entry.name} of the file has a window of {shape[2:]}, and {place.name} "
            f"of the model one of {sizes}; name the right pairs in --names"
        )


def _left_over(found: Sequence[Entry], there: Sequence[Place]) -> str:
    ours = [f"{entry.name} ({_text(entry.signatures[0])})" for entry in found]
    theirs = [f"{place.name} ({_text(place.signature)})" for place in there]
    return (
        "these modules have no partner of the same sizes, or several: in the file "
        f"{'; '.join(ours) or 'none'}; in the model {'; '.join(theirs) or 'none'}. "
        "Change the model, or name the pairs in a table: --names names.toml"
    )


def _twice(found: Sequence[Entry]) -> str:
    """Returns which modules have the weights of another one, as tied ones do."""
    held = [(x.name, x.module.arrays.get("weight", _crossbar(x.module))) for x in found]
    same = [
        f"{one} and {other}"
        for (one, first), (other, second) in itertools.combinations(held, 2)
        if first is not None and second is not None and np.array_equal(first, second)
    ]
    if not same:
        return ""
    return (
        f". Layers that are shared are not converted under two names: {', '.join(same)}"
        " have equal weights; delete one's entries from the state_dict"
    )


def _crossbar(module: Module) -> np.ndarray | None:
    tiles = [tile.weight.ravel() for row in module.tiles for tile in row]
    return np.concatenate(tiles) if tiles else None


def _text(signature: Signature) -> str:
    kind, *rest = signature
    if kind == "weights":
        rows, columns, bias = rest
        return f"{rows} inputs, {columns} outputs, {'a' if bias else 'no'} bias"
    if kind == "norm":
        return f"a norm of {rest[0]} with {rest[1]}"
    if kind == "no layer of PyTorch":
        return f"{rest[0]}, which is not converted"
    return f"{kind} of shape {tuple(rest)}"


def flattened(made: Sequence[tuple[Entry, Place]]) -> list[str]:
    """Returns the dense layers that may follow a flattened image.

    PyTorch flattens channels first, Flax channels last, and no size tells.
    """
    ordered = [(entry, place) for entry, place in made if place.weight is not None]
    notes = []
    for (_, before), (entry, place) in itertools.pairwise(ordered):
        assert before.weight is not None and place.weight is not None
        channels = before.weight.shape[-1]
        rows = np.prod([place.weight.shape[axis] for axis in place.weight.rows])
        images = before.weight.window is not None and place.weight.window is None
        if images and rows > channels and rows % channels == 0:
            notes.append(entry.name)
    return notes
