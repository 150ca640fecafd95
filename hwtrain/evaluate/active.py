"""Proof that every configured effect of an analog model is on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import meta

from hwtrain import paths
from hwtrain.clip_bounds import clipped
from hwtrain.crossbar import largest_weight, on_crossbar
from hwtrain.evaluate import bench
from hwtrain.evaluate.deployment import deployed_effects
from hwtrain.evaluate.unwatched import unwatched_effects
from hwtrain.evaluate.updates import updated_effects
from hwtrain.plan import AnalogWeight, Plan
from hwtrain.training_noise import quiet_training
from hwtrain.transforms import plan as plan_of
from hwtrain.transforms.functional import as_function, compiled
from hwtrain.transforms.observation import Multiplication, observed
from hwtrain.transforms.signal_side import has_signal_side
from hwtrain.transforms.weight_side import draws, local, step_weights

KEYS = 8
"""Steps that are measured, each with a key of its own."""

BYPASSED = (
    "the layer multiplies without its periphery: it is called around its model, or "
    "its multiplication was replaced"
)


@dataclasses.dataclass(frozen=True)
class Activity:
    """What `assert_active` measured.

    Attributes:
      rows: layer, effect and the measured amount, in words.
    """

    rows: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        """Returns the rows as text."""
        return "\n".join(": ".join(row) for row in self.rows)


def assert_active(
    analog: Any, variables: Any, *example: Any, **kwargs: Any
) -> Activity:
    """Raises unless every configured effect of the model acts, as much as configured.

    The wrapped model runs in train mode with several keys. In each layer, in place, the
    outputs are compared with those without each effect; noise of a known strength must
    have it, and be another one at each key; the DAC must round to its levels and the
    range clip and have a gradient. An update must clip and remap the weights and move
    the ranges. Exported chips must have their mismatch, programming noise and stuck
    devices, drift within a day, and keep the mean that their compensation keeps. Where
    chips differ and no effect draws in training, a row says so: it is no error.

    >>> import hwtrain
    >>> from flax import linen as nn
    >>> noise = hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1)
    >>> analog = hwtrain.analogize(nn.Dense(4), hwtrain.Hardware(modifier=noise))
    >>> x = jnp.ones((1, 3))
    >>> variables = analog.init(jax.random.key(0), x)
    >>> print(assert_active(analog, variables, x))  # doctest: +ELLIPSIS
    kernel: modifier: 1.0... x the configured deviation

    Args:
      analog: the analog model.
      variables: Linen: its variables. NNX: its `params`, or `None` for its own.
      *example: arguments of a call.
      **kwargs: keyword arguments of the call. For Linen also `rngs`, `mutable` and
        `method`, as Flax's `apply` takes them. What else the model draws, as a Dropout
        does, is the same at every call; and neither what it writes nor the count of its
        own streams is kept.

    Returns:
      What was measured.

    Raises:
      ValueError: naming layer, effect and likely cause, for all that do nothing.
    """
    linen = not isinstance(analog, nnx.Module)
    given = (variables, *example) if linen else ()
    plan = plan_of(analog, *given, **(kwargs if linen else {}))
    function, tree = as_function(analog, "train", variables)
    params = meta.unbox(tree["params"])
    log = _Log()
    outputs = []
    jitted = compiled(function, kwargs)
    with observed(log.observe):
        for seed in range(KEYS):
            log.begin()
            y = jitted(tree, jax.random.key(seed), *example)
            outputs.append(np.concatenate([np.ravel(a) for a in jax.tree.leaves(y)]))
            jax.effects_barrier()
    if draws(plan, "train") and all((y == outputs[0]).all() for y in outputs):
        log.fail("the model", "noise", "the outputs are the same at every step key")
    for weight in plan.weights:
        _check_weights(log, weight, plan, params)
        if weight.hardware.learns_clip:
            _check_learned_clip(log, weight, plan, params)
        if weight.kind != "raw":
            _check_layer(log, weight)
    for path, effect, wrong, amount in (
        *unwatched_effects(analog, plan, variables, *example, **kwargs),
        *updated_effects(plan, params),
        *deployed_effects(plan, params),
    ):
        log.note(path, effect, amount, wrong)
    quiet = quiet_training(plan)
    if quiet is not None:
        log.note("the model", "noise of training", quiet, None)
    if log.wrong:
        raise ValueError(
            "configured effects that do nothing, or not as configured:\n"
            + "\n".join(f"  {line}" for line in log.wrong)
        )
    return Activity(tuple(log.rows))


class _Log:
    """Readings of every layer, at every key, and what follows of them."""

    def __init__(self):
        self.readings: list[dict[str, list[bench.Readings]]] = []
        self.rows: list[tuple[str, str, str]] = []
        self.wrong: list[str] = []

    def begin(self) -> None:
        """Starts the readings of the next key."""
        self.readings.append({})

    def observe(self, call: Multiplication) -> jax.Array:
        """Measures a layer, and lets it do its multiplication."""
        path = call.weight.path

        def take(readings: bench.Readings) -> None:
            self.readings[-1].setdefault(path, []).append(
                jax.tree.map(np.asarray, readings)
            )

        jax.debug.callback(take, bench.read(call))
        return bench.undisturbed(call)

    def of(self, path: str) -> list[list[bench.Readings]]:
        """Returns the readings of a layer: for each key, of each of its calls."""
        return [each.get(path, []) for each in self.readings]

    def note(self, path: str, effect: str, amount: str, wrong: str | None) -> None:
        """Notes what was measured of an effect, or what is wrong with it."""
        if wrong:
            self.fail(path, effect, wrong)
        else:
            self.rows.append((path, effect, amount))

    def fail(self, path: str, effect: str, cause: str) -> None:
        """Notes an effect that does nothing."""
        self.wrong.append(f"{path}: {effect}: {cause}")


def _check_layer(log: _Log, weight: AnalogWeight) -> None:
    """Notes every effect around the layer's multiplication."""
    steps = log.of(weight.path)
    if not all(steps):
        if has_signal_side(weight) and weight.kind != "embed":
            log.fail(weight.path, "all effects", f"no call was seen: {BYPASSED}")
        return
    calls = [call for step in steps for call in step]
    for effect in calls[0].changes:
        change = min(float(call.changes[effect]) for call in calls)
        wrong = (
            None if change > 1e-7 else f"the outputs are the same without: {BYPASSED}"
        )
        log.note(weight.path, effect, f"changes outputs by {change:.2g}", wrong)
    for effect in calls[0].unit:
        draws = [np.stack([call.unit[effect] for call in step]) for step in steps]
        log.note(weight.path, effect, *_unit(np.stack(draws)))
    if calls[0].levels is not None:
        worst = max(_level_error(call.levels) for call in calls)
        wrong = "the inputs are not rounded to the steps of the DAC"
        log.note(weight.path, "DAC levels", "as many", wrong if worst > 1e-3 else None)
    if calls[0].clipped is not None:
        pairs: list[Any] = [call.clipped for call in calls]
        same = all(np.allclose(*pair, rtol=1e-4) for pair in pairs)
        wrong = None if same else "inputs beyond the range are not clipped"
        log.note(weight.path, "input_range clips", "at the range", wrong)
    parameter = weight.hardware.input_range
    if parameter is not None and parameter.learn_input_range and weight.ranged:
        slopes: list[Any] = [call.range_gradient for call in calls]
        small = min(np.abs(slope).max() for slope in slopes)
        wrong = None if small > 0 else "the range has no gradient: it cannot be learned"
        log.note(weight.path, "input_range learns", "has a gradient", wrong)


