"""One step of an analog NNX model: runs a method on a copy with the step's weights."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._flax import weight_side
from hwtrain._flax.loops import as_root
from hwtrain._flax.nnx.layers import Beside, StepLeaf
from hwtrain._flax.read_keys import generator_of
from hwtrain._plan.plan import Plan


def modules_of(model: nnx.Module) -> dict[str, Any]:
    """Returns the modules of a model by path, including itself."""
    return {paths.join(keys): m for keys, m in nnx.iter_modules(model)}


def noisy_call(
    root: Any,
    original: Any,
    plan: Plan,
    mode: str,
    key: Any,
    constants: weight_side.Values,
    args: tuple,
    kwargs: dict,
) -> Any:
    """Calls a method on a copy of the root with the weights of one step."""
    graphdef, params, rest = nnx.split(root, nnx.Param, ...)
    params, leaves = weight_side.step_weights(params, plan, mode, key, constants)
    noisy = nnx.merge(graphdef, params, rest)
    modules = modules_of(noisy)
    for path, value in leaves.items():
        layer, _, name = path.rpartition("/")
        setattr(modules[layer], name, StepLeaf(value))
    _put_beside(modules, plan)
    _make_holes(modules, plan, constants)
    guarded = [module for module in modules.values() if hasattr(module, "analog_raw")]
    for module in (noisy, *guarded):
        module.analog_running = True
    before = _values(noisy)
    with generator_of(key):
        result = as_root(original, noisy, *args, **kwargs)
    changed = _changed(before, _values(noisy), plan, original, mode)
    for path in leaves:
        layer, _, name = path.rpartition("/")
        if name in vars(modules[layer]):
            delattr(modules[layer], name)
    for module in (noisy, *guarded):
        del module.analog_running
    _copy_back(noisy, root)
    modules = modules_of(root)
    for path, value in changed.items():
        layer, _, name = path.rpartition("/")
        getattr(modules[layer], *paths.split(name))[...] = value
    return result


def _put_beside(modules: dict[str, Any], plan: Plan) -> None:
    """Moves leaves beside derived weights out of their layers' variables."""
    derived = [weight for weight in plan.weights if weight.derived]
    for weight in derived:
        layer = modules[weight_side.local(plan, weight.layer_path)]
        own = [w for w in plan.weights if w.layer_path == weight.layer_path]
        layer.analog_weights = tuple(w for w in own if w.kind != "raw")
        found = vars(layer).setdefault("analog_beside", Beside({})).leaves
        for path in weight.owned:
            name = path.rpartition("/")[2]
            if name in vars(layer):
                found[name] = getattr(layer, name)[...]
                delattr(layer, name)


def _make_holes(
    modules: dict[str, Any], plan: Plan, constants: weight_side.Values
) -> None:
    """Gives layers plans with holes for their traced numbers."""
    traced = [w for w in plan.weights if w.path in constants and w.kind != "raw"]
    for weight in traced:
        layer = modules[weight_side.local(plan, weight.layer_path)]
        layer.analog_weights = tuple(
            weight if known.path == weight.path else known
            for known in layer.analog_weights
        )


def _values(model: nnx.Module) -> dict[str, Any]:
    state = stored(nnx.state(model, nnx.Param))
    return paths.leaves(state)


def _changed(
    before: dict[str, Any],
    after: dict[str, Any],
    plan: Plan,
    method: Any,
    mode: str,
) -> dict[str, Any]:
    """Returns the digital parameters that a method wrote, to be copied back.

    Raises:
      ValueError: if it added parameters or wrote analog ones, which hold noise on the
        copy: the noise would become part of the nominal weights.
    """
    # Derived weights are nominal here; the module that derives them may write them.
    plain = [weight for weight in plan.weights if not weight.derived]
    analog = {weight_side.local(plan, weight.path) for weight in plain}
    written = {p: v for p, v in after.items() if before.get(p) is not v}
    lost = [
        path
        for path, value in written.items()
        if path not in before or (path in analog and _differ(before[path], value))
    ]
    if lost:
        name = getattr(method, "__qualname__", "this method")
        raise InputError(
            f"{name} changed the parameters {sorted(lost)}. In {mode}_mode a method "
            "runs on a copy with the weights of one step, where a change would be "
            "lost. Call it in hwtrain.eval_mode(model), or before analogize"
        )
    return {path: value for path, value in written.items() if path not in analog}


def _differ(old: jax.Array, new: jax.Array) -> bool:
    """Whether values certainly differ; NNX transforms write unchanged values, too."""
    if isinstance(old, Tracer) or isinstance(new, Tracer):
        return False
    return old.shape != new.shape or bool(jnp.any(old != new))


def _copy_back(source: nnx.Module, target: nnx.Module) -> None:
    """Copies back what a call wrote: statistics, caches, counters and attributes."""
    nnx.update(target, nnx.state(source, nnx.Not(nnx.Param)))
    targets = modules_of(target)
    for path, module in modules_of(source).items():
        known = vars(targets[path])
        for name, value in vars(module).items():
            plain = value is None or isinstance(value, bool | int | float | str)
            if plain and not name.startswith("_") and known.get(name) != value:
                setattr(targets[path], name, value)


def stored(state: Any) -> dict[str, Any]:
    """Returns the stored values of a state as nested dicts.

    Reading a variable with its own `get_value` may return other values.

    Args:
      state: an `nnx.State`.
    """
    return nnx.to_pure_dict(
        state, lambda x: x.get_raw_value() if isinstance(x, nnx.Variable) else x
    )
