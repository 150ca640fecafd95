"""Hardware-aware training for Flax, Optax and Orbax.

From a Flax model, unmodified, to a checkpoint that analog hardware can be programmed
from: `analogize` wraps the model, `optim.hardware_aware` the optimiser, `export` writes
what was learned as conductances.
"""

import typing as _typing

from hwtrain import lazy as _lazy
from hwtrain.version import __version__ as __version__

if _typing.TYPE_CHECKING:
    from hwtrain import checkpoint as checkpoint
    from hwtrain import dynapse as dynapse
    from hwtrain import evaluate as evaluate
    from hwtrain import objectives as objectives
    from hwtrain import optim as optim
    from hwtrain import sockets as sockets
    from hwtrain.checkpoint import HardwareCheckpoint as HardwareCheckpoint
    from hwtrain.checkpoint import export as export
    from hwtrain.checkpoint import load as load
    from hwtrain.chips import apply_mismatch as apply_mismatch
    from hwtrain.chips import chip_key as chip_key
    from hwtrain.evaluate import assert_active as assert_active
    from hwtrain.hardware import ConductanceConverter as ConductanceConverter
    from hwtrain.hardware import (
        CustomDriftPCMLikeNoiseModel as CustomDriftPCMLikeNoiseModel,
    )
    from hwtrain.hardware import (
        CustomPairConductanceConverter as CustomPairConductanceConverter,
    )
    from hwtrain.hardware import DriftCompensation as DriftCompensation
    from hwtrain.hardware import DriftingNoiseModel as DriftingNoiseModel
    from hwtrain.hardware import DriftParameter as DriftParameter
    from hwtrain.hardware import (
        DualPairConductanceConverter as DualPairConductanceConverter,
    )
    from hwtrain.hardware import GlobalDriftCompensation as GlobalDriftCompensation
    from hwtrain.hardware import (
        GlobalDriftCompensationWithExactReference as GlobalDriftCompensationWithExactReference,  # noqa: E501
    )
    from hwtrain.hardware import Hardware as Hardware
    from hwtrain.hardware import HermesNoiseModel as HermesNoiseModel
    from hwtrain.hardware import InputRangeParameter as InputRangeParameter
    from hwtrain.hardware import IOParameters as IOParameters
    from hwtrain.hardware import LeafSpec as LeafSpec
    from hwtrain.hardware import MappingParameter as MappingParameter
    from hwtrain.hardware import MeasuredNoiseModel as MeasuredNoiseModel
    from hwtrain.hardware import Mismatch as Mismatch
    from hwtrain.hardware import MismatchParameter as MismatchParameter
    from hwtrain.hardware import NoiseModel as NoiseModel
    from hwtrain.hardware import NPairConductanceConverter as NPairConductanceConverter
    from hwtrain.hardware import Part as Part
    from hwtrain.hardware import PCMLikeNoiseModel as PCMLikeNoiseModel
    from hwtrain.hardware import (
        PerColumnDriftCompensation as PerColumnDriftCompensation,
    )
    from hwtrain.hardware import ReRamCMONoiseModel as ReRamCMONoiseModel
    from hwtrain.hardware import ReRamWan2022NoiseModel as ReRamWan2022NoiseModel
    from hwtrain.hardware import SimpleDriftParameter as SimpleDriftParameter
    from hwtrain.hardware import (
        SingleDeviceConductanceConverter as SingleDeviceConductanceConverter,
    )
    from hwtrain.hardware import (
        SinglePairConductanceConverter as SinglePairConductanceConverter,
    )
    from hwtrain.hardware import (
        StateIndependentNoiseModel as StateIndependentNoiseModel,
    )
    from hwtrain.hardware import StuckParameter as StuckParameter
    from hwtrain.hardware import WeightClip as WeightClip
    from hwtrain.hardware import WeightClipParameter as WeightClipParameter
    from hwtrain.hardware import WeightModifier as WeightModifier
    from hwtrain.hardware import WeightModifierParameter as WeightModifierParameter
    from hwtrain.hardware import WeightRemapParameter as WeightRemapParameter
    from hwtrain.hardware import presets as presets
    from hwtrain.hardware import register as register
    from hwtrain.mismatch import SpatialCorrelation as SpatialCorrelation
    from hwtrain.mismatch import (
        dynamic_mismatch_prototype as dynamic_mismatch_prototype,
    )
    from hwtrain.mismatch import frozen_mismatch_prototype as frozen_mismatch_prototype
    from hwtrain.mismatch import mismatch_generator as mismatch_generator
    from hwtrain.mismatch import select as select
    from hwtrain.physics.fast_random import fast_prng as fast_prng
    from hwtrain.plan import Plan as Plan
    from hwtrain.programming import ProgrammedChip as ProgrammedChip
    from hwtrain.programming import program_chip as program_chip
    from hwtrain.transforms import Rule as Rule
    from hwtrain.transforms import adopt as adopt
    from hwtrain.transforms import analog_dot_general as analog_dot_general
    from hwtrain.transforms import analog_einsum as analog_einsum
    from hwtrain.transforms import analogize as analogize
    from hwtrain.transforms import calibrate as calibrate
    from hwtrain.transforms import chip_mode as chip_mode
    from hwtrain.transforms import eval_mode as eval_mode
    from hwtrain.transforms import inspect as inspect
    from hwtrain.transforms import materialize as materialize
    from hwtrain.transforms import noise_strength as noise_strength
    from hwtrain.transforms import plan as plan
    from hwtrain.transforms import strip as strip
    from hwtrain.transforms import train_mode as train_mode
    from hwtrain.transforms import with_constants as with_constants
    from hwtrain.transforms import with_mismatch as with_mismatch