def _unit(draws: np.ndarray) -> tuple[str, str | None]:
    """Returns the relative strength of draws `[keys, ...]`, and what is wrong."""
    strength = float(np.sqrt(np.mean(np.square(draws))))
    amount = f"{strength:.2f} x the configured deviation"
    flat = draws.reshape(len(draws), -1)
    if np.unique(flat, axis=0).shape[0] < len(flat):
        return amount, "the noise is the same at several step keys"
    # A chi-square of all draws, with 5 standard errors, and a tenth for correlations.
    margin = 5 / np.sqrt(2 * draws.size) + 0.1
    wrong = None if abs(strength - 1) < margin else f"the noise has {amount}"
    return amount, wrong


def _level_error(levels: Any) -> float:
    """Returns how far 0.4 and 0.6 steps are from the levels 0 and 1."""
    size = max(float(np.abs(levels[3] - levels[0]).max()), 1e-30)
    misses = abs(levels[1] - levels[0]).max(), abs(levels[2] - levels[3]).max()
    return float(max(misses)) / size if size > 1e-20 else np.inf


def _check_weights(
    log: _Log, weight: AnalogWeight, plan: Plan, params: paths.Tree
) -> None:
    """Notes the noise that the layer's weights arrive with."""
    chip = weight.hardware
    if not chip.modifies("train") or chip.modifies_in_layer("train"):
        return
    values = paths.leaves(params)
    kernel = jnp.asarray(values[local(plan, weight.path)])
    kernel = clipped(weight, kernel, weight.stored_bound(values, plan.prefix))
    scale = weight.stored_scale(values, plan.prefix)
    w, s = on_crossbar(weight, kernel, scale)
    nominal = np.asarray(weight.to_matrix(kernel), np.float32)
    nominal = nominal.reshape(-1, *nominal.shape[-2:])
    steps = log.of(weight.path)
    if weight.kind == "raw" or not all(steps):
        # No layer to look into: what the root gives to the call.
        steps = []
        for seed in range(KEYS):
            step, _ = step_weights(params, plan, "train", jax.random.key(seed))
            noisy = paths.leaves(step)[local(plan, weight.path)]
            steps.append([np.asarray(weight.to_matrix(noisy)).reshape(nominal.shape)])
        steps = [list(step[0]) for step in steps]
    else:
        steps = [[np.asarray(call.w, np.float32) for call in step] for step in steps]
    deviations = np.stack(
        [np.stack([_off(w, nominal) for w in step]) for step in steps]
    )
    modifier: Any = chip.modifier
    amount = f"changes weights by {np.sqrt(np.mean(deviations**2)):.2g}"
    if not np.abs(deviations).max(axis=(1, 2, 3)).all():
        log.fail(
            weight.path,
            "modifier",
            "the layer gets its nominal weights: the modifier "
            "does not reach it, or does nothing to weights like these",
        )
        return
    flat = deviations.reshape(len(deviations), -1)
    if modifier.draws and np.unique(flat, axis=0).shape[0] < len(flat):
        log.fail(weight.path, "modifier", "the noise is the same at several step keys")
        return
    wrong = None
    if modifier.type in ("add_normal", "mult_normal") and not modifier.pdrop:
        sigma = w
        if modifier.type == "add_normal":
            sigma = jnp.asarray(modifier.assumed_wmax)
            if modifier.rel_to_actual_wmax:
                sigma = largest_weight(weight, w, per_column=modifier.per_column)
        sigma = modifier.std_dev * jnp.broadcast_to(abs(sigma * s), kernel.shape)
        expected = float(jnp.sqrt(jnp.mean(jnp.square(sigma))))
        strength = float(np.sqrt(np.mean(deviations**2))) / expected
        amount = f"{strength:.2f} x the configured deviation"
        margin = 5 / np.sqrt(2 * deviations.size) + 0.1
        if abs(strength - 1) > margin:
            wrong = f"the noise has {amount}"
    log.note(weight.path, "modifier", amount, wrong)


def _check_learned_clip(
    log: _Log, weight: AnalogWeight, plan: Plan, params: paths.Tree
) -> None:
    """Notes whether half of a learned bound clips the weights of a step."""
    path = local(plan, weight.leaf("clip_bound"))
    halved = paths.map_leaves(lambda p, leaf: leaf / 2 if p == path else leaf, params)
    step, _ = step_weights(halved, plan, "eval", jax.random.key(0))
    bound = weight.spread(jnp.asarray(paths.leaves(halved)[path]))
    excess = jnp.abs(paths.leaves(step)[local(plan, weight.path)]) > bound * 1.01
    wrong = "weights beyond the bound pass" if bool(jnp.any(excess)) else None
    log.note(weight.path, "clip", "at the learned bound", wrong)


def _off(w: np.ndarray, nominal: np.ndarray) -> np.ndarray:
    """Returns the deviation of a matrix from its nominal one, of those of a stack."""
    distance = np.square(w - nominal).sum(axis=(1, 2))
    return w - nominal[int(np.argmin(distance))]
