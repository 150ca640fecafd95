"""The main job: train plain and hardware-aware, export, read back, compare on chips."""

import math
from collections.abc import Iterator
from pathlib import Path

import flax
import jax
import numpy as np
from orbax.checkpoint import CheckpointManager
from rich.console import Console

from hwtrain import checkpoint, evaluate
from hwtrain._arrays import paths
from hwtrain._arrays.fast_random import fast_prng, threefry_prng
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.training_noise import quiet_training
from hwtrain._version import __version__
from hwtrain.checkpoint._disk import RESUME
from hwtrain.chips._clip_bounds import with_clipped
from hwtrain.train import _checkpoints as checkpoints
from hwtrain.train import _report as report
from hwtrain.train._config import Config, TrainingParameter, has_deviation
from hwtrain.train._divergence import diverged
from hwtrain.train._entries import EntryError
from hwtrain.train._folder import write_json
from hwtrain.train._functional import Params
from hwtrain.train._loop import (
    Split,
    Step,
    Stop,
    TrainState,
    init_state,
    never,
    run_steps,
)
from hwtrain.train._preparation import Preparation, chip_hardware, with_effective
from hwtrain.train._progress import show_progress
from hwtrain.train._report import HARDWARE_AWARE, PLAIN, Accuracies
from hwtrain.weights import WeightModifierParameter

_MODE = "chip_mode"


