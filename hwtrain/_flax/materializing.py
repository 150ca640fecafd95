"""Stores derived weights as leaves beside the weights that they are computed from."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import meta

from hwtrain._arrays import paths, processes
from hwtrain._arrays.shared import placed_as
from hwtrain._errors import InputError
from hwtrain._flax.functional import (
    are_shared,
    as_function,
    compiled,
    require_same_plan,
)
from hwtrain._flax.modes import plan as plan_of
from hwtrain._flax.nnx.layers import EffectiveWeight
from hwtrain._flax.nnx.step import modules_of
from hwtrain._flax.observation import collected, observed, tell
from hwtrain._flax.weight_side import local
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight


def materialize(
    analog: Any, variables: Any = None, *example: Any, **kwargs: Any
) -> Any:
    """Returns variables with the derived weights that layers multiply by.

    If a WeightNorm, a mask, a factor or anything else changes a stored kernel before
    its layer multiplies by it, a chip holds the derived weights. They are found in one
    call of the model. Beside each such `kernel`, the result has an `effective_kernel`.
    A plan made from the result refers to it, so that chips are drawn, programmed and
    exported from it, and the model multiplies by it in `chip_mode` and `eval_mode`.
    Training derives the weights from the stored ones, and rejects an existing leaf.

    In several processes that share the arrays, all of them call it; meanwhile one holds
    the derived weights on its host. They are spread like the stored ones.

    >>> import hwtrain
    >>> from flax import linen as nn
    >>> class Model(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.WeightNorm(nn.Dense(4, name="dense"))(x)
    >>> mismatch = hwtrain.MismatchParameter(type="add_normal", std_dev=0.1)
    >>> analog = hwtrain.analogize(Model(), hwtrain.Hardware(mismatch=mismatch))
    >>> x = jnp.ones((1, 3))
    >>> variables = analog.init(jax.random.key(0), x)
    >>> nominal = materialize(analog, variables, x)
    >>> plan = hwtrain.plan(analog, nominal, x)
    >>> list(plan)
    ['dense/effective_kernel']
    >>> chip = hwtrain.apply_mismatch(nominal["params"], plan, hwtrain.chip_key(7))
    >>> y = hwtrain.chip_mode(analog).apply({"params": chip}, x)

    Args:
      analog: the analog model.
      variables: Linen: its variables. NNX: its `params`, or `None` for its own.
      *example: arguments of a call.
      **kwargs: keyword arguments of the call. For Linen also `rngs` and `mutable`, as
        for Flax's `apply`.

    Returns:
      The given `variables` with the leaves added; for `None` a copy of the model with
      them. Existing leaves are kept.

    Raises:
      ValueError: if the call does not reach such a layer, or a layer multiplies by
        different weights in different calls.
    """
    shared = are_shared(analog, variables=variables, example=example, kwargs=kwargs)
    with processes.together(shared):
        plan = plan_of(analog, variables, *example, **kwargs)
        function, tree = as_function(analog, "eval", variables)
        params = meta.unbox(tree["params"])
        made = pending(plan, params)
        collector = _Collector(plan, made)
        numbered = paths.insert(params, collector.numbers)
    require_same_plan((plan, made), shared)
    if not made:
        return analog if variables is None else variables
    with observed(None), collected(collector):
        call = compiled(function, kwargs, shared)
        outputs = call({**tree, "params": numbered}, jax.random.key(0), *example)
        with processes.together(shared):
            jax.block_until_ready(outputs)
            jax.effects_barrier()
    stored = paths.leaves(params)
    found = processes.of_one(collector.values, collector.seen, shared)
    with processes.together(shared):
        values = {}
        for weight in made:
            path = local(plan, weight.effective_path)
            kernel = stored[local(plan, weight.stored)]
            array = jnp.asarray(found[path], kernel.dtype)
            values[path] = placed_as(kernel, array)
    if variables is None:
        copy = nnx.clone(analog)
        modules = modules_of(copy)
        for path, value in values.items():
            layer, _, name = path.rpartition("/")
            setattr(modules[layer], name, EffectiveWeight(value))
        return copy
    if "params" not in variables:
        return paths.insert(variables, values)
    inner = paths.insert(variables["params"], values)
    return type(variables)({**variables, "params": inner})


def pending(plan: Plan, params: paths.Tree) -> list[AnalogWeight]:
    """Returns the derived weights that are not among the parameters.

    Args:
      plan: the plan.
      params: nested mappings, without the plan's prefix.
    """
    present = paths.leaves(params)
    derived = (weight for weight in plan.weights if weight.pending)
    return [w for w in derived if local(plan, w.effective_path) not in present]


class _Collector:
    """Collects on the host the arrays that layers multiply by.

    Attributes:
      numbers: by the path of a leaf, the numbers of the matrices of its stack in place
        of its values, so that a layer inside a scan or a vmap tells which one it is.
    """

    def __init__(self, plan: Plan, weights: list[AnalogWeight]):
        self._plan = plan
        self._weights = {weight.stored: weight for weight in weights}
        self._found: dict[str, dict[int, np.ndarray]] = {x: {} for x in self._weights}
        self._differing: set[str] = set()
        self.numbers: dict[str, jax.Array] = {}
        for weight in weights:
            lead = len(weight.shape) - len(weight.rows) - len(weight.columns)
            stack = weight.shape[:lead]
            numbers = jnp.arange(math.prod(stack), dtype=jnp.float32).reshape(stack)
            self.numbers[local(plan, weight.effective_path)] = numbers

    def __call__(
        self, weight: AnalogWeight, numbers: jax.Array, array: jax.Array
    ) -> None:
        """Sends the array that a layer multiplies by to the host."""
        path = weight.stored

        def take(numbers: Any, array: Any) -> None:
            found, array = self._found[path], np.asarray(array)
            first = int(np.ravel(numbers)[0])
            if not np.array_equal(found.setdefault(first, array), array):
                self._differing.add(path)

        tell(take, numbers, array)

    @property
    def seen(self) -> bool:
        """Whether arrays came here; of several processes, all come to one."""
        return any(self._found.values())

    def values(self) -> dict[str, np.ndarray]:
        """Returns the arrays by the paths of their leaves."""
        values = {}
        for path, weight in self._weights.items():
            found = self._found[path]
            size = sum(array.size for array in found.values())
            if path in self._differing:
                raise InputError(
                    f"{path}: the {weight.layer} multiplies by one array of weights in "
                    "one call and by another in the next, but a crossbar holds only "
                    "one. Give each array a layer of its own, or keep it digital: "
                    f"Rule({weight.layer_path!r}, None) before the other rules"
                )
            if size != math.prod(weight.shape):
                raise InputError(
                    f"{path}: the call does not reach every array that its "
                    f"{weight.layer} multiplies by, so the weights of a chip are not "
                    "known. Give an example that reaches them, or keep it digital: "
                    f"Rule({weight.layer_path!r}, None) before the other rules"
                )
            whole = np.concatenate([np.ravel(found[first]) for first in sorted(found)])
            effective = local(self._plan, weight.effective_path)
            values[effective] = whole.reshape(weight.shape)
        return values
