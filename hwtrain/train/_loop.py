"""The training step and the training loop that recipes share."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hwtrain._arrays.random import fold_in
from hwtrain._flax.strength import noise_strength
from hwtrain.train._divergence import first_bad
from hwtrain.train._functional import Functional, Params

Stop = Callable[[], bool]
"""Returns whether the training was asked to stop."""

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def never() -> bool:
    """Never asks the training to stop."""
    return False


class Split(NamedTuple):
    """One part of a data set.

    Attributes:
      inputs: `[examples, ...]`.
      labels: `[examples, ...]`.
    """

    inputs: Any
    labels: Any


class TrainState(NamedTuple):
    """Everything that changes between steps; the rest follows from it and the seed.

    Attributes:
      step: `[]` int32, number of updates done.
      params: parameters.
      opt_state: state of the optimizer.
      first_bad: `[]` int32, the first update whose loss or parameters were NaN or
        infinite; 0 for none.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    first_bad: Any = np.int32(0)


Step = Callable[[TrainState, Split, jax.Array, jax.Array], tuple[TrainState, jax.Array]]


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross entropy of logits.

    >>> print(f"{cross_entropy(jnp.zeros((1, 10)), jnp.array([3])):.3f}")
    2.303

    Args:
      outputs: `[B, classes]` logits.
      labels: `[B]` integers.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return losses.mean()


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first update."""
    opt_state = jax.jit(optimizer.init)(params)
    none = jnp.zeros((), jnp.int32)
    return TrainState(none, params, opt_state, jnp.copy(none))


def make_step(
    model: Functional,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    robust: Callable[..., Callable[..., jax.Array]] | None = None,
    strength: Callable[[jax.Array], Any] | None = None,
) -> Step:
    """Returns the jitted training step: loss, gradient, update.

    `step(state, data, order, key) -> (state, loss)` folds the step's number into `key`
    and donates `state`. The data are arguments, because XLA folds constants in a
    program at compile time, which takes seconds.

    Args:
      model: the model.
      optimizer: an optax transformation; it is given the parameters.
      loss: `(outputs, labels) -> []`, the mean over a batch.
      robust: `(loss, outputs) -> loss`, makes a loss of `(params, key, inputs, labels)`
        robust, such as `hwtrain.objectives.robust`; `None` for the loss itself.
      strength: maps the number of updates done to an argument of
        `hwtrain.noise_strength`; `None` for 1.
    """
    update = optax.with_extra_args_support(optimizer).update

    def outputs(params: Params, key: jax.Array, inputs: Any, labels: Any) -> jax.Array:
        del labels
        return model.apply(params, inputs, key)

    def objective(params: Params, key: jax.Array, inputs: Any, labels: Any) -> Any:
        return loss(outputs(params, key, inputs, labels), labels)

    minimised = objective if robust is None else robust(objective, outputs)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, data: Split, order: jax.Array, key: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        rows = order[state.step % order.shape[0]]
        step_key = fold_in(key, state.step)

        batch = data.inputs[rows], data.labels[rows]
        scaled = contextlib.nullcontext()
        if strength is not None:
            scaled = noise_strength(strength(state.step))
        with scaled:
            value, gradients = jax.value_and_grad(minimised)(
                state.params, step_key, *batch
            )
        updates, opt_state = update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        number = state.step + 1
        bad = first_bad(state.first_bad, number, (value, params))
        return TrainState(number, params, opt_state, bad), value

    return step


def epoch_order(seed: int, epoch: int, examples: int, batch_size: int) -> np.ndarray:
    """Returns the examples of each update of an epoch.

    A pure function of its arguments, so that a resumed run sees the same batches as an
    uninterrupted one. Examples that do not fill a batch are left out of the epoch.

    >>> epoch_order(seed=0, epoch=0, examples=5, batch_size=2).shape
    (2, 2)

    Args:
      seed: the training seed.
      epoch: the epoch's number.
      examples: number of examples, at least `batch_size`.
      batch_size: examples in each update.

    Returns:
      `[updates, batch_size]` indices of examples.
    """
    shuffled = np.random.default_rng((seed, epoch)).permutation(examples)
    updates = examples // batch_size
    return shuffled[: updates * batch_size].reshape(updates, batch_size)


def run_steps(
    step: Step,
    state: TrainState,
    data: Split,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    generator: Any = None,
) -> Iterator[tuple[TrainState, jax.Array]]:
    """Yields the state and the loss after each update up to `steps`.

    It does not wait for the loss; reading the loss does. A yielded state is donated to
    the next update: copy whatever must outlive it.

    Args:
      step: from `make_step`.
      state: the initial state; its `step` is the number of updates done.
      data: the training set.
      steps: total number of updates.
      batch_size: examples in each update.
      seed: the training seed, for the order of the examples and the noise.
      generator: implementation of the keys, such as `hwtrain.threefry_prng`; `None`
        for JAX's default keys, with which a step draws as with `hwtrain.fast_prng`.
    """
    data = jax.device_put(data)
    # Parameters are initialised from the same seed; the noise needs an independent key.
    key = jax.random.fold_in(jax.random.key(seed, impl=generator), 1)
    start, examples = int(state.step), len(data.labels)
    updates = examples // batch_size
    for epoch in range(start // updates, -(-steps // updates)):
        order = jnp.asarray(epoch_order(seed, epoch, examples, batch_size))
        first, end = epoch * updates, (epoch + 1) * updates
        for _ in range(max(start, first), min(steps, end)):
            state, loss = step(state, data, order, key)
            yield state, loss
