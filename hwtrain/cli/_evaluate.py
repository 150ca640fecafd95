"""`hwtrain evaluate`."""

import argparse
from functools import partial
from typing import Any

from rich.console import Console

from hwtrain._plan.tables import count, time_name
from hwtrain.cli._errors import bad_input
from hwtrain.cli._options import check_file, chip_seeds, open_model, run_of
from hwtrain.evaluate import Population, Sensitivity, Study
from hwtrain.evaluate import _plots as plots
from hwtrain.evaluate._study_plot import plot_study
from hwtrain.train._folder import write_json
from hwtrain.train._variants import Varied, parse_varied

_MODE = "chip_mode"


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console, times = Console(), options.times
    with bad_input():
        varied = parse_varied(options.vary, "--vary")
        _check(options, varied)
        seeds = chip_seeds(options)
        model = open_model(options)
        run = run_of(model, options)
        chips = range(run.config.evaluation.chips) if seeds is None else seeds
        metric, form = run.metric.title, ".2f" if run.metric.unit == "%" else ".4g"
        with console.status("evaluating on chips"):
            if options.sensitivity:
                t_s = None if times is None else times[0]
                found = run.sensitivity(model.variables, chips=chips, t_s=t_s)
            elif varied:
                found = run.study(
                    model.variables,
                    varied,
                    chips=chips,
                    times_s=times,
                    until=options.until,
                )
            else:
                found = run.population(
                    model.variables, chips=chips, times_s=times, until=options.until
                )
        title = f"{model.title}: {metric} on {_chips(found)} ({_MODE})"
        about = {"required": options.required, "better": run.metric.better}
        if isinstance(found, Sensitivity):
            when = "" if found.t_s is None else f", {time_name(found.t_s)} old"
            title = f"{model.title}: {metric} by layer on {_chips(found)}"
            title, about = f"{title} ({_MODE}{when})", {}
            draw = partial(plots.plot_sensitivity, found)
        elif isinstance(found, Study):
            draw = partial(plot_study, found.points, required=options.required)
        else:
            draw = partial(plots.plot_over_time, found)
        console.print(title, soft_wrap=True, highlight=False, markup=False)
        console.print(found.table(form, **about))
        if options.json is not None:
            write_json(options.json, {"model": model.title, **_data(found, metric)})
        if options.png is not None:
            draw(options.png, metric=metric, title=title)
        for file in filter(None, (options.json, options.png)):
            console.print(f"{file} written", soft_wrap=True, highlight=False)
    return 0


def _check(options: argparse.Namespace, varied: Varied) -> None:
    """Raises a `ValueError` for options that do not go together."""
    for file in filter(None, (options.json, options.png)):
        check_file(file)
    if options.png is not None:
        plots.require_matplotlib()
        if options.times is None and not options.sensitivity and not varied:
            raise ValueError(
                "--png draws accuracy over time, over --vary or by layer; give "
                "--times, --vary or --sensitivity too"
            )
    if not options.sensitivity:
        return
    if options.times is not None and len(options.times) > 1:
        raise ValueError(
            f"--sensitivity takes one of --times, got {len(options.times)}"
        )
    for name in ("vary", "required", "until"):
        if getattr(options, name) not in (None, []):
            raise ValueError(f"--sensitivity does not take --{name}; leave one out")


def _chips(found: Population | Sensitivity | Study) -> str:
    """Returns the number of chips in words."""
    if not isinstance(found, Study):
        return count(len(found.seeds), "chip")
    numbers = [len(population.seeds) for _, population in found.populations]
    several = len(set(numbers)) > 1
    return (
        f"{min(numbers)} to {count(max(numbers), 'chip')}"
        if several
        else count(numbers[0], "chip")
    )


def _data(found: Population | Sensitivity | Study, metric: str) -> dict[str, Any]:
    about: dict[str, Any] = {"metric": metric, "mode": _MODE}
    if isinstance(found, Study):
        points = [
            {
                "conditions": conditions,
                "chips": list(population.seeds),
                "values": population.values.round(4).tolist(),
            }
            for conditions, population in found.points
        ]
        return {**about, "points": points}
    about["chips"] = list(found.seeds)
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
