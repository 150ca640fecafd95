"""Robust losses: transforms of `loss(params, key, *batch)`, for plain `jax.grad`."""

from hwtrain.objectives._adversarial import adversarial as adversarial
from hwtrain.objectives._adversarial import attack as attack
from hwtrain.objectives._chips import of_chips as of_chips
from hwtrain.objectives._chips import tail_mean as tail_mean
from hwtrain.objectives._perturbations import gaussian as gaussian
from hwtrain.objectives._perturbations import multiplicative as multiplicative
from hwtrain.objectives._perturbations import sharpness_aware as sharpness_aware
from hwtrain.objectives._switch import AnyObjective as AnyObjective
from hwtrain.objectives._switch import Objective as Objective
from hwtrain.objectives._switch import ObjectiveParameter as ObjectiveParameter
from hwtrain.objectives._switch import robust as robust
