"""Evaluates the options that several commands share."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from hwtrain._errors import InputError
from hwtrain._parts.fields import MOST_CHIPS
from hwtrain._parts.source import load_parts, load_plugins
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint import Graph, HardwareCheckpoint, load
from hwtrain.cli._errors import print_error
from hwtrain.train._folder import changed_parts, import_parts_of, is_run
from hwtrain.train._preparation import variables_of, with_effective
from hwtrain.train._run import Run, open_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model that a command works on.

    Attributes:
      title: a description for headlines.
      plan: its plan.
      variables: its nominal variables.
      graph: the connections of its layers; `None` if unknown.
      run: the run that it belongs to; `None` for a checkpoint alone.
      checkpoint: the hardware-ready checkpoint that it was read from, if any.
    """

    title: str
    plan: Plan
    variables: dict[str, Any]
    graph: Graph | None = None
    run: Run | None = None
    checkpoint: HardwareCheckpoint | None = None


def open_model(options: argparse.Namespace) -> Model:
    """Returns the model that a command line names.

    Raises:
      ValueError: if there is no such model.
    """
    path: Path = options.model
    known_parts(options, path)
    if not path.is_dir():
        raise InputError(
            f"{path}: expected the folder of a run or a hardware-ready checkpoint, got "
            f"{'a file' if path.exists() else 'no such folder'}"
        )
    if not is_run(path):
        if options.seed is not None:
            raise InputError(
                f"--seed {options.seed} does nothing with the checkpoint {path}, which "
                "holds one model; leave it out, or give the folder of a run"
            )
        checkpoint = load(path)
        return Model(
            title=str(path),
            plan=checkpoint.plan,
            variables=checkpoint.variables,
            graph=checkpoint.manifest.graph,
            checkpoint=checkpoint,
        )
    run = open_run(path)
    seed = run.config.training.seeds[0] if options.seed is None else options.seed
    state = run.trained(seed)
    variables, plan = with_effective(
        run.ready, run.config.assigned, variables_of(run.ready, state)
    )
    return Model(
        title=f"{path}, hardware-aware, training seed {seed}, step {int(state.step)}",
        plan=plan,
        variables=variables,
        graph=run.ready.graph,
        run=run,
    )


def known_parts(options: argparse.Namespace, path: Path | None) -> None:
    """Imports users' parts that a model may need.

    These are the parts named on the command line, those of installed packages, and
    those of a run or of the run that contains a checkpoint.

    Args:
      options: the command line.
      path: the model; `None` if there is none.
    """
    load_plugins()
    try:
        load_parts(options.parts)
    except ValueError as error:
        raise InputError(f"--parts {error}") from error
    places = [getattr(options, "run", None)]
    if path is not None:
        places += [path, *path.resolve().parents]
    for folder in filter(None, places):
        if is_run(folder):
            import_parts_of(folder)
            for part in changed_parts(folder):
                print_error(f"note: {part} changed since {folder} was started")
            return


def run_of(model: Model, options: argparse.Namespace) -> Run:
    """Returns the run whose code and data a model needs.

    Raises:
      ValueError: if a checkpoint lies in no run and none is given, or if the run
        belongs to another model.
    """
    if model.run is not None:
        if options.run is not None:
            raise InputError(
                f"--run {options.run} does nothing with the run {options.model}; leave "
                "it out, or give a checkpoint"
            )
        return model.run
    path: Path = options.model
    candidates = [options.run] if options.run else path.resolve().parents
    folder = next((folder for folder in candidates if is_run(folder)), None)
    if folder is None:
        raise InputError(
            f"{path}: a checkpoint holds no model code and no data; name the run it "
            "belongs to: --run RUN"
        )
    run = open_run(folder)
    if run.ready.plan.effective != model.plan:
        raise InputError(
            f"{path} has another model or hardware than the run {folder}; name its own "
            "run with --run RUN"
        )
    return run


def run_itself(model: Model, options: argparse.Namespace, why: str) -> Run:
    """Returns the run that a command line names; a checkpoint in one is not enough.

    Args:
      model: the model, from `open_model`.
      options: the command line.
      why: what the command needs, for the message.

    Raises:
      ValueError: for a checkpoint.
    """
    if model.run is None:
        raise InputError(
            f"{options.model}: {why}, and got a checkpoint; give the folder of its run"
        )
    return model.run


def chip_seeds(options: argparse.Namespace) -> list[int] | None:
    """Returns the seeds of the chips given on the command line; `None` if none are.

    Raises:
      ValueError: if the number of chips is below one or too large.
    """
    if options.chips is None:
        return options.chip
    if not 1 <= options.chips <= MOST_CHIPS:
        bound = "least 1" if options.chips < 1 else f"most {MOST_CHIPS}"
        raise InputError(f"--chips: expected at {bound}, got {options.chips}")
    return list(range(options.chips))


def check_file(path: Path) -> None:
    """Raises a `ValueError` if a file clearly cannot be written to a path."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(
            f"{path}: expected a file in a folder that exists, got "
            f"{'a folder' if path.is_dir() else f'no folder {path.parent}'}"
        )