def compare(
    config: Config,
    ready: Preparation,
    out: Path,
    *,
    console: Console,
    stop: Stop = never,
) -> list[Accuracies]:
    """Trains the plain and the hardware-aware model and compares them on chips.

    Both are evaluated on the same chips, of the configured hardware with all its
    effects. The plain model is trained without any of them; afterwards its input ranges
    are calibrated on the training data.

    Afterwards, `out` holds `config.json`, Orbax checkpoints in `plain/seed_N` and
    `hardware-aware/seed_N`, a hardware-ready checkpoint for each seed in
    `export/seed_N`, `results.json` and `results.png`.

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
    quiet = quiet_training(ready.plan)
    if quiet is not None and config.training.objective is None:
        _say(console, f"note: {quiet}")
    trained = {
        name: _train(config, ready, name, out, console, stop)
        for name in (PLAIN, HARDWARE_AWARE)
    }
    on_chips = dict(trained)
    on_chips[PLAIN] = [
        _deployed(config, ready, params, seed, console, stop)
        for seed, params in zip(config.training.seeds, trained[PLAIN])
    ]
    with console.status("evaluating on chips"):
        results = [
            _evaluate(config, ready, model, params, level, stop)
            for level in config.evaluation.mismatch_std
            for model, params in on_chips.items()
        ]
    for number, seed in enumerate(config.training.seeds):
        stop_if_asked(stop)
        params = trained[HARDWARE_AWARE][number]
        accuracy = _measurements(results, number)
        path = out / "export" / f"seed_{seed}"
        _export(config, ready, params, accuracy, path)
    _say(console, f"exported to {out / 'export'} and read back")
    _write_results(config, results, out)
    _show_results(config, results, out, console)
    return results


def _train(
    config: Config,
    ready: Preparation,
    name: str,
    out: Path,
    console: Console,
    stop: Stop,
) -> list[Params]:
    """Returns the trained parameters of one model for every seed."""
    aware = name == HARDWARE_AWARE
    model = ready.aware if aware else ready.plain
    optimizer = ready.aware_optimizer if aware else ready.optimizer
    step = ready.aware_step if aware else ready.plain_step
    trained = []
    for seed in config.training.seeds:
        state = init_state(model.init(seed), optimizer)
        where = out / name / f"seed_{seed}"
        title = f"{name}, seed {seed}"
        trained.append(
            train_seed(
                config.training,
                step,
                state,
                ready.train,
                seed,
                where,
                title,
                console,
                stop,
            )
        )
    return trained


def train_seed(
    training: TrainingParameter,
    step: Step,
    state: TrainState,
    data: Split,
    seed: int,
    where: Path,
    title: str,
    console: Console,
    stop: Stop = never,
) -> Params:
    """Returns the trained parameters of one seed, continuing from its last checkpoint.

    Args:
      training: the training configuration.
      step: from `make_step`.
      state: the state before the first update.
      data: the training set.
      seed: the training seed.
      where: folder of its checkpoints.
      title: label of the progress display.
      console: where progress is shown.
      stop: whether to stop; called after each update.

    Raises:
      DivergedError: (a `ValueError`) if a loss or a parameter is NaN or infinite; such
        a state is not saved.
      OSError: if a checkpoint cannot be written, naming its folder and the free space.
      KeyboardInterrupt: if `stop` returned true; a checkpoint is saved first.
    """
    stop_if_asked(stop)
    with checkpoints.open_checkpoints(where) as manager:
        state = checkpoints.restore_latest(manager, state)
        done = int(state.step)
        if done == training.steps:
            _say(console, f"{title}: all {done} steps are done")
            return state.params
        if done:
            _say(console, f"{title}: continuing from step {done}")
        updates = run_steps(
            step,
            state,
            data,
            steps=training.steps,
            batch_size=training.batch_size,
            seed=seed,
            generator=fast_prng if training.generator == "fast" else threefry_prng,
        )
        with show_progress(console, title, start=done, steps=training.steps) as report:
            for number, (state, loss) in enumerate(updates, start=done + 1):
                shown = report(number, loss)
                asked = stop()
                saving = asked or number % training.checkpoint_every == 0
                saving = saving or number == training.steps
                # Only these steps wait for the device.
                if saving or not (shown is None or math.isfinite(shown)):
                    _require_no_bad(state, manager, title, training.learning_rate)
                if saving:
                    checkpoints.save(manager, state)
                if asked:
                    raise KeyboardInterrupt
    return state.params


def _require_no_bad(
    state: TrainState, manager: CheckpointManager, title: str, rate: float
) -> None:
    """Raises a `DivergedError` if the training has diverged."""
    number = int(state.first_bad)
    if number:
        raise diverged(number, title=title, saved=manager.latest_step(), rate=rate)


def stop_if_asked(stop: Stop) -> None:
    """Raises a `KeyboardInterrupt` if the training was asked to stop."""
    if stop():
        raise KeyboardInterrupt


def _measurements(
    results: list[Accuracies], number: int
) -> list[checkpoint.Measurement]:
    """Returns the accuracies of one hardware-aware model for its manifest."""
    found = []
    for result in results:
        if result.model == HARDWARE_AWARE:
            values = result.values[number]
            std = round(float(values.std(ddof=1)), 4) if len(values) > 1 else None
            measurement = checkpoint.Measurement(
                metric="accuracy in % on the test set",
                mode=_MODE,
                chips=len(values),
                mean=round(float(values.mean()), 4),
                std=std,
                conditions=report.conditions(result),
            )
            found.append(measurement)
    return found


def _export(
    config: Config,
    ready: Preparation,
    params: Params,
    accuracy: list[checkpoint.Measurement],
    path: Path,
) -> None:
    """Exports a model with its accuracy unless it exists, and checks it on reading."""
    if not path.exists():
        made, plan = with_effective(ready, config.hardware, params)
        checkpoint.export(
            path,
            {"params": made},
            plan,
            chip_seed=config.export.chip_seed,
            graph=ready.graph,
            accuracy=accuracy,
        )
    found = paths.leaves(checkpoint.load(path).params)
    # A learned bound clips in the forward pass, and an export holds clipped weights.
    expected = with_clipped(params, ready.plan)
    probes = ready.plan.zeros
    for name, leaf in paths.leaves(expected).items():
        # Probes carry no information and are read back as zeros.
        if name not in probes and not np.array_equal(found[name], leaf):
            raise checkpoint.HardwareCheckpointError(
                f"{path}: {name} does not match what this run has trained and "
                "evaluated; delete the folder to export it again with --resume"
            )


def _deployed(
    config: Config,
    ready: Preparation,
    params: Params,
    seed: int,
    console: Console,
    stop: Stop,
) -> Params:
    """Returns the plain model's parameters as deployed on the configured chip.

    The weights lie on the same chip as those of the hardware-aware model. Plain
    training gives no input ranges; they are calibrated on the training data.
    """
    stop_if_asked(stop)
    size = config.evaluation.batch_size
    inputs = [batch.inputs for batch in batches(ready.train, size)]
    try:
        return ready.frontend.deployed(
            ready.factory, config.hardware, params, inputs, console
        )
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
    trained: list[Params],
    level: float,
    stop: Stop,
) -> Accuracies:
    values = []
    hardware = chip_hardware(config.hardware, level)
    for params in trained:
        stop_if_asked(stop)
        analog, variables = ready.frontend.on_chip(ready.factory, hardware, params)
        population = evaluate.population(
            analog,
            variables,
            list(batches(ready.test, config.evaluation.batch_size)),
            accuracy,
            chips=config.evaluation.chips,
            key=jax.random.key(config.evaluation.seed),
        )
        values.append(np.asarray(population.values, np.float64))
    found, mismatch = np.stack(values), config.hardware.mismatch
    if mismatch is not None and has_deviation(mismatch):
        return Accuracies(model=name, mismatch_std=level, values=found)
    text = ""
    if mismatch is not None:
        text = mismatch.describe() or f"{mismatch.type} as configured"
    return Accuracies(model=name, mismatch_std=None, values=found, mismatch=text)


def accuracy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the accuracy in % of each example: 100 if the largest logit is right.

    >>> import jax.numpy as jnp
    >>> accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])).tolist()
    [100.0, 0.0]

    Args:
      outputs: `[B, classes]` logits.
      labels: `[B]` integers.

    Returns:
      `[B]`.
    """
    return 100.0 * (outputs.argmax(axis=-1) == labels)


