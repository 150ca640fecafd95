"""Proves that every configured effect of an analog model acts."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import meta

from hwtrain._arrays import paths, processes
from hwtrain._arrays.shared import local_copy
from hwtrain._errors import InputError
from hwtrain._flax.constants import check_none
from hwtrain._flax.functional import are_shared, as_function, require_same_plan
from hwtrain._flax.materializing import materialize
from hwtrain._flax.modes import plan as plan_of
from hwtrain._flax.signal_side import has_signal_side
from hwtrain._flax.weight_side import draws, local, step_weights
from hwtrain._parts.part import Part
from hwtrain._plan.plan import Plan
from hwtrain._plan.training_noise import quiet_training
from hwtrain._plan.weight import AnalogWeight
from hwtrain.evaluate import _bench as bench
from hwtrain.evaluate._exported import deployed_effects
from hwtrain.evaluate._judgement import (
    ENOUGH,
    MOST_KEYS,
    ZEROS,
    repeated,
    spread_of,
    strength_of,
)
from hwtrain.evaluate._rerun import driven_rows, moved_away
from hwtrain.evaluate._responses import Tiles
from hwtrain.evaluate._stored_proof import StoredProof
from hwtrain.evaluate._unwatched import unwatched_effects
from hwtrain.evaluate._updates import updated_effects
from hwtrain.evaluate._watching import Step, watching
from hwtrain.evaluate._weight_noise import modified_weights
from hwtrain.weights.clip import CLIP_BOUND

BYPASSED = (
    "the layer multiplies without its periphery: it is called around its model, or "
    "its multiplication was replaced"
)

ANSWERS = 4
"""Number of calls whose outputs NumPy computes too."""


@dataclasses.dataclass(frozen=True)
class Activity:
    """The measurements of `assert_active`.

    Attributes:
      rows: layer, effect and measured amount, as text.
    """

    rows: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        """Returns the rows as text."""
        return "\n".join(": ".join(row) for row in self.rows)


def assert_active(
    analog: Any, variables: Any, *example: Any, **kwargs: Any
) -> Activity:
    """Raises unless every configured effect acts at its configured strength.

    The model runs in train mode with several keys. Each layer is measured in place: its
    outputs are compared with those without each effect; noise of known strength must
    have that strength and differ between keys; the DAC must round to its levels; the
    range must clip and have a gradient; digital units must store their levels. An
    update must clip and remap the weights and change the ranges. Exported chips must
    have their mismatch, programming noise and stuck devices, drift within a day, and
    keep the mean that their compensation keeps. If chips differ but no effect draws
    noise in training, a row reports it; this is not an error.

    In several processes that share the arrays, all of them call it with the same
    example, and all get the same result; meanwhile one holds all parameters.

    A batch of one or two is enough, because layers multiply test vectors meanwhile.
    Nearly all the time goes into compiling: seconds for dense layers, a minute or two
    for a residual network of some convolutions with all effects. The batch size matters
    only once the model itself takes longer.

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
        `method`, as for Flax's `apply`. The model's other draws, such as a Dropout's,
        are the same in every call; variables that it writes and the counts of its own
        streams are not kept.

    Returns:
      The measurements.

    Raises:
      ValueError: naming layer, effect and likely cause for each effect without action.
    """
    shared = are_shared(analog, variables=variables, example=example, kwargs=kwargs)
    with processes.together(shared):
        check_none(analog, "assert_active")
        linen = not isinstance(analog, nnx.Module)
        given = (variables, *example) if linen else ()
        plan = plan_of(analog, *given, **(kwargs if linen else {}))
        function, tree = as_function(analog, "train", variables)
        params = meta.unbox(tree["params"])
        away = _with_moved_leaves(plan, tree["params"])
    require_same_plan(plan, shared)
    keys = [jax.random.key(seed) for seed in range(_steps(plan))]
    with watching(function, kwargs, shared) as watched:
        steps = watched(tree, keys, *example)
        moved = None
        if away is not None:
            seen = watched({**tree, "params": away}, keys, *example)
            moved = meta.unbox(away), seen
    on_chip = plan.effective
    if on_chip != plan:
        made = materialize(analog, tree, *example, **kwargs)
        params = meta.unbox(made["params"])
    unwatched = [
        *unwatched_effects(
            analog, plan, steps[: bench.KEYS], variables, *example, **kwargs
        )
    ]
    reader = jax.process_index()
    if shared:
        # JAX shows the layers to one process only, which judges for all of them.
        seen = (*steps[0].readings.values(), *steps[0].results.values())
        reader = processes.source_of(any(seen))
        params = local_copy(params, reader)
        if moved is not None:
            moved = local_copy(moved[0], reader), moved[1]

    def findings() -> list[list[Any]]:
        log = judged(plan, params, keys, steps, moved)
        for path, effect, wrong, amount in (
            *unwatched,
            *updated_effects(plan, params),
            *deployed_effects(on_chip, params),
        ):
            log.note(path, effect, amount, wrong)
        quiet = quiet_training(plan)
        if quiet is not None:
            log.note("the model", "noise of training", quiet, None)
        return [log.rows, log.wrong]

    rows, wrong = processes.answered(findings, reader, shared)
    if wrong:
        raise InputError(
            "configured effects that do nothing, or not as configured:\n"
            + "\n".join(f"  {line}" for line in wrong)
        )
    return Activity(tuple((path, effect, amount) for path, effect, amount in rows))


def _steps(plan: Plan) -> int:
    """Returns how many steps are needed to measure the noise of all weights."""
    steps = bench.KEYS
    for weight in plan.weights:
        chip, size = weight.hardware, math.prod(weight.shape)
        if weight.kind != "raw" and chip.freezes("train"):
            # A step draws a number for each column, and some are far from normal.
            steps = max(steps, math.ceil(3 * ENOUGH / sum(weight.column_sizes)))
        if not chip.draws_weights("train"):
            continue
        if chip.modifies_in_layer("train"):
            rows = sum(weight.row_sizes)
            size = size // rows * len(driven_rows(rows))
        modifier: Any = chip.modifier
        # With 30 expected, zero would be 5 standard deviations away.
        rare = 30 / modifier.changed_share if modifier.changed_share < 1 else 0
        steps = max(steps, math.ceil(max(ENOUGH, rare) / size))
    return min(steps, MOST_KEYS)


def _with_moved_leaves(plan: Plan, params: paths.Tree) -> paths.Tree | None:
    """Returns parameters with other leaves of modifiers; `None` if they have none.

    A modifier may be neutral at the values of its leaves, such as a learned factor of
    1.
    """
    names = {
        local(plan, weight.leaf(leaf))
        for weight in plan.weights
        if isinstance(weight.hardware.modifier, Part)
        for leaf in weight.hardware.modifier.leaves(weight)
    }
    if not names:
        return None
    return paths.map_leaves(lambda p, x: moved_away(x) if p in names else x, params)


def judged(
    plan: Plan,
    params: paths.Tree,
    keys: list[jax.Array],
    steps: list[Step],
    moved: tuple[paths.Tree, list[Step]] | None = None,
) -> "_Log":
    """Returns the findings from the recorded steps, one for each key.

    Args:
      plan: the plan.
      params: the parameters.
      keys: the keys of the steps.
      steps: the recorded steps.
      moved: parameters with other leaves of modifiers, and their steps.
    """
    log = _Log(steps, zeros=_of_zeros(plan, params))
    first = steps[0].outputs
    # Noise currents, which may be too small for a spike, are measured themselves.
    others = [w for w in plan.weights if w.hardware.noise_current is None]
    heard = dataclasses.replace(plan, weights=tuple(others))
    if draws(heard, "train") and all((s.outputs == first).all() for s in steps):
        why = ZEROS if len(log.zeros) == len(plan.weights) else None
        same = "the outputs are the same at every step key"
        log.wrong.append(f"the model: noise: {why or same}")
    for weight in plan.weights:
        seen = log.of(weight.path)
        own = weight.effective if weight.pending else weight
        noise = modified_weights(own, plan, params, keys, seen)
        if noise is not None and noise[1] and moved is not None:
            others = [step.readings.get(weight.path, []) for step in moved[1]]
            again = modified_weights(own, plan, moved[0], keys, others)
            leaves = ", ".join(repr(leaf.name) for leaf in weight.own_leaves)
            if again is not None and not again[1]:
                noise = again
            elif leaves:
                noise = noise[0], f"{noise[1]}, also with other values of {leaves}"
        if noise is not None:
            log.note(weight.path, "modifier", *noise)
        if weight.hardware.learns_clip:
            _check_learned_clip(log, weight, plan, params)
        if weight.hardware.noise_current is not None:
            _check_noise_current(log, weight)
        if weight.kind != "raw":
            _check_layer(log, weight)
    for output in plan.outputs:
        proof = StoredProof(output, steps[0].results.get(output.path, []))
        for effect, amount, wrong in proof.findings:
            log.note(output.path or "the model", effect, amount, wrong)
    return log


def _of_zeros(plan: Plan, params: paths.Tree) -> set[str]:
    """Returns the weights that have a matrix of zeros."""
    values = paths.leaves(params)

    def zeros(weight: AnalogWeight) -> bool:
        path = weight.effective_path if weight.pending else weight.path
        matrix = weight.to_matrix(jnp.asarray(values[local(plan, path)]))
        return not bool(jnp.all(jnp.any(matrix != 0, axis=(-2, -1))))

    return {weight.path for weight in plan.weights if zeros(weight)}


class _Log:
    """Collects the readings of every layer, and the findings."""

    def __init__(self, steps: list[Step], zeros: set[str]):
        self.steps, self.zeros = steps, zeros
        self.rows: list[tuple[str, str, str]] = []
        self.wrong: list[str] = []

    def of(self, path: str) -> list[list[bench.Readings]]:
        """Returns the readings of a layer: for each key, those of each of its calls."""
        return [step.readings.get(path, []) for step in self.steps]

    def note(self, path: str, effect: str, amount: str, wrong: str | None) -> None:
        """Records the measured amount of an effect, or what is wrong with it."""
        if wrong:
            self.fail(path, effect, wrong)
        else:
            self.rows.append((path, effect, amount))

    def fail(self, path: str, effect: str, cause: str) -> None:
        """Records an effect that does not act."""
        cause = ZEROS if path in self.zeros else cause
        self.wrong.append(f"{path}: {effect}: {cause}")


def _check_layer(log: _Log, weight: AnalogWeight) -> None:
    """Records every effect around the layer's multiplication."""
    steps = log.of(weight.path)
    if not all(steps):
        if has_signal_side(weight) and weight.kind != "embed":
            log.fail(weight.path, "all effects", f"no call was seen: {BYPASSED}")
        return
    calls = [call for step in steps for call in step]
    for effect in calls[0].changes:
        change = _least_change(steps, lambda call, e=effect: call.changes[e])
        cause = BYPASSED
        for leaf in calls[0].moved.get(effect, ()):
            moved = _least_change(
                steps, lambda call, e=effect, leaf=leaf: call.moved[e][leaf]
            )
            change = max(change, moved)
            idle = f"leaves {leaf} do" if "," in leaf else f"leaf {leaf} does"
            cause = f"its {idle} nothing, also with other values; or {cause}"
        wrong = None if change > 1e-7 else f"the outputs are the same without: {cause}"
        log.note(weight.path, effect, f"changes outputs by {change:.2g}", wrong)
    for kind, alike in _ALIKE.items():
        for effect in getattr(calls[0], kind):
            wrong = _unit(_stacked(steps, kind, effect), alike)
            log.note(weight.path, effect, *wrong)
    for effect in calls[0].drawn:
        same = _alike(_stacked(steps, "drawn", effect))
        wrong = "its noise is the same at several step keys" if same else None
        log.note(weight.path, effect, "anew at each step", wrong)
    # Steps in which all weights were dropped say nothing about the inputs.
    calls = [call for call in calls if call.w.any()] or calls
    for effect in calls[0].varied:
        first = _stacked(steps, "varied", effect)[:, 0]
        log.note(weight.path, effect, *spread_of(first))
    for effect in calls[0].responses:
        found = [_response(weight, call, effect) for call in calls[:ANSWERS]]
        worst = next((each for each in found if each[1]), found[0])
        log.note(weight.path, effect, *worst)
    for effect in calls[0].slopes:
        small = min(np.abs(np.asarray(call.slopes[effect])).max() for call in calls)
        wrong = None if small > 0 else "it has no gradient: it cannot be learned"
        log.note(weight.path, effect, "has a gradient", wrong)


