"""Checks that weights deviate as strongly as configured, at a step or on a chip."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import paths
from hwtrain._flax.weight_side import local, step_weights
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._clip_bounds import clipped
from hwtrain.chips._crossbar import last_row, on_crossbar
from hwtrain.evaluate import _bench as bench
from hwtrain.evaluate._distribution import MOST, as_drawn, drawn, wrong_share
from hwtrain.evaluate._judgement import repeated, share_of, strength_of
from hwtrain.evaluate._rerun import driven_rows


class WeightProof:
    """Lets a part that changes weights declare what is to be measured.

    Attributes:
      w: the nominal weights in units of the crossbar, shaped like the stored array.
      w_max: the largest weight of each tile, or of each column if the part sets
        `per_column`, broadcastable against `w`.
      amount: the measurement, as text.
      wrong: what is wrong with it; `None` for nothing.
    """

    def __init__(
        self,
        part: Any,
        weight: AnalogWeight,
        kernel: jax.Array,
        scale: jax.Array | None,
        deviations: np.ndarray,
        like: Callable[[jax.Array], np.ndarray],
        idle: str,
        eps: float,
    ):
        """Takes the observed deviations.

        Args:
          part: the part that changes the weights.
          weight: the plan of the array.
          kernel: the nominal array, as stored.
          scale: its stored mapping scale, if it has one.
          deviations: the observed deviations, one draw after the other.
          like: turns an array like the kernel into the shape of `deviations`.
          idle: the message for a draw without effect.
          eps: relative rounding error of the observed weights.
        """
        self.w, self._scale = on_crossbar(weight, kernel, scale)
        self._moves = jnp.ones((), bool)
        if getattr(part, "copy_last_column", False):
            self._moves = ~last_row(weight)
        w = jnp.where(self._moves, self.w, 0)
        self.w_max = _largest(weight, w, per_column=part.per_column)
        self._eps = max(eps, float(jnp.finfo(kernel.dtype).eps))
        self._part, self._kernel, self._like = part, kernel, like
        self._deviations, self._idle = deviations, idle
        size = np.sqrt(np.mean(np.square(deviations)))
        self.amount = f"changes weights by {size:.2g}"
        self.wrong: str | None = None

    def differs(self) -> None:
        """Requires that each draw changes weights, and differs from the others."""
        flat = self._deviations.reshape(len(self._deviations), -1)
        if not flat.any(axis=1).all():
            self.wrong = self._idle
        elif self._part.draws not in (False, "none") and repeated(flat):
            self.wrong = "the noise is the same at several step keys"

    def becomes(self, sample: Callable[..., Any], *, drops: float = 0.0) -> None:
        """Requires that weights become what NumPy computes or draws for them.

        Args:
          sample: function `(rng, w, w_max)` of a NumPy generator, and of weights and
            the largest weight of each one's tile in units of the crossbar, of one
            shape; it returns modified weights. It must not use the part's own
            functions, or it could not tell them from others.
          drops: the share of weights that is set to zero afterwards.
        """
        found, w, w_max = (np.asarray(each, np.float64) for each in self._observed())
        if not w.size:
            self.amount = "nothing: it leaves the only input as it is"
            return
        if drops and not w.any():
            self.wrong = self._idle
        some = np.random.default_rng(0).permutation(w.size)[:MOST]
        found, w, w_max = found[some], w[some], w_max[some]
        draws = drawn(sample, w, w_max)
        moving = np.mean(np.abs(draws - w) > 1e-5 * np.abs(w) + 1e-30, axis=0)
        moves = float(moving.mean())
        of_step = self._deviations[0].size
        if not moves and not drops:
            self.amount = "nothing: weights like these stay as they are"
        elif not self._deviations.any() and (moves + drops) * w.size > 30:
            self.wrong = self._idle
        elif (moves + drops) * of_step > 30:
            self.differs()
        if self.wrong:
            return
        if drops:
            # Weights that often become zero anyway tell little.
            zero = drops + (1 - drops) * np.mean(draws == 0, axis=0)
            telling = (w != 0) & (zero < drops + 0.1 * (1 - drops))
            telling = telling if telling.any() else w != 0
            gone, count = int((found[telling] == 0).sum()), int(telling.sum())
            share = float(zero[telling].mean())
            self.amount, self.wrong = share_of(gone, count, share)
            if self.wrong:
                return
            found = np.where(found == 0, np.nan, found)
            draws = np.where(draws == 0, np.nan, draws)
        if np.all((draws == draws[0]) | np.isnan(draws)):
            here = ~np.isnan(found)
            rng = np.random.default_rng(0)
            off = wrong_share(
                found[here], lambda x: sample(rng, x, w_max[here]), w[here], self._eps
            )
            if off > 1e-3:
                self.wrong = f"{off:.0%} of the weights are not those configured"
        if not self.wrong and moves:
            rounding = 0.3 * self._eps * np.abs(np.nan_to_num(found))
            self.amount, self.wrong = as_drawn(found, w, draws, rounding)

    def _observed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns observed and nominal weights and their largest ones, of all draws."""
        kernel = self._kernel
        stored, scale, w, largest, moves = (
            self._like(jnp.broadcast_to(jnp.asarray(each, jnp.float32), kernel.shape))
            for each in (kernel, self._scale, self.w, self.w_max, self._moves)
        )
        # Exactly zero for weights that were dropped.
        found = (stored + self._deviations) / scale
        fixed = ~moves.astype(bool)
        if (np.abs(found - w)[fixed] > 4 * self._eps * np.abs(w[fixed])).any():
            self.wrong = "the weights of the last input change, too"
        return found[~fixed], w[~fixed], largest[~fixed]

    def deviates(self, deviation: Any) -> None:
        """Requires that weights deviate by noise of a standard deviation.

        Args:
          deviation: standard deviation of each weight, in units of the crossbar,
            broadcastable against `w`.
        """
        if self.wrong:
            return
        sigma = jnp.where(self._moves, jnp.abs(deviation * self._scale), 0)
        each = self._like(jnp.broadcast_to(sigma, self._kernel.shape))
        with np.errstate(divide="ignore", invalid="ignore"):
            unit = np.where(each > 0, self._deviations / each, np.nan)
        independent = int((~np.isnan(unit)).sum())
        if independent:
            self.amount, self.wrong = strength_of(unit, independent)

    def drops(self, share: float) -> None:
        """Requires that a share of the weights is zeroed and no other is changed."""
        self.becomes(lambda rng, w, w_max: w, drops=share)


