"""`hwtrain evaluate`."""

import argparse
import math
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from hwtrain._errors import InputError
from hwtrain._plan.tables import count, time_name
from hwtrain.cli._errors import bad_input
from hwtrain.cli._options import Model, check_file, chip_seeds, open_model, run_of
from hwtrain.evaluate import Population, Sensitivity, Study
from hwtrain.evaluate import _plots as plots
from hwtrain.evaluate._study_plot import plot_study
from hwtrain.train._folder import write_json
from hwtrain.train._run import Run
from hwtrain.train._task import Metric
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
        variables, about = model.variables, model.title
        if options.plain:
            variables, about = _plain(run, model, options)
        metric = _metric(run, options)
        chips = range(run.config.evaluation.chips) if seeds is None else seeds
        name, form = metric.title, ".2f" if metric.unit == "%" else ".4g"
        with console.status("evaluating on chips"):
            if options.sensitivity:
                t_s = None if times is None else times[0]
                found = run.sensitivity(variables, chips=chips, t_s=t_s, metric=metric)
            elif varied:
                found = run.study(
                    variables,
                    varied,
                    chips=chips,
                    times_s=times,
                    metric=metric,
                    until=options.until,
                )
            else:
                found = run.population(
                    variables,
                    chips=chips,
                    times_s=times,
                    metric=metric,
                    until=options.until,
                )
        title = f"{about}: {name} on {_chips(found)} ({_MODE})"
        shown = {"required": options.required, "better": metric.better}
        if isinstance(found, Sensitivity):
            when = "" if found.t_s is None else f", {time_name(found.t_s)} old"
            title = f"{about}: {name} by layer on {_chips(found)}"
            title, shown = f"{title} ({_MODE}{when})", {}
            draw = partial(plots.plot_sensitivity, found)
        elif isinstance(found, Study):
            draw = partial(plot_study, found.points, required=options.required)
        else:
            draw = partial(plots.plot_over_time, found)
        console.print(title, soft_wrap=True, highlight=False, markup=False)
        console.print(found.table(form, **shown))
        if options.json is not None:
            write_json(options.json, {"model": about, **_data(found, name)})
        if options.png is not None:
            draw(options.png, metric=name, title=title)
        for file in filter(None, (options.json, options.png)):
            console.print(f"{file} written", soft_wrap=True, highlight=False)
    return 0


def _plain(
    run: Run, model: Model, options: argparse.Namespace
) -> tuple[dict[str, Any], str]:
    """Returns the variables of the plain model of a run, and its description."""
    if model.run is None:
        raise InputError(
            f"--plain is for the folder of a run, which has a plain model; got the "
            f"checkpoint {options.model}"
        )
    seeds = run.config.training.seeds
    seed = seeds[0] if options.seed is None else options.seed
    variables, step = run.plain_on_chips(seed)
    return variables, f"{options.model}, plain, training seed {seed}, step {step}"


def _metric(run: Run, options: argparse.Namespace) -> Metric:
    """Returns the metric that is asked for, or the main one."""
    metrics = {metric.name: metric for metric in run.ready.task.metrics}
    if options.metric is None:
        return run.metric
    if options.metric not in metrics:
        raise InputError(
            f"--metric: expected one of {', '.join(metrics)}, got {options.metric}"
        )
    return metrics[options.metric]


def _check(options: argparse.Namespace, varied: Varied) -> None:
    """Raises a `ValueError` for options that do not go together."""
    for file in filter(None, (options.json, options.png)):
        check_file(file)
    if options.png is not None:
        plots.require_matplotlib()
        if options.times is None and not options.sensitivity and not varied:
            raise InputError(
                "--png draws accuracy over time, over --vary or by layer; give "
                "--times, --vary or --sensitivity too"
            )
    if options.required is not None and not math.isfinite(options.required):
        raise InputError(f"--required: expected a number, got {options.required:g}")
    if not options.sensitivity:
        return
    if options.times is not None and len(options.times) > 1:
        raise InputError(
            f"--sensitivity takes one of --times, got {len(options.times)}"
        )
    for name in ("vary", "required", "until"):
        if getattr(options, name) not in (None, []):
            raise InputError(f"--sensitivity does not take --{name}; leave one out")


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
                "values": _numbers(population.values),
            }
            for conditions, population in found.points
        ]
        return {**about, "points": points}
    about["chips"] = list(found.seeds)
    if isinstance(found, Population):
        values = _numbers(found.values)
        return {**about, "times_s": found.times_s, "values": values}
    layers = {
        name: {"alone": _numbers(alone), "others": _numbers(others)}
        for name, alone, others in zip(found.layers, found.alone, found.others)
    }
    return {
        **about,
        "t_s": found.t_s,
        "all": _numbers(found.whole),
        "none": _numbers(found.nominal),
        "layers": layers,
    }


def _numbers(values: np.ndarray) -> Any:
    """Returns numbers for JSON, to six digits."""
    return np.vectorize(lambda x: float(f"{x:.6g}"))(values).tolist()
