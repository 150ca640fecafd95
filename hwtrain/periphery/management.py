"""Scales of single input vectors around a tile: noise and bound management.

Noise management divides each input vector by its own scale and multiplies the outputs
by it; bound management doubles that scale while outputs saturate the ADC.

A scale belongs to one input vector on one tile. No gradient passes through it: the
backward pass treats the final scale as a constant.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import tiling
from hwtrain._arrays.derivatives import vary_alike
from hwtrain._errors import InputError
from hwtrain._parts.constant import static, stopped
from hwtrain._parts.cost import Cost
from hwtrain._parts.part import Part
from hwtrain.periphery.adc import Adc
from hwtrain.periphery.dac import Dac


def noise_scale(
    x: jax.Array,
    row_sizes: tuple[int, ...],
    *,
    kind: str,
    threshold: float = 0.0,
    assumed_wmax: float = 0.6,
    out_bound: float | None = None,
) -> jax.Array:
    r"""Returns the scale by which inputs are divided before the DAC.

    .. math::
        \text{abs_max:}\ \alpha = \max_j |x_j| \qquad
        \text{max:}\ \alpha = \max_j x_j \qquad
        \text{abs_max_np_sum:}\ \alpha = \max\Big(\max_j |x_j|,\
        \frac{w_\text{max}}{b} \max\big(\textstyle\sum_j x_j^+, \sum_j x_j^-\big)\Big)

    >>> x = jnp.array([[0.5, -2.0]]).reshape(1, 1, 1, 2)
    >>> print(noise_scale(x, (2,), kind="abs_max").item())
    2.0

    Args:
      x: `[..., row tiles, column tiles or 1, rows]`.
      row_sizes: rows of each row tile.
      kind: one of the above, or `"constant"` for the threshold (1 if that is zero).
      threshold: upper limit of the `"abs_max"` scale; larger inputs are then clipped.
        Zero for no limit.
      assumed_wmax: w_max, the largest weight that `"abs_max_np_sum"` assumes.
      out_bound: b, the bound of the ADC, for `"abs_max_np_sum"`.

    Returns:
      `[..., row tiles, column tiles or 1, 1]`, float32; zero for an input of zeros,
      1 where `"max"` is not positive. No gradient passes.

    References:
      Gokmen et al., Training deep convolutional neural networks with resistive
      cross-point devices, Frontiers in Neuroscience 2017.
    """
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    if kind == "constant":
        shape = (*x.shape[:-1], 1)
        return jnp.full(shape, threshold if threshold > 0 else 1.0, jnp.float32)
    if kind == "max":
        valid = tiling.over_batch(tiling.mask(row_sizes)[:, None, :], x)
        largest = jnp.max(x, axis=-1, keepdims=True, where=valid, initial=-jnp.inf)
        return jnp.where(largest > 0, largest, 1)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    if kind == "abs_max":
        return jnp.minimum(largest, threshold) if threshold > 0 else largest
    positive = jnp.sum(jnp.maximum(x, 0), axis=-1, keepdims=True)
    negative = jnp.sum(jnp.maximum(-x, 0), axis=-1, keepdims=True)
    if out_bound is None:
        return largest
    worst = jnp.maximum(positive, negative) * (assumed_wmax / out_bound)
    return jnp.maximum(largest, worst)


def bound_scale(
    scale: jax.Array,
    read: Callable[[Any, jax.Array], tuple[jax.Array, Any]],
    *,
    limit: float,
    worst_case: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    r"""Returns the scale at which no output of an input vector is clipped.

    .. math:: \alpha \to 2\alpha \quad \text{while clipped}

    Each vector on each tile doubles its own scale until its factor exceeds the limit at
    most. Each trial is a new read of the tile with its own noise, in a bounded loop
    that ends as soon as nothing is clipped. The last read of each vector counts. The
    loop itself is not differentiated.

    >>> read = lambda number, scale: (scale < 5, 10.0 * number * jnp.ones(2))
    >>> scale, drawn = bound_scale(jnp.array([1.0, 3.0]), read, limit=1000.0)
    >>> print(scale, drawn)
    [8. 6.] [30. 10.]

    Args:
      scale: the scale of the first trial, of any shape.
      read: function of the number of a trial, from 0, and the scales; returns whether
        an output is clipped, in the shape of the scales, and the draws of the read,
        arrays against which scales broadcast. It must not depend on anything that is
        differentiated.
      limit: the factor above which the doubling stops.
      worst_case: scale of the second trial, from which the doubling continues; `None`
        for twice the first.

    Returns:
      The scales, and the draws of the last read of each.

    References:
      Gokmen et al., Training deep convolutional neural networks with resistive
      cross-point devices, Frontiers in Neuroscience 2017.
    """
    # The first power of two above the limit is still tried, and kept.
    doublings = math.floor(math.log2(limit)) + 1 if limit >= 1 else 0
    trials = doublings if worst_case is None else doublings + 1

    def unfinished(carry):
        trial, _, clipped, _ = carry
        return (trial < trials) & jnp.any(clipped)

    def next_trial(carry):
        trial, scale, clipped, drawn = carry
        larger = 2 * scale
        if worst_case is not None:
            larger = jnp.where(trial == 0, worst_case, larger)
        scale = jnp.where(clipped, larger, scale)
        clips, new = read(trial + 1, scale)
        drawn = jax.tree.map(lambda a, b: jnp.where(clipped, a, b), new, drawn)
        return trial + 1, scale, clipped & clips, drawn

    clipped, drawn = read(0, scale)
    scale, clipped, drawn, worst_case = vary_alike(scale, clipped, drawn, worst_case)
    carry = (jnp.zeros((), jnp.int32), scale, clipped, drawn)
    _, scale, _, drawn = jax.lax.while_loop(unfinished, next_trial, carry)
    return scale, drawn


class Management(Part):
    """Divides inputs by scales and multiplies outputs by them.

    `noise_scale` gives the first scale of each vector, `bound_scale` the last one.
    """

    stays_static: ClassVar = {
        "limit": "decides how often a tile is read again, which is compiled into the "
        "program"
    }

    noise: Literal["none", "constant", "abs_max", "max", "abs_max_np_sum"] = "none"
    """Kind of the first scale; see `noise_scale`."""
    threshold: float = 0.0
    """The `"constant"` scale (0: 1), or the upper limit of the `"abs_max"` scale (0: no
    limit)."""
    iterative: bool = False
    """Whether inputs are reduced until the outputs fit."""
    worst_case: bool = False
    """Whether the second trial uses the scale of `"abs_max_np_sum"`."""
    limit: float = 1000.0
    """The factor above which the doubling stops."""
    assumed_wmax: float = 0.6
    """Largest weight that `"abs_max_np_sum"` assumes."""
    bound: float | None = None
    """The bound of the ADC."""
    inputs_drawn: bool = False
    """Whether inputs get noise, so that inputs of zero do not stay zero."""
    of_range: bool = False
    """Whether the first scale is a dynamic input range."""

    def around(self, inner, x, ctx):
        """Divides the inputs and multiplies the outputs by the scale."""
        fixed = jax.lax.stop_gradient(x)
        # The search for scales is not differentiated.
        scales = stopped(self) if self.iterative else self
        alpha = scales._scale(
            fixed, ctx, "constant" if self.noise == "none" else self.noise
        )
        # Inputs of zero give outputs of zero, unless the inputs get noise.
        silent = (alpha == 0) & (not self.inputs_drawn)
        alpha = jnp.where(alpha == 0, 1, alpha)
        drawn = None
        if self.iterative and self.bound is not None:
            alpha, drawn = scales._fitting(inner, fixed, alpha, silent, ctx)
        return inner(x / alpha, read=0, drawn=drawn) * jnp.where(silent, 0, alpha)

    def describe(self):
        """Returns its kind and whether it iterates."""
        return f"management {self.noise}{', iterative' if self.iterative else ''}"

    def cost(self, ctx):
        """Returns no cost; a note if reads are repeated, as often as outputs clip."""
        if not self.iterative:
            return Cost()
        return Cost(notes=("repeated reads of bound management are not counted",))

    def proof(self, ctx):
        """Declares its measured effect: that both kinds of scales act."""
        if self.noise != "none":
            fixed = dataclasses.replace(self, noise="none", threshold=0.0)
            name = "input_range" if self.of_range else "noise_management"
            ctx.differs(name, fixed if self.iterative else None)
            # Inside of a coarse DAC, outputs tell the scale.
            once = dataclasses.replace(self, iterative=False, worst_case=False)
            ctx.responds(
                lambda x, tile: _rounded(tile, x, self._in_numpy(x, self.noise)),
                name,
                once,
                Dac(bound=1.0, res=_COARSE),
                rest=lambda x, tile: _rounded(tile, x, 1.0),
            )
        if self.iterative and self.bound is not None:
            adc, alone = (
                Adc(bound=self.bound),
                Management(
                    iterative=True,
                    limit=self.limit,
                    bound=self.bound,
                    worst_case=self.worst_case,
                    assumed_wmax=self.assumed_wmax,
                ),
            )
            ctx.differs_beyond(
                self.bound, "bound_management", alone, adc, without=(adc,)
            )
            ctx.responds(
                self._fitted,
                "bound_management",
                alone,
                adc,
                rest=lambda x, tile: self._clipped(tile, x, 1.0),
                outputs=4 * self.bound,
            )

    def _in_numpy(self, x, kind):
        """Returns the first scale of inputs, `[vectors, row tiles, 1, rows]`."""
        sizes = np.abs(x).max(axis=-1, keepdims=True)
        if kind == "abs_max":
            alpha = np.minimum(sizes, self.threshold or np.inf)
        elif kind == "max":
            # Padding is zero, and so is no larger than what counts.
            largest = x.max(axis=-1, keepdims=True)
            alpha = np.where(largest > 0, largest, 1)
        elif kind == "abs_max_np_sum" and self.bound is not None:
            sums = [np.maximum(y, 0).sum(axis=-1, keepdims=True) for y in (x, -x)]
            alpha = np.maximum(
                sizes, np.maximum(*sums) * self.assumed_wmax / self.bound
            )
        else:
            alpha = np.full_like(sizes, self.threshold or 1)
        return np.where(alpha == 0, 1, alpha)

    def _clipped(self, tile, x, alpha):
        bound = np.inf if self.bound is None else self.bound
        return alpha * np.clip(tile.multiply(x / alpha), -bound, bound)

    def _fitted(self, x, tile):
        """Returns outputs at the first scale at which none is clipped."""
        bound = np.inf if self.bound is None else self.bound
        alpha = np.ones((*tile.multiply(x).shape[:-1], 1))
        trials, limit = 1 if self.worst_case else 0, self.limit
        trials += math.floor(math.log2(limit)) + 1 if limit >= 1 else 0
        for trial in range(trials):
            beyond = np.abs(tile.multiply(x / alpha)).max(
                axis=-1, keepdims=True
            ) > bound * (1 + 1e-6)
            larger = 2 * alpha
            if self.worst_case and trial == 0:
                larger = np.broadcast_to(
                    self._in_numpy(x, "abs_max_np_sum"), alpha.shape
                )
            alpha = np.where(beyond, larger, alpha)
        return self._clipped(tile, x, alpha)

    def _scale(self, x, ctx, kind):
        return noise_scale(
            x,
            ctx.crossbar.row_sizes,
            kind=kind,
            threshold=self.threshold if kind == self.noise else 0.0,
            assumed_wmax=self.assumed_wmax,
            out_bound=self.bound,
        )

    def _fitting(self, inner, x, alpha, silent, ctx):
        """Returns the scales at which nothing is clipped, and the draws at them."""
        shape = (*ctx.crossbar.inputs_of(x)[0][:-1], 1)

        def read(number, alpha):
            trial = inner.trial(x / alpha, number)
            if "clipped" not in trial.notes:
                raise InputError(
                    "bound management repeats a read until no output is clipped, but "
                    "no stage inside it reports clipping: add an ADC, or call "
                    'ctx.note("clipped", ...)'
                )
            for drawn in trial.drawn:
                _check_vectors(drawn.shape, shape)
            clips = jnp.any(trial.notes["clipped"], axis=-1, keepdims=True)
            return clips & ~silent, trial.drawn

        worst = None
        if self.worst_case:
            worst = jnp.broadcast_to(self._scale(x, ctx, "abs_max_np_sum"), shape)
        alpha = jnp.broadcast_to(alpha, shape)
        return bound_scale(alpha, read, limit=static(self.limit), worst_case=worst)


_COARSE = 1 / 8
"""Resolution of a DAC with which scales of inputs are measured."""


def _rounded(tile, x, alpha):
    """Returns outputs behind that DAC for inputs divided by a scale."""
    levels = np.clip(2 * _COARSE * np.rint(x / alpha / (2 * _COARSE)), -1, 1)
    return alpha * tile.multiply(levels)


def _check_vectors(drawn: tuple[int, ...], vectors: tuple[int, ...]) -> None:
    """Raises unless each vector on each tile has its own draws."""
    if drawn[:-1] != vectors[:-1]:
        raise InputError(
            f"a stage draws numbers of the shape {drawn} under bound management, which "
            "reads single vectors again: draw them in the shape of the inputs or the "
            f"outputs, {(*vectors[:-1], '...')}"
        )
