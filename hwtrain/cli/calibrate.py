"""`hwtrain calibrate`."""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hwtrain import checkpoint, paths
from hwtrain.checkpoint import destination
from hwtrain.cli.errors import bad_input
from hwtrain.cli.options import (
    Commands,
    Model,
    add_chips,
    add_model,
    add_run,
    chip_seeds,
    open_model,
    run_of,
)
from hwtrain.physics.calibration import METHODS
from hwtrain.training.comparison import batches
from hwtrain.transforms import calibrate


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "calibrate",
        help="set the input ranges of a model from data and write its checkpoint",
        description="Sets the input range of every tile from the run's training data, "
        "and writes the hardware-ready checkpoint. The run is not changed.",
    )
    add_model(parser)
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the new checkpoint; must not exist"
    )
    parser.add_argument("--method", choices=METHODS, default="max")
    parser.add_argument(
        "--batches", type=int, metavar="N", help="only the first N batches of the data"
    )
    add_run(parser)
    add_chips(parser, what="draw and store")
    parser.set_defaults(command=_calibrate)


def _calibrate(options: argparse.Namespace) -> int:
    console = Console()
    with bad_input():
        destination.check_free(options.out)
        if options.batches is not None and options.batches < 1:
            raise ValueError(f"--batches: expected at least 1, got {options.batches}")
        seeds = chip_seeds(options) or []
        model = open_model(options)
        run = run_of(model, options)
        analog, _ = run.on_chips(model.variables["params"])
        size = run.config.evaluation.batch_size
        inputs = (batch.inputs for batch in batches(run.ready.train, size))
        variables = calibrate(
            analog,
            model.variables,
            itertools.islice(inputs, options.batches),
            method=options.method,
        )
        checkpoint.export(options.out, variables, model.plan, chip_seeds=seeds)
    console.print(_table(model, variables["params"]))
    console.print(f"{options.out} written", soft_wrap=True, highlight=False)
    return 0


def _table(model: Model, params: Any) -> Table:
    table = Table("weight", title="Input ranges, largest tile", title_justify="left")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    before, after = paths.leaves(model.variables["params"]), paths.leaves(params)
    for weight in model.plan.weights:
        path = weight.leaf("input_range")
        if path in after:
            values = (np.max(leaves[path]) for leaves in (before, after))
            table.add_row(weight.path, *(f"{value:.4g}" for value in values))
    return table
