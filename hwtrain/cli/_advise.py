"""`hwtrain advise`."""

import argparse
import math

from rich.console import Console
from rich.table import Table

from hwtrain._errors import InputError
from hwtrain._plan.tables import count, table_of, time_name
from hwtrain.cli._errors import bad_input
from hwtrain.cli._options import check_file, chip_seeds, open_model, run_itself
from hwtrain.evaluate._advice import Step
from hwtrain.train._folder import write_json
from hwtrain.train._mapping import DEVICES, WEIGHTS, advise, as_rules, shadowed
from hwtrain.train._toml import as_toml


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console = Console()
    with bad_input():
        _check(options)
        seeds = chip_seeds(options)
        model = open_model(options)
        run = run_itself(model, options, "advice is about a run")
        weights = sum(math.prod(weight.shape) for weight in run.ready.plan.weights)
        budgets = {
            WEIGHTS: options.digital * weights,
            DEVICES: (options.devices - 1) * 2 * weights,
        }
        chips = range(run.config.evaluation.chips) if seeds is None else seeds
        if len(chips) < 2:
            raise InputError(
                "expected at least two chips, because a gain on one may be chance; "
                "got 1: --chips 16"
            )
        t_s = options.times[0] if options.times else None
        with console.status("evaluating on chips"):
            steps = advise(run, model.variables, budgets, chips=chips, t_s=t_s)
        form = ".2f" if run.metric.unit == "%" else ".4g"
        number = count(len(steps[0].values), "chip")
        when = "" if t_s is None else f", {time_name(t_s)} old"
        console.print(
            f"{model.title}: {run.metric.title} on {number} (chip_mode{when}); gain: "
            "mean and its 95 % interval, on the same chips",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        console.print(_table(steps, form, budgets))
        chosen = [step.choice for step in steps if step.choice is not None]
        mapped = frozenset((c.layer, c.kind) for c in chosen)
        rules = as_rules(run, mapped)
        if not rules:
            said = "nothing within the budget gains more than chance"
            console.print(said, highlight=False)
        else:
            console.print("In the configuration, before other rules:")
            for rule in rules:
                lines = [f"{name} = {as_toml(value)}" for name, value in rule.items()]
                text = "\n".join(["", "[[rules]]", *lines])
                console.print(text, highlight=False, markup=False, soft_wrap=True)
            for rule in shadowed(run, mapped):
                console.print(
                    f"\nDelete the rule {rule.expression!r}, which would win nowhere.",
                    highlight=False,
                    markup=False,
                )
        if options.json is not None:
            write_json(options.json, _data(steps, rules, run.metric.title))
            console.print(f"{options.json} written", soft_wrap=True, highlight=False)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises a `ValueError` for a budget that allows nothing."""
    if options.json is not None:
        check_file(options.json)
    if not 0 <= options.digital <= 1:
        raise InputError(
            f"--digital: expected a share from 0 to 1, got {options.digital}"
        )
    if not 1 <= options.devices <= 2:
        raise InputError(
            f"--devices: expected a factor from 1 to 2, got {options.devices}"
        )
    if not options.digital and options.devices == 1:
        raise InputError(
            "expected a budget: --digital 0.1 for a tenth of the weights, or --devices "
            "1.5 for half as many devices more"
        )
    if options.times and len(options.times) > 1:
        raise InputError(f"--times: expected one time, got {len(options.times)}")


def _table(steps: list[Step], form: str, budgets: dict[str, float]) -> Table:
    rows = []
    for step in steps:
        low, high = step.interval
        row = {"layer": "(as it is)", "mapped": ""}
        if step.choice is not None:
            row = {"layer": step.choice.layer, "mapped": step.choice.kind}
        row["mean"] = f"{step.values.mean():{form}}"
        half = f"{(high - low) / 2:{form}}"
        gained = step.choice is not None
        row["gain"] = f"{step.gain.mean():+{form}} ± {half}" if gained else ""
        for name, most in budgets.items():
            if most:
                row[name] = f"{step.used.get(name, 0):,.0f} of {math.floor(most):,}"
        rows.append(row)
    found = table_of(rows)
    for column in found.columns[:2]:
        column.justify, column.overflow = "left", "fold"
    found.columns[3].no_wrap = True
    return found


def _data(steps: list[Step], rules: list[dict], metric: str) -> dict:
    return {
        "metric": metric,
        "steps": [
            {
                "layer": step.choice and step.choice.layer,
                "mapped": step.choice and step.choice.kind,
                "mean": round(float(step.values.mean()), 6),
                "gain": [round(bound, 6) for bound in step.interval],
                "used": dict(step.used),
                "values": step.values.round(6).tolist(),
            }
            for step in steps
        ],
        "rules": rules,
    }
