"""Checks that an update has every effect on an analog model."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import paths
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._crossbar import on_crossbar
from hwtrain.optim import drift_weights, keep_weights_clipped, remap_weights
from hwtrain.optim._drift import drifting
from hwtrain.optim._input_range import input_range_learning
from hwtrain.periphery._range_gradient import PROBE_SIZE
from hwtrain.periphery.input_range import PROBE, RANGE
from hwtrain.weights.mapping import MAPPING_SCALE

Finding = tuple[str, str, str | None, str]
"""Path, effect, what is wrong or `None`, and the measured amount as text."""


def updated_effects(plan: Plan, params: paths.Tree) -> Iterator[Finding]:
    """Yields findings on an update: clip, remapping, input ranges and drift."""
    params = prefixed(plan, params)
    yield from _clipped(plan, params)
    yield from _remapped(plan, params)
    yield from _moved_ranges(plan, params)
    yield from _drifted(plan, params)


class ClipProof:
    """Lets a clip declare what is to be measured.

    Attributes:
      rows: rows of the largest tile.
      columns: columns of the array.
      amount: the measurement, as text.
      wrong: what is wrong with it; `None` for nothing.
    """

    def __init__(self, weight: AnalogWeight, same: bool, after: jax.Array):
        """Takes the result of an update to hundredfold weights.

        Args:
          weight: the plan of the array.
          same: whether the update passed unchanged.
          after: the updated weights, in units of the crossbar.
        """
        self.rows, self.columns = max(weight.row_sizes), sum(weight.column_sizes)
        self._same, self._after = same, after
        self.amount, self.wrong = "bounds an update", None

    def bounds(self, unless: str = "") -> None:
        """Requires that an update to hundredfold weights is clipped.

        Args:
          unless: reason why arrays of this size may pass unclipped; empty for none.
        """
        if self._same and unless:
            self.amount = f"bounds nothing: {unless}"
        elif self._same:
            self.wrong = "an update of hundredfold weights passes unclipped"

    def caps(self, bound: float) -> None:
        """Requires that no updated weight exceeds a bound, in crossbar units."""
        if self.wrong:
            return
        largest = float(jnp.max(jnp.abs(self._after)))
        self.amount = f"largest weight {largest:.3g}"
        if largest > bound * (1 + 1e-5):
            self.wrong = f"the {self.amount} is beyond the bound"


def _clipped(plan: Plan, params: paths.Tree) -> Iterator[Finding]:
    def clips(weight: AnalogWeight) -> bool:
        clip = weight.hardware.clip
        return clip is not None and clip.active

    if not any(map(clips, plan.weights)):
        return
    values = paths.leaves(params)
    update = _update(keep_weights_clipped(plan), params)
    pushed = [_pushed(plan, params, spread=spread) for spread in (False, True)]
    found = [tuple(map(paths.leaves, (push, update(push)))) for push in pushed]
    for weight in filter(clips, plan.trained.weights):
        path, clip = weight.path, weight.hardware.clip
        same = all(np.all(push[path] == np.asarray(new[path])) for push, new in found)
        after = jnp.stack([values[path] + new[path] for _, new in found])
        scale = weight.stored_scale(values)
        w = jnp.stack([on_crossbar(weight, each, scale)[0] for each in after])
        proof = ClipProof(weight, bool(same), w)
        assert clip is not None
        clip.proof(proof)
        yield path, "clip", proof.wrong, proof.amount


def _pushed(plan: Plan, params: paths.Tree, *, spread: bool) -> paths.Tree:
    """Returns updates to weights that are much too large.

    Args:
      plan: the plan.
      params: the parameters.
      spread: whether some are much larger than others, beyond a bound that follows any
        statistic; if not, all are nearly equal, beyond a bound from small deviations.
    """
    rng = np.random.default_rng(0)

    def push(path: str, leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        if path not in plan:
            return np.zeros_like(leaf)
        clip = plan[path].hardware.clip
        largest = np.maximum(np.max(np.abs(leaf)), 1) * (clip and clip.fixed_value or 1)
        size = 100 + rng.uniform(size=leaf.shape)
        if spread:
            size = 100 * np.exp(3 * rng.normal(size=leaf.shape))
        return np.asarray(largest * size, np.float32)

    return paths.map_leaves(push, params)


def _remapped(plan: Plan, params: paths.Tree) -> Iterator[Finding]:
    if not any(weight.hardware.remaps for weight in plan.weights):
        return
    rng = np.random.default_rng(0)

    def halve(path: str, leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        if path not in plan:
            return np.zeros_like(leaf)
        return -leaf / 2 if leaf.any() else rng.uniform(1, 2, leaf.shape)

    halved = paths.map_leaves(halve, params)
    changes = paths.leaves(_updated(remap_weights(plan), halved, params))
    for weight in plan.trained.weights:
        if weight.hardware.remaps:
            change = np.asarray(changes[weight.leaf(MAPPING_SCALE)])
            wrong = None if np.any(change != 0) else "the scale stays"
            yield weight.path, "remap", wrong, "changes the scale"


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
        if parameter is not None and not parameter.moves:
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
    # Drift starts only after t_0, so this is ten t_0 later.
    later = tuple(state._replace(now=state.now + 10) for state in begun.weights)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, begun._replace(weights=later), params)
    for weight in weights:
        change = paths.leaves(updates)[weight.path]
        changed = np.any(np.asarray(change) != 0)
        wrong = None if changed else "weights stay as they are"
        yield weight.path, "drift", wrong, "changes weights with time"


def _updated(tx: Any, updates: paths.Tree, params: paths.Tree) -> paths.Tree:
    """Returns a transformation's first updates, computed in one compiled program."""
    return _update(tx, params)(updates)


def _update(tx: Any, params: paths.Tree) -> Callable[[paths.Tree], paths.Tree]:
    update = jax.jit(lambda *args: tx.update(*args)[0])
    return lambda updates: update(updates, tx.init(params), params)


def prefixed(plan: Plan, params: paths.Tree) -> paths.Tree:
    """Returns the parameters under the prefix of the plan's paths."""
    for name in reversed(paths.split(plan.prefix)):
        params = {name: params}
    return jax.tree.map(jnp.asarray, params)