def modified_weights(
    weight: AnalogWeight,
    plan: Plan,
    params: paths.Tree,
    keys: list[jax.Array],
    steps: list[list[bench.Readings]],
) -> tuple[str, str | None] | None:
    """Returns the noise on a layer's weights in its calls, and what is wrong with it.

    Args:
      weight: the plan of the array.
      plan: the plan of the model.
      params: the model's parameters.
      keys: the keys of the steps.
      steps: the layer's readings: for each key, those of each of its calls.

    Returns:
      The amount as text, and what is wrong or `None`; or `None` without a modifier.
    """
    chip = weight.hardware
    if not chip.modifies("train"):
        return None
    values = paths.leaves(params)
    kernel = jnp.asarray(values[local(plan, weight.path)])
    kernel = clipped(weight, kernel, weight.stored_bound(values, plan.prefix))
    scale = weight.stored_scale(values, plan.prefix)

    modifier: Any = chip.modifier
    bound = weight.stored_bound(values, plan.prefix)
    if bound is not None and modifier.column_steps is not None:
        kernel = _on_levels(weight, kernel, bound, modifier.column_steps)
        modifier = modifier.without_levels

    def as_matrices(array: jax.Array) -> np.ndarray:
        matrix = np.asarray(weight.to_matrix(array), np.float32)
        return matrix.reshape(-1, *matrix.shape[-2:])

    nominal = as_matrices(kernel)
    rows: Any = slice(None)
    if weight.kind == "raw" or not all(steps):
        if chip.modifies_in_layer("train"):
            return None
        # Without a layer to observe, take the weights that the root passes to the call.
        given = _given_by_root(weight, plan, params)
        matrices = np.stack([np.reshape(given(key), nominal.shape) for key in keys])
        eps = 0.0
    else:
        seen = [[call.w for call in step] for step in steps]
        if chip.modifies_in_layer("train"):
            seen = [[call.driven for call in step] for step in steps]
            rows = driven_rows(nominal.shape[-2])
        first: Any = seen[0][0]
        eps = float(jnp.finfo(first.dtype).eps)
        matrices = np.stack([[np.asarray(call) for call in step] for step in seen])
    matrices = matrices.astype(np.float32)
    nominal = nominal[:, rows]
    which = np.array([[_nearest(each, nominal) for each in step] for step in matrices])
    proof = WeightProof(
        modifier,
        weight,
        kernel,
        scale,
        matrices - nominal[which],
        lambda array: as_matrices(array)[:, rows][which],
        "the layer gets its nominal weights: the modifier does not reach it, or does "
        "nothing to weights like these",
        eps,
    )
    modifier.proof(proof)
    return proof.amount, proof.wrong


def _on_levels(
    weight: AnalogWeight, kernel: jax.Array, bound: jax.Array, steps: float
) -> jax.Array:
    """Returns weights on the levels that a learned bound per column spans."""
    each = weight.spread(bound)
    c = np.broadcast_to(np.asarray(each, np.float32), kernel.shape)
    levels = np.rint(np.asarray(kernel, np.float32) / (c * (2 / np.float32(steps))))
    levels = np.clip(levels, -steps / 2, steps / 2)
    return jnp.asarray(levels * c * (2 / np.float32(steps)), kernel.dtype)


def _given_by_root(
    weight: AnalogWeight, plan: Plan, params: paths.Tree
) -> Callable[[jax.Array], jax.Array]:
    """Returns a function from a step's key to the matrices that the call gets."""

    @jax.jit
    def given(params: paths.Tree, key: jax.Array) -> jax.Array:
        step, _ = step_weights(params, plan, "train", key)
        return weight.to_matrix(paths.leaves(step)[local(plan, weight.path)])

    return functools.partial(given, params)


def _largest(weight: AnalogWeight, w: jax.Array, *, per_column: bool) -> jax.Array:
    """Returns the largest weight of each one's row tile, by NumPy."""
    matrix = np.abs(np.asarray(weight.to_matrix(w), np.float32))
    ends = np.cumsum(weight.row_sizes)[:-1]
    for tile in np.split(matrix, ends, axis=-2):
        tile[...] = tile.max(axis=-2 if per_column else (-2, -1), keepdims=True)
    return weight.from_matrix(jnp.asarray(matrix))


def _nearest(w: np.ndarray, nominal: np.ndarray) -> int:
    """Returns the index of the nominal matrix that a matrix deviates from."""
    return int(np.argmin(np.square(w - nominal).sum(axis=(1, 2))))
