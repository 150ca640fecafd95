"""`hwtrain report`."""

import argparse
from functools import partial
from typing import Any

import tomli_w
from rich.console import Console
from rich.markup import escape

from hwtrain._errors import InputError
from hwtrain._flax.inspection import Inspection, inspect_plan
from hwtrain._parts.fields import to_dict
from hwtrain._plan.tables import count
from hwtrain._version import __version__
from hwtrain.cli._errors import bad_input
from hwtrain.cli._histograms import histograms_of
from hwtrain.cli._options import Model, check_file, chip_seeds, open_model, run_itself
from hwtrain.evaluate import Costs
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
            raise InputError(
                f"{options.out}: there is already such a file; name another one"
            )
        seeds = chip_seeds(options)
        model = open_model(options)
        run = run_itself(model, options, "a report is of a run")
        chips = range(run.config.evaluation.chips) if seeds is None else seeds
        seed = run.config.training.seeds[0] if options.seed is None else options.seed
        inspected = inspect_plan(model.plan, model.variables["params"])
        constants = run.config.cost
        cost = None if constants is None else costs(run.config, run.ready, constants)
        sections = [_summary(run, inspected, cost), _results(run, model)]
        with console.status("evaluating on chips"):
            sections += _over_time(run, model, seed, chips, options.times)
            sections += _by_layer(run, model, seed, chips)
        sections += [_effects(inspected, seed), *_conductances(model, seed)]
        sections += [*_training(run, seed), *_cost(cost), _configuration(run)]
        write_page(options.out, f"hwtrain: {run.folder.resolve().name}", sections)
        size = options.out.stat().st_size / 1024
        console.print(
            f"{options.out} written, {size:.0f} KiB", soft_wrap=True, highlight=False
        )
    return 0


def _summary(run: Run, inspected: Inspection, cost: Costs | None) -> Section:
    config = run.config
    text = (
        f"Model {config.model}, data {config.data}; "
        f"{count(config.training.steps, 'update')}, {_seeds(run)}. All that is said of "
        "chips is in chip_mode: of simulated chips as they compute. Written by hwtrain "
        f"{__version__}."
    )
    found, data = results.read_results(run.folder)
    said = [f"{results.headline(found, mode=_mode(data))}:", *results.lines(found)]
    if "devices" in inspected.totals:
        said.append(f"{inspected.totals['devices']:,} devices")
    if cost is not None and cost.energy_nj is not None:
        said.append(f"{cost.energy_nj:.4g} nJ for an example")
    return Section("Summary", text, tables=[escape(line) for line in said])


def _results(run: Run, model: Model) -> Section:
    found, data = results.read_results(run.folder)
    path = run.folder / "results.json"
    others = [results.from_data(one, path) for one in data.get("other_metrics", ())]
    tables = []
    for each in (found, *others):
        shown = results.table(each)
        shown.title = escape(results.headline(each, mode=_mode(data)))
        tables.append(shown)
    title = results.headline(found, mode=_mode(data))
    return Section(
        "Plain and hardware-aware",
        f"Both models, of {_seeds(run)}, run on the same chips, {_age(model)}. A band, "
        "or an error bar, is one standard deviation of the chips.",
        tables=tables,
        plots=[(title, lambda path: results.plot(found, path, title=title))],
    )


def _mode(data: dict[str, Any]) -> str:
    return data.get("mode", "chip_mode")


def _seeds(run: Run) -> str:
    """Returns the training seeds of a run in words."""
    seeds = run.config.training.seeds
    return f"training seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _drifts(model: Model) -> bool:
    return any(w.hardware.noise_model is not None for w in model.plan.weights)


def _age(model: Model) -> str:
    """Returns the age of chips that no time is given for."""
    return "just after programming" if _drifts(model) else "which do not age"


def _over_time(
    run: Run,
    model: Model,
    seed: int,
    chips: range | list[int],
    times: list[float] | None,
) -> list[Section]:
    if times is None and not _drifts(model):
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
            f"Training seed {seed}, at the ages in the table. Conductances drift; each "
            "time is a new read of the same chips.",
            tables=[found.table(form, better=run.metric.better)],
            plots=[(title, draw)],
        )
    ]


def _by_layer(
    run: Run, model: Model, seed: int, chips: range | list[int]
) -> list[Section]:
    if not any(weight.hardware.frozen for weight in model.plan.weights):
        return []
    found = run.sensitivity(model.variables, chips=chips)
    form, metric = ".2f" if run.metric.unit == "%" else ".4g", run.metric.title
    title = f"{metric} by layer, {count(len(found.seeds), 'chip')}"
    draw = partial(plots.plot_sensitivity, found, metric=metric, title=title)
    return [
        Section(
            "Sensitivity",
            f"Training seed {seed}, chips {_age(model)}. What one layer alone costs "
            "when its weights are those of a chip, and what would be won if it alone "
            "were nominal.",
            tables=[found.table(form)],
            plots=[(title, draw)],
        )
    ]


def _effects(inspected: Inspection, seed: int) -> Section:
    text = f"What each layer does. Training seed {seed}, nominal, not yet programmed."
    return Section("Hardware", text, tables=list(inspected.tables()))


def _conductances(model: Model, seed: int) -> list[Section]:
    found = histograms_of(model, bins=_BINS)
    if not found:
        return []
    title = "Target conductances of each weight"
    draw = partial(plots.plot_histograms, found, title=title)
    text = f"Training seed {seed}; targets, not yet programmed."
    return [Section("Conductances", text, plots=[(title, draw)])]


def _training(run: Run, seed: int) -> list[Section]:
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
    text = f"Training seed {seed}, one batch; before any chip was programmed."
    return [Section("Training", text, plots=drawn)]


def _cost(cost: Costs | None) -> list[Section]:
    if cost is None:
        return []
    text = "The same for every training seed and age."
    return [Section("Energy, latency and area", text, tables=list(cost.tables()))]


def _configuration(run: Run) -> Section:
    text = f"Of {_seeds(run)}."
    return Section("Configuration", text, code=tomli_w.dumps(to_dict(run.config)))