else:
    # The same names, imported when they are first asked for: `hwtrain --help` needs
    # none of them, and they need seconds to load.
    _HOMES = {
        "checkpoint": (
            "HardwareCheckpoint",
            "export",
            "load",
        ),
        "chips": (
            "apply_mismatch",
            "chip_key",
        ),
        "evaluate": ("assert_active",),
        "hardware": (
            "CustomDriftPCMLikeNoiseModel",
            "CustomPairConductanceConverter",
            "DriftParameter",
            "DualPairConductanceConverter",
            "GlobalDriftCompensation",
            "GlobalDriftCompensationWithExactReference",
            "ConductanceConverter",
            "DriftCompensation",
            "DriftingNoiseModel",
            "NoiseModel",
            "Part",
            "WeightModifier",
            "register",
            "Mismatch",
            "WeightClip",
            "Hardware",
            "HermesNoiseModel",
            "InputRangeParameter",
            "IOParameters",
            "LeafSpec",
            "MappingParameter",
            "MeasuredNoiseModel",
            "MismatchParameter",
            "NPairConductanceConverter",
            "PCMLikeNoiseModel",
            "PerColumnDriftCompensation",
            "ReRamCMONoiseModel",
            "ReRamWan2022NoiseModel",
            "SimpleDriftParameter",
            "SingleDeviceConductanceConverter",
            "SinglePairConductanceConverter",
            "StateIndependentNoiseModel",
            "StuckParameter",
            "WeightClipParameter",
            "WeightModifierParameter",
            "WeightRemapParameter",
            "presets",
        ),
        "mismatch": (
            "SpatialCorrelation",
            "dynamic_mismatch_prototype",
            "frozen_mismatch_prototype",
            "mismatch_generator",
            "select",
        ),
        "physics.fast_random": ("fast_prng",),
        "plan": ("Plan",),
        "programming": (
            "ProgrammedChip",
            "program_chip",
        ),
        "transforms": (
            "Rule",
            "adopt",
            "analog_dot_general",
            "analog_einsum",
            "analogize",
            "calibrate",
            "chip_mode",
            "eval_mode",
            "inspect",
            "materialize",
            "noise_strength",
            "plan",
            "strip",
            "train_mode",
            "with_constants",
            "with_mismatch",
        ),
    }
    _PARTS = ("checkpoint", "dynapse", "evaluate", "objectives", "optim", "sockets")
    # Not public, but reached as attributes of the package too.
    _INNER = (
        "chips",
        "clip_bounds",
        "conductances",
        "crossbar",
        "hardware",
        "mismatch",
        "paths",
        "physics",
        "programming",
        "transforms",
    )
    __all__ = sorted([*_PARTS, *(name for names in _HOMES.values() for name in names)])
    _lazy.make_lazy(__name__, _HOMES, parts=_PARTS + _INNER)
