"""How far a step is from what the machine can do, by parts of its compiled program.

    python benchmarks/roofline.py [--rounds 10] [--out DIR] [--batches 96 384]

One interleaved run measures the steps and the rates of this machine at their sizes:
matrix products, reading and writing of all weights, and draws of normal numbers, into
memory that is there already. The least time of a step is then the sum of its products,
its draws, and the bytes that its other operations read and write, each at its rate.
Rates and steps are those of the fastest round, which other load disturbed least. For
CPUs, whose compiled programs name their products.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from hlo import Bytes, Traffic, traffic
from interleaved import interleaved
from models import CLIP, CONVERTERS, NOISE, RANGE, Squares, chip, compiled_step
from speed import inputs
from tables import RESULTS, keep, machine

import hwtrain
from hwtrain._arrays.random import normal

DEPTH = 3
ALL = {"modifier": NOISE, "clip": CLIP, "input_range": RANGE, "forward": CONVERTERS}
CASES = {
    "plain": (None, False),
    "weight noise, threefry": (chip(modifier=NOISE), False),
    "weight noise, fast": (chip(modifier=NOISE), True),
    "all, threefry": (chip(**ALL), False),
    "all, fast": (chip(**ALL), True),
    "all, tiles of 512, fast": (chip(512, **ALL), True),
}
GIGA = 1e9


def parts(width: int, batch: int) -> dict:
    """Returns functions that run the parts of all layers, by name."""
    keys = {
        "threefry": jax.random.split(jax.random.key(3), DEPTH),
        "fast": jax.random.split(jax.random.key(3, impl=hwtrain.fast_prng), DEPTH),
    }
    xs = [inputs(batch, width) + layer for layer in range(DEPTH)]
    ws = [inputs(width, width) + layer for layer in range(DEPTH)]
    found = {
        "read": in_place(jnp.sum, ws),
        "read and write": in_place(lambda w: w + 1, ws),
        "outputs": in_place(lambda x, w: x @ w, xs, ws),
        "gradients of inputs": in_place(lambda x, w: x @ w.T, xs, ws),
        "gradients of weights": in_place(lambda x, y: x.T @ y, xs, xs[::-1]),
    }
    for name, each in keys.items():
        found[f"draws, {name}"] = in_place(
            lambda w, key: w + normal(key, w.shape), ws, list(each)
        )
    return found


def in_place(function: Callable, *given: list) -> Callable[[], list[jax.Array]]:
    """Returns a function of no arguments that maps another over lists.

    It writes its results to the memory of those before, as a loop of steps does.
    """

    def mapped(old, *given):
        return [function(*each) for each in zip(*given)]

    compiled = jax.jit(mapped, donate_argnums=0, keep_unused=True)
    results = jax.jit(functools.partial(mapped, None))(*given)

    def run():
        nonlocal results
        results = compiled(results, *given)
        return results

    return run


def rates(seconds: dict[str, float], width: int, batch: int) -> dict[str, float]:
    """Returns the rates of the machine, per second: operations, bytes, draws.

    Args:
      seconds: of each part; see `parts`.
      width: inputs and outputs of a layer.
      batch: number of examples.
    """
    products = ("outputs", "gradients of inputs", "gradients of weights")
    weights = DEPTH * width**2
    operations = 2 * batch * weights
    read, passing = seconds["read"], seconds["read and write"]
    found = {f"{name}, GFLOP": operations / seconds[name] for name in products}
    found["products, GFLOP"] = 3 * operations / sum(seconds[name] for name in products)
    found["read, GB"] = 4 * weights / read
    found["written, GB"] = 4 * weights / max(passing - read, 1e-9)
    for name in ("threefry", "fast"):
        # The pass over the weights into which a draw fuses is counted with the others.
        drawn = max(seconds[f"draws, {name}"] - passing, 1e-9)
        found[f"draws, {name}, 10⁹"] = weights / drawn
    return {name: rate / GIGA for name, rate in found.items()}


def least(program: Traffic, draws: int, rate: dict[str, float], generator: str) -> dict:
    """Returns the least milliseconds of each part of a step.

    Args:
      program: the operations and bytes of the compiled program.
      draws: normal numbers drawn.
      rate: the rates of the machine; see `rates`.
      generator: the name of the generator.
    """

    def passes(moved: Bytes) -> float:
        read, written = (
            moved.read / rate["read, GB"],
            moved.written / rate["written, GB"],
        )
        return (read + written) / GIGA

    seconds = {
        "products": program.operations / (rate["products, GFLOP"] * GIGA),
        "draws": draws / (rate[f"draws, {generator}, 10⁹"] * GIGA),
        "weights": passes(program.weights),
        "activations": passes(program.activations),
    }
    return {f"{name}, ms": 1e3 * value for name, value in seconds.items()}


def table(width: int, batch: int, rounds: int) -> dict[str, list[dict]]:
    """Returns the rates of the machine, and the parts of the steps on each hardware."""
    module, x = Squares(width, DEPTH), inputs(batch, width)
    steps, programs = {}, {}
    for name, (hardware, fast) in CASES.items():
        steps[name], programs[name] = compiled_step(
            module, hardware, x, optimizer=optax.sgd(1e-4), fast=fast
        )
    timings = interleaved({**steps, **parts(width, batch)}, rounds)
    seconds = {name: timing.fastest for name, timing in timings.items()}
    rate = rates(seconds, width, batch)
    weights, activations = 4 * DEPTH * width**2, 4 * DEPTH * batch * width
    rows = []
    for name, (hardware, fast) in CASES.items():
        program = traffic(programs[name].as_text(), batch)
        draws = 0 if hardware is None else DEPTH * width**2
        parted = least(program, draws, rate, "fast" if fast else "threefry")
        bound = sum(parted.values())
        rows.append(
            {
                "case": name,
                **parted,
                "passes over weights": sum(program.weights) / weights,
                "passes over activations": sum(program.activations) / activations,
                "least, ms": bound,
                "measured, ms": 1e3 * seconds[name],
                "measured / least": 1e3 * seconds[name] / bound,
                "ratio": seconds[name] / seconds["plain"],
                "least ratio": bound / rows[0]["least, ms"] if rows else 1.0,
            }
        )
    title = f"{DEPTH} layers of {width}, batch {batch}"
    rated = [{"case": name, "per second": value} for name, value in rate.items()]
    return {f"{title}: steps": rows, f"{title}: rates": rated}


def main():
    """Measures steps and rates, and keeps their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batches", nargs="*", type=int, default=[96, 384])
    parser.add_argument("--width", type=int, default=2048)
    options = parser.parse_args()
    for batch in options.batches:
        about = machine()
        tables = table(options.width, batch, options.rounds)
        heading = "The least time of a step, by its parts, and the measured time"
        name = f"batch {batch}"
        keep(options.out / "roofline", name, f"{heading}, {name}.", tables, about)


if __name__ == "__main__":
    main()