def _check_noise_current(log: _Log, weight: AnalogWeight) -> None:
    """Records the strength of a capacitance's noise current."""
    seen = [step.noise.get(weight.path, []) for step in log.steps]
    amount, wrong = "", "no step of its neurons was seen"
    if all(seen):
        effects = np.stack([np.concatenate(step) for step in seen])
        amount, wrong = strength_of(effects, effects.size)
        if not wrong and repeated(effects):
            wrong = "the noise is the same at several step keys"
    if wrong:  # the logarithm is zero at first, which does not matter here
        log.wrong.append(f"{weight.path}: noise_current: {wrong}")
    else:
        log.note(weight.path, "noise_current", amount, wrong)


def _stacked(steps: list[list[bench.Readings]], kind: str, effect: str) -> np.ndarray:
    """Returns the readings of an effect, `[keys, calls, ...]`."""
    return np.stack([[getattr(c, kind)[effect] for c in step] for step in steps])


def _least_change(
    steps: list[list[bench.Readings]], change: Callable[[bench.Readings], Any]
) -> float:
    """Returns the largest change over keys, for the call that changes least.

    The largest, because a random effect may happen not to change a few outputs.
    """
    calls = zip(*([float(change(c)) for c in step] for step in steps))
    return min(max(changes) for changes in calls)


