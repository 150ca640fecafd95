"""Devices: noise models, conductance converters, drift compensation, stuck devices."""

from hwtrain.devices.at_temperature import AtTemperature as AtTemperature
from hwtrain.devices.bases import ConductanceConverter as ConductanceConverter
from hwtrain.devices.bases import DriftCompensation as DriftCompensation
from hwtrain.devices.bases import NoiseModel as NoiseModel
from hwtrain.devices.bit_sliced import (
    BitSlicedConductanceConverter as BitSlicedConductanceConverter,
)
from hwtrain.devices.drift_compensation import (
    GlobalDriftCompensation as GlobalDriftCompensation,
)
from hwtrain.devices.drift_compensation import (
    GlobalDriftCompensationWithExactReference as GlobalDriftCompensationWithExactReference,  # noqa: E501
)
from hwtrain.devices.drift_compensation import (
    PerColumnDriftCompensation as PerColumnDriftCompensation,
)
from hwtrain.devices.drifting import DriftingNoiseModel as DriftingNoiseModel
from hwtrain.devices.family_fit import NoiseModelFit as NoiseModelFit
from hwtrain.devices.family_fit import fit_noise_model as fit_noise_model
from hwtrain.devices.fitted import MeasuredNoiseModel as MeasuredNoiseModel
from hwtrain.devices.fitted import fit_measurements as fit_measurements
from hwtrain.devices.fitted import plot_fit as plot_fit
from hwtrain.devices.flicker import FlickerNoiseModel as FlickerNoiseModel
from hwtrain.devices.gradient_programming import (
    GradientProgrammedNoiseModel as GradientProgrammedNoiseModel,
)
from hwtrain.devices.hermes import HermesNoiseModel as HermesNoiseModel
from hwtrain.devices.measurements import Measurements as Measurements
from hwtrain.devices.measurements import read_measurements as read_measurements
from hwtrain.devices.pcm import (
    CustomDriftPCMLikeNoiseModel as CustomDriftPCMLikeNoiseModel,
)
from hwtrain.devices.pcm import PCMLikeNoiseModel as PCMLikeNoiseModel
from hwtrain.devices.read_disturb import ReadDisturb as ReadDisturb
from hwtrain.devices.reram_cmo import ReRamCMONoiseModel as ReRamCMONoiseModel
from hwtrain.devices.reram_milo import ReRamMiloNoiseModel as ReRamMiloNoiseModel
from hwtrain.devices.reram_wan2022 import (
    ReRamWan2022NoiseModel as ReRamWan2022NoiseModel,
)
from hwtrain.devices.retention_failures import RetentionFailures as RetentionFailures
from hwtrain.devices.several_pairs import (
    CustomPairConductanceConverter as CustomPairConductanceConverter,
)
from hwtrain.devices.several_pairs import (
    DualPairConductanceConverter as DualPairConductanceConverter,
)
from hwtrain.devices.several_pairs import (
    NPairConductanceConverter as NPairConductanceConverter,
)
from hwtrain.devices.single_device import (
    SingleDeviceConductanceConverter as SingleDeviceConductanceConverter,
)
from hwtrain.devices.single_pair import (
    SinglePairConductanceConverter as SinglePairConductanceConverter,
)
from hwtrain.devices.sonos import SonosNoiseModel as SonosNoiseModel
from hwtrain.devices.state_independent import (
    StateIndependentNoiseModel as StateIndependentNoiseModel,
)
from hwtrain.devices.stuck import StuckParameter as StuckParameter
from hwtrain.devices.write_verify import WriteVerifyNoiseModel as WriteVerifyNoiseModel
