"""`hwtrain evaluate`."""

import argparse
from functools import partial

from rich.console import Console

from hwtrain._plan.tables import count, time_name
from hwtrain.cli._errors import bad_input
from hwtrain.cli._options import check_file, chip_seeds, open_model, run_of
from hwtrain.evaluate import Population, Sensitivity
from hwtrain.evaluate import _plots as plots
from hwtrain.train._folder import write_json

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
        metric, form = run.metric.title, ".2f" if run.metric.unit == "%" else ".4g"
        with console.status("evaluating on chips"):
            if options.sensitivity:
                t_s = None if times is None else times[0]
                found = run.sensitivity(model.variables, chips=chips, t_s=t_s)
            else:
                found = run.population(model.variables, chips=chips, times_s=times)
        chips = count(len(found.seeds), "chip")
        title = f"{model.title}: {metric} on {chips} ({_MODE})"
        if isinstance(found, Sensitivity):
            when = "" if found.t_s is None else f", {time_name(found.t_s)} old"
            title = f"{model.title}: {metric} by layer on {chips} ({_MODE}{when})"
            draw = partial(plots.plot_sensitivity, found)
        else:
            draw = partial(plots.plot_over_time, found)
        console.print(title, soft_wrap=True, highlight=False, markup=False)
        console.print(found.table(form))
        if options.json is not None:
            write_json(options.json, {"model": model.title, **_data(found, metric)})
        if options.png is not None:
            draw(options.png, metric=metric, title=title)
        for file in filter(None, (options.json, options.png)):
            console.print(f"{file} written", soft_wrap=True, highlight=False)
    return 0


def _data(found: Population | Sensitivity, metric: str) -> dict:
    about = {"metric": metric, "mode": _MODE, "chips": list(found.seeds)}
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
