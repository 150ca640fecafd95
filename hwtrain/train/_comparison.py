"""The main job: train plain and hardware-aware, export, read back, compare on chips."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from rich.console import Console

from hwtrain import checkpoint, evaluate
from hwtrain._arrays import paths
from hwtrain._plan.training_noise import quiet_training
from hwtrain._version import __version__
from hwtrain.checkpoint._disk import RESUME
from hwtrain.chips._clip_bounds import with_clipped
from hwtrain.train import _report as report
from hwtrain.train._alike import OUTPUTS, alike, note
from hwtrain.train._batches import digest_of
from hwtrain.train._chips import chip_seeds, chips_of, exports
from hwtrain.train._closing import closing
from hwtrain.train._config import Config, has_deviation
from hwtrain.train._cost import cost_of
from hwtrain.train._entries import EntryError
from hwtrain.train._folder import write_json
from hwtrain.train._functional import ModelState, Params
from hwtrain.train._loop import Stop, TrainState, init_state, never
from hwtrain.train._named import metric_of
from hwtrain.train._preparation import Preparation, variables_of, with_effective
from hwtrain.train._report import HARDWARE_AWARE, PLAIN, OnChips
from hwtrain.train._task import Task
from hwtrain.train._training import Measuring, Training, stop_if_asked, train_seed

_MODE = "chip_mode"


def compare(
    config: Config,
    ready: Preparation,
    out: Path,
    *,
    console: Console,
    stop: Stop = never,
) -> list[OnChips]:
    """Trains the plain and the hardware-aware model and compares them on chips.

    Both are evaluated on the same chips, of the configured hardware with all its
    effects. The plain model is trained without any of them; afterwards its input ranges
    are calibrated on the training data.

    Afterwards, `out` holds `config.json`, Orbax checkpoints in `plain/seed_N` and
    `hardware-aware/seed_N`, a hardware-ready checkpoint for each seed in
    `export/seed_N`, if the hardware has a converter, `results.json` and `results.png`.

    Args:
      config: the configuration.
      ready: the loaded models and data, from `prepare`.
      out: the run's folder, from `make_folder`. Finished work in it is not repeated.
      console: where progress and the table are shown.
      stop: whether to stop; called after each update and between other work.

    Returns:
      The results, for each mismatch and model.

    Raises:
      DivergedError: (a `ValueError`) if a loss or a parameter is NaN or infinite.
      EntryError: (a `ValueError`) if no input range fits the plain model.
      OSError: if a file cannot be written, naming it and the free space.
      KeyboardInterrupt: if `stop` returned true; a checkpoint is saved first.
    """
    if ready.initial is not None:
        ready.initial.begin(out, console)
    quiet = quiet_training(ready.plan)
    if quiet is not None and config.training.objective is None:
        _say(console, f"note: {quiet}")
    trained = {
        name: _train(config, ready, name, out, console, stop)
        for name in (PLAIN, HARDWARE_AWARE)
    }
    on_chips = {
        PLAIN: [
            deployed(config, ready, state, seed, console, stop)
            for seed, state in zip(config.training.seeds, trained[PLAIN])
        ],
        HARDWARE_AWARE: [variables_of(ready, x) for x in trained[HARDWARE_AWARE]],
    }
    with console.status("evaluating on chips"):
        results: list[OnChips] = []
        notes: dict[str, None] = {}
        for level in config.levels:
            for model, variables in on_chips.items():
                found, same = _evaluate(config, ready, model, variables, level, stop)
                results += found
                if same:
                    notes[note(model)] = None
    if exports(config):
        for number, seed in enumerate(config.training.seeds):
            stop_if_asked(stop)
            variables = on_chips[HARDWARE_AWARE][number]
            measured = _measurements(results, number)
            path = out / "export" / f"seed_{seed}"
            _export(config, ready, variables, measured, path)
        _say(console, f"exported to {out / 'export'} and read back")
    else:
        _say(
            console,
            "note: nothing is exported, because hardware.converter, which turns "
            "weights into conductances, is not given for all layers",
        )
    for text in notes:
        _say(console, f"note: {text}")
    _write_results(config, ready, results, out)
    _show_results(config, results, out, console)
    return results


def _train(
    config: Config,
    ready: Preparation,
    name: str,
    out: Path,
    console: Console,
    stop: Stop,
) -> list[TrainState]:
    """Returns the trained state of one model for every seed."""
    aware, trained = name == HARDWARE_AWARE, []
    for seed in config.training.seeds:
        training = Training(
            title=f"{name}, seed {seed}",
            parameter=config.training,
            step=ready.aware_step if aware else ready.plain_step,
            data=ready.data,
            measuring=_measuring(config, ready, name),
            log=ready.aware_log if aware else ready.plain_log,
        )
        where, state = out / name / f"seed_{seed}", start(config, ready, name, seed)
        trained.append(train_seed(training, state, seed, where, console, stop))
    return trained


def start(config: Config, ready: Preparation, name: str, seed: int) -> TrainState:
    """Returns the state of a model before its first update.

    Args:
      config: the configuration.
      ready: the loaded models, from `prepare`.
      name: which model.
      seed: the training seed.
    """
    aware = name == HARDWARE_AWARE
    model = ready.aware if aware else ready.plain
    return init_state(
        model.init(seed),
        ready.aware_optimizer if aware else ready.optimizer,
        average=config.training.ema is not None,
        mesh=ready.mesh,
    )


def _measuring(config: Config, ready: Preparation, name: str) -> Measuring | None:
    """Returns how the best state of a model's training is found."""
    stopping = config.training.early_stopping
    if stopping is None:
        return None
    metric = metric_of(stopping, ready.task)
    only = ready.task._replace(metrics=(metric,))

    def on_chips(state: TrainState) -> float:
        variables = variables_of(ready, state)
        values = on_population(
            config, ready, only, config.assigned, variables, chips=stopping.chips
        )
        return float(values[metric.name].mean)

    def plain(state: TrainState) -> float:
        total, count = 0.0, 0
        for batch in ready.data.evaluation():
            total += float(evaluated(state.trained, state.model_state, batch))
            count += len(jax.tree.leaves(batch)[0])
        return total / count

    @jax.jit
    def evaluated(params: Params, state: ModelState, batch: Any) -> jax.Array:
        return metric.function(ready.plain.evaluate(params, state, batch), batch).sum()

    measure = on_chips if name == HARDWARE_AWARE else plain
    return Measuring(metric=metric, measure=measure)


