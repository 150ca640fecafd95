"""One type of chip."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from hwtrain.hardware.configuration import CONFIG
from hwtrain.hardware.converters import (
    SingleDeviceConductanceConverter,
    SinglePairConductanceConverter,
)
from hwtrain.hardware.modifiers import WeightModifierParameter
from hwtrain.hardware.pair_converters import (
    CustomPairConductanceConverter,
    DualPairConductanceConverter,
    NPairConductanceConverter,
)
from hwtrain.hardware.periphery import InputRangeParameter, MappingParameter
from hwtrain.hardware.weights import MismatchParameter, WeightClipParameter

ConductanceConverter = Annotated[
    SingleDeviceConductanceConverter
    | SinglePairConductanceConverter
    | NPairConductanceConverter
    | DualPairConductanceConverter
    | CustomPairConductanceConverter,
    Field(discriminator="type"),
]
"""Any converter; its `type` tells which."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Hardware:
    """One type of chip: what it does to weights and inputs. `Hardware()` is ideal.

    >>> chip = Hardware(
    ...     modifier=WeightModifierParameter(type="add_normal", std_dev=0.1),
    ...     input_range=InputRangeParameter(),
    ... )
    >>> chip.clip is None
    True
    """

    modifier: WeightModifierParameter | None = None
    """Noise on the weights at every training step."""
    clip: WeightClipParameter | None = None
    """Clipping of the weights after every update."""
    input_range: InputRangeParameter | None = None
    """Range of each tile's inputs."""
    mapping: MappingParameter | None = None
    """Tiles and weight scaling. `None`: one tile for each layer, and no scaling."""
    mismatch: MismatchParameter | None = None
    """Frozen mismatch of each chip."""
    converter: ConductanceConverter | None = None
    """How a weight becomes conductances, for the export."""

    @property
    def ranged(self) -> bool:
        """Whether inputs are clipped to a range."""
        return self.input_range is not None and self.input_range.enable

    @property
    def stores_scale(self) -> bool:
        """Whether the mapping scale is a leaf of its own instead of derived."""
        absolute = ("fixed_value", "average_channel_max")
        return self.clip is not None and self.clip.type in absolute

    def modifies(self, mode: str) -> bool:
        """Whether the weights of a layer in `mode` are modified at a step."""
        if mode == "eval" or self.modifier is None or not self.modifier.acts:
            return False
        return mode == "train" or self.modifier.enable_during_test

    def draws(self, mode: str) -> bool:
        """Whether a layer in `mode` draws at a step; plain rounding does not."""
        return self.modifies(mode) and bool(self.modifier and self.modifier.draws)
