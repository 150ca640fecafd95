"""The modules of a file and those of a model, by what they are and their sizes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

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
