"""Effects on weights: modifiers, clips, remapping, mismatch, and drift in training."""

from hwtrain.weights.bases import Mismatch as Mismatch
from hwtrain.weights.bases import WeightClip as WeightClip
from hwtrain.weights.bases import WeightContext as WeightContext
from hwtrain.weights.bases import WeightModifier as WeightModifier
from hwtrain.weights.binary import BinaryWeights as BinaryWeights
from hwtrain.weights.clip import WeightClipParameter as WeightClipParameter
from hwtrain.weights.correlated_mismatch import CorrelatedMismatch as CorrelatedMismatch
from hwtrain.weights.mapping import MappingParameter as MappingParameter
from hwtrain.weights.mismatch import MismatchParameter as MismatchParameter
from hwtrain.weights.modifier import WeightModifierParameter as WeightModifierParameter
from hwtrain.weights.noise_current import (
    NoiseCurrentParameter as NoiseCurrentParameter,
)
from hwtrain.weights.remap import WeightRemapParameter as WeightRemapParameter
from hwtrain.weights.training_drift import DriftParameter as DriftParameter
from hwtrain.weights.training_drift import SimpleDriftParameter as SimpleDriftParameter