def on_population(
    config: Config,
    ready: Preparation,
    task: Task,
    hardware: Any,
    variables: dict[str, Any],
    *,
    chips: int | Sequence[int],
    times_s: Sequence[float] | None = None,
    constants: Mapping[str, Sequence[float]] | None = None,
    until: float | None = None,
) -> dict[str, evaluate.Population]:
    """Returns the metrics of a task for chips with their own mismatch, by name.

    Args:
      config: the configuration.
      ready: the loaded models and data, from `prepare`.
      task: what is measured.
      hardware: the hardware of all layers, as `analogize` takes it.
      variables: the trained variables of an analog model.
      chips: number of chips, or their seeds.
      times_s: seconds since programming; `None` for just after it.
      constants: see `evaluate.population`.
      until: see `evaluate.population`.
    """
    analog = ready.frontend.on_chip(ready.factory, hardware)
    return evaluate.population(
        analog,
        variables,
        ((batch, batch) for batch in ready.data.evaluation()),
        {metric.name: metric.function for metric in task.metrics},
        chips=chips,
        times_s=times_s,
        constants=constants,
        until=until,
        forward=ready.task.on_chip,
        key=jax.random.key(config.evaluation.seed),
    )


def _measurements(results: list[OnChips], number: int) -> list[checkpoint.Measurement]:
    """Returns the values of one hardware-aware model for its manifest."""
    found = []
    for result in results:
        if result.model == HARDWARE_AWARE:
            values = result.values[number]
            std = result.rounded(result.stds[number]) if len(values) > 1 else None
            measurement = checkpoint.Measurement(
                metric=f"{result.title} on the test set",
                mode=_MODE,
                chips=len(values),
                mean=result.rounded(values.mean()),
                std=std,
                conditions=report.conditions(result),
            )
            found.append(measurement)
    return found


def _export(
    config: Config,
    ready: Preparation,
    variables: dict[str, Any],
    measured: list[checkpoint.Measurement],
    path: Path,
) -> None:
    """Exports a model with its metrics unless it exists, and checks it on reading."""
    seeds = chip_seeds(config)
    if not path.exists():
        made, plan = with_effective(ready, config.assigned, variables)
        checkpoint.export(
            path,
            made,
            plan,
            chip_seed=seeds[0] if seeds else None,
            graph=ready.graph,
            accuracy=measured,
        )
    found = paths.leaves(checkpoint.load(path).params)
    # A learned bound clips in the forward pass, and an export holds clipped weights.
    expected = with_clipped(variables["params"], ready.plan)
    probes = ready.plan.zeros
    for name, leaf in paths.leaves(expected).items():
        # Probes carry no information and are read back as zeros.
        if name not in probes and not np.array_equal(found[name], leaf):
            raise checkpoint.HardwareCheckpointError(
                f"{path}: {name} does not match what this run has trained and "
                "evaluated; delete the folder to export it again with --resume"
            )


