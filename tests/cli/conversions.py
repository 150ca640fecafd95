"""Runs `hwtrain convert --from`, and computes with what it writes."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

import hwtrain
from hwtrain import cli
from hwtrain.train import initialised, read_arrays, read_config

MODELS = Path(__file__).with_name("trained_models.py")
_MODELS = {"cnn": "cnn", "conv1d": "conv1d", "mixed": "deep"}


def name_of(case):
    """Returns the function of the model for a case, by its name."""
    return _MODELS.get(case.partition("_")[2], "mlp")


def load_models():
    spec = importlib.util.spec_from_file_location("trained_models", MODELS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def convert(file, out, package, model, x=None, *words):
    """Runs the command; returns its exit status."""
    given = [] if x is None else ["--input", ",".join(map(str, np.shape(x)))]
    given += ["--model", f"{MODELS}:{model}", "--out", str(out), *words]
    return cli.main(["convert", str(file), "--from", package, *given])


def hardware_of(out):
    """Returns the hardware as a configuration reads it, for `analogize`."""
    config = out.with_suffix(".toml")
    head = (
        f'model = "{MODELS}:mlp"\ndata = "data.py:data"\ntraining = {{ steps = 1 }}\n'
    )
    config.write_text(head + (out / "hardware.toml").read_text())
    return read_config(config).assigned


def outputs(out, model, x):
    """Returns what the converted model computes, without noise."""
    models, x = load_models(), jnp.asarray(x)
    arrays = read_arrays(out / "analog.safetensors")
    if model.startswith("nnx"):
        module = getattr(models, model)(nnx.Rngs(0))
        rngs = nnx.Rngs(mismatch=0)
        analog = hwtrain.analogize(module, hardware_of(out), rngs=rngs)
        analog = hwtrain.eval_mode(analog)
        analog.eval()
        keys = {path: tuple(path.split("/")[1:]) for path in arrays}
        keys = {
            path: tuple(int(k) if k.isdigit() else k for k in key)
            for path, key in keys.items()
        }
        state = {keys[path]: jnp.asarray(x) for path, x in arrays.items()}
        assert set(state) <= set(dict(nnx.to_flat_state(nnx.state(analog))))
        nnx.update(analog, unflatten_dict(state))
        return np.asarray(analog(x))
    module = hwtrain.analogize(getattr(models, model)(), hardware_of(out))
    analog = hwtrain.eval_mode(module)
    variables = jax.eval_shape(analog.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
    variables, report = initialised(variables, arrays)
    # All but the probes, which a reading of the statistics needs.
    assert all(path.endswith("probe") for path in report.missing), report.missing
    assert not report.unused and not report.aside
    return np.asarray(analog.apply(variables, x))
