"""`hwtrain convert --from`: a trained model of another package becomes hwtrain's."""

import argparse
import inspect
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tomli_w
from flax import nnx
from flax.core import meta
from rich.console import Console
from safetensors.numpy import save_file

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._flax.calls import first_call
from hwtrain._flax.modes import plan as plan_of
from hwtrain._parts.source import resolve
from hwtrain._plan.hardware import Hardware
from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint import importers
from hwtrain.checkpoint._of_nnx import collections_of
from hwtrain.cli._errors import bad_input
from hwtrain.train import _linen as linen
from hwtrain.train import _nnx as nnx_models
from hwtrain.train._entries import named

_READERS = {
    "aihwkit": importers.read_aihwkit,
    "lightning": importers.read_lightning,
}

Arrays = Mapping[str, np.ndarray]
Shapes = list[tuple[str, str, tuple[int, ...]]]
"""Collection, path and shape of each variable."""


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    with bad_input():
        if options.out is None:
            raise InputError("--out: expected the new folder, got none")
        destination.check_free(options.out)
        if options.source == "rockpool":
            report = _of_rockpool(options)
        elif options.source in _READERS:
            report = _of_torch(options)
        else:
            known = ", ".join([*_READERS, "rockpool"])
            raise InputError(f"--from: expected one of {known}, got {options.source!r}")
    _print(report, options.out)
    return 0


def _of_torch(options: argparse.Namespace) -> dict[str, Any]:
    if options.model is None:
        raise InputError(
            "--model: expected the Flax model that gets the parameters, as "
            "path/to/file.py:function, got none"
        )
    trained = _READERS[options.source](options.checkpoint)
    names = _names(options.names)
    target = _target(options.model, options.input)
    found = importers.parameters(trained, target, names)
    report = {
        "from": trained.package,
        "model": options.model,
        "names": dict(found.names),
        "lost": list(found.lost),
    }
    files = {"plain.safetensors": found.plain, "analog.safetensors": found.analog}
    _write(options.out, files, report, found.hardware)
    return report


def _of_rockpool(options: argparse.Namespace) -> dict[str, Any]:
    for name in ("model", "input", "names"):
        if getattr(options, name):
            raise InputError(
                f"--{name} does nothing with --from rockpool, whose layers keep their "
                "names; leave it out, and rename them in training.init_from"
            )
    found = importers.read_rockpool(options.checkpoint)
    report = {
        "from": "rockpool",
        "cells": dict(found.cells),
        "lost": list(found.lost),
    }
    _write(options.out, {"plain.safetensors": found.arrays}, report)
    return report


def _write(
    out: Path,
    files: Mapping[str, Arrays],
    report: Mapping[str, Any],
    hardware: Mapping[str, Any] | None = None,
) -> None:
    with destination.new(out, folder=True) as partial:
        for name, arrays in files.items():
            save_file(
                {x: np.asarray(v, order="C") for x, v in arrays.items()}, partial / name
            )
        if hardware is not None:
            text = tomli_w.dumps(hardware)
            (partial / "hardware.toml").write_text(text, encoding="utf-8")
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        (partial / "report.json").write_text(text, encoding="utf-8")


