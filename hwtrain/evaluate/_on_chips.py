"""Evaluates a metric on chips: the common program of all studies of populations."""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hwtrain._arrays import paths
from hwtrain._arrays.random import as_key, draw_key
from hwtrain._flax.calls import Forward, divided, first_call, require_one_call, through
from hwtrain._flax.functional import as_function
from hwtrain._flax.materializing import materialize
from hwtrain._flax.modes import plan as plan_of
from hwtrain._parts.fields import MOST, MOST_CHIPS
from hwtrain._plan.nominal import check_nominal
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint import HardwareCheckpoint
from hwtrain.checkpoint._same_hardware import check_hardware
from hwtrain.chips import ProgrammedChip, chip_key, program_chip
from hwtrain.chips._crossbar import with_written
from hwtrain.evaluate._read_back import are_measured
from hwtrain.weights.mapping import MAPPING_SCALE

CHUNK_BYTES = 256 * 2**20
"""Bound in bytes on the parameters and conductances of chips evaluated together."""

Subset = Mapping[str, bool] | None


def values_on_chips(
    analog: Any,
    variables: Any,
    batches: Iterable[tuple[Any, ...]],
    metric: Callable[..., Any],
    *,
    chips: int | Sequence[int],
    key: jax.Array,
    times_s: Sequence[float] | None,
    chunk: int | None,
    call_kwargs: Mapping[str, Any] | None,
    forward: Forward | None = None,
    subsets: Callable[[Plan], Sequence[Subset]] = lambda plan: [None],
    caller: str,
) -> tuple[tuple[int, ...], tuple[float, ...], np.ndarray]:
    """Returns the chips' seeds, the times, and `[subsets, chips, times]` values.

    For a metric of several numbers, a `Metrics`, they are the values' last axis.

    Arguments and errors are those of `hwtrain.evaluate.population`. In addition,
    `subsets` maps the model's plan to subsets of arrays from the chip: by path, true
    for the chip's array and false for the nominal one; `None` for all of them. All
    subsets need the same paths, because they share one program. `caller` is the name of
    the public function, for messages.
    """
    seeds = _seeds(chips, caller)
    key = _checked_key(key)
    params_of_chips: list[Any] = []
    exported = variables.plan if isinstance(variables, HardwareCheckpoint) else None
    if isinstance(variables, HardwareCheckpoint):
        if are_measured(variables, seeds, times_s):
            params_of_chips = [variables.chip(seed) for seed in seeds]
        variables = variables.variables
    if variables is None and not isinstance(analog, nnx.Module):
        raise ValueError(
            f"a Linen model holds no variables of its own, and {caller} got "
            "variables=None; pass those of model.init(...), or a loaded checkpoint"
        )
    kwargs = dict(call_kwargs or {})
    require_one_call(forward, kwargs, caller)
    batches = _checked_batches(batches, caller)
    first = next(batches, None)
    if first is None:
        raise ValueError(f"{caller} got no batches; expected tuples of arrays")
    example = first[:1]
    if forward is not None:
        example, kwargs = first_call(forward, first[0])
    plan = plan_of(analog, variables, *example, **kwargs)
    if exported is not None:
        check_hardware(exported, plan, "pass checkpoint.variables")
    if isinstance(analog, nnx.Module):
        # Leaves of a chip beside its weights may be plain arrays, set by `nnx.update`.
        check_nominal(plan, nnx.to_pure_dict(nnx.state(analog)), caller)
    if variables is not None:
        check_nominal(plan, variables.get("params", variables), caller)
    _, tree = as_function(analog, "chip", variables)
    paths.require_finite(tree["params"])
    if plan != plan.effective:
        tree, plan = materialize(analog, tree, *example, **kwargs), plan.effective
    times = _times(times_s, plan)
    chosen = subsets(plan)
    if chunk is None:
        chunk = _chunk(tree["params"], plan, len(seeds))
    elif _whole(chunk, "chunk") < 1:
        raise ValueError(f"chunk must be at least 1 chip; got {chunk}")
    nominal, groups = tree["params"], [(tree, jnp.asarray(seeds, jnp.uint32))]
    if params_of_chips:
        groups = [
            ({**tree, "params": params}, jnp.asarray([seed], jnp.uint32))
            for seed, params in zip(seeds, params_of_chips)
        ]
    arrays, static = divided(kwargs if forward is None else {})
    measured = bool(params_of_chips)
    totals = _compiled_totals(
        analog, plan, metric, forward, static, int(chunk), measured
    )
    several = (len(metric.functions),) if isinstance(metric, Metrics) else ()
    total, count = np.zeros((len(chosen), len(seeds), len(times), *several)), 0
    device_times = jnp.asarray(times, jnp.float32)
    for number, batch in enumerate(itertools.chain([first], batches)):
        step_key = jax.random.fold_in(key, number)
        for subset, its in zip(chosen, total):
            found = [
                totals(
                    *(group, nominal, some, device_times, step_key, subset, arrays),
                    *batch,
                )
                for group, some in groups
            ]
            its += np.concatenate([np.asarray(part, np.float64) for part in found])
        count += _examples(batch[0])
    return seeds, times, total / count


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Several metrics as one: they share the model's outputs.

    Attributes:
      functions: the metrics, by name.
    """

    functions: tuple[tuple[str, Callable[..., jax.Array]], ...]

    def __call__(self, outputs: Any, *targets: Any) -> dict[str, jax.Array]:
        """Returns the metrics of each example, by name."""
        return {name: function(outputs, *targets) for name, function in self.functions}


Totals = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class _NnxStructure:
    """An NNX model without its arrays: hashable, and keeps nothing large alive."""

    graphdef: nnx.GraphDef[Any]
    treedef: Any
    shapes: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, model: nnx.Module) -> Self:
        graphdef, state = nnx.split(model)
        shapes, treedef = jax.tree.flatten(jax.eval_shape(lambda: state))
        return cls(graphdef, treedef, tuple(shapes))

    def model(self) -> Any:
        """Returns the model, with zeros for its numbers and shapes for its keys."""
        leaves = [
            shape
            if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key)
            else jnp.zeros(shape.shape, shape.dtype)
            for shape in self.shapes
        ]
        return nnx.merge(self.graphdef, self.treedef.unflatten(leaves))


def _compiled_totals(
    analog: Any,
    plan: Plan,
    metric: Callable[..., Any],
    forward: Forward | None,
    kwargs: dict[str, Any],
    chunk: int,
    measured: bool,
) -> Totals:
    """Returns the jitted function of all chips, reusing that of an earlier equal call.

    Studies call `population` again and again with other variables of one model, and
    compiling takes longer than evaluating.
    """
    model = _NnxStructure.of(analog) if isinstance(analog, nnx.Module) else analog
    # The type is included, because True and 1 are equal.
    arguments = tuple((name, type(value), value) for name, value in kwargs.items())
    try:
        hash((model, plan, metric, forward, arguments))
    except TypeError:
        return _build_totals(model, plan, metric, forward, arguments, chunk, measured)
    return _cached_totals(model, plan, metric, forward, arguments, chunk, measured)


def _build_totals(
    model: Any,
    plan: Plan,
    metric: Callable[..., Any],
    forward: Forward | None,
    arguments: tuple[tuple[str, type, Any], ...],
    chunk: int,
    measured: bool,
) -> Totals:
    kwargs = {name: value for name, _, value in arguments}

    @jax.jit
    def totals(tree, nominal, seeds, times, key, deviating, arrays, inputs, *targets):
        # Built while tracing, so that the model's zeros do not stay alive as arrays.
        if isinstance(model, _NnxStructure):
            call, _ = as_function(model.model(), "chip")
        else:
            call, _ = as_function(model, "chip", {"params": {}})
        if forward is not None:
            call = through(call, forward)

        def on_chip(seed):
            if measured:  # measured weights already contain all frozen effects
                chip = ProgrammedChip(params=tree["params"], weights={}, plan=plan)
            else:
                chip = program_chip(tree["params"], plan, chip_key(seed))

            def at_time(number_and_time):
                number, t_s = number_and_time
                read = draw_key(jax.random.fold_in(key, seed), "", "read")
                read = jax.random.fold_in(read, number)
                params = chip.at(t_s, read)
                if deviating is not None:
                    written = with_written(nominal, plan)
                    quiet = _uncompensated(chip, written, params)
                    params = _where(_by_leaf(deviating, plan), params, quiet)
                given = {**kwargs, **arrays}
                outputs = call({**tree, "params": params}, read, inputs, **given)
                return _sums(metric(outputs, *targets), _examples(inputs))

            # Sequential, so that only the weights of one time are in memory.
            return jax.lax.map(at_time, (jnp.arange(times.size), times))

        return jax.lax.map(on_chip, seeds, batch_size=chunk)

    return totals


def _by_leaf(deviating: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Returns for weights and their scales whether they are the chip's."""
    scales = {plan[path].leaf(MAPPING_SCALE): on for path, on in deviating.items()}
    return {**deviating, **scales}


