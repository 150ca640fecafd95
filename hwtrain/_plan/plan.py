"""The plan: kind and hardware of each parameter, by path. Static and hashable."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rich.table import Table

from hwtrain._arrays import paths
from hwtrain._arrays.random import stable_hash
from hwtrain._errors import InputError
from hwtrain._parts.leaf import LeafSpec, When
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.leaf_names import names_when
from hwtrain._plan.outputs import StoredOutput
from hwtrain._plan.tables import as_text, listed, table, tables_of
from hwtrain._plan.weight import _STRICT, AnalogWeight

ONE = AnalogWeight(
    path="kernel",
    kind="dense",
    layer="",
    shape=(1, 1),
    rows=(0,),
    columns=(1,),
    hardware=Hardware(),
    rule="",
    ranged=False,
)
"""A weight of one input and one output."""


@functools.lru_cache(maxsize=256)
def own_names(hardware: Hardware) -> tuple[str, ...]:
    """Returns the names of the leaves that users' parts of the hardware declare."""
    # Not of a weight on this hardware, whose leaves would be checked: they may fit
    # those of the model and not this one.
    return tuple(leaf.name for leaf in hardware.leaves(ONE))


def _row(weight: AnalogWeight) -> dict[str, str]:
    """Returns the row of a weight in the table of its plan."""
    parts = [
        f"{field.name} {getattr(part, 'type', '')}".rstrip()
        for field in dataclasses.fields(weight.hardware)
        if (part := getattr(weight.hardware, field.name)) is not None
    ]
    rows, columns = weight.tiles
    return {
        "weight": weight.path,
        "layer": weight.layer or "parameter",
        "kind": weight.kind,
        "derived": weight.derived or "no",
        "shape": "x".join(map(str, weight.shape)),
        "stack": "x".join(map(str, weight.stack)) or "no stack",
        "row axes": ", ".join(map(str, weight.rows)),
        "column axes": ", ".join(map(str, weight.columns)),
        "tiles": f"{rows}x{columns}",
        "hardware": ", ".join(parts) or "ideal",
        "by": weight.rule,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digital:
    """A parameter that stays digital, and why."""

    __pydantic_config__ = _STRICT

    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Plan(Mapping[str, AnalogWeight]):
    """The analog weights of a model by path, and its digital parameters.

    >>> Plan((), (Digital(path="norm/scale", reason="normalisation is digital"),))
    Plan(weights=(), digital=(Digital(path='norm/scale',
         reason='normalisation is digital'),), prefix='', state=(), outputs=())

    `print` shows it as a table.

    Attributes:
      weights: the analog weights, in the order of the model's parameters.
      digital: the other parameters.
      prefix: the prefix of every path from `analogize(..., name=)`, without a slash.
      state: paths of other variables that the model needs for evaluation, such as batch
        statistics; in Linen they start with the collection.
      outputs: the modules whose results are stored in few bits.
    """

    weights: tuple[AnalogWeight, ...]
    digital: tuple[Digital, ...] = ()
    prefix: str = ""
    state: tuple[str, ...] = ()
    outputs: tuple[StoredOutput, ...] = ()

    def __post_init__(self):
        names: dict[int, str] = {}
        for name in [name for weight in self.weights for name in weight.step_draws]:
            other = names.setdefault(stable_hash(name), name)
            if other != name:
                raise InputError(
                    f"the draws {other!r} and {name!r} have the same hash and would "
                    "share their noise; rename one of the two layers"
                )

    def __str__(self) -> str:
        """Returns the tables of weights and of digital parameters as text."""
        return as_text(self._tables())

    def _tables(self) -> Iterator[Table | str]:
        yield from tables_of([_row(weight) for weight in self.weights], "Analog")
        if self.digital:
            found = table("parameter", "why", title="Digital")
            for entry in self.digital:
                found.add_row(entry.path, entry.reason)
            yield found
        if self.outputs:
            yield listed([output.row for output in self.outputs], "Results")
        count = f"analog weights: {len(self.weights)}"
        count += f", digital parameters: {len(self.digital)}"
        yield f"{count}, prefix: {self.prefix}" if self.prefix else count

    def __getitem__(self, path: str) -> AnalogWeight:
        """Returns the analog weight at a path."""
        for weight in self.weights:
            if weight.path == path:
                return weight
        raise KeyError(path)

    @property
    def effective(self) -> "Plan":
        """The plan of the weights that layers multiply by, if these are derived.

        It describes the variables that `hwtrain.materialize` returns.
        """
        made = [weight for weight in self.weights if weight.pending]
        if not made:
            return self
        digital = [
            Digital(
                path=x.path, reason=f"its {x.layer} multiplies by others: {x.derived}"
            )
            for x in made
        ]
        weights = tuple(x.effective if x.derived else x for x in self.weights)
        return dataclasses.replace(
            self, weights=weights, digital=(*self.digital, *digital)
        )

    def check_effective(self) -> None:
        """Raises if a chip would get stored weights that no layer multiplies by.

        Raises:
          ValueError: naming the first such weight, and the way out.
        """
        for weight in self.weights:
            if weight.pending:
                raise InputError(
                    f"{weight.path}: its {weight.layer} does not multiply by this "
                    f"array itself: {weight.derived}. A chip holds the derived "
                    "weights: write variables = hwtrain.materialize(analog, variables, "
                    "*example), and make the plan of these"
                )

    @property
    def trained(self) -> "Plan":
        """The same plan without the weights that their rules freeze."""
        trained = tuple(weight for weight in self.weights if not weight.frozen)
        if len(trained) == len(self.weights):
            return self
        return dataclasses.replace(self, weights=trained)

    def __or__(self, other: "Plan") -> "Plan":
        """Returns the union of both, for several methods or several analog models."""
        weights = {weight.path: weight for weight in (*self.weights, *other.weights)}
        digital = {entry.path: entry for entry in (*self.digital, *other.digital)}
        kept = tuple(d for path, d in digital.items() if path not in weights)
        prefix = self.prefix if self.prefix == other.prefix else ""
        state = tuple(dict.fromkeys((*self.state, *other.state)))
        outputs = {entry.path: entry for entry in (*self.outputs, *other.outputs)}
        return Plan(
            tuple(weights.values()), kept, prefix, state, tuple(outputs.values())
        )

    @property
    def users(self) -> frozenset[str]:
        """The paths of the model's own parameters, whatever their names."""
        digital = (entry.path for entry in self.digital)
        return frozenset((*digital, *(weight.path for weight in self.weights)))

    def leaves(self, when: When = "model") -> dict[str, tuple[AnalogWeight, LeafSpec]]:
        """Returns all leaves beside the weights, by path, each with its weight.

        Args:
          when: as in `AnalogWeight.leaves`.
        """
        return {w.leaf(x): (w, x) for w in self.weights for x in w.leaves(when)}

    @property
    def zeros(self) -> frozenset[str]:
        """The paths of leaves that are always zero and carry no state between steps."""
        found = self.leaves().items()
        return frozenset(path for path, (_, x) in found if x.exported == "zeros")

    def leaves_of_chip(self, params: Any) -> list[str]:
        """Returns the paths of leaves that only a chip's parameters have.

        Args:
          params: `params`, with or without the prefix; arrays or their shapes.
        """
        present = paths.leaves(params)
        return [
            x for x in self.leaves("chip") if x in present or self._local(x) in present
        ]

    def check_weights(self, params: Any) -> None:
        """Raises unless a tree holds every analog weight, in the planned shape.

        Args:
          params: `params`, arrays or their shapes.

        Raises:
          ValueError: naming the first path that is missing or has another shape.
        """
        present = paths.leaves(params)
        for weight in self.weights:
            if weight.path not in present:
                hint = (
                    f" The plan has the prefix {self.prefix!r}, from analogize(name=): "
                    "it is for the parameters of the model around."
                    if self.prefix
                    else " Pass `params`, not the variables around them."
                )
                raise InputError(
                    f"the plan has {weight.path!r}, but the parameters do not; they "
                    f"have {sorted(present)}.{hint}"
                )
            shape = tuple(present[weight.path].shape)
            if shape != weight.shape:
                raise InputError(
                    f"{weight.path} has the shape {shape}, the plan {weight.shape}; "
                    "make a new plan: hwtrain.plan(analog, params, *example)"
                )

    def check_leaves(self, params: Any, *, of_chip: bool = False) -> None:
        """Raises unless each layer has the leaves of its hardware, in their shapes.

        Args:
          params: `params`, with or without the prefix; arrays or their shapes.
          of_chip: whether they may be a chip's, with additional leaves.

        Raises:
          ValueError: naming the first leaf that is missing or has another shape.
        """
        present = paths.leaves(params)
        for weight in self.weights:
            for spec in weight.leaves():
                path, shapes = weight.leaf(spec), spec.shapes_of(weight)
                leaf = present.get(path, present.get(self._local(path)))
                expected = " or ".join(map(str, shapes))
                if leaf is None:
                    raise InputError(
                        f"{path} is missing: the hardware of {weight.path} asks for "
                        f"one of shape {expected}. The parameters seem to come from "
                        "the plain model; write params = hwtrain.adopt(analog, params, "
                        "*example)"
                    )
                if np.shape(leaf) not in shapes:
                    raise InputError(
                        f"{path} has the shape {np.shape(leaf)}, the hardware of "
                        f"{weight.path} asks for {expected}. It seems to come from "
                        "other hardware; remove it with hwtrain.strip(params, plan), "
                        "and write params = hwtrain.adopt(analog, params, *example)"
                    )
            self._check_no_other(weight, present, of_chip)

    def _check_no_other(
        self, weight: AnalogWeight, present: Mapping[str, Any], of_chip: bool
    ) -> None:
        """Raises for a leaf beside a weight that belongs to other hardware."""
        known = {*weight.leaf_shapes}
        known |= {leaf.name for leaf in weight.leaves("chip") if of_chip}
        own = {name for other in self.weights for name in own_names(other.hardware)}
        for name in (*names_when("model"), *own) if weight.kind != "raw" else ():
            path = weight.leaf(name)
            there = path in present or self._local(path) in present
            if there and name not in known and path not in self.users:
                raise InputError(
                    f"{path} does nothing: the hardware of {weight.path} has no "
                    f"{name}. It seems to come from other hardware; remove it with "
                    "hwtrain.strip(params, plan)"
                )

    def _local(self, path: str) -> str:
        return path.removeprefix(f"{self.prefix}/")

    def __iter__(self) -> Iterator[str]:
        """Iterates over the paths of the analog weights."""
        return (weight.path for weight in self.weights)

    def __len__(self) -> int:
        """Returns the number of analog weights."""
        return len(self.weights)


def added(plan: Plan) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Returns the leaves that `analogize` added: paths, and possible shapes.

    Leaves that the base optimiser trains like the user's parameters are left out.
    """
    return {
        path: leaf.shapes_of(weight)
        for path, (weight, leaf) in plan.leaves().items()
        if leaf.trained != "base"
    }