def _print(report: Mapping[str, Any], out: Path) -> None:
    console = Console()

    def line(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    for one, other in report.get("names", {}).items():
        line(f"{one} -> {other or 'the model itself'}")
    if report["lost"]:
        line("lost:")
        for text in report["lost"]:
            line(f"  {text}")
    line(f"{out} written")


def _names(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"--names: {path}: it cannot be read: {error.strerror}"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: expected a TOML file: {error}") from error
    names = data.get("names")
    if isinstance(names, dict) and len(data) == 1:
        if all(isinstance(name, str) for name in names.values()):
            return names
    raise InputError(
        f"{path}: expected a table [names] of texts alone, such as "
        '"features.0" = "conv_0", a module of the file and one of the model'
    )


def _target(source: str, inputs: list[str]) -> importers.Target:
    """Returns the Flax model that a command line names."""
    example = tuple(map(_example, inputs))
    given = f"inputs {[x.shape for x in example]}" if example else ""
    with named("--model", source, given=given):
        factory = resolve(source)
        of_nnx = "rngs" in inspect.signature(factory).parameters
        frontend = nnx_models if of_nnx else linen
        forward = frontend.default_forward(factory)
    if not of_nnx and not inputs:
        raise InputError(
            f"--input: {source} is a model of Linen, whose parameters depend on its "
            "input: write its shape, such as --input 1,28,28,1"
        )
    if len(example) > 1:
        forward = _of_several(forward)

    def plan(hardware: Any) -> Any:
        if example:
            return frontend.hardware_aware(factory, hardware, forward, example)[1]
        return plan_of(nnx.eval_shape(lambda: nnx_models.on_chip(factory, hardware)))

    with named("--model", source, given=given):
        if of_nnx:
            shapes = _nnx_variables(factory)
        else:
            shapes = _linen_variables(factory, forward, example)
        plan(Hardware())
    return importers.Target(
        shapes={path: shape for _, path, shape in shapes},
        collections={path: collection for collection, path, _ in shapes},
        plan=plan,
    )


def _example(text: str) -> Any:
    """Returns an input of zeros from its shape, `1,64` or `1,16:int32`."""
    match = re.fullmatch(r"(\d+(?:,\d+)*)(?::(\w+))?", text)
    try:
        if match is None:
            raise TypeError
        return jnp.zeros(tuple(map(int, match[1].split(","))), match[2] or "float32")
    except TypeError:
        raise InputError(
            "--input: expected a shape, such as 1,28,28,1, with a dtype other than "
            f"float32 behind a colon, such as 1,16:int32; got {text!r}"
        ) from None


def _of_several(forward: Any) -> Any:
    """Returns the function that calls a model with all of a batch."""

    def several(apply: Any, batch: Any, train: bool) -> Any:
        return forward(lambda _, **told: apply(*batch, **told), batch, train)

    return several


def _linen_variables(factory: Any, forward: Any, example: Any) -> Shapes:
    module, made = linen.build(factory), []
    args, kwargs = first_call(lambda apply, batch: forward(apply, batch, True), example)

    def init() -> None:
        # In the order of the calls, which a tree that is returned would lose.
        for collection, tree in module.init(jax.random.key(0), *args, **kwargs).items():
            made.extend((collection, path, x.shape) for path, x in _in_order(tree))

    jax.eval_shape(init)
    return made


def _in_order(tree: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, entry in tree.items():
            yield from _in_order(entry, (*keys, key))
    else:
        yield paths.join(keys), meta.unbox(tree)


def _nnx_variables(factory: Any) -> Shapes:
    made: Shapes = []

    def make() -> Any:
        model = nnx_models.build(factory, nnx.Rngs(0))
        found = [
            (collection, path, leaf.shape)
            for collection, tree in collections_of(model).items()
            for path, leaf in paths.leaves(tree).items()
        ]
        # Here, because what `eval_shape` returns has its attributes in another order.
        made[:] = sorted(found, key=lambda entry: _rank(model, entry[1]))
        return model

    nnx.eval_shape(make)
    return made


def _rank(model: Any, path: str) -> list[int]:
    """Returns the place of a variable in the order in which attributes were set."""
    found, at = [], model
    for name in path.split("/"):
        entries = _entries(at)
        found.append([*entries].index(name) if name in entries else len(entries))
        at = entries.get(name)
    return found


def _entries(module: Any) -> dict[str, Any]:
    if isinstance(module, list | tuple | nnx.List):
        return {str(number): entry for number, entry in enumerate(module)}
    if isinstance(module, Mapping | nnx.Dict):
        return {str(name): entry for name, entry in module.items()}
    return dict(vars(module)) if hasattr(module, "__dict__") else {}
