"""`hwtrain evaluate`."""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hwtrain.cli.errors import bad_input
from hwtrain.cli.options import (
    Commands,
    add_chips,
    add_model,
    add_run,
    check_file,
    chip_seeds,
    open_model,
    run_of,
)
from hwtrain.evaluate import Population, plots
from hwtrain.training.folder import write_json

_METRIC = "accuracy in %"


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "evaluate",
        help="accuracy of a model on a population of chips, over time",
        description="Evaluates a run's hardware-aware model or a hardware-ready "
        "checkpoint on the run's test set, on chips with their own frozen mismatch.",
    )
    add_model(parser)
    add_run(parser)
    add_chips(parser, what="evaluate on")
    parser.add_argument(
        "--times",
        type=float,
        nargs="+",
        metavar="SECONDS",
        help="times since programming, for hardware with a noise model",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every value to this file"
    )
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help="draw accuracy over time to this file"
    )
    parser.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    console = Console()
    with bad_input():
        for file in filter(None, (options.json, options.png)):
            check_file(file)
        if options.png is not None:
            plots.require_matplotlib()
            if options.times is None:
                raise ValueError("--png draws accuracy over time; give --times too")
        seeds = chip_seeds(options)
        model = open_model(options)
        run = run_of(model, options)
        chips = range(run.config.evaluation.chips) if seeds is None else seeds
        with console.status("evaluating on chips"):
            found = run.population(
                model.variables["params"], chips=chips, times_s=options.times
            )
        count = len(found.seeds)
        chips = "1 chip" if count == 1 else f"{count} chips"
        title = f"{model.title}: {_METRIC} on {chips} ({found.mode})"
        console.print(title, soft_wrap=True, highlight=False, markup=False)
        console.print(_table(found))
        if options.json is not None:
            write_json(options.json, {"model": model.title, **_data(found)})
        if options.png is not None:
            plots.plot_over_time(found, options.png, metric=_METRIC, title=title)
        for file in filter(None, (options.json, options.png)):
            console.print(f"{file} written", soft_wrap=True, highlight=False)
    return 0


def _table(found: Population) -> Table:
    table = Table()
    if found.times_s is not None:
        table.add_column("time", justify="right")
    for name in ("mean", "std", "95 % interval of the mean", "worst", "best"):
        table.add_column(name, justify="right")
    by_time = found.values.reshape(len(found.seeds), -1).T
    low, high = (np.ravel(bound) for bound in found.interval)
    stds = np.ravel(found.std)
    for number, values in enumerate(by_time):
        time = [plots.time_name(found.times_s[number])] if found.times_s else []
        one = len(values) < 2
        table.add_row(
            *time,
            f"{values.mean():.2f}",
            "" if one else f"{stds[number]:.2f}",
            "" if one else f"{low[number]:.2f} to {high[number]:.2f}",
            f"{values.min():.2f}",
            f"{values.max():.2f}",
        )
    return table


def _data(found: Population) -> dict:
    return {
        "metric": _METRIC,
        "mode": found.mode,
        "chips": list(found.seeds),
        "times_s": found.times_s,
        "values": found.values.round(4).tolist(),
    }
