"""`hwtrain train`."""

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from hwtrain import train
from hwtrain.checkpoint import HardwareCheckpointError
from hwtrain.cli._errors import BadInputError, bad_input
from hwtrain.train import _folder as folder
from hwtrain.train._checkpoints import DamagedCheckpointError
from hwtrain.train._comparison import stop_if_asked
from hwtrain.train._divergence import DivergedError
from hwtrain.train._entries import EntryError
from hwtrain.train._reading import located


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console = Console()
    out = options.out or Path("runs") / options.config.stem
    keep = {"resume": options.resume, "overwrite": options.overwrite}
    source = options.config.parent
    stop_if_asked(options.stop)
    with bad_input():
        config = train.read_config(options.config, options.overrides)
        continued = folder.open_folder(out, config, source, **keep)
        prepare, run = train.job_of(config)
        try:
            ready = prepare(config, source, out if continued else None)
        except EntryError as error:
            raise located(error, options.config, options.overrides) from error
        stop_if_asked(options.stop)
        if not continued:
            if out.is_dir():
                with folder.alone_in(out):
                    pass  # nobody's run is deleted
            folder.make_folder(out, config, source)
    with contextlib.ExitStack() as stack:
        with bad_input():
            stack.enter_context(folder.alone_in(out))
        return _run(options, config, ready, out, run, continued, console)


def _run(
    options: argparse.Namespace,
    config: Any,
    ready: Any,
    out: Path,
    run: Callable[..., Any],
    continued: bool,
    console: Console,
) -> int:
    """Runs the job in its folder, and returns the exit status."""
    verb = "Continuing in" if continued else "Writing to"
    console.print(f"{verb} {out}", soft_wrap=True, highlight=False)
    # Not every ValueError: any other one raised in training is a bug and should be
    # shown with its traceback.
    expected = (HardwareCheckpointError, DamagedCheckpointError, DivergedError, OSError)
    with bad_input(*expected):
        try:
            run(config, ready, out, console=console, stop=options.stop)
        except EntryError as error:
            place = located(error, options.config, options.overrides)
            raise BadInputError(str(place)) from error
    return 0
