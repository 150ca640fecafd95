"""Time and memory of the export of a large model: python benchmarks/export.py.

A model of square dense layers is made, exported with one chip, loaded and verified,
each in its own process. The time and the peak memory of each task are printed as
Markdown. The model itself is in memory, as it would be on a host. An export should add
only the memory of a few layers, whatever their number.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import export, load, show_progress
from hwtrain.devices import SinglePairConductanceConverter
from hwtrain.weights import MappingParameter, MismatchParameter

MIB = 2**20


def peak() -> float:
    """Returns the peak memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def model(layers: int, width: int) -> tuple[dict, Plan]:
    hardware = Hardware(
        mapping=MappingParameter(max_input_size=512, max_output_size=512),
        mismatch=MismatchParameter(type="add_normal", std_dev=0.1),
        converter=SinglePairConductanceConverter(),
    )
    rng = np.random.default_rng(0)
    params, weights = {}, []
    for number in range(layers):
        kernel = rng.standard_normal((width, width), np.float32)
        params[f"dense_{number:03d}"] = {"kernel": kernel}
        weights.append(
            AnalogWeight(
                path=f"dense_{number:03d}/kernel", kind="dense", layer="Dense",
                shape=(width, width), rows=(0,), columns=(1,), hardware=hardware,
                rule="", ranged=False,
            )
        )  # fmt: skip
    return params, Plan(tuple(weights))


def measure(task: str, path: str, layers: int, width: int, chips: int) -> dict:
    """Runs a task in this process, where only the model is in memory beforehand."""
    params, plan = model(layers, width) if task == "export" else ({}, Plan(()))
    before, start = peak(), time.perf_counter()
    if task == "export":
        with show_progress() as report:
            export(path, params, plan, chip_seeds=range(chips), report=report)
    else:
        load(path)
    return {"seconds": time.perf_counter() - start, "before": before, "peak": peak()}


def in_a_process(task: str, path: str, layers: int, width: int, chips: int) -> dict:
    words = [task, path, str(layers), str(width), str(chips)]
    found = subprocess.run(
        [sys.executable, __file__, "--task", *words], stdout=subprocess.PIPE, check=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 24])
    parser.add_argument("--chips", type=int, default=1)
    parser.add_argument("--task", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task, path, *numbers = options.task
        print(json.dumps(measure(task, path, *map(int, numbers))))
        return
    layer = 4 * options.width**2 / MIB
    print(
        f"Square layers of {options.width} ({layer:.0f} MiB each) on tiles of 512, "
        f"nominal and {options.chips} chip; jax {jax.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}.\n"
    )
    print("| parameters | task | seconds | size | memory before | added | in layers |")
    print("|---|---|---|---|---|---|---|")
    for layers in options.layers:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model"
            for task in ("export", "load"):
                found = in_a_process(task, path, layers, options.width, options.chips)
                size = sum(f.stat().st_size for f in Path(path).rglob("*.*")) / MIB
                added = found["peak"] - found["before"]
                print(
                    f"| {layers * options.width**2 / 1e6:.0f} M | {task} "
                    f"| {found['seconds']:.1f} | {size:.0f} MiB "
                    f"| {found['before']:.0f} MiB | {added:.0f} MiB "
                    f"| {added / layer:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
