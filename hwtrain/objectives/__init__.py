"""Robust losses: transforms of `loss(params, key, *batch)`, for plain `jax.grad`."""

from hwtrain.objectives.adversarial import adversarial as adversarial
from hwtrain.objectives.adversarial import attack as attack
from hwtrain.objectives.chips import of_chips as of_chips
from hwtrain.objectives.chips import tail_mean as tail_mean
from hwtrain.objectives.perturbations import gaussian as gaussian
from hwtrain.objectives.perturbations import multiplicative as multiplicative
from hwtrain.objectives.perturbations import sharpness_aware as sharpness_aware
from hwtrain.objectives.switch import AnyObjective as AnyObjective
from hwtrain.objectives.switch import Objective as Objective
from hwtrain.objectives.switch import ObjectiveParameter as ObjectiveParameter
from hwtrain.objectives.switch import robust as robust
