"""Makes any Optax optimiser train an analog model."""

import reprlib
from collections.abc import Container
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._plan.plan import Plan, added
from hwtrain._plan.stale_leaves import check_fit
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._clip_bounds import learning
from hwtrain.optim._base_rates import init_measured, injected, measure
from hwtrain.optim._clip import keep_weights_clipped
from hwtrain.optim._clip_bound import clip_bound_learning
from hwtrain.optim._drift import draws, drift_weights, drifting
from hwtrain.optim._frozen import untouched, without_masked
from hwtrain.optim._input_range import input_range_learning
from hwtrain.optim._leaves import check, ranged, require, trained_by
from hwtrain.optim._own_parameters import check_own_parameters
from hwtrain.optim._remap import remap_weights


class HardwareAwareState(NamedTuple):
    """State of `hardware_aware`.

    Attributes:
      base: state of the base optimiser, over the user's own parameters.
      unit: state of the base optimiser over the arrays that its learning rate is
        measured on; `None` if the rate is not measured.
      input_range: state of `input_range_learning`, an `InputRangeLearningState`.
      drift: state of `drift_weights`, a `DriftWeightsState`; `None` if nothing drifts.
      clip_bound: state of `clip_bound_learning`, a `ClipBoundLearningState`; `None` if
        no bound is learned.
    """

    base: Any
    unit: Any
    input_range: Any
    drift: Any = None
    clip_bound: Any = None


