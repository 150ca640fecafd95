"""`hwtrain sweep`."""

import argparse
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from hwtrain import train
from hwtrain._errors import InputError
from hwtrain._parts.fields import to_dict
from hwtrain.cli._errors import BadInputError, bad_input, print_error
from hwtrain.cli._processes import run_all
from hwtrain.train import _folder as folder
from hwtrain.train._progress import show_count
from hwtrain.train._report import require_matplotlib
from hwtrain.train._search import Search, bounds, parse_space, require_optuna
from hwtrain.train._sweep import (
    Point,
    Result,
    open_sweep,
    point,
    points_of,
    read_result,
    start_sweep,
    table,
    write_results,
)
from hwtrain.train._variants import parse_varied


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console = Console()
    out = options.out or Path("sweeps") / options.config.stem
    with bad_input():
        require_matplotlib()
        grid = parse_varied(options.grid, "--grid")
        space = parse_space(options.search)
        _check(options, grid, space)
        overrides = list(options.overrides)
        if options.seeds is not None:
            overrides.append(f"training.seeds={list(range(options.seeds))}")
        about = {
            "config": to_dict(train.read_config(options.config, overrides)),
            "grid": {key: list(values) for key, values in grid.items()},
            "search": space,
            "trials": options.trials,
            "jobs": options.jobs if space else None,
        }
        points = points_of(grid, out) if not space else []
        for number, values in enumerate(bounds(space)):
            train.read_config(
                options.config, [*overrides, *point(number, values, out).overrides]
            )
        for one in points:
            train.read_config(options.config, [*overrides, *one.overrides])
        continued = open_sweep(out, about, resume=options.resume)
        for one in points:
            _require_same(options, overrides, one)
        if not continued:
            start_sweep(out, about)
    verb = "Continuing in" if continued else "Writing to"
    console.print(f"{verb} {out}", soft_wrap=True, highlight=False)
    results: list[Result] = []
    total = options.trials or len(points)

    def started(one: Point) -> None:
        what = one.title.partition(": ")[2]
        text = f"run {one.number} of {total} started: {what}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    with (
        bad_input(),
        folder.alone_in(out),
        show_count(console, total) as report,
    ):
        (out / "logs").mkdir(exist_ok=True)
        rounds = _rounds(options, space, out, results) if space else [points]
        for batch in rounds:
            for result in _run(options, overrides, out, batch, started):
                results.append(result)
                report(_said(result))
    results.sort(key=lambda result: result.point.number)
    return _show(results, out, options.required, console)


def _check(options: argparse.Namespace, grid: Any, space: Any) -> None:
    """Raises a `ValueError` for options that do not go together."""
    if bool(grid) == bool(space):
        raise InputError(
            "expected either --grid, for all combinations, or --search with --trials; "
            f"got {'both' if grid else 'neither'}"
        )
    if bool(space) != (options.trials is not None):
        raise InputError("--search and --trials go together; one of them is missing")
    if space:
        require_optuna()
    counts = {"jobs": options.jobs, "seeds": options.seeds, "trials": options.trials}
    for name, number in counts.items():
        if number is not None and number < 1:
            raise InputError(f"--{name}: expected at least 1, got {number}")


def _require_same(
    options: argparse.Namespace, overrides: Sequence[str], one: Point
) -> None:
    """Raises a `ValueError` if a run's folder holds another run."""
    config = train.read_config(options.config, [*overrides, *one.overrides])
    folder.open_folder(
        one.folder, config, options.config.parent, resume=True, overwrite=False
    )


def _rounds(
    options: argparse.Namespace, space: Any, out: Path, results: list[Result]
) -> Iterator[list[Point]]:
    """Yields the runs of a search, as many at a time as there are processes.

    Their results are told in the order of the runs, so that the search does not depend
    on which of them ends first.
    """
    search, number = None, 0
    while number < options.trials:
        if search is None:
            search = Search(space, better=_better(options))
        trials, batch = [], []
        for _ in range(min(options.jobs, options.trials - number)):
            trial, values = search.ask()
            trials.append(trial)
            batch.append(point(number, values, out))
            number += 1
        yield batch
        scores = {r.point.number: None if r.failed else r.score for r in results}
        for one, trial in zip(batch, trials):
            search.tell(trial, scores[one.number])


def _better(options: argparse.Namespace) -> str:
    """Returns which values of the main metric are better."""
    config = train.read_config(options.config, options.overrides)
    metrics = config.task.metrics
    if metrics:
        return metrics[0][1].better
    return "higher" if config.task.loss == "softmax_cross_entropy" else "lower"


def _run(
    options: argparse.Namespace,
    overrides: Sequence[str],
    out: Path,
    points: Iterable[Point],
    started: Callable[[Point], None],
) -> Iterator[Result]:
    """Yields the results of runs, in the order in which they end."""
    points = list(points)
    left = []
    for one in points:
        if one.ended:
            yield read_result(one)
            continue
        if one.folder.exists() and not folder.is_run(one.folder):
            shutil.rmtree(one.folder)  # killed before it began
        words = ["train", str(options.config), "--out", str(one.folder)]
        for override in (*overrides, *one.overrides):
            words += ["--set", override]
        words += ["--resume"] if folder.is_run(one.folder) else []
        left.append((one, words, out / "logs" / f"{one.number:04d}.txt"))
    commands = [(words, log) for _, words, log in left]
    for ended in run_all(
        commands,
        jobs=options.jobs,
        stop=options.stop,
        started=lambda number: started(left[number][0]),
    ):
        one, _, log = left[ended.number]
        if not ended.status:
            yield read_result(one)
        elif not options.stop():
            why = ended.error or f"it ended with status {ended.status}"
            yield read_result(one, f"{why} ({log})")


def _said(result: Result) -> str:
    if result.failed:
        return f"{result.point.title}: failed: {result.failed}"
    return f"{result.point.title}: {result.score:.6g}"


def _show(
    results: list[Result], out: Path, required: float | None, console: Console
) -> int:
    failed = [result for result in results if result.failed]
    with bad_input():
        if len(failed) == len(results):
            raise BadInputError(f"every run failed, the first: {failed[0].failed}")
        files = write_results(out, results, required)
    good = [result for result in results if not result.failed]
    sign = 1 if good[0].better == "higher" else -1
    best = max(good, key=lambda result: sign * result.score)
    main = best.results[0]
    console.print(
        f"\n{main.title.replace('_', ' ')}, mean ± standard deviation over chips",
        highlight=False,
    )
    console.print(table(results, required))
    console.print(f"best: {best.point.title}, {best.point.folder}", highlight=False)
    names = ", ".join(file.name for file in files)
    console.print(f"{names} lie in {out}", highlight=False, soft_wrap=True)
    for result in failed:
        print_error(f"{result.point.title}: failed: {result.failed}")
    return 1 if failed else 0
