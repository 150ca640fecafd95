"""`hwtrain train`."""

import argparse
from pathlib import Path

from rich.console import Console

from hwtrain import training
from hwtrain.checkpoint import HardwareCheckpointError
from hwtrain.cli.errors import bad_input
from hwtrain.cli.options import Commands
from hwtrain.training import folder
from hwtrain.training.checkpoints import DamagedCheckpointError


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "train",
        help="train a plain and a hardware-aware model, export, compare on chips",
        description="Trains the plain and the hardware-aware model of a configuration, "
        "exports the hardware-ready checkpoint, reads it back, and compares both "
        "models on a population of chips.",
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a TOML file")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override an entry, the value as TOML writes it; may be repeated",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the run's folder (default: runs/NAME, after the configuration's name)",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="continue the run that lies in the folder"
    )
    existing.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the run that lies in the folder",
    )
    parser.set_defaults(command=_train)


def _train(options: argparse.Namespace) -> int:
    console = Console()
    out = options.out or Path("runs") / options.config.stem
    keep = {"resume": options.resume, "overwrite": options.overwrite}
    source = options.config.parent
    with bad_input():
        config = training.read_config(options.config, options.overrides)
        continued = folder.open_folder(out, config, **keep)
        prepare, run = training.job_of(config)
        ready = prepare(config, source)
        if not continued:
            folder.make_folder(out, config, source)
    verb = "Continuing in" if continued else "Writing to"
    console.print(f"{verb} {out}", soft_wrap=True, highlight=False)
    # Not every ValueError: one out of a training run would be a defect, to be traced.
    with bad_input(HardwareCheckpointError, DamagedCheckpointError, OSError):
        run(config, ready, out, console=console)
    return 0
