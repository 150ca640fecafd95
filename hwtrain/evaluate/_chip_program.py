"""The compiled program that evaluates a metric on chips, times and constants."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx

from hwtrain._arrays import paths
from hwtrain._arrays.random import draw_key
from hwtrain._errors import InputError
from hwtrain._flax.calls import Forward, through
from hwtrain._flax.constants import with_constants
from hwtrain._flax.functional import as_function
from hwtrain._plan.constants import with_values
from hwtrain._plan.plan import Plan
from hwtrain._plan.traceable import OF_A_CHIP
from hwtrain.chips import ProgrammedChip, chip_key, program_chip
from hwtrain.chips._crossbar import with_written
from hwtrain.weights.mapping import MAPPING_SCALE


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


class Sides(NamedTuple):
    """Who reads which traced constants of hardware.

    Attributes:
      of_calls: keys of those that a call of the model reads.
      of_chips: keys of those that programming and drift read.
    """

    of_calls: tuple[str, ...] = ()
    of_chips: tuple[str, ...] = ()


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


def compiled_totals(
    analog: Any,
    plan: Plan,
    metric: Callable[..., Any],
    forward: Forward | None,
    kwargs: dict[str, Any],
    chunk: int,
    measured: bool,
    sides: Sides,
) -> Totals:
    """Returns the jitted function of all chips, reusing that of an earlier equal call.

    Studies call `population` again and again with other variables of one model, and
    compiling takes longer than evaluating.

    Args:
      analog: the analog model.
      plan: its plan.
      metric: one number, or a dict of them, for each example.
      forward: how the model is called; `None` for with its inputs.
      kwargs: static keyword arguments of the call.
      chunk: number of chips evaluated together.
      measured: whether the given weights are those of a measured chip.
      sides: the keys of traced constants.

    Returns:
      `totals(tree, nominal, chips, times, key, deviating, arrays, inputs, *targets)`,
      the sums over a batch, `[chips, times]`, or `[chips, times, metrics]`. `chips`
      are their seeds and, by key, the values of their constants.
    """
    model = _NnxStructure.of(analog) if isinstance(analog, nnx.Module) else analog
    # The type is included, because True and 1 are equal.
    arguments = tuple((name, type(value), value) for name, value in kwargs.items())
    try:
        hash((model, plan, metric, forward, arguments))
    except TypeError:
        build = _build_totals
    else:
        build = _cached_totals
    return build(model, plan, metric, forward, arguments, chunk, measured, sides)


def _build_totals(
    model: Any,
    plan: Plan,
    metric: Callable[..., Any],
    forward: Forward | None,
    arguments: tuple[tuple[str, type, Any], ...],
    chunk: int,
    measured: bool,
    sides: Sides,
) -> Totals:
    kwargs = {name: value for name, _, value in arguments}

    @jax.jit
    def totals(tree, nominal, chips, times, key, deviating, arrays, inputs, *targets):
        def function(constants):
            # Built while tracing, so that the model's zeros do not stay as arrays.
            if isinstance(model, _NnxStructure):
                given, variables = model.model(), None
            else:
                given, variables = model, {"params": {}}
            if constants:
                given = with_constants(given, constants)
            call, own = as_function(given, "chip", variables)
            beside = dict(tree)
            if constants and "rest" in own:  # an NNX model holds its constants there
                beside["rest"] = nnx.merge_state(own["rest"], tree["rest"])
            return call if forward is None else through(call, forward), beside

        def on_chip(seed_and_constants):
            seed, constants = seed_and_constants
            call, beside = function({name: constants[name] for name in sides.of_calls})
            traced = {name: constants[name] for name in sides.of_chips}
            own = with_values(plan, traced, OF_A_CHIP) if traced else plan
            if measured:  # measured weights already contain all frozen effects
                chip = ProgrammedChip(params=tree["params"], weights={}, plan=plan)
            else:
                chip = program_chip(tree["params"], own, chip_key(seed))

            def at_time(t_s):
                # A read is known by its time, so that other times change nothing.
                read = draw_key(jax.random.fold_in(key, seed), "", "read")
                read = jax.random.fold_in(read, _word_of(t_s))
                params = chip.at(t_s, read)
                if deviating is not None:
                    written = with_written(nominal, plan)
                    quiet = _uncompensated(chip, written, params)
                    params = _where(_by_leaf(deviating, plan), params, quiet)
                given = {**kwargs, **arrays}
                outputs = call({**beside, "params": params}, read, inputs, **given)
                return _sums(metric(outputs, *targets), examples_in(inputs))

            # Sequential, so that only the weights of one time are in memory.
            return jax.lax.map(at_time, times)

        return jax.lax.map(on_chip, chips, batch_size=chunk)

    return totals


def _word_of(t_s: jax.Array) -> jax.Array:
    """Returns a word that tells times apart, that of float32 where it is exact."""
    short = t_s.astype(jnp.float32)
    rest = (t_s - short).astype(jnp.float32)  # not 0 in float64 only
    word, more = (jax.lax.bitcast_convert_type(x, jnp.uint32) for x in (short, rest))
    return word ^ more * jnp.uint32(0x9E3779B1)


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


def examples_in(inputs: Any) -> int:
    """Returns the number of examples of a batch.

    Args:
      inputs: arrays with the examples first.
    """
    return jnp.shape(jax.tree.leaves(inputs)[0])[0]


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
        raise InputError(
            f"the {name} must return one number for each example, shape "
            f"{(examples,)}; got {jnp.shape(values)}"
        )
    if jnp.iscomplexobj(values):
        raise InputError(
            f"the {name} must return real numbers; got {values.dtype}, of which one "
            "part would be lost. Take jnp.abs, or one part of it"
        )
    return values
