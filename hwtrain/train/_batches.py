"""Batches of training and evaluation: from arrays in memory, or from iterators."""

import dataclasses
import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain.train._entries import EntryError, named
from hwtrain.train._task import Batch

CALIBRATED_ON = 20
"""Batches of an iterator that input ranges are calibrated on."""


class Split(NamedTuple):
    """One part of a data set, or a batch of it.

    Attributes:
      inputs: `[examples, ...]`.
      labels: `[examples, ...]`.
    """

    inputs: Any
    labels: Any


class Source(Protocol):
    """What the steps of one training take, one after the other."""

    def __next__(self) -> Any:
        """Returns what the next step takes."""

    def state(self) -> Any:
        """Returns where it is, as JSON holds it; `None` if the step tells."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The batches of a task.

    Attributes:
      name: the function that gave them, for messages.
      example: a batch, for its shapes.
      taken: what a source returns, or its shapes.
      targets: arrays of all targets that are known, as far as batches are pairs.
      training: `(seed, step, state) -> Source`, from a number of updates on; `state`
        is that of a saved source, or `None`.
      take: `(taken, step) -> batch`, part of the compiled step, for what a source
        returned and the number of updates done.
      evaluation: returns the batches of the evaluation.
      calibration: returns the batches that input ranges are calibrated on.
      continues: whether a training goes on with the batches that it would have had.
    """

    name: str
    example: Batch
    taken: Any
    targets: tuple[Any, ...]
    training: Callable[[int, int, Any], Source]
    take: Callable[[Any, jax.Array], Batch]
    evaluation: Callable[[], Iterable[Batch]]
    calibration: Callable[[], Iterable[Batch]]
    continues: bool = True


def of_arrays(
    name: str, train: Split, test: Split, *, batch_size: int, evaluated: int
) -> Data:
    """Returns the batches of arrays in memory.

    Args:
      name: the function that gave them.
      train: the training set.
      test: the test set.
      batch_size: examples in each update.
      evaluated: examples evaluated at once.
    """

    def take(taken: tuple[Split, jax.Array], step: jax.Array) -> Split:
        # Arguments of the program: XLA folds constants at compile time, in seconds.
        data, order = taken
        rows = order[step % order.shape[0]]
        return Split(*(array[rows] for array in data))

    shape = (len(train.inputs) // batch_size, batch_size)
    order = jax.ShapeDtypeStruct(shape, np.int32)
    return Data(
        name=name,
        targets=(train.labels, test.labels),
        taken=(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, train)), order),
        example=_on_device(Split(*(array[:1] for array in train))),
        training=lambda seed, step, state: _Shuffled(train, batch_size, seed, step),
        take=take,
        evaluation=lambda: in_order(test, evaluated),
        calibration=lambda: in_order(train, evaluated),
    )


def in_order(data: Split, size: int) -> Iterator[Split]:
    """Yields the examples in order, `size` at a time; the last batch may be smaller."""
    for start in range(0, len(data.inputs), size):
        yield Split(*(array[start : start + size] for array in data))


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


class _Shuffled:
    """Arrays on the device, and the order of an epoch, for each update."""

    def __init__(self, data: Split, batch_size: int, seed: int, step: int):
        self._data, self._size = jax.device_put(data), batch_size
        self._seed, self._step = seed, step
        self._epoch, self._order = -1, jnp.zeros((0, 0), jnp.int32)

    def __next__(self) -> tuple[Split, jax.Array]:
        examples = len(self._data.inputs)
        epoch = self._step // (examples // self._size)
        if epoch != self._epoch:
            order = epoch_order(self._seed, epoch, examples, self._size)
            self._epoch, self._order = epoch, jnp.asarray(order)
        self._step += 1
        return self._data, self._order

    def state(self) -> None:
        return None


