"""Evaluates models on populations of chips."""

from hwtrain.evaluate import technologies as technologies
from hwtrain.evaluate._active import Activity as Activity
from hwtrain.evaluate._active import assert_active as assert_active
from hwtrain.evaluate._costs import Costs as Costs
from hwtrain.evaluate._costs import cost as cost
from hwtrain.evaluate._layer_costs import CostContext as CostContext
from hwtrain.evaluate._layer_costs import LayerCost as LayerCost
from hwtrain.evaluate._population import Population as Population
from hwtrain.evaluate._population import population as population
from hwtrain.evaluate._sensitivity import Sensitivity as Sensitivity
from hwtrain.evaluate._sensitivity import sensitivity as sensitivity
from hwtrain.evaluate._study import Study as Study
