"""Checks that a manifest names every leaf once, and names no missing ones."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import jax
import numpy as np

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint._entries import ChipEntry, LeafEntry, tensor_name


class Named(Protocol):
    """A leaf of the variables, in memory or in a manifest."""

    @property
    def keys(self) -> tuple[str | int, ...]:
        """Its keys, starting with the collection."""
        ...

    @property
    def path(self) -> str:
        """Its path within its collection."""
        ...


def others(plan: Plan, leaves: Iterable[Named]) -> list[str]:
    """Returns the leaves that a plan does not name, the collection before each path.

    Examples are parameters of an outer model, and keys of random numbers.

    Args:
      plan: the plan.
      leaves: all leaves of the variables.
    """
    params = {*plan, *plan.leaves(), *(entry.path for entry in plan.digital)}
    state = {*plan.state}  # that of an NNX model has no collections

    def is_named(leaf: Named) -> bool:
        of_plan = leaf.keys[0] == "params" and leaf.path in params
        return of_plan or bool(state & {leaf.path, paths.join(leaf.keys)})

    return [paths.join(leaf.keys) for leaf in leaves if not is_named(leaf)]


def check_others(
    plan: Plan, leaves: Sequence[LeafEntry], listed: Sequence[str] | None
) -> None:
    """Raises unless each leaf is named, by the plan or among the others.

    Args:
      plan: the plan of the manifest.
      leaves: its leaves.
      listed: its entry `others`; `None` if there is none.

    Raises:
      ValueError: naming the first leaf that is not named.
    """
    absent, listed = listed is None, listed or ()
    _once("others", listed)
    expected = {*others(plan, leaves)}
    for index, leaf in enumerate(leaves):
        name = paths.join(leaf.keys)
        if name in expected and name not in listed:
            raise InputError(
                f"leaves.{index}: no entry of layers, digital, state or others names "
                f"{name}"
            )
    for index, name in enumerate(listed):
        if name not in expected:
            raise InputError(
                f"others.{index}: {name[:200]!r} is not a leaf, or is already named by "
                "layers, digital or state"
            )
    if not listed and not absent:
        raise InputError("others: is empty; leave the entry out")


def check_names(
    plan: Plan, leaves: Sequence[LeafEntry], chips: Sequence[ChipEntry]
) -> None:
    """Raises for repeated entries, and for names in the plan without a leaf.

    Raises:
      ValueError: naming the entry.
    """
    _once("layers", [weight.path for weight in plan.weights])
    _once("digital", [entry.path for entry in plan.digital])
    _once("state", plan.state)
    _once("leaves", [leaf.name for leaf in leaves])
    _once("chips", [chip.seed for chip in chips])
    if [chip.seed for chip in chips] != sorted(chip.seed for chip in chips):
        raise InputError("chips: should be sorted by seed")
    if not any(leaf.keys[0] == "params" for leaf in leaves):
        raise InputError("leaves: there are no params")
    found = {paths.join(leaf.keys) for leaf in leaves}
    for index, leaf in enumerate(leaves):
        if len(leaf.keys) == 1 and leaf.kind != "empty":
            raise InputError(f"leaves.{index}: the collection {leaf.keys[0]} is a leaf")
        for end in range(1, len(leaf.keys)):
            if paths.join(leaf.keys[:end]) in found:
                raise InputError(
                    f"leaves.{index}: {leaf.name} lies inside of another leaf, "
                    f"{tensor_name(leaf.keys[:end])}"
                )
    params = [leaf.path for leaf in leaves if leaf.keys[0] == "params"]
    _once("leaves", params)
    _check_named(plan, {*params}, found | {leaf.path for leaf in leaves if leaf.path})
    stored = {entry.path for entry in plan.digital}
    for weight in plan.weights:
        if weight.derived and weight.stored not in stored:
            raise InputError(f"digital: {weight.path} is made of {weight.stored}")
    both = sorted({entry.path for entry in plan.digital} & {*plan})
    if both:
        raise InputError(f"digital: {both[0]} is an analog weight")
    frozen = any(weight.differs for weight in plan.weights)
    if not frozen and any(not chip.measured for chip in chips):
        raise InputError("chips: no weight has anything frozen that differs by chip")


def _check_named(plan: Plan, params: set[str], names: set[str]) -> None:
    """Raises if a plan names a path that is not a leaf.

    Args:
      plan: the plan.
      params: the paths of the parameters.
      names: the paths of all leaves, with and without their collection: an NNX plan
        names no collections, and users who split a state choose their own.
    """
    for where, group in (("layers", plan.weights), ("digital", plan.digital)):
        for index, entry in enumerate(group):
            if plan.prefix and not entry.path.startswith(f"{plan.prefix}/"):
                raise InputError(
                    f"{where}.{index}: {entry.path} should begin with the prefix "
                    f"{plan.prefix}/"
                )
            if entry.path not in params:
                raise InputError(
                    f"{where}.{index}: params has no leaf {entry.path[:200]!r}"
                )
    for index, path in enumerate(plan.state):
        if path not in names:
            raise InputError(f"state.{index}: there is no leaf {path[:200]!r}")


def check_leaves(plan: Plan, leaves: Sequence[LeafEntry]) -> None:
    """Raises for leaves of other hardware, and for zeros that are not a probe.

    Raises:
      ValueError: naming the leaf.
    """
    probes = plan.zeros
    # Their values are not stored, so only this check bounds what a reader allocates.
    shapes = {path: x.shapes_of(weight) for path, (weight, x) in plan.leaves().items()}
    for index, leaf in enumerate(leaves):
        path = leaf.path if leaf.keys[0] == "params" else ""
        if (leaf.kind == "zeros") != (path in probes):
            raise InputError(
                f"leaves.{index}: zeros are for the probe of an analog weight, and "
                f"only for it; got {leaf.name} of the kind {leaf.kind!r}"
            )
        if path in shapes:
            if leaf.shape not in shapes[path]:
                expected = " or ".join(map(str, shapes[path]))
                raise InputError(
                    f"leaves.{index}: shape of {path} should be {expected}, got "
                    f"{leaf.shape}"
                )
            if "float" not in (leaf.dtype or ""):
                raise InputError(
                    f"leaves.{index}: {path} should hold floating-point numbers, not "
                    f"{leaf.dtype}"
                )
    present = {
        leaf.keys[1:]: jax.ShapeDtypeStruct(leaf.shape or (), np.float32)
        for leaf in leaves
        if leaf.keys[0] == "params" and leaf.kind != "empty"
    }
    try:
        plan.check_leaves(paths.unflatten(present))
    except ValueError as error:
        raise InputError(f"leaves: {error}") from error


def _once(where: str, names: Sequence[str | int]) -> None:
    seen: set[str | int] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{where}: {name} occurs twice")
        seen.add(name)
