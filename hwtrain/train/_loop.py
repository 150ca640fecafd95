"""The training step and the training loop that recipes share."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hwtrain._arrays.random import fold_in
from hwtrain._errors import InputError
from hwtrain._flax.strength import noise_strength
from hwtrain.train._batches import Source
from hwtrain.train._divergence import first_bad
from hwtrain.train._functional import Functional, ModelState, Params
from hwtrain.train._task import Batch, Values

Stop = Callable[[], bool]
"""Returns whether the training was asked to stop."""


def never() -> bool:
    """Never asks the training to stop."""
    return False


class TrainState(NamedTuple):
    """Everything that changes between steps; the rest follows from it and the seed.

    Attributes:
      step: `[]` int32, number of updates done.
      params: parameters.
      model_state: the model's other variables, such as statistics of a BatchNorm.
      opt_state: state of the optimizer.
      average: moving average of the parameters; `None` without one.
      first_bad: `[]` int32, the first update whose loss or parameters were NaN or
        infinite; 0 for none.
    """

    step: jax.Array
    params: Params
    model_state: ModelState
    opt_state: optax.OptState
    average: Params | None = None
    first_bad: Any = np.int32(0)

    @property
    def trained(self) -> Params:
        """The parameters to evaluate: their average, if there is one."""
        return self.params if self.average is None else self.average


Step = Callable[[TrainState, Any, jax.Array], tuple[TrainState, jax.Array]]


def data_mesh(devices: int = 1) -> Mesh:
    """Returns a mesh whose axis `data` shares the examples of a batch.

    Args:
      devices: number of devices.

    Raises:
      ValueError: if there are fewer.
    """
    found = jax.devices()
    if len(found) < devices:
        raise InputError(f"expected {devices} devices, found {len(found)}")
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=found[:devices]
    )


def init_state(
    initial: tuple[Params, ModelState],
    optimizer: optax.GradientTransformation,
    *,
    average: bool = False,
    mesh: Mesh | None = None,
) -> TrainState:
    """Returns the state before the first update, the same on all devices.

    Args:
      initial: the parameters and the model's other variables.
      optimizer: the optimizer.
      average: keep a moving average of the parameters.
      mesh: the devices, from `data_mesh`; `None` for one.
    """
    everywhere = NamedSharding(mesh or data_mesh(), PartitionSpec())
    params, model_state = initial
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=jax.jit(optimizer.init)(params),
        # No buffer twice, since a step donates all of them.
        average=jax.tree.map(jnp.copy, params) if average else None,
        first_bad=jnp.zeros((), jnp.int32),
    )
    return jax.device_put(state, everywhere)


def make_step(
    model: Functional,
    optimizer: optax.GradientTransformation,
    loss: Values,
    *,
    take: Callable[[Any, jax.Array], Batch] = lambda taken, step: taken,
    robust: Callable[..., Callable[..., Any]] | None = None,
    strength: Callable[[jax.Array], Any] | None = None,
    accumulate: int = 1,
    average: float | None = None,
    mesh: Mesh | None = None,
) -> Step:
    """Returns the jitted training step: loss, gradient, update.

    `step(state, taken, key) -> (state, loss)` folds the step's number into `key` and
    donates `state`.

    Args:
      model: the model.
      optimizer: an optax transformation; it is given the parameters.
      loss: `(outputs, batch) -> [B]`; the mean over examples is minimised.
      take: `(taken, step) -> batch`, makes a batch of what a data source returns.
      robust: `(loss, outputs) -> loss`, makes a loss of `(params, key, state, batch)`
        robust, such as `hwtrain.objectives.robust` with `has_aux=True`: it returns the
        model's new state beside the loss. `None` for the loss itself.
      strength: maps the number of updates done to an argument of
        `hwtrain.noise_strength`; `None` for 1.
      accumulate: number of equal parts of a batch that pass through the model one
        after the other; their gradients are averaged. 1 for the whole batch at once.
      average: decay of the moving average of the parameters; `None` for none.
      mesh: the devices, from `data_mesh` or with more axes; those along `data` share
        the examples. `None` for one.
    """
    update = optax.with_extra_args_support(optimizer).update
    shared = NamedSharding(mesh or data_mesh(), PartitionSpec("data"))

    def outputs(params: Params, key: jax.Array, state: ModelState, batch: Batch) -> Any:
        return model.apply(params, state, batch, key)[0]

    def objective(
        params: Params, key: jax.Array, state: ModelState, batch: Batch
    ) -> tuple[jax.Array, ModelState]:
        found, state = model.apply(params, state, batch, key)
        return _mean(loss(found, batch), batch), state

    minimised = objective if robust is None else robust(objective, outputs)
    gradient = jax.value_and_grad(minimised, has_aux=True)

    def of_batch(
        params: Params, key: jax.Array, state: ModelState, batch: Batch
    ) -> Any:
        (value, found), gradients = gradient(params, key, state, batch)
        return value, _of_chips(found, state), gradients

    def of_parts(
        params: Params, key: jax.Array, state: ModelState, batch: Batch
    ) -> Any:
        """Accumulates over equal parts of a batch."""
        parts = jax.tree.map(lambda leaf: _in_parts(leaf, accumulate), batch)
        numbers = jnp.arange(accumulate)

        def add(carry: Any, part: Any) -> tuple[Any, None]:
            sums, state = carry
            number, batch = part
            value, state, gradients = of_batch(
                params, fold_in(key, number), state, batch
            )
            return (jax.tree.map(jnp.add, sums, (value, gradients)), state), None

        shapes = jax.eval_shape(
            of_batch, params, key, state, jax.tree.map(lambda leaf: leaf[0], parts)
        )
        zeros = jax.tree.map(jnp.zeros_like, (shapes[0], shapes[2]))
        (sums, state), _ = jax.lax.scan(add, (zeros, state), (numbers, parts))
        value, gradients = jax.tree.map(lambda leaf: leaf / accumulate, sums)
        return value, state, gradients

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, taken: Any, key: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        batch = jax.lax.with_sharding_constraint(take(taken, state.step), shared)
        step_key = fold_in(key, state.step)
        scaled = contextlib.nullcontext()
        if strength is not None:
            scaled = noise_strength(strength(state.step))
        with scaled:
            value, model_state, gradients = (of_parts if accumulate > 1 else of_batch)(
                state.params, step_key, state.model_state, batch
            )
        updates, opt_state = update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        mean: Any = state.average
        if average is not None:
            mean = optax.incremental_update(params, mean, 1 - average)
        number = state.step + 1
        bad = first_bad(state.first_bad, number, (value, params))
        found = TrainState(number, params, model_state, opt_state, mean, bad)
        return found, value

    return step


def _mean(values: jax.Array, batch: Batch) -> jax.Array:
    """Returns the mean loss of a batch, if there is one for each example."""
    leaves = jax.tree.leaves(batch)
    examples = jnp.shape(leaves[0])[:1]
    if jnp.shape(values) != examples:
        raise InputError(
            "the loss must return one number for each example of a batch, shape "
            f"{examples}; got {jnp.shape(values)}"
        )
    return values.mean()


def _of_chips(found: ModelState, before: ModelState) -> ModelState:
    """Returns the mean over chips of the variables that an objective of chips stacks.

    Counts and other whole numbers are those of the first chip.
    """

    def one(new: jax.Array, old: jax.Array) -> jax.Array:
        if jnp.ndim(new) == jnp.ndim(old):
            return new
        return new.mean(0) if jnp.issubdtype(new.dtype, jnp.inexact) else new[0]

    return jax.tree.map(one, found, before)


def _in_parts(leaf: jax.Array, parts: int) -> jax.Array:
    """Returns `[parts, B / parts, ...]`; each part has examples of all devices."""
    size = leaf.shape[0]
    if size % parts:
        raise InputError(
            f"a batch of {size} examples cannot be divided into {parts} equal parts"
        )
    return jnp.swapaxes(leaf.reshape(size // parts, parts, *leaf.shape[1:]), 0, 1)


def run_steps(
    step: Step,
    state: TrainState,
    source: Source,
    *,
    steps: int,
    seed: int,
    generator: Any = None,
) -> Iterator[tuple[TrainState, jax.Array]]:
    """Yields the state and the loss after each update up to `steps`.

    It does not wait for the loss; reading the loss does. A yielded state is donated to
    the next update: copy whatever must outlive it.

    Args:
      step: from `make_step`.
      state: the initial state; its `step` is the number of updates done.
      source: what the steps take.
      steps: total number of updates.
      seed: the training seed, for the noise.
      generator: implementation of the keys, such as `hwtrain.threefry_prng`; `None`
        for JAX's default keys, with which a step draws as with `hwtrain.fast_prng`.
    """
    # Parameters are initialised from the same seed; the noise needs an independent key.
    key = jax.random.fold_in(jax.random.key(seed, impl=generator), 1)
    for _ in range(int(state.step), steps):
        state, loss = step(state, next(source), key)
        yield state, loss
