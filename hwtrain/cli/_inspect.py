"""`hwtrain inspect`."""

import argparse
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

import hwtrain._plan.hardware  # noqa: F401 knows the stages
from hwtrain._errors import InputError
from hwtrain._flax.calls import first_call
from hwtrain._flax.inspection import inspect_plan
from hwtrain._flax.signal_side import stages_of
from hwtrain._parts.registry import named, order
from hwtrain._parts.slot import home
from hwtrain.checkpoint._entries import ChipEntry
from hwtrain.checkpoint._manifest import Manifest
from hwtrain.cli._errors import bad_input, print_error
from hwtrain.cli._histograms import histograms_of
from hwtrain.cli._options import Model, check_file, known_parts, open_model, run_of
from hwtrain.evaluate import _plots as plots
from hwtrain.evaluate import assert_active
from hwtrain.evaluate._histograms import Histogram
from hwtrain.train._cost import costs
from hwtrain.train._folder import write_json
from hwtrain.train._hardware import technology
from hwtrain.train._run import Run

_BARS = 25


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console = Console()
    with bad_input():
        if options.stages:
            console.print(_stages(options), highlight=False)
            return 0
        if options.model is None:
            raise InputError(
                "inspect: expected the folder of a run, or a hardware-ready "
                "checkpoint; --stages alone needs none"
            )
        if options.png is not None:
            plots.require_matplotlib()
            check_file(options.png)
        _check_needed(options)
        model = open_model(options)
        if options.cost:
            _show_cost(model, run_of(model, options), options, console)
            return 0
        run = run_of(model, options) if options.active else None
        histograms = histograms_of(model, options.chip, bins=_BARS)
        if options.png is not None and not histograms:
            raise InputError(
                f"--png {options.png}: no weight of {model.title} has conductances; "
                "its hardware has no converter"
            )
        console.print(model.title, soft_wrap=True, highlight=False, markup=False)
        if model.checkpoint is not None:
            console.print(_about(model.checkpoint.manifest))
        for table in inspect_plan(model.plan, model.variables["params"]).tables():
            console.print(table, highlight=False)
        if histograms:
            console.print(_table(histograms, options.chip))
        if options.png is not None:
            title = f"{model.title}: {_what(options.chip)}"
            plots.plot_histograms(histograms, options.png, title=title)
            console.print(f"{options.png} written", soft_wrap=True, highlight=False)
    return 0 if run is None else _prove(run, model, console)


def _check_needed(options: argparse.Namespace) -> None:
    """Raises for options that do nothing without another one, or beside one."""
    needs = {
        "run": ("active", "cost"),
        "technology": ("cost",),
        "json": ("cost",),
    }
    for name, others in needs.items():
        given = getattr(options, name) is not None
        if given and not any(getattr(options, other) for other in others):
            flags = " and ".join(f"--{other}" for other in others)
            one = f"--{others[0]}"
            raise InputError(
                f"--{name} is only for {flags}; give {one} too, or leave --{name} out"
            )
    idle = {
        "active": options.active,
        "chip": options.chip is not None,
        "png": options.png is not None,
    }
    for name, given in idle.items():
        if options.cost and given:
            raise InputError(
                f"--cost shows only costs, and --{name} does nothing beside it; leave "
                "one of the two out"
            )


def _show_cost(
    model: Model, run: Run, options: argparse.Namespace, console: Console
) -> None:
    """Prints energy, latency and area, and writes them to a file."""
    constants = run.config.cost
    if options.technology is not None:
        constants = technology(options.technology, "--technology", Path())
    if constants is None:
        raise InputError(
            f"{run.folder}: its configuration has no table [cost]; name constants, "
            "such as --technology hermes_core"
        )
    if options.json is not None:
        check_file(options.json)
    found = costs(run.config, run.ready, constants)
    console.print(model.title, soft_wrap=True, highlight=False, markup=False)
    for part in found.tables():
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))
    if options.json is not None:
        write_json(options.json, found.as_data())
        console.print(f"{options.json} written", soft_wrap=True, highlight=False)


def _stages(options: argparse.Namespace) -> Table:
    """Returns a table of the stages, outermost first, and of their owners."""
    title = "Stages around a tile, from the outermost to the innermost"
    table = Table("stage", "what it does", title=title, title_justify="left")
    used: Counter[str] = Counter()
    if options.model is None:
        known_parts(options, None)
    else:
        table.add_column("around")
        weights = [w for w in open_model(options).plan.weights if w.kind != "raw"]
        used.update(stage.type for w in weights for stage in stages_of(w))
    for name in order("stage"):
        part = named("stage", name)
        does = (part.__doc__ or "").strip().partition("\n")[0]
        whose = f"({home(part)})" if home(part) else ""
        row = [name, " ".join(filter(None, (does, whose)))]
        if options.model is not None:
            row.append(f"{used[name]} weights" if used[name] else "none")
        table.add_row(*row)
    return table


def _prove(run: Run, model: Model, console: Console) -> int:
    """Prints the measured effects; returns 1 if one of them has no effect."""
    batch = next(iter(run.ready.data.evaluation()))
    args, kwargs = first_call(run.ready.task.on_chip, batch)
    try:
        found = assert_active(run.on_chips(), model.variables, *args, **kwargs)
    except ValueError as error:
        print_error(str(error))
        return 1
    title = "Effects that are on, as measured"
    table = Table("where", "effect", "measured", title=title, title_justify="left")
    for row in found.rows:
        table.add_row(*row)
    console.print(table, highlight=False)
    return 0


def _what(chip: int | None) -> str:
    return "target conductances" if chip is None else f"conductances of chip {chip}"


def _about(manifest: Manifest) -> Table:
    table = Table(title="Checkpoint", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    versions = ", ".join(f"{name} {v}" for name, v in manifest.libraries.items())
    table.add_row("format", f"{manifest.format} {manifest.version}")
    table.add_row("written by", versions)
    table.add_row("chips", ", ".join(map(_chip, manifest.chips)) or "none")
    for found in manifest.accuracy:
        spread = "" if found.std is None else f" ± {found.std:.2f}"
        given = ", ".join(f"{name} {value}" for name, value in found.conditions.items())
        table.add_row(
            found.metric,
            f"{found.mean:.2f}{spread} on {found.chips} chips, {found.mode}"
            f"{f', {given}' if given else ''}",
        )
    table.add_row("SHA-256", manifest.sha256 or "")
    return table


def _chip(chip: ChipEntry) -> str:
    return f"{chip.seed} (measured)" if chip.measured else str(chip.seed)


def _table(histograms: dict[str, Histogram], chip: int | None) -> Table:
    ends = sorted({tuple(h.edges[[0, -1]].tolist()) for h in histograms.values()})
    whole = f"{ends[0][0]:g} to {ends[0][1]:g} µS" if len(ends) == 1 else ""
    title = f"{_what(chip).capitalize()}, in µS; bars are logarithmic"
    table = Table(title=title, title_justify="left")
    table.add_column("weight", overflow="fold")
    for name in ("devices", "least", "mean", "most"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(whole or "least to most", no_wrap=True)
    for path, found in histograms.items():
        numbers = (found.lowest, found.mean, found.highest)
        table.add_row(
            path,
            f"{found.counts.sum():,}",
            *(f"{number:.2f}" for number in numbers),
            Text(found.text()),
        )
    return table
