"""Evaluates a metric on chips: the common program of all studies of populations."""

import contextlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hwtrain._arrays import paths
from hwtrain._arrays.random import as_key
from hwtrain._errors import InputError
from hwtrain._flax.calls import Forward, divided, first_call, require_one_call
from hwtrain._flax.functional import as_function
from hwtrain._flax.materializing import materialize
from hwtrain._flax.modes import plan as plan_of
from hwtrain._parts.fields import MOST, MOST_CHIPS
from hwtrain._plan.constants import read_by, with_values
from hwtrain._plan.nominal import check_nominal
from hwtrain._plan.plan import Plan
from hwtrain._plan.traceable import IN_A_CALL, OF_A_CHIP, part_of
from hwtrain.checkpoint import HardwareCheckpoint
from hwtrain.checkpoint._same_hardware import check_hardware
from hwtrain.chips import chip_key, program_chip
from hwtrain.evaluate._chip_program import (
    Metrics,
    Sides,
    compiled_totals,
    examples_in,
)
from hwtrain.evaluate._read_back import are_measured

CHUNK_BYTES = 256 * 2**20
"""Bound in bytes on the parameters and conductances of chips evaluated together."""

_ROUND = 16
"""Fewest chips between two looks at whether there are enough."""

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
    constants: Mapping[str, Sequence[float]] | None = None,
    enough: Callable[[np.ndarray], Any] | None = None,
    subsets: Callable[[Plan], Sequence[Subset]] = lambda plan: [None],
    caller: str,
) -> tuple[tuple[int, ...], tuple[float, ...], np.ndarray]:
    """Returns the chips' seeds, the times, and their values.

    The values are `[subsets, chips, settings, times]`, the settings those of the
    constants; for a metric of several numbers, a `Metrics`, they are a further axis.

    Arguments and errors are those of `hwtrain.evaluate.population`. In addition,
    `enough` says for the values of the first chips whether to leave out the others;
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
        raise InputError(
            f"a Linen model holds no variables of its own, and {caller} got "
            "variables=None; pass those of model.init(...), or a loaded checkpoint"
        )
    kwargs = dict(call_kwargs or {})
    require_one_call(forward, kwargs, caller)
    batches = _checked_batches(batches, caller)
    first = next(batches, None)
    if first is None:
        raise InputError(f"{caller} got no batches; expected tuples of arrays")
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
    chosen, settings = subsets(plan), _settings(constants)
    sides = _sides(constants or {}, plan, measured=bool(params_of_chips))
    if chunk is None:
        chunk = _chunk(tree["params"], plan, len(seeds))
    elif _whole(chunk, "chunk") < 1:
        raise InputError(f"chunk must be at least 1 chip; got {chunk}")
    arrays, static = divided(kwargs if forward is None else {})
    measured = bool(params_of_chips)
    totals = compiled_totals(
        analog, plan, metric, forward, static, int(chunk), measured, sides
    )
    several = (len(metric.functions),) if isinstance(metric, Metrics) else ()
    nominal, device_times = tree["params"], jnp.asarray(times, float)

    def values_of(chips: slice, batches: Iterable[tuple[Any, ...]]) -> np.ndarray:
        """Returns the values of some chips."""
        some = seeds[chips]
        groups = [(tree, _of_settings(some, settings))]
        if measured:
            groups = [
                ({**tree, "params": params}, _of_settings((seed,), settings))
                for seed, params in zip(some, params_of_chips[chips])
            ]
        count, pairs = 0, settings.number * len(some)
        total = np.zeros((len(chosen), pairs, len(times), *several))
        for number, batch in enumerate(batches):
            step_key = jax.random.fold_in(key, number)
            for subset, its in zip(chosen, total):
                found = [
                    totals(
                        *(group, nominal, pairs, device_times, step_key, subset),
                        *(arrays, *batch),
                    )
                    for group, pairs in groups
                ]
                its += np.concatenate([np.asarray(part, np.float64) for part in found])
            count += examples_in(batch[0])
        shape = (len(chosen), len(some), settings.number, len(times), *several)
        return (total / count).reshape(shape)

    every = itertools.chain([first], batches)
    if enough is None:
        return seeds, times, values_of(slice(None), every)
    kept, size = list(every), max(_ROUND, chunk)
    values = np.zeros((len(chosen), 0, settings.number, len(times), *several))
    for start in range(0, len(seeds), size):
        found = values_of(slice(start, start + size), kept)
        values = np.concatenate([values, found], axis=1)
        if enough(values):
            break
    return seeds[: values.shape[1]], times, values


class _Settings(NamedTuple):
    """Values of constants by key, `[settings]` each."""

    values: dict[str, np.ndarray]
    number: int = 1


def _settings(constants: Mapping[str, Sequence[float]] | None) -> _Settings:
    if constants is None:
        return _Settings({})
    given = {key: np.asarray(values, np.float64) for key, values in constants.items()}
    sizes = {values.shape[:1] for values in given.values()}
    if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
        raise InputError(
            "constants takes a list of values for each key, all of one length, at "
            f"least one; got the shapes {[x.shape for x in given.values()]}"
        )
    return _Settings(given, *sizes.pop())


def _of_settings(seeds: Sequence[int], settings: _Settings) -> Any:
    """Returns the seeds of chips and their constants, each chip with every setting."""
    chips = np.repeat(np.asarray(seeds, np.uint32), settings.number)
    values = {
        key: jnp.asarray(np.concatenate([x] * len(seeds)), jnp.float32)
        for key, x in settings.values.items()
    }
    return jnp.asarray(chips), values


def can_be_constants(plan: Plan, constants: Mapping[str, Sequence[Any]]) -> bool:
    """Returns whether `population` takes these constants, for all layers they concern.

    Args:
      plan: the plan of the model.
      constants: values by key.
    """
    values = [value for its in constants.values() for value in its]
    if not all(type(value) in (int, float) for value in values):
        return False
    try:
        _sides(constants, plan, measured=False)
    except ValueError:
        return False
    return not any(_left_out(plan, key) for key in constants)


def _left_out(plan: Plan, key: str) -> bool:
    """Whether hardware has a number that is off there, and so cannot be traced."""
    parts = (IN_A_CALL, OF_A_CHIP)
    reached = {weight.path for part in parts for weight in read_by(plan, key, part)}
    for weight in plan.weights:
        with contextlib.suppress(LookupError):
            part, _ = part_of(weight.hardware, key)
            if part is not None and weight.path not in reached:
                return True
    return False


def _sides(
    constants: Mapping[str, Sequence[float]], plan: Plan, *, measured: bool
) -> Sides:
    """Returns who reads which constants, and checks every value.

    Raises:
      ValueError: for a key or a value that does not fit, or one without an effect.
    """
    sides: dict[str, list[str]] = {"of_calls": [], "of_chips": []}
    for key, values in constants.items():
        called = read_by(plan, key, IN_A_CALL)
        quiet = key.rpartition(":")[2].startswith("modifier.")
        quiet &= not any(weight.hardware.modifies("chip") for weight in called)
        programmed = read_by(plan, key, OF_A_CHIP)
        why = ""
        if not called and not programmed:
            with_values(plan, {key: values[0]}, IN_A_CALL + OF_A_CHIP)  # raises
        elif (quiet or not called) and not programmed:
            why = "this modifier acts in training only, without enable_during_test"
        elif (quiet or not called) and measured:
            why = "these chips are evaluated as measured"
        if why:
            raise InputError(f"constants: {key!r} would change nothing, because {why}")
        called, programmed = called and not quiet, programmed and not measured
        sides["of_calls"] += [key] if called else []
        sides["of_chips"] += [key] if programmed else []
    readers = {"of_calls": IN_A_CALL, "of_chips": OF_A_CHIP}
    for name, parts in readers.items():
        for number in range(len(next(iter(constants.values()), ()))):
            given = {key: constants[key][number] for key in sides[name]}
            with_values(plan, given, parts)  # raises for values that do not fit
    return Sides(**{name: tuple(keys) for name, keys in sides.items()})


def _times(times_s: Sequence[float] | None, plan: Plan) -> tuple[float, ...]:
    if times_s is None:
        return (0.0,)
    times = tuple(float(t_s) for t_s in times_s) if np.ndim(times_s) == 1 else ()
    if not times or not all(0 <= t_s <= MOST for t_s in times):
        raise InputError(
            "times_s must be seconds since programming, at least one, none negative "
            f"or beyond {MOST:g}; got {times_s!r}. Zero is just after programming"
        )
    if all(weight.hardware.noise_model is None for weight in plan.weights):
        raise InputError(
            f"times_s={times_s!r} would change nothing: no weight of the plan has a "
            "noise model. Give its Hardware a converter and a noise_model, as "
            "presets.pcm() has, or leave times_s out"
        )
    precision = jnp.result_type(float)
    rounded = {t_s: float(np.asarray(t_s, precision)) for t_s in times}
    for first, second in itertools.pairwise(sorted(rounded)):
        if rounded[first] == rounded[second]:
            raise InputError(
                f"times_s has {first!r} and {second!r}, which are the same number in "
                f"{precision}, so that both would be one read. Take times that are "
                f"{np.spacing(np.asarray(second, precision)):g} s apart, or call "
                'jax.config.update("jax_enable_x64", True) first'
            )
    return times


def _seeds(chips: int | Sequence[int], caller: str) -> tuple[int, ...]:
    if isinstance(chips, Iterable):
        seeds = tuple(_whole(seed, "a chip's seed") for seed in chips)
    else:
        count = _whole(chips, "chips, unless it lists seeds,")
        if count > MOST_CHIPS:
            raise InputError(f"{caller} takes at most {MOST_CHIPS} chips; got {count}")
        seeds = tuple(range(count))
    if not seeds:
        raise InputError(f"{caller} needs at least one chip; got chips={chips!r}")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise InputError(f"a chip's seed must be in [0, 2^32); got {seed}")
    return seeds


def _whole(number: Any, name: str) -> int:
    try:
        return operator.index(number)
    except TypeError:
        raise InputError(f"{name} must be a whole number; got {number!r}") from None


def _checked_key(key: Any) -> jax.Array:
    dtype, ndim = getattr(key, "dtype", None), getattr(key, "ndim", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == jnp.uint32
    if not (typed and ndim == 0 or raw and ndim == 1):
        raise InputError(
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
        raise InputError(f"{expected}; got {type(batches).__name__}")
    for number, batch in enumerate(batches):
        if not isinstance(batch, (tuple, list)) or not len(batch):
            raise InputError(
                f"{expected}; batch {number} is {_kind(batch)}. Put it into a list"
            )
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch[0])]
        if len({shape[:1] for shape in shapes}) != 1 or not shapes[0]:
            raise InputError(
                f"{expected}; all inputs share their first axis, the examples, but "
                f"those of batch {number} have the shapes {shapes}"
            )
        if not shapes[0][0]:
            raise InputError(f"batch {number} is empty; leave it out")
        others = [jnp.shape(leaf) for leaf in jax.tree.leaves(tuple(batch[1:]))]
        if any(shape[:1] != shapes[0][:1] for shape in others):
            raise InputError(
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


def _chunk(params: Any, plan: Plan, chips: int) -> int:
    if jax.default_backend() == "cpu":
        return 1
    chip = jax.eval_shape(lambda p: program_chip(p, plan, chip_key(0)), params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(chip))
    return max(1, min(chips, CHUNK_BYTES // max(size, 1)))
