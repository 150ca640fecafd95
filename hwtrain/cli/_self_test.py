"""What `hwtrain doctor` tries with JAX and Flax: devices, and a small run."""

import os
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

from hwtrain import checkpoint, evaluate, optim
from hwtrain._flax.modes import analogize, eval_mode, plan
from hwtrain._plan.hardware import Hardware
from hwtrain.cli._doctor import Row, said
from hwtrain.devices import PCMLikeNoiseModel, SinglePairConductanceConverter
from hwtrain.periphery import InputRangeParameter, IOParameters
from hwtrain.weights import (
    MappingParameter,
    WeightClipParameter,
    WeightModifierParameter,
)


def devices() -> Iterator[Row]:
    """Yields the devices that JAX computes on."""
    try:
        found = jax.devices()
    except Exception as error:  # of several kinds, by what is wrong with the backend
        asked = os.environ.get("JAX_PLATFORMS")
        way = "pip install --force-reinstall jax"
        if asked:
            way = f"JAX_PLATFORMS={asked}: unset it, or install what it names"
        yield "backend", "failed", f"{said(error)} ({way})"
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


def _tested(name: str, test: Callable[[], str]) -> Row:
    start = time.perf_counter()
    try:
        found = test()
    except Exception as error:
        # Whatever is wrong with an installation belongs into the table.
        return name, "failed", said(error)
    return name, f"{found}, {time.perf_counter() - start:.1f} s", ""
