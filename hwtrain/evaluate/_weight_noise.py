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
from hwtrain.chips._crossbar import largest_weight, last_row, on_crossbar
from hwtrain.evaluate import _bench as bench
from hwtrain.evaluate._judgement import repeated, share_of, strength_of


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
        """
        self.w, self._scale = on_crossbar(weight, kernel, scale)
        self._moves = jnp.ones((), bool)
        if getattr(part, "copy_last_column", False):
            self._moves = ~last_row(weight)
        w = jnp.where(self._moves, self.w, 0)
        self.w_max = largest_weight(weight, w, per_column=part.per_column)
        self._part, self._kernel, self._like = part, kernel, like
        self._deviations, self._idle = deviations, idle
        size = np.sqrt(np.mean(np.square(deviations)))
        self.amount = f"changes weights by {size:.2g}"
        self.wrong: str | None = None

    def differs(self, resting: str = "") -> None:
        """Requires that each draw changes weights, and differs from the others.

        Args:
          resting: reason why weights that the part maps to themselves without a draw
            may stay; empty if there are no such weights.
        """
        if resting and self._rests():
            self.amount = resting
            return
        flat = self._deviations.reshape(len(self._deviations), -1)
        if not flat.any(axis=1).all():
            self.wrong = self._idle
        elif self._part.draws not in (False, "none") and repeated(flat):
            self.wrong = "the noise is the same at several step keys"

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
        nominal = self._like(self._kernel)
        held = nominal != 0
        dropped = held & (self._deviations == -nominal)
        self.amount, self.wrong = share_of(int(dropped.sum()), int(held.sum()), share)

    def _rests(self) -> bool:
        """Whether the part, without a draw, leaves the nominal weights unchanged.

        The largest weight of a tile lies on a level, so this holds for tiles that have
        no other weight.
        """
        same = self._part(None, self.w, self.w_max)
        return bool(jnp.allclose(same, self.w, rtol=1e-6, atol=0))


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
    if not chip.modifies("train") or chip.modifies_in_layer("train"):
        return None
    values = paths.leaves(params)
    kernel = jnp.asarray(values[local(plan, weight.path)])
    kernel = clipped(weight, kernel, weight.stored_bound(values, plan.prefix))
    scale = weight.stored_scale(values, plan.prefix)

    def as_matrices(array: jax.Array) -> np.ndarray:
        matrix = np.asarray(weight.to_matrix(array), np.float32)
        return matrix.reshape(-1, *matrix.shape[-2:])

    nominal = as_matrices(kernel)
    if weight.kind == "raw" or not all(steps):
        # Without a layer to observe, take the weights that the root passes to the call.
        given = _given_by_root(weight, plan, params)
        matrices = np.stack([np.reshape(given(key), nominal.shape) for key in keys])
    else:
        matrices = np.stack([[np.asarray(call.w) for call in step] for step in steps])
    matrices = matrices.astype(np.float32)
    which = np.array([[_nearest(each, nominal) for each in step] for step in matrices])
    modifier: Any = chip.modifier
    proof = WeightProof(
        modifier,
        weight,
        kernel,
        scale,
        matrices - nominal[which],
        lambda array: as_matrices(array)[which],
        "the layer gets its nominal weights: the modifier does not reach it, or does "
        "nothing to weights like these",
    )
    modifier.proof(proof)
    return proof.amount, proof.wrong


def _given_by_root(
    weight: AnalogWeight, plan: Plan, params: paths.Tree
) -> Callable[[jax.Array], jax.Array]:
    """Returns a function from a step's key to the matrices that the call gets."""

    @jax.jit
    def given(params: paths.Tree, key: jax.Array) -> jax.Array:
        step, _ = step_weights(params, plan, "train", key)
        return weight.to_matrix(paths.leaves(step)[local(plan, weight.path)])

    return functools.partial(given, params)


def _nearest(w: np.ndarray, nominal: np.ndarray) -> int:
    """Returns the index of the nominal matrix that a matrix deviates from."""
    return int(np.argmin(np.square(w - nominal).sum(axis=(1, 2))))