def batches(data: Split, size: int) -> Iterator[Split]:
    """Yields the examples in order, `size` at a time; the last batch may be smaller."""
    for start in range(0, len(data.labels), size):
        yield Split(*(array[start : start + size] for array in data))


def _write_results(config: Config, results: list[Accuracies], out: Path) -> None:
    data = {
        "metric": "accuracy in %",
        "mode": _MODE,
        "seeds": list(config.training.seeds),
        "chips": config.evaluation.chips,
        "versions": {
            "hwtrain": __version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
        },
        **report.as_data(results),
    }
    write_json(out / "results.json", data, RESUME)
    title = report.headline(results, mode=_MODE)
    report.plot(results, out / "results.png", title=title)


def _show_results(
    config: Config, results: list[Accuracies], out: Path, console: Console
) -> None:
    chip = config.export.chip_seed
    _say(console, f"\n{report.headline(results, mode=_MODE)}")
    console.print(report.table(results))
    first = out / "export" / f"seed_{config.training.seeds[0]}"
    known = isinstance(config.hardware.modifier, WeightModifierParameter)
    other = "hardware.modifier.std_dev=0.4" if known else "training.steps=4000"
    _say(
        console,
        f"""
Everything lies in {out}:
  results.json, results.png   the table above, every single value, and its plot
  export/seed_*               hardware-ready checkpoints: conductances in µS, scales,
                              input ranges, chip {chip} with {_drawn(config.hardware)}
  {PLAIN}/seed_*, {HARDWARE_AWARE}/seed_*
                              Orbax checkpoints of the training
  config.json                 the configuration, every entry

What to do next:
  look at the exported chip:      hwtrain inspect {first}
  program a chip or a simulator:  hwtrain convert {first} --to npz
  try other settings:             add --set {other} --out DIR
  train a model of your own:      copy recipes/digits.py and its configuration""",
    )


def _drawn(hardware: Hardware) -> str:
    """Returns what is drawn once for each chip of a hardware, in words."""
    mismatch = hardware.mismatch is not None and hardware.mismatch.draws
    found = (
        (mismatch, "frozen mismatch"),
        (hardware.noise_model is not None, "programming noise"),
        (hardware.sticks, "stuck devices"),
    )
    return f"its {' and '.join(word for there, word in found if there)}"


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
