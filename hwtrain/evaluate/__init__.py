"""Models on populations of chips."""

from hwtrain.evaluate.active import Activity as Activity
from hwtrain.evaluate.active import assert_active as assert_active
from hwtrain.evaluate.population import Population as Population
from hwtrain.evaluate.population import population as population
from hwtrain.evaluate.sensitivity import Sensitivity as Sensitivity
from hwtrain.evaluate.sensitivity import sensitivity as sensitivity