_ALIKE = {"noise": (), "shared": (3,), "spreads": (1, 2)}
"""By kind of noise, the axes of `[keys, calls, vectors, columns]` that share a draw."""


def _unit(draws: np.ndarray, alike: tuple[int, ...]) -> tuple[str, str | None]:
    """Returns the relative strength of draws, and what is wrong with it.

    Args:
      draws: `[keys, calls, vectors, columns]`.
      alike: the axes that share a draw.
    """
    drawn = ~np.isnan(draws)
    if not drawn.any():
        if alike == _ALIKE["spreads"]:
            return "smaller than the rounding of float32", None
        return "none", "all of its weights are zero"
    amount, wrong = strength_of(draws, drawn.any(axis=alike).sum())
    # Draws of zero, as of rounding or of offsets that are cut off, may come twice, and
    # so may those of few values.
    flat = np.nan_to_num(draws).reshape(len(draws), -1)
    flat = flat[flat.any(axis=1)]
    few = 2 * np.unique(flat).size < flat.size or alike == _ALIKE["spreads"]
    if repeated(flat, few=few):
        wrong = "the noise is the same at several step keys"
    return amount, wrong


def _response(
    weight: AnalogWeight, call: bench.Readings, effect: str
) -> tuple[str, str | None]:
    """Returns the amount of an effect next to NumPy's, and what is wrong with it."""
    assert call.tiles is not None
    w, factors = map(np.asarray, call.tiles)
    tiles = Tiles(w, factors, weight.row_sizes, weight.column_sizes)
    return call.responses[effect].judged(tiles)


