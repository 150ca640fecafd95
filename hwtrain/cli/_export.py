"""`hwtrain export`."""

import argparse

from rich.console import Console

from hwtrain import checkpoint
from hwtrain.checkpoint import _destination as destination
from hwtrain.cli._errors import bad_input
from hwtrain.cli._options import chip_seeds, open_model


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console = Console()
    with bad_input():
        seeds = chip_seeds(options) or []
        destination.check_free(options.out)
        model = open_model(options)
        with checkpoint.show_progress(console) as report:
            checkpoint.export(
                options.out,
                model.variables,
                model.plan,
                chip_seeds=seeds,
                graph=model.graph,
                report=report,
            )
    weights, chips = len(model.plan), len(seeds)
    console.print(
        f"{model.title}\nwritten to {options.out}: {weights} analog weights, nominal"
        f"{f' and on {chips} chips' if chips else ''}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    return 0
