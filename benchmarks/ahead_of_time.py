"""Memory and communication of training steps of language models, without their devices.

    python benchmarks/ahead_of_time.py [--models lm_100m lm_1b lm_8b lm_70b]
        [--devices 8 64 512] [--cases plain all] [--out DIR]

Compiles the training step of `recipes/lm.py` ahead of time, for simulated CPU devices,
in a process for each mesh. Shapes are all that there is: no array is allocated, and
nothing runs. Weights, and their states in AdamW, are spread over both axes of a mesh
`(data, model)`, the examples of a batch over `data`.

The tables show what XLA says of one device: the bytes of arguments (weights, states and
the batch), of results that take no argument's place, and of temporary arrays; the
operations of its matrix products; and its collectives, with the bytes of their results,
those in the loop over the blocks once for each block. XLA plans other temporary arrays
for a GPU, which fuses more.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hlo import COLLECTIVES, program
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from models import CLIP, CONVERTERS, NOISE, RANGE, chip
from tables import RESULTS, keep, machine

import hwtrain
from hwtrain import train
from hwtrain.train import _nnx as nnx

ALL = {"modifier": NOISE, "clip": CLIP, "input_range": RANGE, "forward": CONVERTERS}
CASES = {
    "plain": None,
    "weight noise": chip(modifier=NOISE),
    "all": chip(**ALL),
    "all, tiles of 512": chip(512, **ALL),
}
MODELS = {"lm_tiny": 64, "lm_100m": 1024, "lm_1b": 2048, "lm_8b": 2048}
MODELS |= {"lm_70b": 2048}
"""Models, with the tokens that a prediction may depend on."""
B70 = {"heads": 64, "width": 8192, "hidden": 28672, "depth": 80, "head": 128}
"""What Llama 3.1 70B has unlike the recipe's 8B."""
MESHES = {8: (4, 2), 64: (16, 4), 512: (64, 8)}
"""Devices on the axes `data` and `model`."""
WINDOWS = 2
"""Windows of text for each device on the axis `data`."""
RECIPE = str(Path(__file__).parents[1] / "recipes/lm.py")
ROWS, COLUMNS = ("o", "down", "embed"), ("q", "k", "v", "gate", "up", "head")
"""Layers whose rows, or columns, are spread over `model`."""
GIGA, TERA = 1e9, 1e12


def spread(path: str, rank: int) -> PartitionSpec:
    """Returns how a weight, and its states, are spread over the mesh.

    Args:
      path: its path.
      rank: its number of axes; the blocks of a stack lead.
    """
    *_, layer, leaf = path.split("/")
    if leaf not in ("kernel", "embedding"):
        return PartitionSpec()
    axes = ("model", "data") if layer in ROWS else ("data", "model")
    return PartitionSpec(*[None] * (rank - 2), *axes)


def model_of(name: str):
    """Returns the function of `rngs` that makes a model of `MODELS`."""
    if name != "lm_70b":
        return train.resolve(f"{RECIPE}:{name}", ".")
    recipe = train.resolve(f"{RECIPE}:lm_8b", ".").__globals__
    sizes = dataclasses.replace(recipe["B8"], **B70)
    return lambda rngs: recipe["LanguageModel"](sizes, rngs)


def lowered(model: str, case: str, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """Returns a training step on shapes.

    Args:
      model: a name in `MODELS`.
      case: a name in `CASES`.
      mesh: with the axes `data` and `model`.
    """
    shape = WINDOWS * mesh.shape["data"], MODELS[model] + 1
    batch = jax.ShapeDtypeStruct(shape, jnp.int32)
    make, hardware = model_of(model), CASES[case]

    def forward(apply, tokens, train):
        return apply(tokens)

    optimizer = optax.adamw(1e-3)
    if hardware is None:
        functional = nnx.plain(make, forward, batch)
    else:
        rules = [hwtrain.Rule("blocks/.*", hardware)]
        functional, plan = nnx.hardware_aware(make, rules, forward, batch)
        optimizer = hwtrain.optim.hardware_aware(optimizer, plan)

    def initial():
        params, state = functional.init(0)
        return train.TrainState(jnp.int32(0), params, state, optimizer.init(params))

    def placed(path, leaf):
        words = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        how = spread("/".join(["", "", *words]), leaf.ndim)
        sharding = NamedSharding(mesh, how)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree_util.tree_map_with_path(placed, jax.eval_shape(initial))
    loss = train.next_token_cross_entropy
    step = train.make_step(functional, optimizer, loss, mesh=mesh)
    key = jax.random.key(0, impl=hwtrain.fast_prng)
    by_example = NamedSharding(mesh, PartitionSpec("data"))
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=by_example)
    with jax.set_mesh(mesh):
        return step.lower(state, tokens, key)


def mesh_of(devices: int) -> jax.sharding.Mesh:
    """Returns the mesh of a number of devices."""
    kinds = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(MESHES[devices], ("data", "model"), axis_types=kinds)


def row(model: str, case: str, devices: int) -> dict:
    """Returns the row of a step on a mesh of all devices of this process."""
    start = time.perf_counter()
    step = lowered(model, case, mesh_of(devices))
    traced = time.perf_counter()
    compiled = step.compile()
    done = time.perf_counter()
    memory, found = compiled.memory_analysis(), program(compiled.as_text())
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    counts = {}
    for name in COLLECTIVES:
        count, size = found.collectives.get(name, (0, 0))
        counts[name] = f"{count}, {_rounded(size / GIGA)} GB" if count else "none"
    return {
        "case": case,
        "arguments, GB": memory.argument_size_in_bytes / GIGA,
        "more results, GB": results / GIGA,
        "temporary, GB": memory.temp_size_in_bytes / GIGA,
        "products, TFLOP": found.operations / TERA,
        **counts,
        "collected, GB": sum(size for _, size in found.collectives.values()) / GIGA,
        "traced, s": traced - start,
        "compiled, s": done - traced,
    }


def _rounded(value: float) -> str:
    return np.format_float_positional(value, 3, fractional=False, trim="-")


def table(model: str, cases: list[str], devices: int) -> list[dict]:
    """Returns the rows of a model, each from a process with this number of devices.

    Raises:
      RuntimeError: if one fails, with what it said.
    """
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    rows = []
    for case in cases:
        command = [sys.executable, __file__, "--row", model, case, str(devices)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{model}, {case}, {devices} devices: {done.stderr}")
        rows.append(json.loads(done.stdout))
        print(rows[-1], file=sys.stderr, flush=True)
    for name in ("temporary, GB", "collected, GB"):
        for entry in rows:
            entry[f"{name.partition(',')[0]} / first"] = entry[name] / rows[0][name]
    return rows


def main():
    """Compiles all steps, and keeps their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS][1:])
    parser.add_argument("--devices", nargs="+", type=int, default=[*MESHES])
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=CASES,
        default=[*CASES],
        help="one or several, in quotes: 'all, tiles of 512'",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row is not None:
        model, case, devices = options.row
        print(json.dumps(row(model, case, int(devices))))
        return
    for model in options.models:
        for devices in options.devices:
            data, columns = MESHES[devices]
            title = (
                f"{model}, {data} x {columns} devices, {WINDOWS * data} windows of "
                f"{MODELS[model]} tokens"
            )
            rows = table(model, options.cases, devices)
            heading = "One training step, compiled ahead of time: what one device does"
            name = f"{model}, {devices}"
            keep(options.out / "ahead_of_time", name, heading, {title: rows}, machine())


if __name__ == "__main__":
    main()
