"""Checks that an update has every effect on an analog model."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import paths
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._crossbar import on_crossbar
from hwtrain.evaluate._distribution import MOST, as_drawn, drawn
from hwtrain.optim import drift_weights, keep_weights_clipped, remap_weights
from hwtrain.optim._drift import drifting
from hwtrain.optim._input_range import input_range_learning
from hwtrain.periphery._range_gradient import PROBE_SIZE
from hwtrain.periphery.input_range import PROBE, RANGE
from hwtrain.weights.mapping import MAPPING_SCALE

LATER = 10
"""Time at which drift is measured, in units of t_0."""

_Tiles = list[tuple[np.ndarray, np.ndarray]]

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

    def __init__(
        self, weight: AnalogWeight, same: bool, after: jax.Array, tiles: _Tiles
    ):
        """Takes the result of an update to hundredfold weights.

        Args:
          weight: the plan of the array.
          same: whether the update passed unchanged.
          after: the updated weights, in units of the crossbar.
          tiles: the weights of each row tile, unclipped and clipped, in units of the
            crossbar.
        """
        self.rows, self.columns = max(weight.row_sizes), sum(weight.column_sizes)
        self._same, self._after, self._tiles = same, after, tiles
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

    def clips_to(self, bound: Callable[[np.ndarray], Any]) -> None:
        """Requires that weights are clipped to the bound that NumPy computes.

        Args:
          bound: function of the weights of a row tile after an update, unclipped,
            `[rows, columns]` in units of the crossbar. It returns the bound, or one
            for each column; infinity for none. It must not use the part's own
            functions, or it could not tell them from others.
        """
        if self.wrong:
            return
        for before, after in self._tiles:
            each = np.broadcast_to(np.asarray(bound(before)), before.shape)
            size = np.where(np.isfinite(each), each, np.abs(before))
            error = np.abs(after - np.clip(before, -each, each))
            off = float((error / np.maximum(size, 1e-30)).max())
            if off > 0.02:
                off = min(off, 9.99)
                self.wrong = f"weights are off by {off:.0%} of the configured bound"


class RemapProof:
    """Lets a remapping declare what is to be measured.

    Attributes:
      row_sizes: rows of each row tile.
      column_sizes: columns of each column tile.
      wrong: what is wrong with it; `None` for nothing.
    """

    def __init__(
        self, weight: AnalogWeight, w: np.ndarray, scale: np.ndarray, change: np.ndarray
    ):
        """Takes weights in units of the crossbar, their scale, and its change."""
        self.row_sizes, self.column_sizes = weight.row_sizes, weight.column_sizes
        self._w, self._scale, self._change = w, scale, change
        self.wrong: str | None = None

    def rescales(self, function: Callable[[np.ndarray, np.ndarray], Any]) -> None:
        """Requires the scales that NumPy computes.

        Args:
          function: function of the weights `[..., rows, columns]` and the scales, that
            returns new scales. It must not use the part's own functions.
        """
        expected = function(self._w, self._scale)
        error = np.abs((self._scale + self._change) / expected - 1).max()
        if error > 0.02:
            self.wrong = f"its scales are off by {min(error, 9.99):.0%}"


class DriftProof:
    """Lets a drift of training declare what is to be measured.

    Attributes:
      elapsed: time since the weights were set, in units of t_0.
      amount: the measurement, as text.
      wrong: what is wrong with it; `None` for nothing.
    """

    def __init__(self, drift: Any, found: jax.Array, w: jax.Array):
        """Takes drifted weights and those before, in units of the crossbar."""
        self.elapsed = LATER + drift.dt_s / drift.t_0
        self._found, self._w = (
            np.asarray(each, np.float64).ravel()[:MOST] for each in (found, w)
        )
        self._eps = float(jnp.finfo(w.dtype).eps)
        self.amount, self.wrong = "", None

    def becomes(self, sample: Callable[..., Any]) -> None:
        """Requires that weights become what NumPy computes or draws for them.

        Args:
          sample: function of a NumPy generator and weights that returns drifted ones.
            It must not use the part's own functions.
        """
        rounding = 0.6 * self._eps * np.abs(self._w)
        draws = drawn(sample, self._w)
        self.amount, self.wrong = as_drawn(self._found, self._w, draws, rounding)


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
        pairs = [(push[path], new[path]) for push, new in found]
        tiles = _row_tiles(weight, values[path], scale, pairs)
        proof = ClipProof(weight, bool(same), w, tiles)
        assert clip is not None
        clip.proof(proof)
        yield path, "clip", proof.wrong, proof.amount


def _row_tiles(
    weight: AnalogWeight, kernel: Any, scale: Any, pairs: Iterable[tuple[Any, Any]]
) -> _Tiles:
    """Returns the weights of each row tile after updates, unclipped and clipped.

    Args:
      weight: the plan of the array.
      kernel: the stored array.
      scale: its stored mapping scale, if it has one.
      pairs: updates as they were, and clipped.
    """
    ends = np.cumsum(weight.row_sizes)[:-1]

    def tiles(array: Any) -> list[np.ndarray]:
        matrix = np.asarray(weight.to_matrix(jnp.asarray(array)), np.float64)
        split = np.split(matrix, ends, axis=-2)
        return [each for tile in split for each in tile.reshape(-1, *tile.shape[-2:])]

    found = []
    for push, new in pairs:
        before = jnp.asarray(kernel, jnp.float32) + push
        _, s = on_crossbar(weight, before, scale)
        after = jnp.asarray(kernel + new, jnp.float32)
        found += zip(tiles(before / s), tiles(after / s))
    return found


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

    def shrink(path: str, leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        if path not in plan:
            return np.zeros_like(leaf)
        # To a share that no configured largest weight happens to be.
        return -0.63 * leaf if leaf.any() else rng.uniform(1, 2, leaf.shape)

    smaller = paths.map_leaves(shrink, params)
    values, steps = paths.leaves(params), paths.leaves(smaller)
    changes = paths.leaves(_updated(remap_weights(plan), smaller, params))
    for weight in plan.trained.weights:
        if weight.hardware.remaps:
            where = weight.leaf(MAPPING_SCALE)
            change, wrong = np.asarray(changes[where], np.float64), None
            scale = np.asarray(values[where], np.float64)
            kernel = values[weight.path] + jnp.asarray(steps[weight.path])
            w, _ = on_crossbar(weight, kernel, values[where])
            matrix = np.asarray(weight.to_matrix(w), np.float64)
            proof, remap = (
                RemapProof(weight, matrix, scale, change),
                weight.hardware.remap,
            )
            assert remap is not None
            remap.proof(proof)
            wrong = "the scale stays" if not change.any() else proof.wrong
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
    later = tuple(state._replace(now=state.now + LATER) for state in begun.weights)
    zeros = jax.tree.map(np.zeros_like, params)
    values = paths.leaves(params)
    updates, _ = jax.jit(tx.update)(zeros, begun._replace(weights=later), params)
    for weight in weights:
        change = paths.leaves(updates)[weight.path]
        changed = np.any(np.asarray(change) != 0)
        wrong, amount = "weights stay as they are", "changes weights with time"
        if changed:
            kernel = paths.leaves(params)[weight.path]
            w, s = on_crossbar(weight, kernel, weight.stored_scale(values))
            drift = weight.hardware.drift
            assert drift is not None
            proof = DriftProof(drift, (kernel + change) / s, w)
            drift.proof(proof)
            wrong, amount = proof.wrong, proof.amount or amount
        yield weight.path, "drift", wrong, amount


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
