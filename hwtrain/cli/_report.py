"""`hwtrain report`."""

import argparse
from functools import partial

import tomli_w
from rich.console import Console

from hwtrain._flax.inspection import inspect_plan
from hwtrain._parts.fields import to_dict
from hwtrain._plan.tables import count
from hwtrain._version import __version__
from hwtrain.cli._errors import bad_input
from hwtrain.cli._histograms import histograms_of
from hwtrain.cli._options import Model, check_file, chip_seeds, open_model
from hwtrain.evaluate import _plots as plots
from hwtrain.evaluate._html import Section, write_page
from hwtrain.train import _report as results
from hwtrain.train._cost import costs
from hwtrain.train._log import LOG_FOLDER, read_log
from hwtrain.train._log_plot import CLIPPED, RANGE, plot_layers, plot_losses
from hwtrain.train._report import HARDWARE_AWARE, PLAIN
from hwtrain.train._run import Run

TIMES_S = (0.0, 3600.0, 86_400.0, 2_592_000.0, 31_536_000.0)
"""Just after programming, and after an hour, a day, a month and a year."""

_BINS = 50


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console = Console()
    with bad_input():
        plots.require_matplotlib()
        check_file(options.out)
        if options.out.exists():
            raise ValueError(
                f"{options.out}: there is already such a file; name another one"
            )
        seeds = chip_seeds(options)
        model = open_model(options)
        if model.run is None:
            raise ValueError(
                f"{options.model}: a report is of a run, and got a checkpoint; give "
                "the folder of its run"
            )
        run = model.run
        chips = range(run.config.evaluation.chips) if seeds is None else seeds
        sections = [_summary(run), _results(run)]
        with console.status("evaluating on chips"):
            sections += _over_time(run, model, chips, options.times)
            sections += _by_layer(run, model, chips)
        sections += [_effects(model), *_conductances(model)]
        sections += [*_training(run, options), *_cost(run), _configuration(run)]
        write_page(options.out, f"hwtrain: {run.folder.resolve().name}", sections)
        size = options.out.stat().st_size / 1024
        console.print(
            f"{options.out} written, {size:.0f} KiB", soft_wrap=True, highlight=False
        )
    return 0


def _summary(run: Run) -> Section:
    config = run.config
    seeds = count(len(config.training.seeds), "training seed")
    text = (
        f"Model {config.model}, data {config.data}; "
        f"{count(config.training.steps, 'update')}, {seeds}. Everything below is in "
        f"chip_mode: on simulated chips as they compute. Written by hwtrain "
        f"{__version__}."
    )
    return Section("Summary", text)


def _results(run: Run) -> Section:
    found, data = results.read_results(run.folder)
    title = results.headline(found, mode=data.get("mode", "chip_mode"))
    return Section(
        "Plain and hardware-aware",
        "Both models run on the same chips. A band, or an error bar, is one standard "
        "deviation of the chips.",
        tables=[results.table(found)],
        plots=[(title, lambda path: results.plot(found, path, title=title))],
    )


def _over_time(
    run: Run, model: Model, chips: range | list[int], times: list[float] | None
) -> list[Section]:
    drifts = any(w.hardware.noise_model is not None for w in model.plan.weights)
    if times is None and not drifts:
        return []
    found = run.population(
        model.variables, chips=chips, times_s=TIMES_S if times is None else times
    )
    form, metric = ".2f" if run.metric.unit == "%" else ".4g", run.metric.title
    title = f"{metric}, hardware-aware, {count(len(found.seeds), 'chip')}"
    draw = partial(plots.plot_over_time, found, metric=metric, title=title)
    return [
        Section(
            "Over time",
            "Conductances drift; each time is a new read of the same chips.",
            tables=[found.table(form, better=run.metric.better)],
            plots=[(title, draw)],
        )
    ]


def _by_layer(run: Run, model: Model, chips: range | list[int]) -> list[Section]:
    if not any(weight.hardware.frozen for weight in model.plan.weights):
        return []
    found = run.sensitivity(model.variables, chips=chips)
    form, metric = ".2f" if run.metric.unit == "%" else ".4g", run.metric.title
    title = f"{metric} by layer, {count(len(found.seeds), 'chip')}"
    draw = partial(plots.plot_sensitivity, found, metric=metric, title=title)
    return [
        Section(
            "Sensitivity",
            "What one layer alone costs when its weights are those of a chip, and what "
            "would be won if it alone were nominal.",
            tables=[found.table(form)],
            plots=[(title, draw)],
        )
    ]


def _effects(model: Model) -> Section:
    found = inspect_plan(model.plan, model.variables["params"])
    return Section("Hardware", "What each layer does.", tables=list(found.tables()))


def _conductances(model: Model) -> list[Section]:
    found = histograms_of(model, bins=_BINS)
    if not found:
        return []
    title = "Target conductances of each weight"
    draw = partial(plots.plot_histograms, found, title=title)
    return [Section("Conductances", plots=[(title, draw)])]


def _training(run: Run, options: argparse.Namespace) -> list[Section]:
    seed = run.config.training.seeds[0] if options.seed is None else options.seed
    place = run.folder / LOG_FOLDER
    logs = {
        x: read_log(place / x / f"seed_{seed}.csv") for x in (PLAIN, HARDWARE_AWARE)
    }
    logs = {name: rows for name, rows in logs.items() if rows}
    if not logs:
        hint = "This run has no log of its training; a table [training.log] writes one."
        return [Section("Training", hint)]
    drawn = [("loss over the updates", partial(plot_losses, logs))]
    rows = logs.get(HARDWARE_AWARE, [])
    if rows and any(name.endswith(RANGE) for name in rows[-1]):
        kinds = (
            (RANGE, "mean input range", "Input ranges"),
            (CLIPPED, "share of inputs beyond the range", "Clipped inputs"),
        )
        for ending, name, title in kinds:
            draw = partial(plot_layers, rows, ending, name=name, title=title)
            drawn.append((f"{name} over the updates", draw))
    return [Section("Training", f"Training seed {seed}, one batch.", plots=drawn)]


def _cost(run: Run) -> list[Section]:
    if run.config.cost is None:
        return []
    found = costs(run.config, run.ready, run.config.cost)
    return [Section("Energy, latency and area", tables=list(found.tables()))]


def _configuration(run: Run) -> Section:
    return Section("Configuration", code=tomli_w.dumps(to_dict(run.config)))