def of_iterators(name: str, train: Any, evaluation: Any) -> Data:
    """Returns the batches of iterators.

    A training goes on exactly if `train` takes the number of updates done, or if its
    iterator has `get_state` and `set_state`, as those of grain do.

    Args:
      name: the function that gave them.
      train: `(seed, start_step)`, `(seed)` or `()`; returns an iterator of batches.
      evaluation: `()`; returns an iterable of batches.

    Raises:
      EntryError: (a `ValueError`) if they are no such functions, or give no batch.
    """
    for part, function in (("training", train), ("evaluation", evaluation)):
        if not callable(function):
            raise EntryError(
                "data",
                f"{name}: expected arrays ((inputs, labels), (inputs, labels)), or "
                f"functions (train, evaluation), got for {part} "
                f"{type(function).__name__}",
            )
    counted = _positional(train)

    def started(seed: int, step: int) -> Iterator[Any]:
        with named("data", name):
            found = iter(train(*(seed, step)[:counted]))
        return found

    def training(seed: int, step: int, state: Any) -> _Iterator:
        iterator = started(seed, step)
        if state is not None:
            with named("data", name):
                iterator.set_state(state)  # type: ignore[attr-defined]
        return _Iterator(name, iterator, shapes, step, keeps=keeps)

    def evaluated() -> Iterator[Batch]:
        with named("data", name):
            batches = iter(evaluation())
        number = -1
        for number in itertools.count():
            with named("data", name, given=f"evaluation batch {number}"):
                batch = next(batches, _END)
            if batch is _END:
                break
            yield batch
        if not number:
            raise EntryError("data", f"{name}: the evaluation has no batches")

    def calibration() -> Iterator[Batch]:
        return itertools.islice(started(0, 0), CALIBRATED_ON)

    first = started(0, 0)
    keeps = counted < 2 and hasattr(first, "get_state") and hasattr(first, "set_state")
    with named("data", name):
        example = next(first, _END)
    if example is _END:
        raise EntryError("data", f"{name}: the training has no batches")
    shapes, example = shapes_of(example), _on_device(example)
    return Data(
        name=name,
        example=example,
        taken=example,
        targets=example[1:2] if isinstance(example, tuple) else (),
        training=training,
        take=lambda taken, step: taken,
        evaluation=evaluated,
        calibration=calibration,
        continues=counted >= 2 or keeps,
    )


_END = object()


def _positional(function: Callable[..., Any]) -> int:
    """Returns how many of (seed, start_step) a function takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return 2
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return min(2, sum(each.kind in kinds for each in parameters))


class _Iterator:
    """Batches of an iterator, with the shapes of the first one."""

    def __init__(
        self, name: str, iterator: Any, shapes: Any, step: int, *, keeps: bool
    ):
        self._name, self._iterator, self._keeps = name, iterator, keeps
        self._shapes, self._step = shapes, step

    def __next__(self) -> Batch:
        with named("data", self._name, given=f"update {self._step + 1}"):
            batch = next(self._iterator, _END)
        if batch is _END:
            raise EntryError(
                "data",
                f"{self._name}: the training ended after {self._step} updates; let its "
                "iterator begin anew at its end, or set training.steps to "
                f"{self._step}",
            )
        found = shapes_of(batch)
        if found != self._shapes:
            raise EntryError(
                "data",
                f"{self._name}: the batch of update {self._step + 1} differs from the "
                f"first one: expected {_shown(self._shapes)}, got {_shown(found)}. "
                "Leave an incomplete batch out",
            )
        self._step += 1
        return batch

    def state(self) -> Any:
        return self._iterator.get_state() if self._keeps else None


def digest_of(data: Data) -> str:
    """Returns the SHA-256 of all arrays of the evaluation.

    Args:
      data: the batches.
    """
    found = hashlib.sha256()
    for batch in data.evaluation():
        for leaf in map(np.asarray, jax.tree.leaves(batch)):
            found.update(f"{leaf.dtype}{leaf.shape}".encode())
            found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def _on_device(batch: Batch) -> Batch:
    """Returns a batch of JAX's arrays: a model may use what only they have."""
    return jax.tree.map(jnp.asarray, batch)


def shapes_of(batch: Batch) -> Any:
    """Returns the structure, the shapes and the dtypes of a batch, to compare."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(np.shape(leaf), np.result_type(leaf)) for leaf in leaves]


def _shown(shapes: Any) -> str:
    _, leaves = shapes
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in leaves) or "no arrays"
