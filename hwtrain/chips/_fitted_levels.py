"""Clips weights so that rounding them to the levels of their hardware costs least."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from hwtrain._arrays import paths, statistics, tiling
from hwtrain._errors import InputError
from hwtrain._plan.nominal import check_nominal
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._crossbar import written


def fit_levels(params: paths.Tree, plan: Plan, *, candidates: int = 100) -> paths.Tree:
    r"""Clips trained weights so that rounding them to levels has the least error.

    .. math:: w' = \mathrm{clip}(w, -c, c), \qquad
        c = \arg\min_{c \in \{A/n, 2A/n, \ldots, A\}} \sum_i (Q_c(w'_i) - w_i)^2

    with A the largest absolute weight of the row tile, of the tile if weights are
    scaled by tile, or of the column. The levels of `WeightModifierParameter(
    type="discretize", res=..., enable_during_test=True)` span the largest weight, so c
    is their new end: a chip is programmed to the levels Q_c, `export` writes the
    rounded weights, and `chip_mode` reads them. The parameters stay unrounded.

    >>> import hwtrain
    >>> from flax import linen as nn
    >>> levels = hwtrain.WeightModifierParameter(
    ...     type="discretize", res=1 / 6, enable_during_test=True)
    >>> analog = hwtrain.analogize(nn.Dense(1), hwtrain.Hardware(modifier=levels))
    >>> x = jnp.ones((1, 9))
    >>> params = analog.init(jax.random.key(0), x)["params"]
    >>> w = jnp.array([0.9, 1.0, 1.1, 1.0, -0.4, 0.3, 0.3, -0.7, 1.6])[:, None]
    >>> fitted = fit_levels({**params, "kernel": w}, hwtrain.plan(analog, params, x))
    >>> print(f"{jnp.abs(fitted['kernel']).max():.2f}")
    1.50

    Args:
      params: nominal parameters.
      plan: the plan.
      candidates: n, number of clips that are tried.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: if no hardware has levels on its chips, or if they do not follow the
        largest weight: with `rel_to_actual_wmax=False`, `type="dorefa"`,
        `copy_last_column`, a learned clip, or a stored mapping scale.

    References:
      Nagel et al., A white paper on neural network quantization, 2021, section 3.1: the
      range of least squared error.
    """
    plan.check_effective()
    plan.check_weights(params)
    check_nominal(plan, params, "fit_levels")
    if candidates < 1:
        raise InputError(f"candidates should be at least 1, got {candidates}")
    weights = {w.path: w for w in plan.weights if w.hardware.rounds_chips}
    if not weights:
        raise InputError(
            "no hardware of this plan has levels on its chips: give it "
            'modifier=WeightModifierParameter(type="discretize", res=1 / 14, '
            "enable_during_test=True)"
        )
    for weight in weights.values():
        _check(weight)

    def value(path: str, leaf: jax.Array) -> jax.Array:
        weight = weights.get(path)
        return leaf if weight is None else _fitted(weight.nameless, leaf, candidates)

    return paths.map_leaves(value, params)


def _check(weight: AnalogWeight) -> None:
    """Raises unless the levels of an array span its largest weight."""
    chip, modifier = weight.hardware, weight.hardware.modifier
    wrong = {
        "a learned clip": chip.learns_clip,
        "a stored mapping scale (remap, or a clip at an absolute bound)": (
            weight.stores_scale
        ),
    }
    # Otherwise the levels are those of the converter alone.
    if modifier is not None and modifier.rounds_chips:
        wrong |= {
            "type='dorefa'": modifier.type == "dorefa",
            "rel_to_actual_wmax=False": not modifier.rel_to_actual_wmax,
            "copy_last_column": modifier.copy_last_column,
        }
    found = [text for text, there in wrong.items() if there]
    if found:
        raise InputError(
            f"{weight.path}: fit_levels moves the largest weight, at which levels end, "
            f"but its hardware ({weight.rule}) has {' and '.join(found)}: leave that "
            "out, or round without fitting"
        )


@functools.partial(jax.jit, static_argnums=(0, 2))
def _fitted(weight: AnalogWeight, kernel: jax.Array, candidates: int) -> jax.Array:
    """Returns an array clipped to the bounds of least error."""
    nominal = kernel.astype(jnp.float32)
    each = statistics.absolute_maximum(
        weight.to_matrix(nominal), weight.row_sizes, per_column=True
    )
    largest = _of_groups(weight, jnp.max, each)

    def clipped(fraction: jax.Array) -> jax.Array:
        bound = weight.spread(largest * fraction)
        return jnp.clip(nominal, -bound, bound)

    def trial(best: tuple[jax.Array, jax.Array], number: jax.Array):
        fraction, least = best
        tried = 1 - number.astype(jnp.float32) / candidates
        error = jnp.square(written(weight, clipped(tried), None) - nominal)
        rows = tiling.cut(weight.to_matrix(error), weight.row_sizes, axis=-2)
        error = _of_groups(weight, jnp.sum, jnp.sum(rows, axis=-2))
        less = error < least
        return (jnp.where(less, tried, fraction), jnp.where(less, error, least)), None

    start = jnp.ones_like(largest), jnp.full_like(largest, jnp.inf)
    (fraction, _), _ = jax.lax.scan(trial, start, jnp.arange(candidates))
    return clipped(fraction).astype(kernel.dtype)


def _of_groups(
    weight: AnalogWeight, function: Callable[..., jax.Array], each: jax.Array
) -> jax.Array:
    """Reduces a statistic of columns over the columns whose levels are the same."""
    chip, mapping = weight.hardware, weight.hardware.mapping
    scaled = mapping is not None and mapping.weight_scaling_omega > 0
    each_of = [x.per_column for x in (chip.modifier,) if x and x.rounds_chips]
    each_of += [x.per_column for x in (chip.converter,) if x and x.rounds]
    columnwise = mapping is not None and scaled and mapping.weight_scaling_columnwise
    if all(each_of) or columnwise:
        return each
    if scaled and weight.tiles[1] > 1:
        return tiling.over_columns(function, each, weight.column_sizes)
    return function(each, axis=-1, keepdims=True)