def _alike(drawn: np.ndarray) -> bool:
    """Returns whether a stage draws the same noise at several step keys.

    Args:
      drawn: `[keys, calls, vectors, columns]`, with each vector twice: the two differ
        by noise alone, whatever the weights of the step.
    """
    first, again = np.split(drawn.astype(np.float64), 2, axis=2)
    noise = (first - again).reshape(len(drawn), -1)
    if not noise.any():  # one draw for all vectors
        return repeated(drawn.reshape(len(drawn), -1))
    noise = noise[noise.any(axis=1)]
    unit = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    alike = np.abs(unit @ unit.T) - np.eye(len(unit))
    # Few numbers may be this much alike by chance, so their bound is tighter.
    return bool((alike > (0.99 if noise.shape[1] >= 16 else 0.9999)).any())


def _check_learned_clip(
    log: _Log, weight: AnalogWeight, plan: Plan, params: paths.Tree
) -> None:
    """Records whether half of a learned bound clips the weights of a step."""
    path = local(plan, weight.leaf(CLIP_BOUND))
    halved = paths.map_leaves(lambda p, leaf: leaf / 2 if p == path else leaf, params)
    step, _ = step_weights(halved, plan, "eval", jax.random.key(0))
    where = local(plan, weight.path)
    kernel, found = (paths.leaves(tree)[where] for tree in (params, step))
    bound = weight.spread(jnp.asarray(paths.leaves(halved)[path]))
    kernel, found, bound = (np.asarray(x, np.float32) for x in (kernel, found, bound))
    error = found - np.clip(kernel, -bound, bound)
    wrong = None
    if (np.abs(found) > bound * 1.01).any():
        wrong = "weights beyond the bound pass"
    elif (np.abs(error) > 0.01 * bound).any():
        wrong = "weights are clipped to another bound"
    log.note(weight.path, "clip", "at the learned bound", wrong)
