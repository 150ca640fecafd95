"""Lets analog weights drift from one training step to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hwtrain._arrays import paths
from hwtrain._arrays.random import draw_key, step_key
from hwtrain._errors import InputError
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._crossbar import on_crossbar
from hwtrain.optim._leaves import require
from hwtrain.weights.training_drift import DriftState


class DriftWeightsState(NamedTuple):
    """State of `drift_weights`.

    Attributes:
      step: number of updates. shape=(), dtype=jnp.int32
      weights: for each drifting weight, in the plan's order, its starting value, its
        start time, exponents and the current time; shaped like the kernel, float32.
    """

    step: jax.Array
    weights: tuple[DriftState, ...]


def drift_weights(
    plan: Plan, key: jax.Array | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Changes updates so that analog weights drift after each update.

    .. math:: u' = \mathrm{drift}(W + u) - W

    over `dt_s` seconds by the hardware's `drift`. If an update changes a weight by more
    than `reset_tol`, its drift starts anew. Place this after `keep_weights_clipped` and
    before `remap_weights`.

    >>> from flax import linen as nn
    >>> import hwtrain
    >>> x = jnp.ones((1, 3))
    >>> chip = hwtrain.Hardware(drift=hwtrain.SimpleDriftParameter(nu=0.1, dt_s=1000.0))
    >>> analog = hwtrain.analogize(nn.Dense(4), chip)
    >>> params = analog.init(jax.random.key(0), x)["params"]
    >>> tx = drift_weights(hwtrain.plan(analog, params, x))
    >>> zeros = jax.tree.map(jnp.zeros_like, params)
    >>> updates, _ = tx.update(zeros, tx.init(params), params)
    >>> drifted = optax.apply_updates(params, updates)
    >>> print(f"{(drifted['kernel'] / params['kernel']).mean():.3f}")
    0.501

    Args:
      plan: the plan of the model; weights without a drift pass unchanged.
      key: a JAX key for drawing exponents and noise.

    Returns:
      A gradient transformation. It needs the parameters in `update`.

    Raises:
      ValueError: if a drift draws and there is no key, or there is a key and no drift
        draws.

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """
    weights = drifting(plan)
    _check_key(weights, key)

    def init(params: optax.Params) -> DriftWeightsState:
        plan.trained.check_weights(params)
        values = paths.leaves(params)
        states = tuple(
            _drift_array(weight).begin(
                jnp.asarray(values[weight.path], jnp.float32),
                _key(key, weight, "drift_exponent"),
            )
            for weight in weights
        )
        return DriftWeightsState(jnp.zeros([], jnp.int32), states)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DriftWeightsState]:
        del extra_args
        require(params, "drift_weights")
        values, steps = paths.leaves(params), paths.leaves(updates)
        now = None if key is None else jax.random.fold_in(key, state.step)
        after, states = {}, []
        for weight, before in zip(weights, state.weights):
            kernel = values[weight.path]
            after[weight.path], drifted = _drifted(
                weight,
                before,
                kernel,
                steps[weight.path],
                weight.stored_scale(values),
                _key(now, weight, "drift"),
            )
            states.append(drifted)
        updates = paths.map_leaves(lambda path, u: after.get(path, u), updates)
        return updates, DriftWeightsState(state.step + 1, tuple(states))

    return optax.GradientTransformationExtraArgs(init, update)


def drifting(plan: Plan) -> list[AnalogWeight]:
    """Returns the weights that drift while they are trained."""
    return [weight for weight in plan.trained.weights if weight.hardware.drifts]


def draws(weight: AnalogWeight) -> bool:
    """Returns whether a weight's drift draws exponents or noise."""
    return _drift_array(weight).draws


def _drift_array(weight: AnalogWeight) -> Any:
    return weight.hardware.drift


def _key(key: jax.Array | None, weight: AnalogWeight, effect: str) -> jax.Array | None:
    return None if key is None else draw_key(step_key(key), weight.path, effect)


def _drifted(
    weight: AnalogWeight,
    state: DriftState,
    kernel: jax.Array,
    update: jax.Array,
    scale: jax.Array | None,
    key: jax.Array | None,
) -> tuple[jax.Array, DriftState]:
    """Returns the update that leaves the kernel drifted, and the new state."""

    def held(update: jax.Array) -> jax.Array:
        # The sum as the parameters will store it, rounded to their dtype.
        held = p + update.astype(jnp.float32)
        return held.astype(kernel.dtype).astype(jnp.float32)

    p = kernel.astype(jnp.float32)
    written = held(update)
    _, s = on_crossbar(weight, written, scale)
    drift = _drift_array(weight)
    drifted, state = drift.step(state, written, drift.dt_s, key, scale=s)
    change = (drifted - p).astype(update.dtype)
    update = jnp.where(drifted == written, update, change)
    return update, state._replace(previous=held(update))


def _check_key(weights: list[AnalogWeight], key: jax.Array | None) -> None:
    drawing = [weight.path for weight in weights if draws(weight)]
    if drawing and key is None:
        raise InputError(
            f"the drift of {drawing} draws exponents or noise and needs a key: write "
            "optim.hardware_aware(base, plan, drift_key=jax.random.key(seed))"
        )
    if key is not None and not drawing:
        raise InputError(
            "a key for the drift of weights was given, but no drift of the plan draws: "
            "leave drift_key out, or write Hardware(drift=DriftParameter(nu_dtod=...))"
        )