def deployed(
    config: Config,
    ready: Preparation,
    state: TrainState,
    seed: int,
    console: Console,
    stop: Stop = never,
) -> dict[str, Any]:
    """Returns the plain model's variables as deployed on the configured chip.

    The weights lie on the same chip as those of the hardware-aware model. Plain
    training gives no input ranges; they are calibrated on the training data.

    Args:
      config: the configuration.
      ready: the loaded models and data, from `prepare`.
      state: the trained state of the plain model.
      seed: its training seed, for messages.
      console: where progress is shown.
      stop: whether to stop.

    Raises:
      EntryError: (a `ValueError`) if no input range fits.
      KeyboardInterrupt: if `stop` returned true.
    """
    stop_if_asked(stop)
    try:
        return ready.frontend.deployed(
            ready.factory,
            config.assigned,
            variables_of(ready, state),
            ready.task.on_chip,
            list(ready.data.calibration()),
            console,
        )
    except EntryError:
        raise
    except ValueError as error:
        raise EntryError(
            "hardware.input_range",
            f"the ranges of the {PLAIN} model of seed {seed} cannot be calibrated: "
            f"{error}",
        ) from error


def _evaluate(
    config: Config,
    ready: Preparation,
    name: str,
    trained: list[dict[str, Any]],
    level: float | None,
    stop: Stop,
) -> tuple[list[OnChips], bool]:
    """Returns the metrics of one model, and whether it is alike on all chips."""
    task = ready.task._replace(metrics=(*ready.task.metrics, OUTPUTS))
    values: dict[str, list[np.ndarray]] = {x.name: [] for x in task.metrics}
    hardware = chips_of(config, level)
    for variables in trained:
        stop_if_asked(stop)
        chips = config.evaluation.chips
        found = on_population(config, ready, task, hardware, variables, chips=chips)
        for metric, population in found.items():
            values[metric].append(np.asarray(population.values, np.float64))
    for metric in ready.task.metrics:
        metric.require_finite(values[metric.name], f"for the {name} model on a chip")
    mismatches = [chip.mismatch for chip in config.chips if chip.mismatch is not None]
    text = ""
    if mismatches and level is None:
        several = len(set(mismatches)) > 1 or has_deviation(mismatches[0])
        text = "" if several else mismatches[0].describe()
        text = text or f"{mismatches[0].type} as configured"
    results = [
        OnChips(
            metric=metric.name,
            unit=metric.unit,
            model=name,
            mismatch_std=level if mismatches else None,
            values=np.stack(values[metric.name]),
            mismatch=text,
        )
        for metric in ready.task.metrics
    ]
    varied = config.chips if level or level is None else ()
    return results, alike(values[OUTPUTS.name], varied)


def _write_results(
    config: Config, ready: Preparation, results: list[OnChips], out: Path
) -> None:
    main, *others = report.by_metric(results).values()
    data = {
        "metric": main[0].title,
        "better": ready.task.metrics[0].better,
        "test_data": digest_of(ready.data),
        "mode": _MODE,
        "seeds": list(config.training.seeds),
        "chips": config.evaluation.chips,
        "versions": {
            "hwtrain": __version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
        },
        **report.as_data(main),
    }
    cost = cost_of(config, ready)
    if cost is not None:
        data["cost"] = cost
    if ready.initial is not None:
        data["init_from"] = ready.initial.report.as_data()
    if others:
        data["other_metrics"] = [
            {"metric": each[0].title, **report.as_data(each)} for each in others
        ]
    write_json(out / "results.json", data, RESUME)
    report.plot(main, out / "results.png", title=report.headline(main, mode=_MODE))


def _show_results(
    config: Config, results: list[OnChips], out: Path, console: Console
) -> None:
    for each in report.by_metric(results).values():
        _say(console, f"\n{report.headline(each, mode=_MODE)}")
        console.print(report.table(each))
    _say(console, closing(config, out))


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
