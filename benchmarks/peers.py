"""Steps on a chip, and many chips, in hwtrain, aihwkit-lightning and aihwkit.

    python benchmarks/peers.py [--env DIR] [--rounds 10] [--out DIR] [--only mlp ...]

Makes a virtual environment with hwtrain, torch and both peers in DIR, or without it in
a temporary folder, and measures there. `DIR/bin/python benchmarks/peers.py --here`
measures with what an interpreter has.

All run in one process. The steps are the same: batch, float32, SGD, and the same
effects, on two threads. Chips are programmed and drift for a day, with a compensation,
before they see a batch; aihwkit-lightning has none. Times
are absolute; ratios are to the plain step of the own framework. The peers' input ranges
learn from the first step on, and skip their initialisation from data, which hwtrain's
compiled step includes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

THREADS = 2
TORCH = "torch==2.13.0"
"""The version that aihwkit-lightning asks for."""
PEERS = {
    "aihwkit-lightning": ["aihwkit-lightning==2.1.0"],
    "aihwkit": ["--no-build-isolation", "aihwkit==1.2.0"],
}
"""What pip takes for each. aihwkit is built here, with a compiler and OpenBLAS."""
TOOLS = ["cmake>=4.2.1", "scikit-build>=0.18.1", "pybind11>=3.0.1"]
TOOLS += ["ninja", "mypy", "wheel", "setuptools>=77"]
"""What aihwkit is built with."""
REST_S = 0.05
"""Longer than idle threads of torch and of XLA look for work before they sleep."""

SIZES = {
    "mlp": {"width": 2048, "depth": 3, "batch": 128},
    "cnn": {"channels": 32, "hidden": 128, "pixels": 28, "batch": 128},
    "transformer": {"width": 512, "heads": 8, "tokens": 128, "batch": 8},
}
CHIPS = {"channels": 16, "hidden": 64, "pixels": 8, "batch": 450, "chips": 64}
HEADINGS = {
    "mlp": "Three dense layers of {width}, batch {batch}.",
    "cnn": "Two convolutions of {channels} channels and more, two dense layers, "
    "{batch} images of {pixels} x {pixels}.",
    "transformer": "A Transformer block, {width} wide, {batch} x {tokens} tokens.",
    "chips": "{chips} chips of PCM after a day, each with {batch} images of "
    "{pixels} x {pixels}: two convolutions of {channels} channels and more, two dense "
    "layers.",
}


def environment(folder: Path) -> tuple[Path, list[str]]:
    """Makes a virtual environment with hwtrain and the peers.

    Args:
      folder: of the environment, which may exist.

    Returns:
      Its interpreter, and why packages are missing, one line each.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    root = Path(__file__).parent.parent
    versions = [f"{package}=={version(package)}" for package in ("jax", "flax")]
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    pip = [python, "-m", "pip", "install", "--quiet", TORCH]
    subprocess.run([*pip, *versions, "-e", root, *TOOLS], check=True)
    missing = []
    for name, words in PEERS.items():
        done = subprocess.run(
            [*pip, *words],
            env={**os.environ, "PATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            reason = next((line for line in lines if "ERROR" in line), lines[-1])
            missing.append(f"{name} does not install: {reason.strip()}")
    return python, missing


def measured(name: str, size: dict, rounds: int) -> list[dict]:
    """Returns the table of a model.

    The plain steps are measured also in a process without the other framework.
    """
    import torch_peers
    from interleaved import interleaved

    x = batch(name, size)
    ours = flax_steps(name, size, x)
    theirs = {"torch, plain": torch_peers.plain_step(name, size, x)}
    theirs |= torch_peers.analog_steps(name, size, x)
    alone = {framework: Alone(framework, name, size) for framework in ("flax", "torch")}
    runs = {**ours, "flax, plain, in a process of its own": alone["flax"].step}
    runs |= {**theirs, "torch, plain, in a process of its own": alone["torch"].step}
    timings = interleaved(runs, rounds, REST_S)
    for process in alone.values():
        process.close()
    return with_ratios(timings, 1 + len(ours))


def with_ratios(timings: dict, ours: int) -> list[dict]:
    """Returns rows with ratios to the plain runs of the own framework.

    Args:
      timings: of all variants, those of Flax first; the first of each framework is
        plain.
      ours: the number of variants of Flax.
    """
    from tables import row

    rows, every = [], list(timings.items())
    for variants in (every[:ours], every[ours:]):
        for variant, timing in variants:
            plain = variants[0][1]
            ratios = {
                "ratio": timing.median / plain.median,
                "ratio of fastest": timing.fastest / plain.fastest,
            }
            rows.append(row(variant, timing) | ratios)
    return rows


def evaluated(size: dict, rounds: int) -> list[dict]:
    """Returns the table of an evaluation on chips."""
    import torch_peers
    from interleaved import interleaved

    x = batch("cnn", size)
    ours, theirs = flax_evaluations(size, x), torch_peers.evaluations(size, x)
    timings = interleaved(ours | theirs, rounds, REST_S)
    chips = size["chips"]
    return [
        entry | {"chips_per_s": 1e3 * chips / entry["ms"]}
        for entry in with_ratios(timings, len(ours))
    ]


def flax_evaluations(size: dict, x) -> dict[str, Callable[[], object]]:
    """Returns functions that evaluate a model in Flax: plain, and on chips."""
    import jax
    import jax.numpy as jnp
    import models
    from speed import evaluation

    plain, x, chips = module("cnn", size), jnp.asarray(x), size["chips"]
    variables, apply = plain.init(jax.random.key(0), x), jax.jit(plain.apply)
    hardware = models.chip(
        input_range=models.RANGE, forward=models.OUTPUT_NOISE, **models.DEVICE
    )
    run = evaluation(plain, x, hardware, times_s=[models.DAY_S])
    return {
        "flax, plain": lambda: [apply(variables, x) for _ in range(chips)],
        "hwtrain, a call for each": lambda: [run([seed], 1) for seed in range(chips)],
        "hwtrain, one call": lambda: run(chips, None),
    }


def batch(name: str, size: dict):
    """Returns a batch of a model, as a NumPy array."""
    import numpy as np

    shape = {
        "mlp": ("batch", "width"),
        "cnn": ("batch", "pixels", "pixels"),
        "transformer": ("batch", "tokens", "width"),
    }[name]
    x = np.random.default_rng(7).normal(size=[size[axis] for axis in shape])
    return (x[..., None] if name == "cnn" else x).astype(np.float32)


def module(name: str, size: dict):
    """Returns a model in Flax."""
    import models

    if name == "mlp":
        return models.Squares(size["width"], size["depth"])
    if name == "cnn":
        return models.Cnn(size["channels"], size["hidden"])
    return models.TransformerBlock(size["width"], size["heads"])


def flax_steps(
    name: str, size: dict, x, only: Iterable[str] = ()
) -> dict[str, Callable[[], object]]:
    """Returns functions that run one step of a model in Flax, plain and with hwtrain.

    Args:
      name: of the model.
      size: its sizes.
      x: a batch.
      only: the variants; empty for all.
    """
    import jax.numpy as jnp
    import models
    import optax

    plain, noise = module(name, size), {"modifier": models.NOISE}
    everything = {
        **noise,
        "clip": models.CLIP,
        "input_range": models.RANGE,
        "forward": models.OUTPUT_NOISE,
    }
    chips = {
        "weight noise": models.chip(**noise),
        "all effects": models.chip(**everything),
        "all effects, tiles of 512": models.chip(512, **everything),
    }
    cases = {"flax, plain": (None, False)}
    for case, chip in chips.items():
        cases[f"hwtrain, {case}"] = (chip, True)
        cases[f"hwtrain, {case}, threefry"] = (chip, False)
    return {
        case: models.training_step(
            plain, chip, jnp.asarray(x), optimizer=optax.sgd(1e-4), fast=fast
        )[0]
        for case, (chip, fast) in cases.items()
        if not only or case in only
    }


class Alone:
    """A process that runs the plain step of one framework, without the other."""

    def __init__(self, framework: str, name: str, size: dict):
        words = [__file__, "--alone", framework, name, repr(size)]
        self.process = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def step(self) -> None:
        """Has the process run one step, and waits for it."""
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise RuntimeError(
                "expected a step of a plain model, but its process ended"
            )

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()

    @staticmethod
    def serve(framework: str, name: str, size: dict) -> None:
        """Runs a step for each line of the standard input."""
        x = batch(name, size)
        if framework == "flax":
            import jax

            step = flax_steps(name, size, x, ["flax, plain"])["flax, plain"]
        else:
            import torch_peers

            step = torch_peers.plain_step(name, size, x)
        for _ in sys.stdin:
            done = step()
            if framework == "flax":
                jax.block_until_ready(done)
            print(flush=True)


def here(options: argparse.Namespace) -> None:
    """Measures with the packages of this interpreter, and keeps the tables."""
    # JAX, torch and OpenBLAS have as many threads as there are processors to run on.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    from tables import keep, machine

    about = machine(["torch", "aihwkit-lightning", "aihwkit"]) | {"threads": THREADS}
    for number, reason in enumerate(options.missing, 1):
        about[f"missing {number}:"] = reason
    for name in options.only:
        if name == "chips":
            size, title, rows = CHIPS, "All chips", evaluated(CHIPS, options.rounds)
        else:
            size, title = SIZES[name], "One step"
            rows = measured(name, size, options.rounds)
        heading = HEADINGS[name].format(**size)
        keep(options.out / "peers", name, heading, {title: rows}, about)


def main():
    """Makes the environment, and measures in it."""
    if sys.argv[1:2] == ["--alone"]:
        from ast import literal_eval

        return Alone.serve(sys.argv[2], sys.argv[3], literal_eval(sys.argv[4]))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", type=Path, help="folder of the environment")
    parser.add_argument("--here", action="store_true", help="make no environment")
    parser.add_argument("--missing", action="append", default=[], help="a line to keep")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="*", choices=HEADINGS, default=list(HEADINGS))
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results, help="folder of the files")
    options = parser.parse_args()
    if options.here:
        return here(options)
    with tempfile.TemporaryDirectory() as temporary:
        python, missing = environment(options.env or Path(temporary))
        words = ["--rounds", options.rounds, "--out", options.out, "--only"]
        words += [*options.only, *(f"--missing={reason}" for reason in missing)]
        command = [python, __file__, "--here", *map(str, words)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
