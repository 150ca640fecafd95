"""`hwtrain calibrate`."""

import argparse
import itertools
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hwtrain import checkpoint
from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._flax.calibration import calibrate
from hwtrain._parts.fields import MOST_COUNTED
from hwtrain.checkpoint import _destination as destination
from hwtrain.cli._errors import bad_input
from hwtrain.cli._options import Model, chip_seeds, open_model, run_of
from hwtrain.periphery.input_range import RANGE


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console = Console()
    with bad_input():
        destination.check_free(options.out)
        if options.batches is not None and not 1 <= options.batches <= MOST_COUNTED:
            bound = "least 1" if options.batches < 1 else f"most {MOST_COUNTED}"
            raise InputError(f"--batches: expected at {bound}, got {options.batches}")
        seeds = chip_seeds(options) or []
        model = open_model(options)
        run = run_of(model, options)
        variables = calibrate(
            run.on_chips(),
            model.variables,
            itertools.islice(run.ready.data.calibration(), options.batches),
            method=options.method,
            forward=run.ready.task.on_chip,
        )
        checkpoint.export(
            options.out, variables, model.plan, chip_seeds=seeds, graph=model.graph
        )
    console.print(_table(model, variables["params"]))
    console.print(f"{options.out} written", soft_wrap=True, highlight=False)
    return 0


def _table(model: Model, params: Any) -> Table:
    table = Table("weight", title="Input ranges, largest tile", title_justify="left")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    before, after = paths.leaves(model.variables["params"]), paths.leaves(params)
    for weight in model.plan.weights:
        path = weight.leaf(RANGE)
        if path in after:
            values = (np.max(leaves[path]) for leaves in (before, after))
            table.add_row(weight.path, *(f"{value:.4g}" for value in values))
    return table
