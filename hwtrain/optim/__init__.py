"""Optax gradient transformations for analog models."""

from hwtrain.optim._clip import keep_weights_clipped as keep_weights_clipped
from hwtrain.optim._clip_bound import ClipBoundLearningState as ClipBoundLearningState
from hwtrain.optim._clip_bound import clip_bound_learning as clip_bound_learning
from hwtrain.optim._drift import DriftWeightsState as DriftWeightsState
from hwtrain.optim._drift import drift_weights as drift_weights
from hwtrain.optim._hardware_aware import HardwareAwareState as HardwareAwareState
from hwtrain.optim._hardware_aware import hardware_aware as hardware_aware
from hwtrain.optim._input_range import (
    InputRangeLearningState as InputRangeLearningState,
)
from hwtrain.optim._input_range import input_range_learning as input_range_learning
from hwtrain.optim._remap import remap_weights as remap_weights
