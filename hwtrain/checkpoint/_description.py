"""Optional information about a model in a manifest: its graph and measurements."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hwtrain._errors import InputError


class Entry(BaseModel):
    """A part of a manifest: strict, frozen, without additional fields."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False
    )


class Graph(Entry):
    """The connections of a model's layers, for programs that need them.

    >>> graph = Graph(
    ...     nodes={"in": "input", "dense": "layer", "act": "relu", "out": "output"},
    ...     edges=(("in", "dense"), ("dense", "act"), ("act", "out")))

    Attributes:
      nodes: the kind of each node by name: "input", "output", "layer" (the name is then
        the path of a layer), "identity" if nothing happens between two layers, or an
        operation such as "relu".
      edges: pairs of a source and a target node.
    """

    nodes: dict[str, str]
    edges: tuple[tuple[str, str], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for edge in self.edges:
            for node in edge:
                if node not in self.nodes:
                    raise InputError(
                        f"graph: the edge {edge} leads to {node!r}, which is not a "
                        f"node; the nodes are {', '.join(self.nodes)}"
                    )
        return self


class Measurement(Entry):
    """A metric measured on a population of chips.

    >>> Measurement(metric="accuracy in %", mode="chip_mode", chips=128, mean=97.5,
    ...             std=0.4, conditions={"mismatch_std": 0.1}).std
    0.4

    Attributes:
      metric: its name and unit.
      mode: the mode that the model ran in.
      chips: number of chips.
      mean: mean over chips. An accuracy lies between 0 and 1, or 0 and 100 if the
        metric's name contains "%".
      std: standard deviation over chips, not negative; `None` for one chip.
      conditions: further conditions of the measurement by name, such as `t_s`.
    """

    metric: Annotated[str, Field(min_length=1)]
    mode: Annotated[str, Field(min_length=1)]
    chips: Annotated[int, Field(ge=1)]
    mean: float
    std: Annotated[float, Field(ge=0)] | None = None
    conditions: dict[str, float | str] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.chips == 1 and self.std is not None:
            raise InputError("std: one chip has no standard deviation; leave it out")
        largest = 100 if "%" in self.metric else 1
        accuracy = self.metric.lower().startswith("accuracy")
        numbers = {"mean": self.mean, "std": self.std or 0.0}
        for name, number in numbers.items():
            if accuracy and not 0 <= number <= largest:
                raise InputError(
                    f"{name} of {self.metric!r} must be between 0 and {largest}, got "
                    f"{number}"
                )
        return self
