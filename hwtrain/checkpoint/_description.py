"""What a manifest says of a model beside its weights, if somebody told it."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Entry(BaseModel):
    """A part of a manifest: strict, closed, frozen."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False
    )


class Graph(Entry):
    """How the layers of a model are connected, for programs that need to know.

    >>> graph = Graph(
    ...     nodes={"in": "input", "dense": "layer", "act": "relu", "out": "output"},
    ...     edges=(("in", "dense"), ("dense", "act"), ("act", "out")))

    Attributes:
      nodes: by name what it is: "input", "output", "layer" (the name is then the path
        of a layer), "identity" where nothing happens between two layers, or an
        operation such as "relu".
      edges: from which node to which.
    """

    nodes: dict[str, str]
    edges: tuple[tuple[str, str], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for edge in self.edges:
            for node in edge:
                if node not in self.nodes:
                    raise ValueError(
                        f"graph: the edge {edge} leads to {node!r}, which is not a "
                        f"node; the nodes are {', '.join(self.nodes)}"
                    )
        return self


class Measurement(Entry):
    """A metric of the model on a population of chips, as it was measured.

    >>> Measurement(metric="accuracy in %", mode="chip_mode", chips=128, mean=97.5,
    ...             std=0.4, conditions={"mismatch_std": 0.1}).std
    0.4

    Attributes:
      metric: its name and unit.
      mode: the mode that the model was in.
      chips: number of chips.
      mean: mean over chips. Of an accuracy it lies between 0 and 1, or 0 and 100 where
        the metric says "%".
      std: standard deviation over chips, not negative; `None` for one chip.
      conditions: what else it depends on, by name, such as `t_s`.
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
            raise ValueError("std: one chip has no standard deviation; leave it out")
        largest = 100 if "%" in self.metric else 1
        accuracy = self.metric.lower().startswith("accuracy")
        numbers = {"mean": self.mean, "std": self.std or 0.0}
        for name, number in numbers.items():
            if accuracy and not 0 <= number <= largest:
                raise ValueError(
                    f"{name} of {self.metric!r} must be between 0 and {largest}, got "
                    f"{number}"
                )
        return self
