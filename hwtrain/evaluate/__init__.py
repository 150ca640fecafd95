"""Models on populations of chips."""

from hwtrain.evaluate.population import Population as Population
from hwtrain.evaluate.population import population as population
