"""Batches of arrays and of iterators: continued exactly, or refused by name."""

import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain.train._batches import Split, of_arrays, of_iterators
from hwtrain.train._entries import EntryError

ARRAYS = Split(np.arange(23.0), np.arange(23))


def counting(seed, start_step):
    while True:
        yield {"x": np.full((2, 3), 100 * seed + start_step)}
        start_step += 1


def evaluation():
    yield {"x": np.zeros((2, 3))}
    yield {"x": np.zeros((1, 3))}


class Stateful:
    """An iterator as those of grain."""

    def __init__(self):
        self.number = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.number += 1
        return np.full((2,), self.number)

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


def test_arrays_begin_anywhere_with_the_same_batches():
    data = of_arrays("d", ARRAYS, ARRAYS, batch_size=5, evaluated=10)
    whole = data.training(3, 0, None)
    batches = [data.take(next(whole), jnp.int32(n)) for n in range(12)]
    for start in (1, 4, 7):
        rest = data.training(3, start, None)
        for number in range(start, 12):
            found = data.take(next(rest), jnp.int32(number))
            np.testing.assert_array_equal(found.labels, batches[number].labels)
            np.testing.assert_array_equal(found.inputs, batches[number].inputs)
    epochs = [np.concatenate([b.labels for b in batches[n : n + 4]]) for n in (0, 4)]
    assert all(len(set(epoch.tolist())) == 20 for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()
    assert [len(batch.labels) for batch in data.evaluation()] == [10, 10, 3]


def test_a_function_of_the_step_begins_there():
    data = of_iterators("d", counting, evaluation)
    assert data.continues
    source = data.training(2, 7, None)
    assert [int(next(source)["x"][0, 0]) for _ in range(3)] == [207, 208, 209]
    assert source.state() is None
    assert len(list(data.evaluation())) == len(list(data.evaluation())) == 2


def test_an_iterator_with_a_state_goes_on_from_it():
    data = of_iterators("d", lambda seed: Stateful(), evaluation)
    assert data.continues
    source = data.training(0, 0, None)
    for _ in range(3):
        next(source)
    again = data.training(0, 3, source.state())
    assert source.state() == {"number": 3}
    assert int(next(again)[0]) == int(next(source)[0]) == 4


@pytest.mark.parametrize(
    "train", [lambda seed: iter([np.zeros(2)] * 9), lambda: iter([np.zeros(2)] * 9)]
)
def test_another_iterator_cannot_go_on(train):
    data = of_iterators("d", train, evaluation)
    assert not data.continues
    assert next(data.training(0, 0, None)).shape == (2,)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([np.zeros(2)] * 2, "d: the training ended after 2 updates"),
        (
            [np.zeros(2), np.zeros(3)],
            r"update 2 differs.*float64\[2\], got float64\[3\]",
        ),
        ([np.zeros(2), (np.zeros(2),)], "update 2 differs"),
        ([np.zeros(2), np.zeros(2, int)], r"float64\[2\], got int64\[2\]"),
        ([], "the training has no batches"),
    ],
)
def test_an_iterator_that_goes_wrong_is_named(batches, message):
    with pytest.raises(EntryError, match=message) as error:
        data = of_iterators("d", lambda seed: iter(batches), evaluation)
        source = data.training(0, 0, None)
        for _ in range(3):
            next(source)
    assert error.value.key == "data" and "\n" not in str(error.value)


def test_an_iterator_that_raises_is_named_with_the_update():
    def broken(seed, start_step):
        yield np.zeros(2)
        raise OSError("no disk")

    source = of_iterators("d", broken, evaluation).training(0, 0, None)
    next(source)
    with pytest.raises(EntryError, match="data: d raised OSError: no disk.*update 2"):
        next(source)


def test_functions_that_are_none_are_refused():
    with pytest.raises(EntryError, match="expected arrays.*for evaluation list"):
        of_iterators("d", counting, [])
    data = of_iterators("d", counting, lambda: [])
    with pytest.raises(EntryError, match="the evaluation has no batches"):
        list(data.evaluation())
