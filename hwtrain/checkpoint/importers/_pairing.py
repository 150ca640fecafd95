"""Which module of a file is which one of a model: by a table, names, or order."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from hwtrain._errors import InputError
from hwtrain._parts.wording import suggestion
from hwtrain.checkpoint.importers._modules import Module
from hwtrain.checkpoint.importers._places import Entry, Place, Signature


def pairs(
    found: Sequence[Entry], there: Sequence[Place], names: Mapping[str, str]
) -> list[tuple[Entry, Place]]:
    """Returns each module of a file with that of the model.

    Args:
      found: the modules of the file, in its order.
      there: those of the model, in its order.
      names: names of the model by names of the file; the others are paired among those
        of equal sizes, by their names if both sides have the same, else by order.

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
    ordered: dict[int, str] = {}
    for signature, (ours, theirs) in groups.items():
        exact = _of_one_name(ours, theirs)
        ours = [x for x in ours if all(x is not entry for entry, _ in exact)]
        theirs = [x for x in theirs if all(x is not place for _, place in exact)]
        same = _of_equal_names(ours, theirs)
        alike = same or list(zip(ours, theirs))
        labels = _ordered(alike, by_name=bool(same))
        if len(ours) != len(theirs) or (signature[0] == "array" and len(labels) > 1):
            unclear += ours
            made += exact
            continue
        _check_names([*exact, *alike], found, there)
        made += [*exact, *alike]
        ordered |= labels
    if len(made) != len(found) or len(made) != len(there):
        paired = {id(place) for _, place in made}
        over = [place for place in there if id(place) not in paired]
        raise InputError(_left_over(unclear, over) + _twice(unclear))
    _check_order(found, there, made, ordered)
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


def _of_equal_names(
    found: Sequence[Entry], there: Sequence[Place]
) -> list[tuple[Entry, Place]]:
    """Returns pairs of equal names, none if both sides do not have the same ones.

    Whole names first, then their last parts, of which equal ones are in order. Numbers
    are no names: they are places in a list.
    """
    for name in (_whole, _last):
        ours, theirs = list(map(name, found)), list(map(name, there))
        if all(ours) and Counter(ours) == Counter(theirs):
            left: dict[str, list[Place]] = {key: [] for key in theirs}
            for key, place in zip(theirs, there):
                left[key].append(place)
            return [(entry, left[key].pop(0)) for key, entry in zip(ours, found)]
    return []


def _ordered(alike: Sequence[tuple[Entry, Place]], *, by_name: bool) -> dict[int, str]:
    """Returns which modules of equal sizes have their partners by order.

    Args:
      alike: pairs of equal sizes.
      by_name: whether their names are equal.

    Returns:
      By `id` of the module of the file, the name among whose equals it has its place;
      empty for all. Without those that a name alone tells.
    """
    if not by_name or len(alike) == 1:
        return {id(entry): "" for entry, _ in alike}
    whole = all(_whole(entry) == _whole(place) for entry, place in alike)
    counts = Counter(_last(entry) for entry, _ in alike)
    repeated = [x for x, _ in alike if not whole and counts[_last(x)] > 1]
    return {id(entry): _last(entry) for entry in repeated}


def _whole(one: Entry | Place) -> str:
    return one.name.replace(".", "/") if _last(one) else ""


def _last(one: Entry | Place) -> str:
    """Returns the last part of a name, nothing for a number."""
    last = one.name.replace(".", "/").rpartition("/")[2]
    return "" if last.isdigit() else last


def _of_one_name(
    found: Sequence[Entry], there: Sequence[Place]
) -> list[tuple[Entry, Place]]:
    """Returns the pairs of whole names that each side has once, and without numbers."""
    theirs = {_whole(place): place for place in there}
    return [
        (entry, theirs[name])
        for entry in found
        if (name := _whole(entry)) in theirs
        and name
        and not any(part.isdigit() for part in name.split("/"))
    ]


def _check_names(
    alike: Sequence[tuple[Entry, Place]], found: Sequence[Entry], there: Sequence[Place]
) -> None:
    """Raises if the names of modules of equal sizes contradict how they are paired.

    Two pairs in the order of both sides must not have more parts of names in common
    if their partners are exchanged; two that cross this order, each must have more in
    common than either has with the other's.
    """
    first = {id(entry): number for number, entry in enumerate(found)}
    second = {id(place): number for number, place in enumerate(there)}
    words = {id(x): _words(x) for pair in alike for x in pair}

    def common(entry: Entry, place: Place) -> int:
        return (words[id(entry)] & words[id(place)]).total()

    for (entry, place), (other, its) in itertools.combinations(alike, 2):
        kept = common(entry, place), common(other, its)
        exchanged = common(entry, its), common(other, place)
        ahead = first[id(entry)] < first[id(other)]
        if ahead == (second[id(place)] < second[id(its)]):
            wrong = sum(exchanged) > sum(kept)
        else:
            wrong = min(kept) <= max(exchanged)
        if wrong:
            raise InputError(
                "the names of the file and of the model, or their order, contradict "
                f"that {entry.name} would become {place.name} and {other.name} "
                f"{its.name}: name the pairs in a table: --names names.toml"
            )


def _words(one: Entry | Place) -> Counter[str]:
    """Returns the parts of a name without numbers, which are places in a list."""
    return Counter(x for x in re.split(r"[./_]", one.name) if x and not x.isdigit())


def _check_order(
    found: Sequence[Entry],
    there: Sequence[Place],
    made: Sequence[tuple[Entry, Place]],
    ordered: Mapping[int, str],
) -> None:
    """Raises if modules of equal sizes were paired by an order that differs.

    Args:
      found: the modules of the file, in its order.
      there: those of the model, in its order.
      made: the pairs.
      ordered: those of them that have their places by order, from `_ordered`.
    """
    first = {id(entry): number for number, entry in enumerate(found)}
    second = {id(place): number for number, place in enumerate(there)}
    counts = Counter(place.signature for _, place in made)
    free = sorted(
        (pair for pair in made if id(pair[0]) in ordered),
        key=lambda pair: first[id(pair[0])],
    )
    cases = {(place.signature[0], ordered[id(entry)]) for entry, place in free}
    for kind, name in sorted(cases):
        chosen = [
            (entry, place)
            for entry, place in free
            if place.signature[0] == kind and ordered[id(entry)] in ("", name)
        ]
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
    whole = [x for x in found if not x.array]
    held = [(x.name, x.module.arrays.get("weight", _crossbar(x.module))) for x in whole]
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