def _uncompensated(chip: ProgrammedChip, nominal: Any, params: Any) -> dict[str, Any]:
    """Returns nominal weights by path, with scales before drift compensation.

    Args:
      chip: the chip that the scales belong to.
      nominal: nominal parameters.
      params: the chip's parameters at a time. Where compensation has a factor for each
        column, scales are broadcast to columns.
    """
    found, scales = {**paths.leaves(chip.params), **paths.leaves(nominal)}, {}
    now = paths.leaves(params)
    for weight in chip.plan.weights:
        path = weight.leaf(MAPPING_SCALE)
        if path in found and found[path].shape != now[path].shape:
            columns = weight.of_columns(found[path])
            scales[path] = jnp.broadcast_to(columns, now[path].shape)
    return {**found, **scales}


def _where(
    deviating: Mapping[str, Any], chip: Any, quiet: Mapping[str, jax.Array]
) -> Any:
    """Returns the chip's arrays where selected, and the nominal ones elsewhere."""
    return paths.map_leaves(
        lambda path, leaf: (
            jnp.where(deviating[path], leaf, quiet[path]) if path in deviating else leaf
        ),
        chip,
    )


_cached_totals = functools.lru_cache(maxsize=8)(_build_totals)


def _times(times_s: Sequence[float] | None, plan: Plan) -> tuple[float, ...]:
    if times_s is None:
        return (0.0,)
    times = tuple(float(t_s) for t_s in times_s) if np.ndim(times_s) == 1 else ()
    if not times or not all(0 <= t_s <= MOST for t_s in times):
        raise ValueError(
            "times_s must be seconds since programming, at least one, none negative "
            f"or beyond {MOST:g}; got {times_s!r}. Zero is just after programming"
        )
    if all(weight.hardware.noise_model is None for weight in plan.weights):
        raise ValueError(
            f"times_s={times_s!r} would change nothing: no weight of the plan has a "
            "noise model. Give its Hardware a converter and a noise_model, as "
            "presets.pcm() has, or leave times_s out"
        )
    return times


