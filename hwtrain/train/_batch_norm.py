"""Batch norm on a chip: statistics of its own, and folding into the weights."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._plan.leaf_names import may_be_leaf

_MEAN, _VAR = "mean", "var"


def batch_statistics(
    update: Callable[[Any, Any], Any], statistics: Any, batches: Iterable[Any]
) -> Any:
    r"""Returns the statistics of batch norms over some batches, such as on a chip.

    Of all examples :math:`x` that reach a norm, in groups of a batch,

    .. math:: \mu = \sum_b p_b \mu_b, \qquad
        \sigma^2 = \sum_b p_b \left(\sigma_b^2 + (\mu_b - \mu)^2\right)

    with :math:`p_b` the part of the examples in batch b. Running averages of Flax would
    hold on to the statistics of training, whatever the number of batches. What lies
    before a norm is normalised by the statistics of the batch.

    >>> from flax import linen as nn
    >>> model, x = nn.BatchNorm(), jnp.array([[1.0], [3.0]])
    >>> variables = model.init(jax.random.key(0), x, use_running_average=True)
    >>> def update(statistics, x):
    ...     variables_now = {**variables, "batch_stats": statistics}
    ...     return model.apply(variables_now, x, False, mutable=["batch_stats"])[1][
    ...         "batch_stats"
    ...     ]
    >>> found = batch_statistics(update, variables["batch_stats"], [x, x + 4.0])
    >>> print(f"{found['mean'][0]:.3f}, {found['var'][0]:.3f}")
    4.000, 5.000

    Args:
      update: `(statistics, batch) -> statistics`: calls the model as in training, such
        as an analog model in `chip_mode` with the parameters of a chip, and returns the
        running averages after it. It draws the same in each call for a batch.
      statistics: those of the norms, with a `var` beside each `mean`; only shapes and
        dtypes count.
      batches: the batches, trees of arrays with the examples first.

    Returns:
      A tree like `statistics`.

    Raises:
      ValueError: if there is no batch, an entry that is no mean or variance, or if
        `update` does not change the statistics.

    References:
      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020, doi:10.1038/s41467-020-16108-9
      (adaptive batch normalisation statistics, AdaBS).
    """
    known = paths.leaves(statistics)
    for path in known:
        if path.rpartition("/")[2] not in (_MEAN, _VAR):
            raise InputError(
                f"{path}: expected the statistics of batch norms, mean and var, got "
                "another entry; pass the collection batch_stats of these alone"
            )
    found, sizes = [], []
    for batch in batches:
        found.append(paths.leaves(_of_batch(update, statistics, batch)))
        sizes.append(len(jax.tree.leaves(batch)[0]))
    if not found:
        raise InputError("expected at least one batch, got none")
    part = np.asarray(sizes) / np.sum(sizes)
    stacked = {path: jnp.stack([one[path] for one in found]) for path in known}

    def pooled(path: str, leaf: jax.Array) -> jax.Array:
        layer, slash, name = path.rpartition("/")
        means = stacked[f"{layer}{slash}{_MEAN}"]
        mean = jnp.tensordot(part, means, 1)
        value = mean
        if name == _VAR:
            value = jnp.tensordot(part, stacked[path] + (means - mean) ** 2, 1)
        return value.astype(leaf.dtype)

    return paths.map_leaves(pooled, statistics)


def _of_batch(update: Callable[[Any, Any], Any], statistics: Any, batch: Any) -> Any:
    """Returns the statistics of one batch from the running averages after it.

    An average `m s + (1 - m) x` shows its momentum m, which differs between norms, by
    its answers to 0 and to a number that is large beside x. The error is that of
    rounding m, 1e-7 / (1 - m) of x.
    """
    low = update(jax.tree.map(jnp.zeros_like, statistics), batch)
    large = jax.tree.map(lambda x: 1024 * jnp.maximum(1, jnp.abs(x)), low)
    # A copy: a call of an NNX module writes into the variables that it is given.
    high = update(jax.tree.map(jnp.copy, large), batch)
    rate = jax.tree.map(lambda low, high, s: 1 - (high - low) / s, low, high, large)
    for path, one in paths.leaves(rate).items():
        if not isinstance(one, Tracer) and not (one > 1e-6).all():
            raise InputError(
                f"{path}: expected running averages that follow a batch, got one that "
                "keeps its value; call the model as in training (use_running_average="
                "False, mutable=['batch_stats']), with a momentum below 1"
            )
    return jax.tree.map(jnp.divide, low, rate)


def fold_batch_norm(
    params: Any, statistics: Any, norms: Mapping[str, str], *, epsilon: float = 1e-5
) -> Any:
    r"""Returns a plain model's parameters with batch norms folded into their layers.

    .. math:: W' = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} W, \qquad
        b' = \beta + \frac{\gamma (b - \mu)}{\sqrt{\sigma^2 + \epsilon}}

    for each column, so that nothing is left to compute between a crossbar and the
    activation. The model without norms needs biases. Noise on W' is relative to its
    largest column: fold before the training under noise, not after it.

    Columns are the last axis of a kernel, as in `Dense`, `Conv` and `ConvTranspose` of
    both frameworks. With `transpose_kernel=True` they are the one before: swap the last
    two axes of such a kernel before and after. Where these have the same size, it
    cannot be told from the arrays, and would be folded along the wrong one.

    >>> params = {"conv": {"kernel": jnp.ones((3, 2))}, "norm": {"bias": jnp.ones(2)}}
    >>> statistics = {"norm": {"mean": jnp.ones(2), "var": jnp.full(2, 4.0)}}
    >>> folded = fold_batch_norm(params, statistics, {"conv": "norm"}, epsilon=0.0)
    >>> folded["conv"]["kernel"][0].tolist(), folded["conv"]["bias"].tolist()
    ([0.5, 0.5], [0.5, 0.5])
    >>> sorted(folded)
    ['conv']

    Args:
      params: the parameters, nested dicts, with the columns of kernels last.
      statistics: the running averages, nested dicts.
      norms: paths of layers, and of the norms that directly follow them.
      epsilon: that of the norms.

    Raises:
      ValueError: if there is no such layer or norm, if their sizes differ, or if the
        parameters hold leaves of hardware, which would no longer fit.
    """
    given, running = paths.leaves(params), paths.leaves(statistics)
    changed: dict[str, jax.Array] = {}
    for layer, norm in norms.items():
        kernel, mean, var = (
            _found(where, f"{at}/{name}", what)
            for where, at, name, what in (
                (given, layer, "kernel", "params"),
                (running, norm, _MEAN, "statistics"),
                (running, norm, _VAR, "statistics"),
            )
        )
        leaves = [
            path
            for path in given
            if path.startswith(f"{layer}/") and may_be_leaf(path, given)
        ]
        if leaves:
            raise InputError(
                f"{leaves[0]} is a leaf of hardware and would not fit the folded "
                "weights; fold the plain model's parameters, from hwtrain.strip"
            )
        if kernel.shape[-1:] != mean.shape:
            hint = ""
            if kernel.shape[-2:-1] == mean.shape:
                hint = (
                    "; if its columns are the axis before the last, as with "
                    "transpose_kernel=True, swap the last two before and after"
                )
            raise InputError(
                f"{norm}: expected a norm of the {kernel.shape[-1]} columns of "
                f"{layer}, got one of {mean.shape}{hint}"
            )
        beside = {f"{layer}/bias": given, f"{norm}/bias": given, f"{norm}/scale": given}
        for path, where in {**beside, f"{norm}/{_VAR}": running}.items():
            if path in where and where[path].shape[-1:] != mean.shape:
                raise InputError(
                    f"{path}: expected {mean.shape[0]} numbers, as {norm}/{_MEAN} has, "
                    f"got {where[path].shape}"
                )
        gain = given.get(f"{norm}/scale", 1.0) / jnp.sqrt(var + epsilon)
        bias = gain * (given.get(f"{layer}/bias", 0.0) - mean)
        changed[f"{layer}/kernel"] = (kernel * gain).astype(kernel.dtype)
        bias = (bias + given.get(f"{norm}/bias", 0.0)).astype(kernel.dtype)
        changed[f"{layer}/bias"] = bias
    gone = tuple(f"{norm}/" for norm in norms.values())
    kept = paths.drop(params, lambda path: not path.startswith(gone))
    return paths.insert(kept, changed)


def _found(leaves: Mapping[str, jax.Array], path: str, what: str) -> jax.Array:
    if path not in leaves:
        raise InputError(f"{path}: expected in {what}, which has {sorted(leaves)}")
    return leaves[path]