def hardware_aware(
    base: optax.GradientTransformation,
    plan: Plan,
    *,
    input_range_learning_rate: optax.ScalarOrSchedule | None = None,
    input_range_optimizer: optax.GradientTransformation | None = None,
    clip_bound_optimizer: optax.GradientTransformation | None = None,
    drift_key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes an optimiser train an analog model.

    The base optimiser sees only the user's own parameters, as if the model were plain:
    its state has the plain model's structure, and neither weight decay nor clipping by
    the global norm touches input ranges, clip bounds or probes. `input_range_learning`
    learns the ranges and `clip_bound_learning` the clip bounds; then
    `keep_weights_clipped` keeps the weights in range, `drift_weights` lets them drift,
    and `remap_weights` rescales their crossbars.

    A weight that is never updated stays as it is, with its range and scale, even beyond
    its clip. Such a weight belongs to a rule with `frozen=True`, is hidden by an outer
    mask, or has an update that the base's program makes zero for all gradients, as
    `optax.set_to_zero` does in an `optax.partition`. Values do not count: a learning
    rate or a gradient of zero freezes nothing. If the base keeps parameters to take
    differences from (L-BFGS, SAM, COCOB, Mechanic), only a rule or an outer mask
    freezes. The weights of a chip must not be updated; the chip's leaves beside them
    never are.

    By default, the ranges learn at the base's learning rate, including its schedule.
    `optax.inject_hyperparams` states the rate. Otherwise it is measured: the base also
    runs on a scalar at zero whose gradient is always one. SGD, Adam, AdamW, Lion and
    RMSProp return minus their learning rate (with momentum, the rate that results from
    it). In an `optax.partition` or `optax.masked`, each range learns at the rate of its
    own weight: labels and masks may depend on the names or the ranks of parameters, and
    may be a tree or a function of one. State the rate, as in
    `optax.inject_hyperparams(optax.adagrad)(1e-2)` or by `input_range_learning_rate`,
    for a base that adapts to the gradient's history or size (Adagrad, Adafactor, Muon),
    that clips gradients below 1 and does not rescale them, or that distinguishes
    parameters by size, or by name without a mask. Otherwise the ranges learn at the
    rate that the base gives a constant gradient of one: lr / sqrt(0.1 + n) in step n of
    Adagrad, a thousandth of lr in Adafactor. Passing the rate also saves measuring it.

    >>> import jax
    >>> from flax import linen as nn
    >>> import hwtrain
    >>> x = jnp.ones((1, 3))
    >>> chip = hwtrain.Hardware(input_range=hwtrain.InputRangeParameter())
    >>> analog = hwtrain.analogize(nn.Dense(4), chip)
    >>> params = analog.init(jax.random.key(0), x)["params"]
    >>> plan = hwtrain.plan(analog, params, x)
    >>> tx = hardware_aware(optax.adamw(1e-3), plan)
    >>> state = tx.init(params)

    It draws no noise: in a training step, noise comes from the hardware's modifier and
    `forward`. `presets.pcm()` alone has neither; `hwtrain.inspect` reports that.

    Args:
      base: any Optax optimiser, with its gradient clipping, decay and averaging.
      plan: the plan of the model.
      input_range_learning_rate: learning rate of the ranges, or a schedule.
      input_range_optimizer: scales the ranges' gradient, such as
        `optax.scale_by_adam()`; `None` for SGD.
      clip_bound_optimizer: the same for learned clip bounds, which learn at the ranges'
        learning rate.
      drift_key: a JAX key, needed if a weight's drift draws exponents or noise.

    Returns:
      A gradient transformation. Put `optax.MultiSteps`, `optax.apply_if_finite` and
      `optax.lookahead` around it, and everything else into `base`.

    Raises:
      ValueError: if `base` accumulates or skips steps itself, if it keeps parameters of
        its own beside a clip or a drift (schedule-free optimisers, COCOB, Mechanic,
        MADGRAD), if its learning rate cannot be measured, if the parameters lack a leaf
        of the plan, if a drift draws and there is no key, or if an update would change
        the weights of a chip.
    """
    if isinstance(base, optax.MultiSteps):
        raise _wrong_order("MultiSteps")
    if not (hasattr(base, "init") and hasattr(base, "update")):
        raise InputError(
            "hardware_aware takes an optimiser of Optax, such as optax.adam(1e-3); got "
            f"{reprlib.repr(base)}"
        )
    if not isinstance(plan, Plan):
        raise InputError(
            "hardware_aware takes the plan of a model, hwtrain.plan(analog, variables, "
            f"*example), in NNX hwtrain.plan(analog); got {type(plan).__name__}"
        )
    base = optax.with_extra_args_support(base)
    drift_weights(plan, drift_key)  # raises if the key is missing or unused
    ours = added(plan)
    frozen = [weight for weight in plan.weights if weight.frozen]
    chips = plan.leaves("chip").keys()
    hidden = {*ours, *_held(frozen), *chips}
    cache: dict[Any, frozenset[str]] = {}

    def users(tree: Any) -> Any:
        return paths.drop(tree, lambda path: path.removesuffix("/value") not in hidden)

    def asked(plan: Plan) -> list[str]:
        """Returns the weights whose learning rates are taken from the base."""
        if input_range_learning_rate is not None:
            return []
        learned = [*learning(plan.trained), *ranged(plan)]
        return list(dict.fromkeys(weight.path for weight in learned))

    def drift_of(plan: Plan) -> optax.GradientTransformationExtraArgs:
        drawn = any(draws(weight) for weight in drifting(plan))
        return drift_weights(plan, drift_key if drawn else None)

    def still(
        plan: Plan,
        args: tuple[Any, Any, Any],
        extra_args: Any,
        on_chip: list[AnalogWeight],
    ) -> set[str]:
        """Returns the leaves of the weights that the base never updates."""
        weights = [x for x in plan.trained.weights if _acts(x) or x in on_chip]
        if not weights:
            return set()
        leaves, structure = jax.tree.flatten(args)
        kinds = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        key = structure, kinds, tuple(extra_args)
        if key not in cache:
            cache[key] = untouched(base, *args, extra_args)
        return _held([weight for weight in weights if weight.path in cache[key]])

    def init(params: optax.Params) -> HardwareAwareState:
        seen = without_masked(plan, params)
        check(seen, params)
        check_fit(seen, params)
        base_state = _init(base, users(params), frozen)
        check_own_parameters(seen.trained, base_state)
        _check_order(base_state)
        ranges = input_range_learning(seen, 0.0, input_range_optimizer)
        bounds = clip_bound_learning(seen, 0.0, clip_bound_optimizer)
        unit = None
        if asked(seen) and injected(base_state) is None:
            unit = init_measured(base, base_state, users(params), asked(seen))
        return HardwareAwareState(
            base=base_state,
            unit=unit,
            input_range=ranges.init(params),
            drift=drift_of(seen).init(params) if drifting(seen) else None,
            clip_bound=bounds.init(params) if learning(seen.trained) else None,
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, HardwareAwareState]:
        require(params, "hardware_aware")
        seen = without_masked(plan, params)
        args = users(updates), state.base, users(params)
        on_chip = _on_a_chip(seen.trained, params)
        fixed = still(seen, args, extra_args, on_chip)
        _check_still(on_chip, fixed)
        own, base_state = base.update(*args, **extra_args)
        rate, unit = input_range_learning_rate, state.unit
        if rate is None:
            rate = 0.0
        weights = asked(seen)
        if weights:
            rate = injected(base_state)
            if rate is None:
                rate, unit = measure(
                    base, base_state, unit, users(params), weights, extra_args
                )
        learn = input_range_learning(seen, rate, input_range_optimizer)
        # Ranges and bounds without a gradient, and probes of layers that were not
        # reached, do not change.
        whole = _zeroed(fixed, updates)
        whole, range_state = learn.update(whole, state.input_range, params)
        bound_state = state.clip_bound
        if bound_state is not None:
            bounds = clip_bound_learning(seen, rate, clip_bound_optimizer)
            whole, bound_state = bounds.update(whole, bound_state, params)
        own = paths.leaves(own)
        whole = paths.map_leaves(
            lambda path, leaf: own.get(
                path, leaf if path in ours else jnp.zeros_like(leaf)
            ),
            _without_gradients(plan, whole),
        )
        whole = _kept_positive(seen, whole, params)
        whole, _ = keep_weights_clipped(seen).update(whole, optax.EmptyState(), params)
        drift_state = state.drift
        if drift_state is not None:
            whole, drift_state = drift_of(seen).update(whole, drift_state, params)
        whole, _ = remap_weights(seen).update(whole, optax.EmptyState(), params)
        return _zeroed({*fixed, *_held(frozen)}, whole), HardwareAwareState(
            base_state, unit, range_state, drift_state, bound_state
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _init(base: Any, params: Any, frozen: list[AnalogWeight]) -> Any:
    """Returns the base's state over the parameters that it sees."""
    try:
        return base.init(params)
    # Optax's errors for labels or a mask of another tree name neither.
    except (ValueError, TypeError, KeyError) as error:
        without, also = "", ""
        if frozen:
            without = f", without {frozen[0].path!r} and all else that a rule freezes"
            also = "; a rule with frozen=True needs no label"
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            "the base optimiser does not take the parameters that it sees, which are "
            "the plain model's: those of hwtrain.strip(params, plan), with no probe "
            f"and no input_range{without}. Where it is an optax.partition or an "
            "optax.masked, give it the labels or the mask as a function of the "
            "parameters, such as lambda params: "
            "jax.tree_util.tree_map_with_path(label, params), or as a tree like "
            f"those{also}. It raised {reason}"
        ) from error


