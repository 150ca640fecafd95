"""Validated, frozen descriptions of chips, and presets."""

from hwtrain._parts.leaf import LeafSpec as LeafSpec
from hwtrain._parts.part import Part as Part
from hwtrain._parts.registry import register as register
from hwtrain.hardware import presets as presets
from hwtrain.hardware.bases import ConductanceConverter as ConductanceConverter
from hwtrain.hardware.bases import DriftCompensation as DriftCompensation
from hwtrain.hardware.bases import Mismatch as Mismatch
from hwtrain.hardware.bases import NoiseModel as NoiseModel
from hwtrain.hardware.bases import WeightClip as WeightClip
from hwtrain.hardware.bases import WeightModifier as WeightModifier
from hwtrain.hardware.chip import Hardware as Hardware
from hwtrain.hardware.compensation import (
    GlobalDriftCompensation as GlobalDriftCompensation,
)
from hwtrain.hardware.compensation import (
    GlobalDriftCompensationWithExactReference as GlobalDriftCompensationWithExactReference,  # noqa: E501
)
from hwtrain.hardware.compensation import (
    PerColumnDriftCompensation as PerColumnDriftCompensation,
)
from hwtrain.hardware.configuration import from_dict as from_dict
from hwtrain.hardware.configuration import to_dict as to_dict
from hwtrain.hardware.converters import (
    SingleDeviceConductanceConverter as SingleDeviceConductanceConverter,
)
from hwtrain.hardware.converters import (
    SinglePairConductanceConverter as SinglePairConductanceConverter,
)
from hwtrain.hardware.drift import DriftParameter as DriftParameter
from hwtrain.hardware.drift import SimpleDriftParameter as SimpleDriftParameter
from hwtrain.hardware.hermes import HermesNoiseModel as HermesNoiseModel
from hwtrain.hardware.io import IOParameters as IOParameters
from hwtrain.hardware.measured import MeasuredNoiseModel as MeasuredNoiseModel
from hwtrain.hardware.measured import fit_measurements as fit_measurements
from hwtrain.hardware.measured import plot_fit as plot_fit
from hwtrain.hardware.measurements import Measurements as Measurements
from hwtrain.hardware.measurements import read_measurements as read_measurements
from hwtrain.hardware.modifiers import (
    WeightModifierParameter as WeightModifierParameter,
)
from hwtrain.hardware.noise_models import (
    CustomDriftPCMLikeNoiseModel as CustomDriftPCMLikeNoiseModel,
)
from hwtrain.hardware.noise_models import DriftingNoiseModel as DriftingNoiseModel
from hwtrain.hardware.noise_models import PCMLikeNoiseModel as PCMLikeNoiseModel
from hwtrain.hardware.noise_models import (
    StateIndependentNoiseModel as StateIndependentNoiseModel,
)
from hwtrain.hardware.pair_converters import (
    CustomPairConductanceConverter as CustomPairConductanceConverter,
)
from hwtrain.hardware.pair_converters import (
    DualPairConductanceConverter as DualPairConductanceConverter,
)
from hwtrain.hardware.pair_converters import (
    NPairConductanceConverter as NPairConductanceConverter,
)
from hwtrain.hardware.periphery import InputRangeParameter as InputRangeParameter
from hwtrain.hardware.periphery import MappingParameter as MappingParameter
from hwtrain.hardware.reram import ReRamCMONoiseModel as ReRamCMONoiseModel
from hwtrain.hardware.reram import ReRamWan2022NoiseModel as ReRamWan2022NoiseModel
from hwtrain.hardware.stuck import StuckParameter as StuckParameter
from hwtrain.hardware.weights import MismatchParameter as MismatchParameter
from hwtrain.hardware.weights import WeightClipParameter as WeightClipParameter
from hwtrain.hardware.weights import WeightRemapParameter as WeightRemapParameter
