"""What an update does to an analog model: is every effect there?"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain import paths
from hwtrain.crossbar import on_crossbar
from hwtrain.hardware import WeightClip
from hwtrain.hardware.mapping_scale import MAPPING_SCALE
from hwtrain.optim import drift_weights, keep_weights_clipped, remap_weights
from hwtrain.optim.drift import drifting
from hwtrain.optim.input_range import input_range_learning
from hwtrain.periphery.range import PROBE, RANGE
from hwtrain.physics.input_range import PROBE_SIZE
from hwtrain.plan import AnalogWeight, Plan

Finding = tuple[str, str, str | None, str]
"""Path, effect, what is wrong or `None`, and the measured amount in words."""


def updated_effects(plan: Plan, params: paths.Tree) -> Iterator[Finding]:
    """Yields what an update does: clipped and remapped weights, moved ranges."""
    params = prefixed(plan, params)
    values = paths.leaves(params)
    rng = np.random.default_rng(0)

    def push(path: str, leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        if path not in plan:
            return np.zeros_like(leaf)
        # Large, and nearly alike: beyond a fixed bound, and that of a small deviation.
        clip = plan[path].hardware.clip
        largest = np.maximum(np.max(np.abs(leaf)), 1) * (clip and clip.fixed_value or 1)
        size = 100 + rng.uniform(size=leaf.shape)
        if isinstance(clip, WeightClip):  # whose bound may go with any statistic
            size = 100 * np.exp(3 * rng.normal(size=leaf.shape))
        return np.asarray(largest * size, np.float32)

    def halve(path: str, leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        if path not in plan:
            return np.zeros_like(leaf)
        return -leaf / 2 if leaf.any() else rng.uniform(1, 2, leaf.shape)

    chips = [weight.hardware for weight in plan.weights]
    before = paths.map_leaves(push, params)
    after = remapped = before
    if any(chip.clip is not None and chip.clip.active for chip in chips):
        after = _updated(keep_weights_clipped(plan), before, params)
    if any(chip.remaps for chip in chips):
        halved = paths.map_leaves(halve, params)
        remapped = _updated(remap_weights(plan), halved, params)
    before, after = paths.leaves(before), paths.leaves(after)
    for weight in plan.trained.weights:
        chip = weight.hardware
        if chip.clip is not None and chip.clip.active:
            same = bool(np.all(before[weight.path] == np.asarray(after[weight.path])))
            wrong, amount = None, "bounds an update"
            if same and _bounds(weight):
                wrong = "an update of hundredfold weights passes unclipped"
            elif same:
                amount = "bounds nothing: a tile of one weight or column has no spread"
            if chip.clip.type == "fixed_value" and chip.clip.fixed_value and not wrong:
                kernel = values[weight.path] + after[weight.path]
                w, _ = on_crossbar(weight, kernel, weight.stored_scale(values))
                largest = float(jnp.max(jnp.abs(w)))
                amount = f"largest weight {largest:.3g}"
                if largest > chip.clip.fixed_value * (1 + 1e-5):
                    wrong = f"the {amount} is beyond the bound"
            yield weight.path, "clip", wrong, amount
        if chip.remaps:
            change = paths.leaves(remapped)[weight.leaf(MAPPING_SCALE)]
            wrong = None if np.any(np.asarray(change) != 0) else "the scale stays"
            yield weight.path, "remap", wrong, "changes the scale"
    yield from _moved_ranges(plan, params)
    yield from _drifted(plan, params)


def _bounds(weight: AnalogWeight) -> bool:
    """Returns whether a clip bounds any weights of a matrix of this size."""
    clip: Any = weight.hardware.clip
    if clip.fixed_value is not None:
        return True
    if clip.type == "average_channel_max":
        return sum(weight.column_sizes) > 1
    columns = 1 if clip.per_column else sum(weight.column_sizes)
    return clip.type != "layer_gaussian" or max(weight.row_sizes) * columns > 1


def _moved_ranges(plan: Plan, params: paths.Tree) -> Iterator[Finding]:
    weights = {w.leaf(RANGE): w for w in plan.trained.weights if w.ranged}
    if not weights:
        return
    probes = {weight.leaf(PROBE) for weight in weights.values()}
    # n, n unclipped, sum of x/r, sum of (x/r)^2: a standard deviation of two ranges.
    sums = np.zeros(PROBE_SIZE, np.float32)
    sums[:6] = 100, 50, 200, 800, 100, 50

    def gradient(path: str, leaf: Any) -> Any:
        if path in probes:
            return np.broadcast_to(sums, leaf.shape)
        leaf = np.asarray(leaf)
        return np.full_like(leaf, -1) if path in weights else np.zeros_like(leaf)

    gradients = paths.map_leaves(gradient, params)
    tx = input_range_learning(plan, 0.1)
    updates = paths.leaves(_updated(tx, gradients, params))
    for path, weight in weights.items():
        parameter = weight.hardware.input_range
        static = parameter is not None and not parameter.learn_input_range
        if static and parameter is not None and parameter.init_from_data == 0:
            continue
        moved = np.all(np.asarray(updates[path]) != 0)
        wrong = None if moved else "an update does not move it"
        yield weight.path, "input_range moves", wrong, "follows an update"


def _drifted(plan: Plan, params: paths.Tree) -> Iterator[Finding]:
    weights = drifting(plan)
    if not weights:
        return
    drawn = any(w.hardware.drift and w.hardware.drift.draws for w in weights)
    tx = drift_weights(plan, jax.random.key(0) if drawn else None)
    begun: Any = tx.init(params)
    # Ten t_0 later; before the first, nothing drifts.
    later = tuple(state._replace(now=state.now + 10) for state in begun.weights)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, begun._replace(weights=later), params)
    for weight in weights:
        change = paths.leaves(updates)[weight.path]
        changed = np.any(np.asarray(change) != 0)
        wrong = None if changed else "weights stay as they are"
        yield weight.path, "drift", wrong, "changes weights with time"


def _updated(tx: Any, updates: paths.Tree, params: paths.Tree) -> paths.Tree:
    """Returns a transform's first updates, of one compiled program."""
    return jax.jit(lambda *args: tx.update(*args)[0])(updates, tx.init(params), params)


def prefixed(plan: Plan, params: paths.Tree) -> paths.Tree:
    """Returns the parameters under the prefix that the plan's paths have."""
    for name in reversed(paths.split(plan.prefix)):
        params = {name: params}
    return jax.tree.map(jnp.asarray, params)