def _acts(weight: AnalogWeight) -> bool:
    """Whether an update does more to a weight or its leaves than the base's."""
    chip = weight.hardware
    clips = chip.clip is not None and (chip.clip.active or chip.clip.learned)
    return clips or weight.ranged or chip.remaps or chip.drifts


def _on_a_chip(plan: Plan, params: Any) -> list[AnalogWeight]:
    """Returns the weights whose parameters are a chip's instead of nominal."""
    found = set(plan.leaves_of_chip(params))
    return [
        w for w in plan.weights if not found.isdisjoint(map(w.leaf, w.leaves("chip")))
    ]


def _check_still(on_chip: list[AnalogWeight], fixed: Container[str]) -> None:
    """Raises if an update would change the weights of a chip.

    Raises:
      ValueError: naming the first such weight and the way out.
    """
    for weight in on_chip:
        if weight.path not in fixed:
            raise InputError(
                f"hardware_aware trains nominal weights, but {weight.path} belongs to "
                "a chip, which training does not change. Pass the nominal ones "
                "(checkpoint.variables); to tune what stays digital on this chip, "
                f"write Rule({weight.layer_path!r}, hardware, frozen=True) for it in "
                "hwtrain.analogize"
            )


def _held(weights: list[AnalogWeight]) -> set[str]:
    """Returns the paths of weights, and of all leaves beside them."""
    beside = {weight.leaf(leaf) for weight in weights for leaf in weight.leaves()}
    return {weight.path for weight in weights} | beside


def _zeroed(held: Container[str], updates: optax.Updates) -> optax.Updates:
    return paths.map_leaves(
        lambda path, leaf: jnp.zeros_like(leaf) if path in held else leaf, updates
    )


def _check_order(base_state: Any) -> None:
    """Raises if a base, or anything within it, accumulates or skips steps."""
    outer: dict[Any, str] = {
        optax.MultiStepsState: "MultiSteps",
        optax.ApplyIfFiniteState: "apply_if_finite",
    }
    parts = jax.tree.leaves(base_state, is_leaf=lambda part: type(part) in outer)
    for part in parts:
        if type(part) in outer:
            raise _wrong_order(outer[type(part)])


def _wrong_order(name: str) -> ValueError:
    return InputError(
        f"optax.{name} must go around hardware_aware, not into it: the ranges must see "
        "the same steps as the weights. Write "
        f"optax.{name}(hardware_aware(base, plan), ...)"
    )


def _without_gradients(plan: Plan, updates: optax.Updates) -> optax.Updates:
    """Zeroes the updates of leaves without gradient training, such as mapping scales.

    Only remapping changes mapping scales.
    """
    fixed = {**trained_by(plan, "remap"), **trained_by(plan, None)}
    return _zeroed(fixed, updates)


def _kept_positive(plan: Plan, updates: optax.Updates, params: Any) -> optax.Updates:
    """Limits updates of positive leaves that the base trains to halving them."""
    values = paths.leaves(params)
    found = {path for path, x in trained_by(plan, "base").items() if x.positive}

    def kept(path: str, leaf: jax.Array) -> jax.Array:
        return jnp.maximum(leaf, -values[path] / 2) if path in found else leaf

    return paths.map_leaves(kept, updates) if found else updates
