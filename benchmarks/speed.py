"""Cost of hardware-aware training, as ratios to the plain step of the same model.

    python benchmarks/speed.py [--out DIR] [--rounds 15] [--only NAME ...]

Makes all tables and plots. Each table is one interleaved run (see `interleaved.py`),
kept in `benchmarks/results` (see `tables.py`).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from interleaved import interleaved
from models import (
    CLIP,
    CONVERTERS,
    DAY_S,
    DEVICE,
    NOISE,
    NOISY,
    OUTPUT_NOISE,
    PER_VECTOR,
    RANGE,
    REDRAWN,
    Convolutions,
    ResNetBlock,
    Squares,
    TransformerBlock,
    chip,
    training_step,
)
from tables import RESULTS, keep, machine, row

import hwtrain
from hwtrain._arrays.fast_random import normal_from_bits
from hwtrain._arrays.random import normal

ALL = {"modifier": NOISE, "clip": CLIP, "input_range": RANGE, "forward": CONVERTERS}
READ = {**ALL, "forward": OUTPUT_NOISE, **DEVICE}
VECTOR = {"modifier": PER_VECTOR, "input_range": RANGE, "forward": CONVERTERS}
CASES = {
    "plain": (None, False),
    "weight noise, threefry": (chip(modifier=NOISE), False),
    "weight noise, fast": (chip(modifier=NOISE), True),
    "weight noise, fast, redrawn": (chip(modifier=REDRAWN), True),
    "all, untiled, threefry": (chip(**ALL), False),
    "all, untiled, fast": (chip(**ALL), True),
    "all, tiles of 512, threefry": (chip(512, **ALL), False),
    "all, tiles of 512, fast": (chip(512, **ALL), True),
    "noise per vector, threefry": (chip(modifier=PER_VECTOR), False),
    "noise per vector, fast": (chip(modifier=PER_VECTOR), True),
    "per vector, ranges, converters, threefry": (chip(**VECTOR), False),
    "per vector, ranges, converters, fast": (chip(**VECTOR), True),
}


MISMATCHED = chip(mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.1))
"""Chips whose weights differ."""


def steps(module, x, cases, rounds, optimizer=None):
    """Returns the rows of a table: a training step of a module on each hardware."""
    built = {
        name: training_step(
            module, hardware, x, optimizer=optimizer or optax.sgd(1e-4), fast=fast
        )
        for name, (hardware, fast) in cases.items()
    }
    timings = interleaved({name: run for name, (run, _) in built.items()}, rounds)
    first = next(iter(built.values()))[1]
    return [
        {**row(name, timing), "memory": built[name][1] / first}
        for name, timing in timings.items()
    ]


def inputs(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(7), shape)


def layers(rounds):
    """Three square layers of 2048, SGD, batches of 128 and 512."""
    return {
        f"batch {batch}": steps(Squares(2048, 3), inputs(batch, 2048), CASES, rounds)
        for batch in (128, 512)
    }


def activations(rounds):
    """Three square layers of 2048 with a ReLU after each, SGD, batches 128 and 512."""
    cases = {case: CASES[case] for case in CASES if "threefry" not in case}
    module = Squares(2048, 3, activations=True)
    return {
        f"batch {batch}": steps(module, inputs(batch, 2048), cases, rounds)
        for batch in (128, 512)
    }


def peers(rounds):
    """The protocol of aihwkit-lightning: square layers, batch 512, AdamW."""
    parts = {
        "plain": {},
        "clip": {"clip": CLIP},
        "weight noise": {"modifier": NOISE},
        "range learning": {"input_range": RANGE},
        "all": {"modifier": NOISE, "clip": CLIP, "input_range": RANGE},
    }
    tables = {}
    for tile in (None, 512):
        cases = {
            name: (None if name == "plain" else chip(tile, **given), True)
            for name, given in parts.items()
        }
        for width in (128, 512, 2048):
            title = f"width {width}, " + ("untiled" if tile is None else "tiles of 512")
            x, optimizer = inputs(512, width), optax.adamw(1e-4)
            tables[title] = steps(Squares(width, 1), x, cases, rounds, optimizer)
    return tables


def blocks(rounds):
    """A Transformer block and a ResNet block."""
    cases = {
        name: CASES[name]
        for name in ("plain", "weight noise, fast", "all, untiled, fast")
    }
    return {
        "Transformer block, width 256, 8 x 64 tokens": steps(
            TransformerBlock(256, 4), inputs(8, 64, 256), cases, rounds
        ),
        "ResNet block, 64 channels, 8 images of 16 x 16": steps(
            ResNetBlock(64), inputs(8, 16, 16, 64), cases, rounds
        ),
    }


def convolutions(rounds):
    """Two convolutions of 3 x 3, SGD, batch 32; all effects, and noise on outputs."""
    everything = {**ALL, "forward": NOISY}
    one = {
        "plain": (None, False),
        "weight noise": (chip(modifier=NOISE), True),
        "all, one tile": (chip(**everything), True),
    }
    several = {f"all, tiles of {n}": (chip(n, **everything), True) for n in (512, 256)}
    models = {
        "64 channels, 32 x 32": (64, 32, 1, one | several),
        "256 channels, 8 x 8": (256, 8, 1, one | several),
        "64 channels in 8 groups, 32 x 32": (64, 32, 8, one),
        "64 channels, depthwise, 32 x 32": (64, 32, 64, one),
    }
    return {
        title: steps(
            Convolutions(channels, 2, groups),
            inputs(32, size, size, channels),
            cases,
            rounds,
        )
        for title, (channels, size, groups, cases) in models.items()
    }


def generator(rounds):
    """The parts of weight noise on one array of 2048 x 2048."""
    w, key = inputs(2048, 2048), jax.random.key(3)
    fast = jax.random.key(3, impl=hwtrain.fast_prng)
    bits = jax.random.bits(key, w.shape)
    parts: dict[str, tuple[Callable, tuple]] = {
        "copy": (lambda w: w + 1, (w,)),
        "largest weight": (lambda w: jnp.max(jnp.abs(w)), (w,)),
        "erf_inv": (lambda w: jax.lax.erf_inv(0.2 * w), (w,)),
        "quantile by polynomials": (normal_from_bits, (bits,)),
        "bits, threefry": (lambda k: jax.random.bits(k, w.shape), (key,)),
        "bits, fast": (lambda k: jax.random.bits(k, w.shape), (fast,)),
        "jax.random.normal": (lambda k: jax.random.normal(k, w.shape), (key,)),
        "normal, threefry": (lambda k: normal(k, w.shape), (key,)),
        "normal, fast": (lambda k: normal(k, w.shape), (fast,)),
    }

    runs = {name: bound(jax.jit(f), *given) for name, (f, given) in parts.items()}
    rows = [row(name, timing) for name, timing in interleaved(runs, rounds).items()]
    return {
        "one array of 2048 x 2048": [
            {**entry, "million_per_s": w.size / entry["ms"] / 1e3} for entry in rows
        ]
    }


def scaling(rounds):
    """Scaling of the cost with batch, width, depth, tiles and chips."""
    sweeps = {
        "batch": [(b, 512, 2, None) for b in (32, 64, 128, 256, 512, 1024)],
        "width": [(128, w, 2, None) for w in (128, 256, 512, 1024, 2048)],
        "depth": [(128, 512, d, None) for d in (1, 2, 4, 8)],
        "tile": [(128, 1024, 2, t) for t in (128, 256, 512, 1024)],
    }
    tables = {}
    for axis, points in sweeps.items():
        tables[axis] = []
        for batch, width, depth, tile in points:
            module, x = Squares(width, depth), inputs(batch, width)
            cases = {"plain": (None, False), "all, fast": (chip(tile, **ALL), True)}
            value = {"batch": batch, "width": width, "depth": depth, "tile": tile}[axis]
            tables[axis] += of_value(axis, value, steps(module, x, cases, rounds))
    run, tables["chips"] = evaluation(Squares(256, 3), inputs(256, 256)), []
    for chips in (4, 8, 16, 32, 64):
        runs = {
            "a call for each": lambda n=chips: [run([seed], 1) for seed in range(n)],
            "population": lambda n=chips: run(n, None),
        }
        rows = [row(name, timing) for name, timing in interleaved(runs, rounds).items()]
        tables["chips"] += of_value("chips", chips, rows)
    return tables


def of_value(axis: str, value: int, rows: list[dict]) -> list[dict]:
    """Returns the rows with the value on an axis of a sweep added to their names."""
    return [
        {**entry, "value": value, "line": entry["case"]}
        | {"case": f"{axis} {value}, {entry['case']}"}
        for entry in rows
    ]


def population(rounds):
    """Chips per second: as one axis, in chunks, and one after the other."""
    width, chips, batch = 256, 32, 256
    run = evaluation(Squares(width, 3), inputs(batch, width))
    runs = {
        "one call for each chip": lambda: [run([seed], 1) for seed in range(chips)],
        "chunks of one chip": lambda: run(chips, 1),
        "chunks of 8 chips": lambda: run(chips, 8),
        "all 32 chips at once": lambda: run(chips, 32),
    }
    timings = interleaved(runs, rounds)
    return {
        f"{chips} chips, three layers of {width}, {batch} examples": [
            {**row(name, timing), "chips_per_s": chips / timing.median}
            for name, timing in timings.items()
        ]
    }


def evaluation(
    module: nn.Module, x: jax.Array, hardware: hwtrain.Hardware = MISMATCHED, **options
) -> Callable:
    """Returns a function of chips and a chunk that evaluates a module on them.

    Args:
      module: the plain module.
      x: a batch.
      hardware: the chips.
      **options: more arguments of `hwtrain.evaluate.population`.
    """
    model = hwtrain.analogize(module, hardware)
    labels = jnp.zeros(len(x), jnp.int32)
    variables = model.init(jax.random.key(0), x)

    def run(chips, chunk):
        return hwtrain.evaluate.population(
            model,
            variables,
            [(x, labels)],
            hits,
            chips=chips,
            key=jax.random.key(1),
            chunk=chunk,
            **options,
        ).values

    return run


def reads(rounds):
    """Passes without gradient through three square layers of 2048."""
    tables = {}
    for batch in (128, 512):
        module, x = Squares(2048, 3), inputs(batch, 2048)
        variables, runs = module.init(jax.random.key(0), x), {}
        runs["plain"] = bound(jax.jit(module.apply), variables, x)
        for name, tile in {"untiled": None, "tiles of 512": 512}.items():
            model = hwtrain.analogize(module, chip(tile, **READ))
            for mode, run in passes(model, x).items():
                runs[f"{mode}, {name}"] = run
        found = interleaved(runs, rounds)
        tables[f"batch {batch}"] = [row(case, timing) for case, timing in found.items()]
    return tables


def passes(model: nn.Module, x: jax.Array) -> dict[str, Callable]:
    """Returns functions that run a model in `eval_mode`, and as a programmed chip."""
    variables = model.init(jax.random.key(0), x)
    plan = hwtrain.plan(model, variables, x)
    programmed = hwtrain.program_chip(variables["params"], plan, hwtrain.chip_key(0))
    on_chip = {"params": programmed.at(DAY_S, jax.random.key(1))}
    chip = jax.jit(hwtrain.chip_mode(model).apply)
    key = jax.random.key(2, impl=hwtrain.fast_prng)
    return {
        "eval_mode": bound(jax.jit(hwtrain.eval_mode(model).apply), variables, x),
        "chip_mode": bound(chip, on_chip, x, rngs={"mismatch": key}),
    }


def bound(function: Callable, *given, **named) -> Callable[[], object]:
    return lambda: function(*given, **named)


def hits(outputs, labels):
    """Returns whether the largest output of each example is that of its label."""
    return jnp.argmax(outputs, -1) == labels


SECTIONS = {
    "layers": layers,
    "activations": activations,
    "generator": generator,
    "peers": peers,
    "blocks": blocks,
    "convolutions": convolutions,
    "scaling": scaling,
    "population": population,
    "reads": reads,
}


def plot_scaling(tables: dict, path: Path):
    """Plots milliseconds along each axis of the scaling tables."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tables), figsize=(3.2 * len(tables), 3))
    for axis, (name, rows) in zip(axes, tables.items()):
        lines = list(dict.fromkeys(entry["line"] for entry in rows))
        for line, marker in zip(lines, "os"):
            chosen = [entry for entry in rows if entry["line"] == line]
            x = [entry["value"] for entry in chosen]
            y = [entry["ms"] for entry in chosen]
            axis.loglog(x, y, marker=marker, base=2, label=line)
        axis.set(xlabel=name, xticks=x, xticklabels=x)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    axes[0].set_ylabel("ms")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    """Measures the sections and keeps their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--keep-memory", action="store_true", help="hwtrain's function")
    options = parser.parse_args()
    kept = ", with hwtrain.keep_memory()" if options.keep_memory else ""
    if kept:
        hwtrain.keep_memory()
    for name in options.only:
        measure, about = SECTIONS[name], machine()
        tables = measure(options.rounds)
        heading = measure.__doc__.removesuffix(".") + kept + "."
        keep(options.out / "speed", name + kept, heading, tables, about)
        if name == "scaling":
            plot_scaling(tables, options.out / "scaling.png")


if __name__ == "__main__":
    main()
