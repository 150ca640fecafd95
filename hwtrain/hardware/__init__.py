"""Validated, frozen descriptions of chips, and presets."""

from hwtrain.hardware.chip import Hardware as Hardware
from hwtrain.hardware.configuration import from_dict as from_dict
from hwtrain.hardware.configuration import to_dict as to_dict
from hwtrain.hardware.converters import (
    SinglePairConductanceConverter as SinglePairConductanceConverter,
)
from hwtrain.hardware.io import IOParameters as IOParameters
from hwtrain.hardware.periphery import InputRangeParameter as InputRangeParameter
from hwtrain.hardware.periphery import MappingParameter as MappingParameter
from hwtrain.hardware.weights import MismatchParameter as MismatchParameter
from hwtrain.hardware.weights import WeightClipParameter as WeightClipParameter
from hwtrain.hardware.weights import WeightModifierParameter as WeightModifierParameter
