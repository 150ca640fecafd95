"""Applies mismatch to the leaves of a parameter tree that a prototype selects."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._plan.quantities import quantity_of
from hwtrain.dynapse._prototypes import is_float, tree_of
from hwtrain.dynapse._spatial import SpatialCorrelation

Kind = Literal["multiplicative", "additive", "log_normal"]


def mismatch_generator(
    prototype: paths.Tree,
    percent_deviation: float | Mapping[str, float] = 0.30,
    sigma_rule: float = 3.0,
    *,
    kind: Kind = "multiplicative",
    least_ratio: float | None = None,
    correlation: SpatialCorrelation | None = None,
) -> "MismatchGenerator":
    r"""Returns a function that applies mismatch to selected parameters.

    With :math:`\sigma` = `percent_deviation` / `sigma_rule` and :math:`\xi \sim
    N(0, 1)` for each element,

    .. math::
        \text{multiplicative:}\quad & \theta' = \theta + \sigma \xi \theta \\
        \text{additive:}\quad & \theta' = \theta + \sigma \xi \max|\theta| \\
        \text{log_normal:}\quad & \theta' = \theta e^{\sigma \xi}

    A leaf of a DynapSim in `params` is the logarithm of a quantity and deviates by
    :math:`\sigma \xi` for every kind: the quantity is log-normal. The draws equal
    Rockpool's for the same tree and key: one subkey for each leaf, selected or not, in
    the tree's order.

    >>> tree = {"kernel": jnp.ones((2, 2)), "steps": 3}
    >>> generate = mismatch_generator({"kernel": True, "steps": False})
    >>> generate
    mismatch_generator: 1 of 2 leaves, multiplicative, 30 % deviation at 3 sigma:
    standard deviation 10 %, 99.7 % of devices within 30 %
    >>> chip = generate(tree, jax.random.key(0))
    >>> chip["kernel"].shape, chip["steps"]
    ((2, 2), 3)

    Args:
      prototype: a tree of booleans, as from `select` and the two prototypes.
      percent_deviation: the deviation at `sigma_rule` standard deviations, 0.3 for
        30 %. Or a mapping from patterns for paths (`re.fullmatch`, the first match
        wins) to deviations. Zero turns the mismatch off.
      sigma_rule: number of standard deviations. For 1, 2, 3, the deviation bounds 68.3,
        95.4, 99.7 % of devices.
      kind: the distribution.
      least_ratio: lower bound of a value's ratio to its nominal one: 0.0 for no change
        of sign, 0.01 for a current that stays positive. `None` for no limit.
      correlation: correlation of neighbours on a chip. `None` for independent devices.

    Raises:
      ValueError: for a prototype that is not a tree of booleans or selects nothing, for
        deviations that are negative, missing or unused, or for a rule that is not
        positive.
    """
    selected = paths.leaves(prototype)
    wrong = {p: v for p, v in selected.items() if not isinstance(v, bool | np.bool_)}
    if wrong or not any(selected.values()):
        found = f"it has {wrong}" if wrong else "nothing in it is True"
        raise InputError(
            "a prototype is a tree of booleans of which at least one is True, as "
            f"hwtrain.select(tree, '.*kernel') returns it; {found}"
        )
    if kind not in get_args(Kind):
        raise InputError(f"kind must be one of {get_args(Kind)}; got {kind!r}")
    if not 0 < sigma_rule < math.inf:
        raise InputError(f"sigma_rule must be greater than 0; got {sigma_rule}")
    if least_ratio is not None and not 0 <= least_ratio < 1:
        raise InputError(f"least_ratio must be in [0, 1); got {least_ratio}")
    if least_ratio == 0 and kind == "log_normal":
        raise InputError(
            'least_ratio=0.0 does nothing with kind="log_normal", which never changes '
            "a sign; leave it out"
        )
    return MismatchGenerator(
        deviations=_deviations(selected, percent_deviation),
        sigma_rule=sigma_rule,
        kind=kind,
        least_ratio=least_ratio,
        correlation=correlation,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class MismatchGenerator:
    """The function `generator(tree, key)` of `mismatch_generator`. Static and hashable.

    Attributes:
      deviations: the path and the deviation of each leaf; `None` if not selected.
      sigma_rule: number of standard deviations in a deviation.
      kind: the distribution.
      least_ratio: lower bound of a value's ratio to its nominal one.
      correlation: correlation of neighbours on a chip.
    """

    deviations: tuple[tuple[str, float | None], ...]
    sigma_rule: float
    kind: Kind
    least_ratio: float | None
    correlation: SpatialCorrelation | None

    def __call__(self, tree_or_model: Any, key: jax.Array) -> Any:
        """Returns the tree with mismatch applied to the selected leaves.

        Args:
          tree_or_model: the tree that the prototype was made of, or an NNX model, of
            which a copy is returned.
          key: a JAX key.

        Returns:
          A new tree. Every leaf keeps its dtype (float64 only with `jax_enable_x64`);
          leaves that are not selected are returned unchanged. Numbers are drawn in
          float32.

        Raises:
          ValueError: for a tree with other paths than the prototype, for a selected
            leaf that is not a floating-point number or, with a correlation, has no axis
            of devices, or for an invalid key.
        """
        tree = tree_of(tree_or_model)
        deviations = dict(self.deviations)
        leaves = paths.leaves(tree)
        _check_structure(deviations, leaves)
        self._check_devices(leaves)
        if not isinstance(key, jax.Array):
            raise InputError(
                f"key must be a JAX key, such as jax.random.key(0); got {key!r}"
            )
        order = {path: index for index, path in enumerate(leaves)}
        sigmas = {
            path: jnp.array(deviation / self.sigma_rule, jnp.float32)
            for path, deviation in deviations.items()
            if deviation is not None
        }
        values = _deviate(
            key,
            {path: leaves[path] for path in sigmas},
            sigmas,
            order=tuple((path, order[path]) for path in sigmas),
            count=len(leaves),
            kind=self.kind,
            least_ratio=self.least_ratio,
            correlation=self.correlation,
        )
        chip = paths.map_leaves(lambda path, leaf: values.get(path, leaf), tree)
        if not isinstance(tree_or_model, nnx.Module):
            return chip
        model = nnx.clone(tree_or_model)
        nnx.update(model, chip)
        return model

    def _check_devices(self, leaves: Mapping[str, Any]) -> None:
        if self.correlation is None:
            return
        chosen = [path for path, value in self.deviations if value is not None]
        scalars = [path for path in chosen if not jnp.ndim(leaves[path])]
        if scalars:
            raise InputError(
                f"{scalars} are scalars, which have no place on a chip, so that no "
                "neighbours share their mismatch: leave them out of the prototype, or "
                "the correlation out of the generator"
            )

    def __repr__(self) -> str:
        """Returns a description of the generator."""
        chosen = [d for _, d in self.deviations if d is not None]
        count = f"{len(chosen)} of {len(self.deviations)} leaves"
        bound = "" if self.least_ratio is None else f", at least {self.least_ratio:g} x"
        where = "" if self.correlation is None else f", {self.correlation}"
        words = "; ".join(
            sigma_rule_in_words(deviation, self.sigma_rule)
            for deviation in dict.fromkeys(chosen)
        )
        return f"mismatch_generator: {count}, {self.kind}{bound}{where}, {words}"


def sigma_rule_in_words(percent_deviation: float, sigma_rule: float) -> str:
    """Returns the meaning of a deviation and a sigma rule in words.

    >>> sigma_rule_in_words(0.3, 2.0)
    '30 % deviation at 2 sigma: standard deviation 15 %, 95.4 % of devices within 30 %'
    """
    within = 100 * math.erf(sigma_rule / math.sqrt(2))
    deviation = f"{100 * percent_deviation:.4g} %"
    return (
        f"{deviation} deviation at {sigma_rule:g} sigma: standard deviation "
        f"{100 * percent_deviation / sigma_rule:.4g} %, {within:.1f} % of devices "
        f"within {deviation}"
    )


def _deviations(
    selected: Mapping[str, bool], given: float | Mapping[str, float]
) -> tuple[tuple[str, float | None], ...]:
    """Returns the deviation of each leaf; `None` for leaves that are not selected."""
    rules = given if isinstance(given, Mapping) else {".*": given}
    for value in rules.values():
        if not 0 <= value < math.inf:
            raise InputError(
                f"percent_deviation must be 0 or more, 0.3 for 30 %; got {value}"
            )
    used, found = set(), []
    for path, chosen in selected.items():
        wins = [p for p in rules if re.fullmatch(p, path)] if chosen else []
        if chosen and not wins:
            raise InputError(
                f"percent_deviation has no pattern for {path!r}, which the prototype "
                f"selects; it has {list(rules)}"
            )
        used.update(wins[:1])
        found.append((path, float(rules[wins[0]]) if wins else None))
    for pattern in rules:
        if pattern not in used:
            raise InputError(
                f"percent_deviation: the pattern {pattern!r} wins nowhere among the "
                f"selected leaves {[p for p, chosen in selected.items() if chosen]}"
            )
    return tuple(found)


def _check_structure(expected: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    if expected.keys() != leaves.keys():
        raise InputError(
            "the prototype and the tree differ: only the prototype has "
            f"{sorted(expected.keys() - leaves.keys())}, only the tree has "
            f"{sorted(leaves.keys() - expected.keys())}. Make a new prototype from "
            "this tree"
        )
    for path, deviation in expected.items():
        if deviation is not None and not is_float(leaves[path]):
            raise InputError(
                f"the prototype selects {path!r}, but mismatch needs floating-point "
                f"numbers; got {getattr(leaves[path], 'dtype', type(leaves[path]))}"
            )


# Jitted as one program: outside of it, rounding differs from the reference by an ulp.
@functools.partial(
    jax.jit, static_argnames=("order", "count", "kind", "least_ratio", "correlation")
)
def _deviate(
    key: jax.Array,
    leaves: dict[str, jax.Array],
    sigmas: dict[str, jax.Array],
    *,
    order: tuple[tuple[str, int], ...],
    count: int,
    kind: Kind,
    least_ratio: float | None,
    correlation: SpatialCorrelation | None,
) -> dict[str, jax.Array]:
    """Returns the deviated selected leaves; `order` gives the subkey of each."""
    subkeys = jax.random.split(key, count + 1)[1:]
    normal = correlation.normal if correlation else _normal
    # Leaves alike are vmapped together, because a DynapSim alone has more than twenty.
    alike: dict[Any, list[tuple[str, int]]] = {}
    for path, index in order:
        logarithm = quantity_of(path.rpartition("/")[2]) is not None
        form = "logarithm" if logarithm else kind
        leaf = jnp.asarray(leaves[path])
        wide = jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32
        alike.setdefault((leaf.shape, wide, form), []).append((path, index))
    deviated = {}
    for (shape, wide, form), group in alike.items():
        nominal = [jnp.asarray(leaves[path], wide) for path, _ in group]

        def one(nominal, sigma, key, shape=shape, form=form):
            return _value(nominal, sigma * normal(key, shape), form, least_ratio)

        values = jax.vmap(one)(
            jnp.stack(nominal),
            jnp.stack([sigmas[path] for path, _ in group]),
            subkeys[jnp.array([index for _, index in group])],
        )
        for value, (path, _) in zip(values, group):
            deviated[path] = value.astype(jnp.asarray(leaves[path]).dtype)
    return deviated


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(key, shape, jnp.float32)


def _value(
    nominal: jax.Array, draw: jax.Array, kind: str, least_ratio: float | None
) -> jax.Array:
    """Returns deviated values; `draw` holds the standard deviation times xi."""
    draw = draw.astype(nominal.dtype)
    if kind == "logarithm":
        least = math.log(least_ratio) if least_ratio else -math.inf
        return nominal + jnp.maximum(draw, least)
    if kind == "multiplicative":
        value = nominal + draw * nominal
    elif kind == "additive":
        value = nominal + draw * jnp.max(jnp.abs(nominal))
    else:
        value = nominal * jnp.exp(draw)
    if least_ratio is None:
        return value
    sign, magnitude = jnp.sign(nominal), jnp.abs(nominal)
    kept = sign * jnp.maximum(sign * value, least_ratio * magnitude)
    return jnp.where(nominal == 0, value, kept)
