"""Hardware-aware training for Flax, Optax and Orbax.

Takes an unmodified Flax model to a checkpoint that analog hardware can be programmed
from: `analogize` wraps the model, `optim.hardware_aware` wraps the optimiser, and
`export` writes the trained weights as conductances.
"""

import typing as _typing

from hwtrain import _lazy
from hwtrain._version import __version__ as __version__

if _typing.TYPE_CHECKING:
    from hwtrain import checkpoint as checkpoint
    from hwtrain import chips as chips
    from hwtrain import devices as devices
    from hwtrain import dynapse as dynapse
    from hwtrain import evaluate as evaluate
    from hwtrain import objectives as objectives
    from hwtrain import optim as optim
    from hwtrain import periphery as periphery
    from hwtrain import presets as presets
    from hwtrain import sockets as sockets
    from hwtrain import weights as weights
    from hwtrain._arrays.fast_random import fast_prng as fast_prng
    from hwtrain._arrays.fast_random import threefry_prng as threefry_prng
    from hwtrain._flax.adopting import adopt as adopt
    from hwtrain._flax.calibration import calibrate as calibrate
    from hwtrain._flax.constants import with_constants as with_constants
    from hwtrain._flax.inspection import inspect as inspect
    from hwtrain._flax.materializing import materialize as materialize
    from hwtrain._flax.modes import analogize as analogize
    from hwtrain._flax.modes import chip_mode as chip_mode
    from hwtrain._flax.modes import eval_mode as eval_mode
    from hwtrain._flax.modes import plan as plan
    from hwtrain._flax.modes import train_mode as train_mode
    from hwtrain._flax.own_layers import analog_dot_general as analog_dot_general
    from hwtrain._flax.own_layers import analog_einsum as analog_einsum
    from hwtrain._flax.strength import noise_strength as noise_strength
    from hwtrain._flax.stripping import strip as strip
    from hwtrain._memory import keep_memory as keep_memory
    from hwtrain._parts.cost import Cost as Cost
    from hwtrain._parts.cost_constants import CostParameter as CostParameter
    from hwtrain._parts.leaf import LeafSpec as LeafSpec
    from hwtrain._parts.part import Part as Part
    from hwtrain._parts.registry import register as register
    from hwtrain._plan.hardware import Hardware as Hardware
    from hwtrain._plan.plan import Plan as Plan
    from hwtrain._plan.rules import Rule as Rule
    from hwtrain.checkpoint import HardwareCheckpoint as HardwareCheckpoint
    from hwtrain.checkpoint import export as export
    from hwtrain.checkpoint import load as load
    from hwtrain.chips import ProgrammedChip as ProgrammedChip
    from hwtrain.chips import apply_mismatch as apply_mismatch
    from hwtrain.chips import chip_key as chip_key
    from hwtrain.chips import fit_levels as fit_levels
    from hwtrain.chips import program_chip as program_chip
    from hwtrain.devices import AtTemperature as AtTemperature
    from hwtrain.devices import (
        BitSlicedConductanceConverter as BitSlicedConductanceConverter,
    )
    from hwtrain.devices import ConductanceConverter as ConductanceConverter
    from hwtrain.devices import (
        CustomDriftPCMLikeNoiseModel as CustomDriftPCMLikeNoiseModel,
    )
    from hwtrain.devices import (
        CustomPairConductanceConverter as CustomPairConductanceConverter,
    )
    from hwtrain.devices import DriftCompensation as DriftCompensation
    from hwtrain.devices import DriftingNoiseModel as DriftingNoiseModel
    from hwtrain.devices import (
        DualPairConductanceConverter as DualPairConductanceConverter,
    )
    from hwtrain.devices import FlickerNoiseModel as FlickerNoiseModel
    from hwtrain.devices import GlobalDriftCompensation as GlobalDriftCompensation
    from hwtrain.devices import (
        GlobalDriftCompensationWithExactReference as GlobalDriftCompensationWithExactReference,  # noqa: E501
    )
    from hwtrain.devices import (
        GradientProgrammedNoiseModel as GradientProgrammedNoiseModel,
    )
    from hwtrain.devices import HermesNoiseModel as HermesNoiseModel
    from hwtrain.devices import MeasuredNoiseModel as MeasuredNoiseModel
    from hwtrain.devices import NoiseModel as NoiseModel
    from hwtrain.devices import NPairConductanceConverter as NPairConductanceConverter
    from hwtrain.devices import PCMLikeNoiseModel as PCMLikeNoiseModel
    from hwtrain.devices import PerColumnDriftCompensation as PerColumnDriftCompensation
    from hwtrain.devices import ReadDisturb as ReadDisturb
    from hwtrain.devices import ReRamCMONoiseModel as ReRamCMONoiseModel
    from hwtrain.devices import ReRamMiloNoiseModel as ReRamMiloNoiseModel
    from hwtrain.devices import ReRamWan2022NoiseModel as ReRamWan2022NoiseModel
    from hwtrain.devices import RetentionFailures as RetentionFailures
    from hwtrain.devices import (
        SingleDeviceConductanceConverter as SingleDeviceConductanceConverter,
    )
    from hwtrain.devices import (
        SinglePairConductanceConverter as SinglePairConductanceConverter,
    )
    from hwtrain.devices import SonosNoiseModel as SonosNoiseModel
    from hwtrain.devices import StateIndependentNoiseModel as StateIndependentNoiseModel
    from hwtrain.devices import StuckParameter as StuckParameter
    from hwtrain.devices import WriteVerifyNoiseModel as WriteVerifyNoiseModel
    from hwtrain.dynapse import SpatialCorrelation as SpatialCorrelation
    from hwtrain.dynapse import dynamic_mismatch_prototype as dynamic_mismatch_prototype
    from hwtrain.dynapse import frozen_mismatch_prototype as frozen_mismatch_prototype
    from hwtrain.dynapse import mismatch_generator as mismatch_generator
    from hwtrain.dynapse import select as select
    from hwtrain.dynapse import with_mismatch as with_mismatch
    from hwtrain.evaluate import assert_active as assert_active
    from hwtrain.periphery import DigitalFormat as DigitalFormat
    from hwtrain.periphery import InputRangeParameter as InputRangeParameter
    from hwtrain.periphery import IOParameters as IOParameters
    from hwtrain.periphery import OutputFormat as OutputFormat
    from hwtrain.weights import DriftParameter as DriftParameter
    from hwtrain.weights import MappingParameter as MappingParameter
    from hwtrain.weights import Mismatch as Mismatch
    from hwtrain.weights import MismatchParameter as MismatchParameter
    from hwtrain.weights import NoiseCurrentParameter as NoiseCurrentParameter
    from hwtrain.weights import SimpleDriftParameter as SimpleDriftParameter
    from hwtrain.weights import WeightClip as WeightClip
    from hwtrain.weights import WeightClipParameter as WeightClipParameter
    from hwtrain.weights import WeightModifier as WeightModifier
    from hwtrain.weights import WeightModifierParameter as WeightModifierParameter
    from hwtrain.weights import WeightRemapParameter as WeightRemapParameter

