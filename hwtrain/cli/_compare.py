"""`hwtrain compare`."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from hwtrain._errors import InputError
from hwtrain._plan.tables import count
from hwtrain.cli._errors import bad_input
from hwtrain.cli._options import check_file
from hwtrain.train._folder import CONFIG_FILE, write_json
from hwtrain.train._pairs import Difference, differences, table
from hwtrain.train._report import HARDWARE_AWARE, OnChips, read_results

_SAME = ("data", "task", "evaluation")
"""Tables of a configuration without which two runs have other chips or test data."""


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console = Console()
    with bad_input():
        if options.json is not None:
            check_file(options.json)
        models = options.models or (None, None)
        configs = _config(options.run_a), _config(options.run_b)
        found, betters, digests = [], [], []
        for folder, model in zip((options.run_a, options.run_b), models):
            results, data = read_results(folder)
            found.append(_of_model(results, model, folder))
            betters.append(data.get("better", "higher"))
            digests.append(data.get("test_data"))
        known = None not in digests
        _check_same(options.run_a, options.run_b, configs, but="data" if known else "")
        if known and digests[0] != digests[1]:
            raise InputError(
                f"{options.run_a} and {options.run_b}: expected runs with the same "
                "test data, so that they are measured alike; got arrays that differ"
            )
        pairs = differences(found[0], found[1], betters[0])
        chips = count(pairs[0].first.values.shape[1], "chip")
        title = found[0][0].title.replace("_", " ")
        console.print(
            f"{title[0].upper()}{title[1:]} on the same {chips}\n"
            f"A: {options.run_a}, {found[0][0].model}\n"
            f"B: {options.run_b}, {found[1][0].model}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        console.print(table(pairs))
        if options.json is not None:
            data = [_data(pair) for pair in pairs]
            write_json(options.json, {"metric": title, "differences": data})
            console.print(f"{options.json} written", soft_wrap=True, highlight=False)
    return 0


def _check_same(
    one: Path, other: Path, configs: tuple[dict[str, Any], ...], but: str
) -> None:
    """Raises a `ValueError` if two runs have other test data or chips.

    Args:
      one: the folder of a run.
      other: that of the other.
      configs: their configurations.
      but: a table that may differ; an empty string for none.
    """
    for key in _SAME:
        if key == but:
            continue
        values = [config.get(key) for config in configs]
        if key == "data":
            values = [_name_of(value) for value in values]
        if key == "task":
            values = [_measure(value) for value in values]
        if key == "evaluation":
            values = [_chips(value) for value in values]
        if values[0] != values[1]:
            raise InputError(
                f"{one} and {other}: expected runs with the same {key}, so that they "
                f"are measured alike; got {json.dumps(values[0])} and "
                f"{json.dumps(values[1])}"
            )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise InputError(
            f"{folder}: expected the folder of a run, got one without a readable "
            f"{CONFIG_FILE}"
        ) from None


def _name_of(source: Any) -> str:
    """Returns the name of a data function's file and function, without its folder."""
    file, _, function = str(source).rpartition(":")
    return f"{Path(file).name}:{function}"


def _measure(task: Any) -> Any:
    """Returns what of a task decides on the metric: its metrics, if it states some."""
    metrics = task.get("metrics") if isinstance(task, dict) else None
    if not metrics:
        return task
    return {
        name: {
            k: _name_of(v) if k == "function" else v for k, v in dict(metric).items()
        }
        for name, metric in metrics.items()
    }


def _chips(evaluation: Any) -> Any:
    """Returns what of an evaluation decides on chips and reads."""
    return {k: x for k, x in dict(evaluation).items() if k in ("chips", "seed")}


def _of_model(
    results: Sequence[OnChips], model: str | None, folder: Path
) -> list[OnChips]:
    names = list(dict.fromkeys(result.model for result in results))
    if model is None:
        model = HARDWARE_AWARE if HARDWARE_AWARE in names else names[-1]
    if model not in names:
        raise InputError(
            f"{folder}: expected one of the models {', '.join(names)}, got {model!r}"
        )
    return [result for result in results if result.model == model]


def _data(pair: Difference) -> dict[str, Any]:
    low, high = pair.interval
    return {
        "mismatch_std": pair.first.mismatch_std,
        "mean_a": pair.first.rounded(pair.first.mean),
        "mean_b": pair.first.rounded(pair.second.mean),
        "difference": pair.first.rounded(pair.mean),
        "interval": [_number(low), _number(high)],
        "std_over_seeds": _number(pair.over_seeds),
        "share_of_chips_better": round(pair.share, 6),
        "differences": [pair.first.rounded(x) for x in pair.values],
    }


def _number(x: float) -> float | None:
    return None if math.isnan(x) else float(f"{x:.6g}")
