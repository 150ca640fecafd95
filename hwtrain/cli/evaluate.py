"""`hwtrain evaluate`."""

import argparse
from functools import partial

import numpy as np
from rich.console import Console
from rich.table import Table

from hwtrain.cli.errors import bad_input
from hwtrain.cli.options import check_file, chip_seeds, open_model, run_of
from hwtrain.evaluate import Population, Sensitivity, plots
from hwtrain.training.folder import write_json

_METRIC = "accuracy in %"
_MODE = "chip_mode"


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console, times = Console(), options.times
    with bad_input():
        for file in filter(None, (options.json, options.png)):
            check_file(file)
        if options.png is not None:
            plots.require_matplotlib()
            if times is None and not options.sensitivity:
                raise ValueError(
                    "--png draws accuracy over time or by layer; give --times or "
                    "--sensitivity too"
                )
        if options.sensitivity and times is not None and len(times) > 1:
            raise ValueError(f"--sensitivity takes one of --times, got {len(times)}")
        seeds = chip_seeds(options)
        model = open_model(options)
        run = run_of(model, options)
        chips = range(run.config.evaluation.chips) if seeds is None else seeds
        params = model.variables["params"]
        with console.status("evaluating on chips"):
            if options.sensitivity:
                t_s = None if times is None else times[0]
                found = run.sensitivity(params, chips=chips, t_s=t_s)
            else:
                found = run.population(params, chips=chips, times_s=times)
        count = len(found.seeds)
        chips = "1 chip" if count == 1 else f"{count} chips"
        title = f"{model.title}: {_METRIC} on {chips} ({_MODE})"
        if isinstance(found, Sensitivity):
            when = "" if found.t_s is None else f", {plots.time_name(found.t_s)} old"
            title = f"{model.title}: {_METRIC} by layer on {chips} ({_MODE}{when})"
            table, draw = _by_layer(found), partial(plots.plot_sensitivity, found)
        else:
            table, draw = _table(found), partial(plots.plot_over_time, found)
        console.print(title, soft_wrap=True, highlight=False, markup=False)
        console.print(table)
        if options.json is not None:
            write_json(options.json, {"model": model.title, **_data(found)})
        if options.png is not None:
            draw(options.png, metric=_METRIC, title=title)
        for file in filter(None, (options.json, options.png)):
            console.print(f"{file} written", soft_wrap=True, highlight=False)
    return 0


def _by_layer(found: Sensitivity) -> Table:
    table = Table(
        caption=f"no layer: {_cell(found.nominal)}; all: {_cell(found.whole)}",
        caption_justify="left",
    )
    table.add_column("on the chip")
    for name in ("this alone", "all but this"):
        table.add_column(name, justify="right")
    for name, alone, others in zip(found.layers, found.alone, found.others):
        table.add_row(name, _cell(alone), _cell(others))
    return table


def _cell(values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"


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


def _data(found: Population | Sensitivity) -> dict:
    about = {"metric": _METRIC, "mode": _MODE, "chips": list(found.seeds)}
    if isinstance(found, Population):
        values = found.values.round(4).tolist()
        return {**about, "times_s": found.times_s, "values": values}
    layers = {
        name: {"alone": alone.round(4).tolist(), "others": others.round(4).tolist()}
        for name, alone, others in zip(found.layers, found.alone, found.others)
    }
    return {
        **about,
        "t_s": found.t_s,
        "all": found.whole.round(4).tolist(),
        "none": found.nominal.round(4).tolist(),
        "layers": layers,
    }
