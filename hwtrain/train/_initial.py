"""Starts a model from the arrays of a plain checkpoint, and says what fitted."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._plan.leaf_names import BUILT_IN, may_be_leaf, split
from hwtrain._plan.tables import count
from hwtrain.train._config import pattern as checked_pattern
from hwtrain.train._initial_checks import (
    as_arrays,
    cast,
    check_stacks,
    listed,
    no_parameters,
    nothing_fits,
)
from hwtrain.train._initial_files import Arrays
from hwtrain.train._initial_leaves import Beside

_PARAMS, _STATISTICS = "params", "batch_stats"
_LEARNED = {leaf.name for leaf in BUILT_IN if leaf.in_kernel is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """What of a checkpoint a model starts from.

    Names are paths in the model, without `params/`.

    Attributes:
      source: the checkpoint.
      loaded: arrays of the model with values of the checkpoint.
      missing: those that the checkpoint does not have; they keep their initial values.
      skipped: arrays of the checkpoint that were not to be loaded.
      unused: those that the model does not have.
      aside: those that are no arrays of a plain model: leaves of hardware, which are
        derived from the loaded weights, and what lies beside the parameters, such as
        the number of updates.
      hardware: leaves of the hardware-aware model with values of the checkpoint.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()

    def describe(self) -> str:
        """Returns a line for each kind of array.

        >>> print(Loaded(source="a.msgpack", loaded=("kernel",), missing=("bias",)).describe())
        started from a.msgpack: 1 array loaded
          missing there, kept at their initial values: bias
        """  # noqa: E501
        lines = [
            f"started from {self.source}: {count(len(self.loaded), 'array')} loaded"
        ]
        others = {
            "missing there, kept at their initial values": self.missing,
            "skipped": self.skipped,
            "unused, because the model has no such array": self.unused,
            "no arrays of a plain model": self.aside,
            "for the hardware-aware model": self.hardware,
        }
        return "\n".join(
            [
                *lines,
                *(f"  {w}: {listed(names)}" for w, names in others.items() if names),
            ]
        )

    def as_data(self) -> dict[str, Any]:
        """Returns the report as JSON can hold it."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def of_data(cls, data: Mapping[str, Any]) -> "Loaded":
        """Returns the report from what `as_data` has returned."""
        names = {name: tuple(x) for name, x in data.items() if name != "source"}
        return cls(source=data["source"], **names)


def initialised(
    variables: Any,
    arrays: Arrays,
    *,
    rename: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    skip: Sequence[str] = (),
    source: str = "the checkpoint",
) -> tuple[Any, Loaded]:
    r"""Returns a plain model's variables with the values of a checkpoint, and a report.

    Arrays are matched by path; leading collections, such as `params`, may be there or
    not. They keep the model's dtypes. For an analog model, pass the parameters on to
    `hwtrain.adopt`.

    >>> import numpy as np
    >>> variables = {"params": {"head": {"bias": np.zeros(2, np.float32)}}}
    >>> arrays = {"model/head/bias": np.ones(2)}
    >>> rename = {"model/(.*)": r"\1"}
    >>> found, report = initialised(variables, arrays, rename=rename)
    >>> found["params"]["head"]["bias"], report.loaded
    (array([1., 1.], dtype=float32), ('head/bias',))

    Args:
      variables: Linen's variables by collection, or parameters, as nested mappings.
      arrays: arrays by path, from `read_arrays`; lists of numbers are taken as arrays.
      rename: patterns and replacements, as `re.sub` takes them, for whole paths without
        `params/`; each is applied to the result of those before.
      skip: patterns of renamed paths that are not loaded.
      source: the checkpoint, for messages.

    Returns:
      Variables of the same structure, and the report.

    Raises:
      ValueError: one line that names the source and the array: if nothing fits, or an
        array has another shape, a dtype that cannot be converted, NaN or infinities, or
        a pattern matches nothing.
    """
    inner = variables.get(_PARAMS) if isinstance(variables, Mapping) else None
    whole = isinstance(inner, Mapping)
    flat = paths.leaves(variables)
    params = flat
    state: dict[str, Any] = {}
    if whole:
        params = {p: x for p, x in flat.items() if p.startswith(f"{_PARAMS}/")}
        params = {p.removeprefix(f"{_PARAMS}/"): x for p, x in params.items()}
        state = {p: x for p, x in flat.items() if not p.startswith(f"{_PARAMS}/")}
    values, report = matched(
        params, state, arrays, rename=rename, skip=skip, source=source
    )

    def one(path: str, leaf: Any) -> Any:
        name = path.removeprefix(f"{_PARAMS}/") if whole else path
        return values.get(name, leaf)

    return paths.map_leaves(one, variables), report


def matched(
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    arrays: Arrays,
    *,
    rename: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    skip: Sequence[str] = (),
    source: str,
    beside: Mapping[str, Beside] = {},
) -> tuple[Arrays, Loaded]:
    """Returns the values of a model's arrays by name, and a report; see `initialised`.

    Leaves of hardware are among them if the model has them and their weights are
    loaded.

    Args:
      params: the plain model's parameters by path; shapes and dtypes count.
      state: its other variables by path, in Linen with their collection.
      arrays: arrays by path.
      rename: as for `initialised`.
      skip: as for `initialised`.
      source: the checkpoint, for messages.
      beside: the leaves of the hardware-aware model by path.
    """
    arrays, targets = as_arrays(arrays), {**params, **state}
    collections = {_PARAMS, _STATISTICS}
    collections |= {path.partition("/")[0] for path in state} - {*_heads(params)}
    renamed = _renamed(arrays, rename, source)
    left = _skipped(renamed, skip, source)
    has_collections = any(path.startswith(f"{_PARAMS}/") for path in arrays)
    # A name with slashes in it, as WeightNorm has, may be written as it is.
    plain = {_plainly(name): name for name in targets}
    leaves = {_plainly(name): name for name in beside}
    at: dict[str, str] = {}
    at_leaf: dict[str, str] = {}
    unused: list[str] = []
    aside: list[str] = []
    for path in renamed:
        if path in left:
            continue
        name = _target(path, plain, collections)
        leaf = _target(path, leaves, collections) if name is None else None
        if leaf is not None:
            at_leaf[leaf] = path
        elif name is None:
            is_leaf = may_be_leaf(path, renamed)
            head = renamed[path].partition("/")[0]
            outside = has_collections and head not in collections
            if is_leaf and split(path)[1] in _LEARNED:
                raise InputError(
                    f"{source}: {path} is learned beside the weights: without it, they "
                    "would compute another function. Train with the hardware that "
                    "learned it, or take weights that include it: plain.safetensors "
                    "beside an analog.safetensors, or RUN/export/seed_0 of a run"
                )
            (aside if is_leaf or outside else unused).append(path)
        elif name in at:
            raise InputError(
                f"{source}: {renamed[at[name]]} and {renamed[path]} are both meant for "
                f"{name}; skip or rename one of them"
            )
        else:
            at[name] = path
    for leaf in [x for x in at_leaf if beside[x].owner not in at]:
        aside.append(at_leaf.pop(leaf))
    missing = [name for name in targets if name not in at and not _any(skip, name)]
    check_stacks(targets, missing, {x: arrays[renamed[x]] for x in unused}, source)
    if at and not any(name in params for name in at):
        raise InputError(no_parameters(source, sorted(at)))
    if not at:
        raise InputError(nothing_fits(source, params, unused or list(renamed)))
    values = {
        name: cast(arrays[renamed[path]], targets[name], name, source)
        for name, path in at.items()
    }
    for name, path in at_leaf.items():
        value, kernel = arrays[renamed[path]], values[beside[name].owner]
        values[name] = beside[name].checked(value, kernel, name, source)
    report = Loaded(
        source=source,
        loaded=tuple(sorted(at)),
        missing=tuple(sorted(missing)),
        skipped=tuple(sorted(left)),
        unused=tuple(sorted(unused)),
        aside=tuple(sorted(aside)),
        hardware=tuple(sorted(at_leaf)),
    )
    return values, report


def _heads(params: Mapping[str, Any]) -> set[str]:
    return {path.partition("/")[0] for path in params}


def _bare(path: str) -> str:
    while path.startswith(f"{_PARAMS}/"):
        path = path.removeprefix(f"{_PARAMS}/")
    return path


def _renamed(
    arrays: Arrays,
    rename: Mapping[str, str] | Sequence[tuple[str, str]],
    source: str,
) -> dict[str, str]:
    """Returns the paths in the checkpoint by their new names."""
    pairs = list(rename.items() if isinstance(rename, Mapping) else rename)
    _check_patterns("rename", [given for given, _ in pairs])
    used = dict.fromkeys(range(len(pairs)), False)
    found: dict[str, str] = {}
    for path in arrays:
        name = _bare(path)
        for number, (pattern, replacement) in enumerate(pairs):
            match = re.fullmatch(pattern, name)
            if match is None:
                continue
            used[number] = True
            try:
                name = match.expand(replacement)
            except (re.error, IndexError) as error:
                raise InputError(
                    f"rename: expected a replacement for {pattern!r} as Python's "
                    f"re.sub takes it, got {replacement!r}: {error}"
                ) from None
        if name in found:
            raise InputError(
                f"{source}: {found[name]} and {path} are both named {name}; rename one "
                "of them"
            )
        found[name] = path
    for number, (pattern, _) in enumerate(pairs):
        if not used[number]:
            raise InputError(_matches_nothing("rename", pattern, source, arrays))
    return found


def _skipped(renamed: Mapping[str, str], skip: Sequence[str], source: str) -> set[str]:
    """Returns the renamed paths that are not loaded."""
    _check_patterns("skip", skip)
    for pattern in skip:
        if not any(re.fullmatch(pattern, path) for path in renamed):
            raise InputError(_matches_nothing("skip", pattern, source, renamed))
    return {path for path in renamed if _any(skip, path)}


def _check_patterns(what: str, patterns: Sequence[str]) -> None:
    if isinstance(patterns, str):
        raise InputError(f"{what}: expected a list of patterns, got {patterns!r}")
    for given in patterns:
        try:
            checked_pattern(given)
        except ValueError as error:
            raise InputError(f"{what}: {error}") from None


def _any(patterns: Sequence[str], path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def _matches_nothing(what: str, pattern: str, source: str, names: Any) -> str:
    names = sorted(map(_bare, names))
    return (
        f"{what}: expected a pattern that matches the whole path of an array in "
        f"{source}, got {pattern!r}, which matches none; it has {listed(names)}"
    )


def _target(path: str, plain: Mapping[str, str], collections: set[str]) -> str | None:
    """Returns the model's array that an array of a checkpoint is meant for.

    Args:
      path: its renamed path.
      plain: the model's arrays by path, from `_plainly`.
      collections: names of collections, with which a path may begin.
    """
    path = _plainly(path)
    head, _, rest = path.partition("/")
    names = [path, *(f"{name}/{path}" for name in sorted(collections))]
    if head in collections:
        names.append(rest)
    return next((plain[name] for name in names if name in plain), None)


def _plainly(path: str) -> str:
    """Returns a path with the slashes in its names as they are."""
    return "/".join(paths.split(path))
