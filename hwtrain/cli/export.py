"""`hwtrain export`."""

import argparse
from pathlib import Path

from rich.console import Console

from hwtrain import checkpoint
from hwtrain.checkpoint import destination
from hwtrain.cli.errors import bad_input
from hwtrain.cli.options import Commands, add_chips, add_model, chip_seeds, open_model


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "export",
        help="write the hardware-ready checkpoint of a run",
        description="Writes the hardware-ready checkpoint of a run's newest "
        "hardware-aware model, or a checkpoint's model again, with other chips.",
    )
    add_model(parser)
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the new directory; must not exist"
    )
    add_chips(parser, what="draw and store")
    parser.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
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
