"""The tables of a step on one accelerator, in under five minutes.

    python benchmarks/gpu.py [--rounds 15] [--out DIR] [--only NAME ...] [--small]

All is plain XLA. Several steps are started before the first is waited for, as in
training, and each table is one interleaved run (see `interleaved.py`). Without an
accelerator it measures the CPU; `--small` only shows that everything runs.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import optax
from flax import linen as nn
from interleaved import interleaved
from models import (
    CLIP,
    NOISE,
    OUTPUT_NOISE,
    RANGE,
    Cnn,
    ResNetBlock,
    Squares,
    TransformerBlock,
    chip,
    training_step,
)
from speed import evaluation, inputs
from tables import RESULTS, keep, machine, row

ALL = {"modifier": NOISE, "clip": CLIP, "input_range": RANGE, "forward": OUTPUT_NOISE}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the models, for one card of tens of gigabytes."""

    width: int = 2048
    batches: tuple[int, ...] = (128, 4096)
    tiles: tuple[int, ...] = (1024, 512, 256)
    tile: int = 512
    images: tuple[int, ...] = (128, 32, 32, 64)
    tokens: tuple[int, ...] = (8, 128, 512)
    heads: int = 8
    sequence: tuple[int, ...] = (32, 100, 512)
    digits: tuple[int, ...] = (450, 8, 8, 1)
    chips: int = 64
    chunk: int = 8
    steps: int = 10


SMALL = Sizes(
    width=16,
    batches=(4,),
    tiles=(8,),
    tile=8,
    images=(1, 4, 4, 32),
    tokens=(2, 4, 8),
    heads=2,
    sequence=(2, 3, 8),
    digits=(4, 8, 8, 1),
    chips=4,
    chunk=2,
    steps=2,
)


def effects(tile: int | None = None) -> dict:
    """Returns the cases of most tables, each with a chip and whether draws are fast."""
    cases = {
        "plain": (None, False),
        "weight noise": (chip(modifier=NOISE), True),
        "all effects": (chip(**ALL), True),
    }
    if tile is not None:
        cases[f"all effects, tiles of {tile}"] = (chip(tile, **ALL), True)
    return cases


def steps(module: nn.Module, x: jax.Array, cases: dict, sizes: Sizes, rounds: int):
    """Returns the rows of a table: training steps of a module on each hardware."""
    built = {
        name: training_step(module, hardware, x, optimizer=optax.sgd(1e-4), fast=fast)
        for name, (hardware, fast) in cases.items()
    }
    runs = {name: several(run, sizes.steps) for name, (run, _) in built.items()}
    plain = built["plain"][1]
    return [
        row(name, timing, sizes.steps) | {"memory": built[name][1] / plain}
        for name, timing in interleaved(runs, rounds).items()
    ]


def several(run: Callable[[], object], count: int) -> Callable[[], object]:
    """Returns a function that starts a step several times and returns the last result.

    The results before it are donated to the steps after them.
    """
    return lambda: [run() for _ in range(count)][-1]


def layers(sizes: Sizes, rounds: int):
    """Three square dense layers, SGD."""
    cases = effects()
    for name in ("weight noise", "all effects"):
        cases[f"{name}, threefry"] = (cases[name][0], False)
    tables = {}
    for batch in sizes.batches:
        module, x = Squares(sizes.width, 3), inputs(batch, sizes.width)
        title = f"width {sizes.width}, batch {batch}"
        tables[title] = steps(module, x, cases, sizes, rounds)
    return tables


def tiles(sizes: Sizes, rounds: int):
    """Three square dense layers with all effects, on tiles."""
    cases = {"plain": (None, False)}
    for tile in sizes.tiles:
        cases[f"tiles of {tile}"] = (chip(tile, **ALL), True)
    batch = sizes.batches[-1]
    module, x = Squares(sizes.width, 3), inputs(batch, sizes.width)
    title = f"width {sizes.width}, batch {batch}"
    return {title: steps(module, x, cases, sizes, rounds)}


def convolutions(sizes: Sizes, rounds: int):
    """A ResNet block."""
    shape = sizes.images
    module, cases = ResNetBlock(shape[-1]), effects(sizes.tile)
    return {_of("images", shape): steps(module, inputs(*shape), cases, sizes, rounds)}


def transformer(sizes: Sizes, rounds: int):
    """A Transformer block."""
    shape = sizes.tokens
    module, cases = TransformerBlock(shape[-1], sizes.heads), effects(sizes.tile)
    return {_of("tokens", shape): steps(module, inputs(*shape), cases, sizes, rounds)}


def recurrence(sizes: Sizes, rounds: int):
    """An LSTM over a sequence."""
    shape = sizes.sequence
    module = nn.RNN(nn.OptimizedLSTMCell(shape[-1]))
    return {
        _of("sequences", shape): steps(module, inputs(*shape), effects(), sizes, rounds)
    }


def population(sizes: Sizes, rounds: int):
    """Evaluation of a convolutional model on chips."""
    module, x, chips = Cnn(16, 64), inputs(*sizes.digits), sizes.chips
    run = evaluation(module, x)
    variables = module.init(jax.random.key(0), x)
    plain = jax.jit(module.apply)
    runs = {
        "plain evaluations": lambda: [plain(variables, x) for _ in range(chips)],
        "one call for each chip": lambda: [run([seed], 1) for seed in range(chips)],
        f"chunks of {sizes.chunk} chips": lambda: run(chips, sizes.chunk),
        "all chips at once": lambda: run(chips, chips),
    }
    rows = [
        row(name, timing) | {"chips_per_s": chips / timing.median}
        for name, timing in interleaved(runs, rounds).items()
    ]
    return {f"{chips} chips, {_of('images', sizes.digits)}": rows}


def _of(what: str, shape: tuple[int, ...]) -> str:
    return f"{what} of {' x '.join(map(str, shape))}"


SECTIONS = {
    "layers": layers,
    "tiles": tiles,
    "convolutions": convolutions,
    "transformer": transformer,
    "recurrence": recurrence,
    "population": population,
}


def main():
    """Measures the sections and keeps their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--small", action="store_true", help="tiny models")
    options = parser.parse_args()
    start, sizes = time.perf_counter(), SMALL if options.small else Sizes()
    # A card rounds the factors of its products, to TF32 for instance, unless told.
    precision = {"products": jax.config.jax_default_matmul_precision or "default"}
    for name in options.only:
        measure, about = SECTIONS[name], machine() | precision
        tables = measure(sizes, options.rounds)
        keep(options.out / "gpu", name, measure.__doc__, tables, about)
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
