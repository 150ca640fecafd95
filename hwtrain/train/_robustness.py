"""The job that trains plain, with mismatch and robustly, and compares on chips."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console

from hwtrain import dynapse, objectives
from hwtrain._arrays import paths
from hwtrain._plan.plan import Plan
from hwtrain._version import __version__
from hwtrain.checkpoint._disk import RESUME
from hwtrain.chips import chip_key
from hwtrain.dynapse._generator import sigma_rule_in_words
from hwtrain.train import _report as report
from hwtrain.train._batches import Data, digest_of
from hwtrain.train._entries import EntryError, named
from hwtrain.train._folder import write_json
from hwtrain.train._functional import Functional, ModelState, Params
from hwtrain.train._initial_run import Initial, initial_of, starting_from
from hwtrain.train._log import Logged, logged
from hwtrain.train._loop import (
    Step,
    Stop,
    TrainState,
    init_state,
    never,
)
from hwtrain.train._mismatch_config import MismatchConfig
from hwtrain.train._named import build_plain, check_shares, check_task, load_data
from hwtrain.train._optimisation import base_optimizer, learning_rate, step_maker
from hwtrain.train._report import PLAIN, WITH_MISMATCH, OnChips
from hwtrain.train._task import Task
from hwtrain.train._training import Training, stop_if_asked, train_seed
from hwtrain.train._trial import check_step

_EVALUATED = 512
"""Examples evaluated at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contest:
    """Models, steps and data of a comparison.

    Attributes:
      plain: the plain model.
      prototype: selects the parameters that deviate on a chip.
      steps: the training step of each training method, by name.
      optimizer: the optimizer of all methods.
      task: what the models are trained for.
      data: the batches.
      mesh: the devices that share the examples of a batch.
      log: what is logged of a training, if anything.
      initial: what all models start from; `None` for nothing.
    """

    plain: Functional
    prototype: paths.Tree
    steps: dict[str, Step]
    optimizer: optax.GradientTransformation
    task: Task
    data: Data
    mesh: Mesh
    log: Logged | None
    initial: Initial | None = None


def prepare_contest(
    config: MismatchConfig, folder: Path, run: Path | None = None
) -> Contest:
    """Loads what a configuration names, and checks it by tracing one step.

    Args:
      config: the configuration.
      folder: its folder, which its paths are relative to.
      run: the folder of a run to continue, which keeps what it started from.

    Raises:
      ValueError: one line that names the wrong entry.
    """
    report.require_matplotlib()
    training, rule = config.training, config.mismatch.sigma_rule
    data = load_data(config.data, training.batch_size, _EVALUATED, folder)
    frontend, factory, task, plain = build_plain(config, config.task, data, folder)
    initial = initial_of(training.init_from, plain, folder, run)
    plain = starting_from(initial, plain)
    check_task(config, task, plain, data)
    check_shares(training, data)
    deviation = config.mismatch.percent_deviation
    with named("mismatch", config.model):
        prototype = _prototype(plain, config.mismatch.digital)
        noisy = frontend.deviating(
            factory, prototype, deviation, rule, task.forward, data.example
        )
    optimizer = base_optimizer(training, learning_rate(training), folder)
    mesh, step_of = step_maker(training, task, data)
    steps = {PLAIN: step_of(plain, optimizer), WITH_MISMATCH: step_of(noisy, optimizer)}
    for step in steps.values():
        check_step(training, plain, optimizer, step, data)
    objective = config.objective
    if objective is not None:
        without = functools.partial(step_of, plain, robust=_robust(objective))
        step = without(optimizer=optimizer)
        check_step(training, plain, optimizer, step, data, without, "objective")
        steps[objective.type] = step
    return Contest(
        plain=plain,
        prototype=prototype,
        steps=steps,
        optimizer=optimizer,
        task=task,
        data=data,
        mesh=mesh,
        log=logged(training, plain, task.loss, data, folder),
        initial=initial,
    )


