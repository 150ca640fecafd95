"""`hwtrain doctor`."""

import argparse
import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.table import Table

from hwtrain import checkpoint, evaluate, optim
from hwtrain._flax.modes import analogize, eval_mode, plan
from hwtrain._plan.hardware import Hardware
from hwtrain.devices import PCMLikeNoiseModel, SinglePairConductanceConverter
from hwtrain.periphery import InputRangeParameter, IOParameters
from hwtrain.weights import (
    MappingParameter,
    WeightClipParameter,
    WeightModifierParameter,
)

_PACKAGE = "hwtrain"

Row = tuple[str, str, str]
"""What was looked at, what was found, and what is wrong; empty if nothing is."""


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console = Console()
    wrong = 0
    for title, rows in (("Packages", packages()), ("Devices", devices())):
        wrong += _show(console, title, rows)
    if not options.quick:
        wrong += _show(console, "Self-test", self_test())
    console.print(
        "All is well." if not wrong else f"{wrong} to mend, see above.", soft_wrap=True
    )
    return 1 if wrong else 0


def packages() -> Iterator[Row]:
    """Yields the versions of Python and of all packages, next to what is needed."""
    yield "Python", platform.python_version(), ""
    about = importlib.metadata.metadata(_PACKAGE)
    yield _PACKAGE, about["Version"], ""
    needed = [Requirement(text) for text in importlib.metadata.requires(_PACKAGE) or ()]
    modules: dict[str, list[str]] = {}
    for module, owners in importlib.metadata.packages_distributions().items():
        for owner in owners:
            modules.setdefault(canonicalize_name(owner), []).append(module)
    for requirement in needed:
        if requirement.marker is None:
            name = canonicalize_name(requirement.name)
            yield _package(requirement, modules.get(name, []))
    for extra in about.get_all("Provides-Extra") or ():
        own = [x for x in needed if x.marker and x.marker.evaluate({"extra": extra})]
        absent = [x.name for x in own if x.name != _PACKAGE and not _version(x.name)]
        found = "installed"
        if absent:
            found = f"without {', '.join(absent)}: pip install '{_PACKAGE}[{extra}]'"
        yield f"extra {extra}", found, ""


def devices() -> Iterator[Row]:
    """Yields the devices that JAX computes on."""
    try:
        found = jax.devices()
    except Exception as error:  # of several kinds, by what is wrong with the backend
        asked = os.environ.get("JAX_PLATFORMS")
        way = "pip install --force-reinstall jax"
        if asked:
            way = f"JAX_PLATFORMS={asked}: unset it, or install what it names"
        yield "backend", "failed", f"{_said(error)} ({way})"
        return
    yield "backend", jax.default_backend(), ""
    yield "devices", f"{len(found)} x {found[0].device_kind}", ""
    yield "processes", str(jax.process_count()), ""


def self_test() -> Iterator[Row]:
    """Yields the parts of a small run in both frameworks, as they are done."""
    tests = {
        "Linen, Optax": _trains,
        "NNX": _agrees,
        "assert_active": _acts,
        "export, verify": _exports,
    }
    for name, test in tests.items():
        yield _tested(name, test)


def _small() -> tuple[Any, Any, jax.Array]:
    """Returns a model on a chip with noise, converters and devices, and inputs."""
    hardware = Hardware(
        modifier=WeightModifierParameter(type="add_normal", std_dev=0.1),
        clip=WeightClipParameter(type="layer_gaussian", sigma=2.0),
        input_range=InputRangeParameter(init_value=2.0),
        mapping=MappingParameter(weight_scaling_omega=1.0),
        forward=IOParameters(inp_bits=8, out_bits=8, out_bound=10.0),
        converter=SinglePairConductanceConverter(g_max=25.0),
        noise_model=PCMLikeNoiseModel(),
    )
    x = jax.random.normal(jax.random.key(0), (8, 16))
    analog = analogize(nn.Dense(8), hardware)
    return analog, analog.init(jax.random.key(1), x), x


def _trains() -> str:
    analog, variables, x = _small()
    found = plan(analog, variables, x)
    optimizer = optim.hardware_aware(optax.adam(1e-2), found)

    def loss(params: Any, key: jax.Array) -> jax.Array:
        y = analog.apply({"params": params}, x, rngs={"mismatch": key})
        return jnp.mean((y - x[:, :8]) ** 2)

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params, state = variables["params"], optimizer.init(variables["params"])
    losses = []
    for number in range(20):
        params, state, value = step(params, state, jax.random.key(number))
        losses.append(float(value))
    if not losses[-1] < losses[0]:
        raise AssertionError(f"the loss goes from {losses[0]:.3g} to {losses[-1]:.3g}")
    return f"the loss falls from {losses[0]:.3g} to {losses[-1]:.3g}"


def _agrees() -> str:
    analog, variables, x = _small()
    hardware = plan(analog, variables, x)["kernel"].hardware
    twin = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
    twin.kernel[...] = variables["params"]["kernel"]
    twin = analogize(twin, hardware, rngs=nnx.Rngs(mismatch=1))
    exact = eval_mode(analog).apply(variables, x)
    error = float(jnp.max(jnp.abs(eval_mode(twin)(x) - exact)))
    if not error <= 1e-5 * float(jnp.max(jnp.abs(exact))):
        raise AssertionError(f"outputs differ from those of Linen by {error:.2g}")
    return "as Linen"


def _acts() -> str:
    evaluate.assert_active(*_small())
    return "every configured effect acts"


def _exports() -> str:
    analog, variables, x = _small()
    found = plan(analog, variables, x)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chip"
        checkpoint.export(path, variables, found, chip_seeds=[0])
        checkpoint.verify(path)
    return "one chip written, read back and verified"


def _package(requirement: Requirement, modules: list[str]) -> Row:
    version = _version(requirement.name)
    wanted = f"{requirement.name}{requirement.specifier}"
    if version is None:
        return requirement.name, "missing", f"pip install '{wanted}'"
    found = f"{version} (needs {requirement.specifier})"
    fits = requirement.specifier.contains(version, prereleases=True)
    if not fits:
        return requirement.name, found, f"pip install '{wanted}'"
    try:
        for module in modules:
            importlib.import_module(module)
    except Exception as error:
        again = f"pip install --force-reinstall '{wanted}'"
        return requirement.name, found, f"no import: {_said(error)}: {again}"
    return requirement.name, found, ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tested(name: str, test: Callable[[], str]) -> Row:
    start = time.perf_counter()
    try:
        found = test()
    except Exception as error:
        # Whatever is wrong with an installation belongs into the table.
        return name, "failed", _said(error)
    return name, f"{found}, {time.perf_counter() - start:.1f} s", ""


def _said(error: Exception) -> str:
    return ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))


def _show(console: Console, title: str, rows: Iterator[Row]) -> int:
    """Prints a table, and returns how many of its rows are wrong."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    with console.status(f"{title} ...") as status:
        wrong = 0
        for name, found, fault in rows:
            status.update(f"{title}: {name} done")
            wrong += bool(fault)
            shown = f"[red]{found}[/]: {_plain(fault)}" if fault else _plain(found)
            table.add_row(name, shown)
    console.print(table)
    return wrong


def _plain(text: str) -> str:
    """Returns text in which rich finds no markup."""
    return text.replace("[", r"\[")
