"""Energy, latency and area of a run's hardware-aware model."""

import functools
from typing import TYPE_CHECKING, Any

import jax

from hwtrain._parts.cost_constants import CostParameter
from hwtrain.evaluate import Costs, cost
from hwtrain.train._config import Config

if TYPE_CHECKING:
    from hwtrain.train._preparation import Preparation


def cost_of(config: Config, ready: "Preparation") -> dict[str, Any] | None:
    """Returns the totals of a run's model, as in `results.json`.

    Args:
      config: the configuration; its constants are those of its table `cost`.
      ready: the loaded models and data, from `prepare`.

    Returns:
      `None` without that table.
    """
    if config.cost is None:
        return None
    return costs(config, ready, config.cost).totals()


def costs(config: Config, ready: "Preparation", constants: CostParameter) -> Costs:
    """Returns the cost of one example of a run's evaluation.

    Args:
      config: the configuration.
      ready: the loaded models and data, from `prepare`.
      constants: the constants of the technology.
    """
    params, state = jax.eval_shape(ready.aware.init, 0)
    variables = functools.partial(ready.frontend.variables, ready.factory)
    return cost(
        ready.frontend.on_chip(ready.factory, config.assigned),
        jax.eval_shape(variables, params, state),
        ready.data.example,
        constants=constants,
        forward=ready.task.on_chip,
    )
