"""Adversarial perturbation of all parameters within a relative distance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hwtrain._arrays import paths
from hwtrain._arrays.random import draw_key, normal, step_key
from hwtrain._plan.plan import Plan
from hwtrain.objectives._perturbations import Loss, own
from hwtrain.weights.noises import mult_normal

Distance = Callable[[jax.Array, jax.Array], jax.Array]


def mean_square(clean: jax.Array, attacked: jax.Array) -> jax.Array:
    """Returns the mean squared difference of two outputs."""
    return jnp.mean(jnp.square(clean - attacked))


def adversarial(
    loss: Loss,
    plan: Plan,
    outputs: Callable[..., jax.Array],
    *,
    mismatch_level: float = 0.025,
    attack_steps: int = 10,
    initial_std: float = 1e-3,
    beta_robustness: float = 0.25,
    noisy_forward_std: float = 0.0,
    distance: Distance = mean_square,
    has_aux: bool = False,
) -> Loss:
    r"""Returns the loss plus how far an attack on the parameters moves the outputs.

    .. math::
        L'(\theta) = L(\theta (1 + \sigma\, \xi)) + \beta\,
        D\big(f(\theta), f(\theta^*)\big), \qquad
        \theta^* = \theta + |\theta|\, d, \quad |d| \le \zeta

    with d from `attack`, started at normal noise of `initial_std`. The gradient treats
    d as a constant, but the attacked parameters move with theta. All parameters of the
    user's model are attacked, including biases; a parameter at zero has no relative
    distance and does not move. The cost is `attack_steps` + 3 forward passes.

    Args:
      loss: `loss(params, key, *batch)`.
      plan: the plan of the model. Input ranges, probes and mapping scales do not move.
      outputs: `outputs(params, key, *batch)`, f: the outputs that an attack should not
        move. All calls get the same key, so that only the attack changes them.
      mismatch_level: zeta, the largest relative deviation of a parameter.
      attack_steps: number of gradient steps of the attack.
      initial_std: relative standard deviation of the attack's starting point.
      beta_robustness: beta. Zero turns the attack off.
      noisy_forward_std: sigma, relative noise on the parameters in the first term,
        straight-through. Zero turns it off.
      distance: D, of the outputs before and after the attack.
      has_aux: whether the loss also returns auxiliary data; that of the first term is
        returned.

    References:
      Büchel et al., Network insensitivity to parameter noise via adversarial
      regularization, ICLR 2022.
    """

    def robust(params: Any, key: jax.Array, *batch: Any) -> Any:
        noisy = params
        if noisy_forward_std > 0:
            noisy = _multiplied(params, plan, key, noisy_forward_std)
        result = loss(noisy, key, *batch)
        clean = outputs(params, key, *batch)
        fixed = jax.lax.stop_gradient(clean)

        def moved(params: Any) -> jax.Array:
            return distance(fixed, outputs(params, key, *batch))

        start = own(_normals(params, key, initial_std), plan)
        deviation = attack(
            moved, params, start, level=mismatch_level, steps=attack_steps
        )
        attacked = outputs(deviated(params, deviation), key, *batch)
        penalty = beta_robustness * distance(clean, attacked)
        if has_aux:
            return result[0] + penalty, result[1]
        return result + penalty

    return robust


def attack(
    objective: Callable[[Any], jax.Array],
    params: Any,
    start: Any,
    *,
    level: float,
    steps: int,
) -> Any:
    r"""Returns relative deviations of parameters that increase an objective.

    .. math:: d \leftarrow \mathrm{clip}\Big(d + \frac{\zeta}{n}\,
        \mathrm{sign}\, \nabla_d\, J(\theta + |\theta|\, d),\ -\zeta,\ \zeta\Big)

    n times: projected gradient ascent in the maximum norm. An entry of d that starts at
    zero stays zero if its parameter is zero or has no gradient.

    >>> slope = lambda params: 3 * params["w"] - params["b"]
    >>> params = {"w": jnp.float32(2.0), "b": jnp.float32(-1.0)}
    >>> start = jax.tree.map(jnp.zeros_like, params)
    >>> d = attack(slope, params, start, level=0.1, steps=5)
    >>> print(f"{d['w']:.2f} {d['b']:.2f}")
    0.10 -0.10

    Args:
      objective: J, a scalar of a tree like `params`.
      params: theta, the parameters.
      start: the first d, a tree like `params`.
      level: zeta, the largest absolute deviation, relative to each parameter.
      steps: n.

    Returns:
      d, a tree like `params`, constant to the gradient.
    """
    params = jax.lax.stop_gradient(params)

    def step(_: Any, deviation: Any) -> Any:
        gradient = jax.grad(lambda d: objective(deviated(params, d)))(deviation)
        return jax.tree.map(
            lambda d, g: jnp.clip(d + level / steps * jnp.sign(g), -level, level),
            deviation,
            gradient,
        )

    return jax.lax.stop_gradient(jax.lax.fori_loop(0, steps, step, start))


def deviated(params: Any, deviation: Any) -> Any:
    """Returns the parameters plus their absolute value times the deviation."""
    return jax.tree.map(lambda p, d: p + jnp.abs(p) * d, params, deviation)


def _normals(params: Any, key: jax.Array, std: float) -> Any:
    def drawn(path: str, leaf: jax.Array) -> jax.Array:
        return std * normal(
            draw_key(step_key(key), path, "attack"), leaf.shape, leaf.dtype
        )

    return paths.map_leaves(drawn, params)


def _multiplied(params: Any, plan: Plan, key: jax.Array, std: float) -> Any:
    mask = own(jax.tree.map(jnp.ones_like, params), plan)

    def noisy(path: str, leaf: jax.Array) -> jax.Array:
        return mult_normal(
            draw_key(step_key(key), path, "objective"), leaf, std_dev=std
        )

    return jax.tree.map(
        lambda keep, nominal, noisy: jnp.where(keep > 0, noisy, nominal),
        mask,
        params,
        paths.map_leaves(noisy, params),
    )