def _seeds(chips: int | Sequence[int], caller: str) -> tuple[int, ...]:
    if isinstance(chips, Iterable):
        seeds = tuple(_whole(seed, "a chip's seed") for seed in chips)
    else:
        count = _whole(chips, "chips, unless it lists seeds,")
        if count > MOST_CHIPS:
            raise ValueError(f"{caller} takes at most {MOST_CHIPS} chips; got {count}")
        seeds = tuple(range(count))
    if not seeds:
        raise ValueError(f"{caller} needs at least one chip; got chips={chips!r}")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"a chip's seed must be in [0, 2^32); got {seed}")
    return seeds


def _whole(number: Any, name: str) -> int:
    try:
        return operator.index(number)
    except TypeError:
        raise ValueError(f"{name} must be a whole number; got {number!r}") from None


def _checked_key(key: Any) -> jax.Array:
    dtype, ndim = getattr(key, "dtype", None), getattr(key, "ndim", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == jnp.uint32
    if not (typed and ndim == 0 or raw and ndim == 1):
        raise ValueError(
            f"key must be one JAX key, such as jax.random.key(0); got {key!r}"
        )
    return as_key(key)


def _checked_batches(batches: Iterable[Any], caller: str) -> Iterator[tuple[Any, ...]]:
    """Yields the batches; raises for a batch that cannot be evaluated."""
    expected = (
        f"{caller} takes tuples of arrays, such as [(inputs, labels)]: inputs, and "
        "what the metric compares the outputs with"
    )
    if not isinstance(batches, Iterable):
        raise ValueError(f"{expected}; got {type(batches).__name__}")
    for number, batch in enumerate(batches):
        if not isinstance(batch, (tuple, list)) or not len(batch):
            raise ValueError(
                f"{expected}; batch {number} is {_kind(batch)}. Put it into a list"
            )
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch[0])]
        if len({shape[:1] for shape in shapes}) != 1 or not shapes[0]:
            raise ValueError(
                f"{expected}; all inputs share their first axis, the examples, but "
                f"those of batch {number} have the shapes {shapes}"
            )
        if not shapes[0][0]:
            raise ValueError(f"batch {number} is empty; leave it out")
        others = [jnp.shape(leaf) for leaf in jax.tree.leaves(tuple(batch[1:]))]
        if any(shape[:1] != shapes[0][:1] for shape in others):
            raise ValueError(
                f"{expected}; all arrays of a batch are as long as its inputs, "
                f"{shapes[0][0]} examples, but what the metric gets in batch {number} "
                f"has the shapes {others}"
            )
        yield tuple(batch)


def _kind(batch: Any) -> str:
    """Returns a description of a batch that is not a tuple of arrays, for an error."""
    shape = getattr(batch, "shape", None)
    text = type(batch).__name__ if shape is None else f"an array of shape {shape}"
    return text


def _examples(inputs: Any) -> int:
    return jnp.shape(jax.tree.leaves(inputs)[0])[0]


def _chunk(params: Any, plan: Plan, chips: int) -> int:
    if jax.default_backend() == "cpu":
        return 1
    chip = jax.eval_shape(lambda p: program_chip(p, plan, chip_key(0)), params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(chip))
    return max(1, min(chips, CHUNK_BYTES // max(size, 1)))


def _sums(values: Any, examples: int) -> jax.Array:
    """Returns the sum over examples, `[]` or `[metrics]`."""
    if isinstance(values, dict):
        return jnp.stack(
            [_sum(each, examples, f"metric {name!r}") for name, each in values.items()]
        )
    return _sum(values, examples, "metric")


def _sum(values: Any, examples: int, name: str) -> jax.Array:
    return jnp.sum(_checked_values(values, examples, name), dtype=jnp.float32)


def _checked_values(values: Any, examples: int, name: str) -> jax.Array:
    if jnp.shape(values) != (examples,):
        raise ValueError(
            f"the {name} must return one number for each example, shape "
            f"{(examples,)}; got {jnp.shape(values)}"
        )
    if jnp.iscomplexobj(values):
        raise ValueError(
            f"the {name} must return real numbers; got {values.dtype}, of which one "
            "part would be lost. Take jnp.abs, or one part of it"
        )
    return values