else:
    # The same names, imported when they are first asked for: `hwtrain --help` needs
    # none of them, and they need seconds to load.
    _HOMES = {
        "_arrays.fast_random": ("fast_prng", "threefry_prng"),
        "_memory": ("keep_memory",),
        "_flax.adopting": ("adopt",),
        "_flax.calibration": ("calibrate",),
        "_flax.constants": ("with_constants",),
        "_flax.inspection": ("inspect",),
        "_flax.materializing": ("materialize",),
        "_flax.modes": (
            "analogize",
            "chip_mode",
            "eval_mode",
            "plan",
            "train_mode",
        ),
        "_flax.own_layers": (
            "analog_dot_general",
            "analog_einsum",
        ),
        "_flax.strength": ("noise_strength",),
        "_flax.stripping": ("strip",),
        "_parts.cost": ("Cost",),
        "_parts.cost_constants": ("CostParameter",),
        "_parts.leaf": ("LeafSpec",),
        "_parts.part": ("Part",),
        # Not from the registry: a stage may be placed beside a built-in one, which the
        # registry knows once this module is imported.
        "_parts.registry": ("register",),
        "_plan.hardware": ("Hardware",),
        "_plan.plan": ("Plan",),
        "_plan.rules": ("Rule",),
        "checkpoint": (
            "HardwareCheckpoint",
            "export",
            "load",
        ),
        "chips": (
            "ProgrammedChip",
            "apply_mismatch",
            "chip_key",
            "fit_levels",
            "program_chip",
        ),
        "devices": (
            "AtTemperature",
            "BitSlicedConductanceConverter",
            "ConductanceConverter",
            "CustomDriftPCMLikeNoiseModel",
            "CustomPairConductanceConverter",
            "DriftCompensation",
            "DriftingNoiseModel",
            "DualPairConductanceConverter",
            "FlickerNoiseModel",
            "GlobalDriftCompensation",
            "GlobalDriftCompensationWithExactReference",
            "GradientProgrammedNoiseModel",
            "HermesNoiseModel",
            "MeasuredNoiseModel",
            "NPairConductanceConverter",
            "NoiseModel",
            "PCMLikeNoiseModel",
            "PerColumnDriftCompensation",
            "ReadDisturb",
            "ReRamCMONoiseModel",
            "ReRamMiloNoiseModel",
            "ReRamWan2022NoiseModel",
            "RetentionFailures",
            "SingleDeviceConductanceConverter",
            "SinglePairConductanceConverter",
            "SonosNoiseModel",
            "StateIndependentNoiseModel",
            "StuckParameter",
            "WriteVerifyNoiseModel",
        ),
        "dynapse": (
            "SpatialCorrelation",
            "dynamic_mismatch_prototype",
            "frozen_mismatch_prototype",
            "mismatch_generator",
            "select",
            "with_mismatch",
        ),
        "evaluate": ("assert_active",),
        "periphery": (
            "DigitalFormat",
            "IOParameters",
            "InputRangeParameter",
            "OutputFormat",
        ),
        "weights": (
            "DriftParameter",
            "MappingParameter",
            "Mismatch",
            "MismatchParameter",
            "NoiseCurrentParameter",
            "SimpleDriftParameter",
            "WeightClip",
            "WeightClipParameter",
            "WeightModifier",
            "WeightModifierParameter",
            "WeightRemapParameter",
        ),
    }
    _ROOMS = (
        "checkpoint",
        "chips",
        "devices",
        "dynapse",
        "evaluate",
        "objectives",
        "optim",
        "periphery",
        "presets",
        "sockets",
        "weights",
    )
    __all__ = sorted([*_ROOMS, *(name for names in _HOMES.values() for name in names)])
    _lazy.make_lazy(__name__, _HOMES, rooms=_ROOMS)
