"""Errors for analog layers that are called in an unsupported way."""

from hwtrain._errors import InputError
from hwtrain._flax.loops import returned, runs_late
from hwtrain._plan.weight import AnalogWeight


def other_geometry(weight: AnalogWeight, planned: str, got: str) -> ValueError:
    """Returns the error for a layer that multiplies differently than planned."""
    where = f"{weight.layer_path}: " if weight.layer_path else ""
    return InputError(
        f"{where}this analog layer {planned}; got {got}. Keep it digital with "
        f"Rule({weight.layer_path!r}, None)"
    )


def missing_leaf(path: str, leaf: str) -> ValueError:
    """Returns the error for an analog layer with a plain model's parameters."""
    where = f"{path}: " if path else ""
    return InputError(
        f"{where}the parameters have no {leaf!r}. They seem to come from the plain "
        "model; write params = hwtrain.adopt(analog, params, *example) first"
    )


def missing_stream(mode: str, stream: str) -> ValueError:
    """Returns the error for a mode that draws noise without an rng stream."""
    return InputError(
        f"this model is in {mode}_mode, whose hardware draws noise, and has no rng "
        f'stream "{stream}". Linen: pass rngs={{"{stream}": key}} to apply. NNX: '
        f"analogize(model, hardware, rngs=nnx.Rngs({stream}=seed)). Without noise: "
        "hwtrain.eval_mode(model)"
    )


def behind_the_root(path: str) -> ValueError:
    """Returns the error for a layer called without the root that draws its noise."""
    if runs_late():
        return returned(path or "this layer")
    return InputError(
        f"{path or 'this layer'} was called without its analog model, which draws its "
        "noise, so it would run without noise. Call a method of the model that "
        "analogize returned, or analogize this layer itself"
    )
