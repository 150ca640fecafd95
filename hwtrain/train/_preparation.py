"""Loads and checks everything a run needs before it writes anything."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from hwtrain._arrays import paths
from hwtrain._flax.calls import first_call
from hwtrain._flax.materializing import materialize
from hwtrain._flax.strength import noise_strength
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import Graph
from hwtrain.checkpoint._contents import Contents
from hwtrain.chips import _conductances as conductances
from hwtrain.chips import chip_key
from hwtrain.chips._crossbar import on_crossbar
from hwtrain.chips._programming import keys_of_chip, program_weight
from hwtrain.train._batches import Data
from hwtrain.train._chips import chip_seeds, exports
from hwtrain.train._config import (
    Config,
)
from hwtrain.train._cost import cost_of
from hwtrain.train._entries import EntryError, named
from hwtrain.train._functional import Functional, ModelState, Params
from hwtrain.train._initial_run import Initial, initial_of, starting_from
from hwtrain.train._log import Logged, logged
from hwtrain.train._loop import Step, TrainState
from hwtrain.train._named import (
    build_plain,
    check_shares,
    check_task,
    load_data,
    metric_of,
)
from hwtrain.train._optimisation import (
    aware_optimizer,
    base_optimizer,
    learning_rate,
    noise_schedule,
    robust_loss,
    step_maker,
)
from hwtrain.train._report import require_matplotlib
from hwtrain.train._task import (
    Task,
)
from hwtrain.train._trial import check_step
from hwtrain.weights.mapping import MAPPING_SCALE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """Models, optimizers and data of a run.

    Attributes:
      frontend: the module of functions for the model's framework.
      factory: the function of the recipe that builds the model.
      task: what the models are trained for.
      data: the batches.
      mesh: the devices that share the examples of a batch.
      plain: the plain model.
      aware: the hardware-aware model.
      plan: the plan of the hardware-aware model.
      graph: the connections of its layers.
      optimizer: the optimizer of the plain model.
      aware_optimizer: the optimizer of the hardware-aware model.
      plain_step: the training step of the plain model.
      aware_step: the training step of the hardware-aware model.
      plain_log: what is logged of the plain model's trainings, if anything.
      aware_log: likewise, of the hardware-aware model's.
      initial: what both models start from; `None` for nothing.
    """

    frontend: ModuleType
    factory: Callable[..., Any]
    task: Task
    data: Data
    mesh: Mesh
    plain: Functional
    aware: Functional
    plan: Plan
    graph: Graph
    optimizer: optax.GradientTransformation
    aware_optimizer: optax.GradientTransformation
    plain_step: Step
    aware_step: Step
    plain_log: Logged | None
    aware_log: Logged | None
    initial: Initial | None = None


def variables_of(ready: Preparation, state: TrainState) -> dict[str, Any]:
    """Returns the trained variables of a model by collection."""
    return ready.frontend.variables(ready.factory, state.trained, state.model_state)


def with_effective(
    ready: Preparation, hardware: Any, variables: dict[str, Any]
) -> tuple[dict[str, Any], Plan]:
    """Returns variables with the weights that layers multiply by, and their plan.

    Both are unchanged unless layers compute their weights from stored parameters.

    Args:
      ready: the models of a run.
      hardware: the hardware of the hardware-aware model.
      variables: its variables.
    """
    if ready.plan == ready.plan.effective:
        return variables, ready.plan
    analog = ready.frontend.on_chip(ready.factory, hardware)
    args, kwargs = first_call(ready.task.on_chip, ready.data.example)
    return materialize(analog, variables, *args, **kwargs), ready.plan.effective


def prepare(config: Config, folder: Path, run: Path | None = None) -> Preparation:
    """Loads and checks all that a configuration names.

    Args:
      config: the configuration.
      folder: its folder, which its paths are relative to.
      run: the folder of a run to continue or to open, which keeps what it started from.

    Raises:
      ValueError: one line that names the wrong entry.
    """
    require_matplotlib()
    training = config.training
    data = load_data(
        config.data, training.batch_size, config.evaluation.batch_size, folder
    )
    frontend, factory, task, plain = build_plain(config, config.task, data, folder)
    given = f"a batch of {config.data}"
    with named("data", config.model, given=given):
        graph = frontend.graph(factory, task.forward, data.example)
    with named("rules" if config.rules else "hardware", config.model):
        aware, plan = frontend.hardware_aware(
            factory, config.assigned, task.forward, data.example
        )
    initial = initial_of(training.init_from, plain, folder, run, aware=(aware, plan))
    plain = starting_from(initial, plain)
    aware = starting_from(initial, aware, plan)
    check_task(config, task, plain, data)
    check_shares(training, data)
    if training.early_stopping is not None:
        metric_of(training.early_stopping, task)
    rate = learning_rate(training)
    base = base_optimizer(training, rate, folder)
    optimizer = aware_optimizer(base, plan, rate, config.export.chip_seed)
    strength = noise_schedule(training, folder)
    robust = robust_loss(training, plan)
    mesh, shared = step_maker(training, task, data)
    noisy = functools.partial(shared, robust=robust, strength=strength)
    ready = Preparation(
        frontend=frontend,
        factory=factory,
        task=task,
        data=data,
        mesh=mesh,
        plain=plain,
        aware=aware,
        plan=plan,
        graph=graph,
        optimizer=base,
        aware_optimizer=optimizer,
        plain_step=shared(plain, base),
        aware_step=noisy(aware, optimizer),
        plain_log=logged(training, plain, task.loss, data, folder),
        aware_log=logged(
            *(training, aware, task.loss, data, folder), plan=plan, strength=strength
        ),
        initial=initial,
    )
    _check_strength(ready, strength)
    check_step(training, plain, base, ready.plain_step, data)
    without = functools.partial(noisy, aware)
    check_step(training, aware, optimizer, ready.aware_step, data, without)
    with named("hardware"):
        _check_export(config, ready)
    with named("cost"):
        cost_of(config, ready)
    return ready


def _check_strength(
    ready: Preparation, strength: Callable[[jax.Array], Any] | None
) -> None:
    """Checks that a noise schedule matches the layers that it names."""
    if strength is None:
        return
    params, state = jax.eval_shape(ready.aware.init, 0)

    def call(params: Params, state: ModelState, batch: Any, step: jax.Array) -> Any:
        with noise_strength(strength(step)):
            return ready.aware.apply(params, state, batch, jax.random.key(0))

    with named("training.noise_schedule"):
        step = jax.ShapeDtypeStruct((), np.int32)
        jax.eval_shape(call, params, state, ready.data.example, step)


def _check_export(config: Config, ready: Preparation) -> None:
    """Checks on shapes alone that the export, if there is one, will succeed."""
    if not exports(config):
        return
    params, state = jax.eval_shape(ready.aware.init, 0)
    plan = ready.plan.effective
    shapes = paths.leaves(params)
    derived = [weight for weight in plan.weights if weight.derived]
    made = {weight.path: shapes[weight.stored] for weight in derived}
    params = paths.insert(params, made)
    variables = functools.partial(ready.frontend.variables, ready.factory)
    collections = {**jax.eval_shape(variables, params, state), "params": params}
    contents = Contents(collections, plan, chip_seeds(config))
    leaves = {leaf.path: leaf.value for leaf in contents.leaves}
    for weight in plan.weights:
        dtype = leaves[weight.path].dtype
        if not np.issubdtype(dtype, np.floating) and dtype != jnp.bfloat16:
            raise EntryError(
                "model",
                f"{config.model}: expected an analog weight {weight.path} of real "
                f"floating-point numbers, got {dtype}",
            )
        scale = leaves.get(weight.leaf(MAPPING_SCALE))
        jax.eval_shape(
            functools.partial(_conductances, weight), leaves[weight.path], scale
        )


def _conductances(
    weight: AnalogWeight, kernel: jax.Array, scale: jax.Array | None
) -> Any:
    """Computes an export's conductances of one weight."""
    if weight.hardware.programs:
        return program_weight(weight, kernel, scale, keys_of_chip(weight, chip_key(0)))
    w, _ = on_crossbar(weight, kernel, scale)
    return conductances.targets(weight, weight.to_matrix(w))