def contest(
    config: MismatchConfig,
    ready: Contest,
    out: Path,
    *,
    console: Console,
    stop: Stop = never,
) -> list[OnChips]:
    """Trains by each method from the same initial parameters and compares on chips.

    Afterwards, `out` holds `config.json`, an Orbax checkpoint for each method and seed,
    `results.json` and `results.png`.

    Args:
      config: the configuration.
      ready: the loaded models and data, from `prepare_contest`.
      out: the run's folder. Finished work in it is not repeated.
      console: where progress and the table are shown.
      stop: whether to stop, as for `compare`.

    Returns:
      The results, for each deviation and training method.
    """
    if ready.initial is not None:
        ready.initial.begin(out, console)
    average = config.training.ema is not None
    trained = {
        name: [
            train_seed(
                Training(
                    title=f"{name}, seed {seed}",
                    parameter=config.training,
                    step=step,
                    data=ready.data,
                    log=ready.log,
                ),
                init_state(
                    ready.plain.init(seed),
                    ready.optimizer,
                    average=average,
                    mesh=ready.mesh,
                ),
                seed,
                out / name.replace(" ", "-") / f"seed_{seed}",
                console,
                stop,
            )
            for seed in config.training.seeds
        ]
        for name, step in ready.steps.items()
    }
    with console.status("evaluating on chips"):
        results = on_chips(config, ready, trained, stop)
    title = report.headline(results, mode="frozen chips")
    rule = config.mismatch.sigma_rule
    words = sigma_rule_in_words(max(config.evaluation.percent_deviation), rule)
    data = {
        "metric": results[0].title,
        "better": ready.task.metrics[0].better,
        "test_data": digest_of(ready.data),
        "largest mismatch": words,
        "seeds": list(config.training.seeds),
        "chips": config.evaluation.chips,
        "versions": {"hwtrain": __version__, "jax": jax.__version__},
        **report.as_data(results),
    }
    if ready.initial is not None:
        data["init_from"] = ready.initial.report.as_data()
    write_json(out / "results.json", data, RESUME)
    report.plot(results, out / "results.png", title=title)
    console.print(f"\n{title}\n{words}", soft_wrap=True, highlight=False)
    console.print(report.table(results))
    console.print(f"results.json, results.png and checkpoints lie in {out}")
    return results


def on_chips(
    config: MismatchConfig,
    ready: Contest,
    trained: dict[str, list[TrainState]],
    stop: Stop = never,
) -> list[OnChips]:
    """Returns the main metric of trained models on frozen chips.

    Args:
      config: the configuration.
      ready: from `prepare_contest`.
      trained: for each training method, the state of every seed.
      stop: whether to stop; called before each method and deviation.
    """
    rule, metric = config.mismatch.sigma_rule, ready.task.metrics[0]
    keys = jax.vmap(chip_key)(jnp.arange(config.evaluation.chips))

    @jax.jit
    def sums(chips: Params, state: ModelState, batch: Any) -> jax.Array:
        def on_chip(params: Params) -> jax.Array:
            outputs = ready.plain.evaluate(params, state, batch)
            return metric.function(outputs, batch).sum()

        return jax.lax.map(on_chip, chips)

    def means(chips: Params, state: ModelState) -> np.ndarray:
        total, count = np.zeros(len(keys)), 0
        for batch in ready.data.evaluation():
            total += np.asarray(sums(chips, state, batch), np.float64)
            count += len(jax.tree.leaves(batch)[0])
        return total / count

    results = []
    for level in config.evaluation.percent_deviation:
        generate = dynapse.mismatch_generator(ready.prototype, level, rule)
        chips = jax.jit(jax.vmap(generate, in_axes=(None, 0)))
        for name, seeds in trained.items():
            stop_if_asked(stop)
            values = [means(chips(s.trained, keys), s.model_state) for s in seeds]
            metric.require_finite(values, f"for the {name} model on a chip")
            results.append(
                OnChips(
                    metric=metric.name,
                    unit=metric.unit,
                    model=name,
                    mismatch_std=level / rule,
                    values=np.stack(values),
                )
            )
    return results


def _prototype(model: Functional, digital: tuple[str, ...]) -> paths.Tree:
    """Returns the prototype of all deviating parameters that are not digital."""
    params, _ = jax.eval_shape(model.init, 0)
    frozen = dynapse.frozen_mismatch_prototype(params)
    chosen = {path for path, on in paths.leaves(frozen).items() if on}
    dynamic = dynapse.dynamic_mismatch_prototype(params)
    chosen |= {path for path, on in paths.leaves(dynamic).items() if on}
    for pattern in digital:
        matching = {path for path in chosen if re.fullmatch(pattern, path)}
        if not matching:
            raise EntryError(
                "mismatch.digital",
                f"the pattern {pattern!r} matches nothing that would deviate: "
                f"{sorted(chosen)}",
            )
        chosen -= matching
    if not chosen:
        raise EntryError("mismatch.digital", "nothing is left that deviates")
    return paths.map_leaves(lambda path, leaf: path in chosen, params)


def _robust(
    objective: objectives.AnyObjective,
) -> Callable[..., Callable[..., Any]]:
    def robust(loss: Callable[..., Any], outputs: Callable[..., Any]) -> Any:
        try:
            return objectives.robust(
                loss, Plan(()), objective, outputs=outputs, has_aux=True
            )
        except ValueError as error:
            raise EntryError("objective", str(error)) from error

    return robust
