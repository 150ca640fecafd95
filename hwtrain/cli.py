"""The command `hwtrain`."""

import argparse
import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hwtrain.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Bad input is one line on stderr and status 2.

    Args:
      arguments: the command line without the program's name; `sys.argv` by default.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that has no ± shows a ?, instead of ending a run of hours there.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    try:
        return options.command(options)
    except KeyboardInterrupt:
        flags = ("--overwrite", "--resume")
        again = shlex.join(["hwtrain", *(w for w in words if w not in flags)])
        _print_error(
            f"interrupted; to continue from the last checkpoint: {again} --resume"
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hwtrain", description="Hardware-aware training for analog chips."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a plain and a hardware-aware model, export, compare on chips",
        description="Trains the plain and the hardware-aware model of a configuration, "
        "exports the hardware-ready checkpoint, reads it back, and compares both "
        "models on a population of chips.",
    )
    train.add_argument("config", metavar="CONFIG", type=Path, help="a TOML file")
    train.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override an entry, the value as TOML writes it; may be repeated",
    )
    train.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the run's folder (default: runs/NAME, after the configuration's name)",
    )
    existing = train.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="continue the run that lies in the folder"
    )
    existing.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the run that lies in the folder",
    )
    train.set_defaults(command=_train)
    return parser


def _train(options: argparse.Namespace) -> int:
    # Here, because importing JAX takes seconds that --help does not need.
    from rich.console import Console

    from hwtrain.checkpoint import HardwareCheckpointError
    from hwtrain.training import compare, folder, prepare, read_config
    from hwtrain.training.checkpoints import DamagedCheckpointError

    console = Console()
    out = options.out or Path("runs") / options.config.stem
    keep = {"resume": options.resume, "overwrite": options.overwrite}
    try:
        config = read_config(options.config, options.overrides)
        continued = folder.open_folder(out, config, **keep)
        ready = prepare(config, options.config.parent)
        if not continued:
            folder.make_folder(out, config)
    except (ValueError, OSError) as error:
        return _bad_input(error)
    verb = "Continuing in" if continued else "Writing to"
    console.print(f"{verb} {out}", soft_wrap=True, highlight=False)
    try:
        compare(config, ready, out, console=console)
    except (HardwareCheckpointError, DamagedCheckpointError, OSError) as error:
        return _bad_input(error)
    return 0


def _bad_input(error: Exception) -> int:
    _print_error(f"error: {' '.join(str(error).split())}")
    return 2


def _print_error(text: str) -> None:
    print(f"hwtrain: {text}", file=sys.stderr)
