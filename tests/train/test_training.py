"""One training: the best state, an early end, and how it goes on after a stop."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from hwtrain.train import EarlyStoppingParameter, TrainingParameter
from hwtrain.train import _checkpoints as checkpoints
from hwtrain.train._batches import of_iterators
from hwtrain.train._entries import EntryError
from hwtrain.train._functional import Functional
from hwtrain.train._loop import init_state, make_step
from hwtrain.train._task import Metric
from hwtrain.train._training import Measuring, Training, best_of, train_seed

RATE = 0.5


def forever(seed, start_step):
    while True:
        yield np.full((1, 1), float(start_step))
        start_step += 1


def unsteady(seed):
    return iter([np.zeros((1, 1))] * 40)


def apply(params, state, batch, key):
    """The gradient of the loss is the batch: a weight is a sum of step numbers."""
    return params["w"] * batch[:, 0], {"calls": state["calls"] + 1}


MODEL = Functional(
    init=lambda seed: ({"w": jnp.zeros(())}, {"calls": jnp.zeros((), jnp.int32)}),
    apply=apply,
    evaluate=None,
)


class Scores:
    """Measures states by a list, and remembers which steps it was asked for."""

    def __init__(self, values, better="higher"):
        self.values, self.asked = values, []
        self.metric = Metric("score", lambda outputs, batch: outputs, better)

    def __call__(self, state):
        self.asked.append(int(state.step))
        return self.values[int(state.step) // 2 - 1]


def train(folder, scores, *, patience=None, stop_at=None, data=forever, steps=12):
    found = of_iterators("d", data, lambda: [np.zeros((1, 1))])
    stopping = EarlyStoppingParameter(every=2, patience=patience)
    optimizer = optax.sgd(RATE)
    training = Training(
        title="plain, seed 0",
        parameter=TrainingParameter(
            steps=steps, checkpoint_every=3, early_stopping=scores and stopping
        ),
        step=make_step(MODEL, optimizer, lambda outputs, batch: outputs),
        data=found,
        measuring=scores and Measuring(metric=scores.metric, measure=scores),
    )
    console, seen = Console(file=io.StringIO(), width=200), iter(range(1000))
    state = train_seed(
        training,
        init_state(MODEL.init(0), optimizer),
        0,
        folder / "run" / "seed_0",
        console,
        lambda: stop_at is not None and next(seen) == stop_at,
    )
    return state, console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def weight_after(steps):
    return -RATE * sum(range(steps))


def test_without_a_choice_the_last_state_counts(tmp_path):
    state, said = train(tmp_path, None)
    assert int(state.step) == int(state.model_state["calls"]) == 12
    assert float(state.params["w"]) == weight_after(12)
    assert "ends after" not in said


@pytest.mark.parametrize(
    ("better", "values"),
    [("higher", [1, 3, 5, 2, 4, 4]), ("lower", [9, 7, 5, 8, 6, 5])],
)
def test_the_best_state_counts(tmp_path, better, values):
    scores = Scores(values, better)
    state, _ = train(tmp_path, scores)
    assert scores.asked == [2, 4, 6, 8, 10, 12]
    assert int(state.step) == int(state.model_state["calls"]) == 6
    assert float(state.params["w"]) == weight_after(6)
    again, said = train(tmp_path, scores)
    assert "all 12 steps are done" in said and len(scores.asked) == 6
    assert float(again.params["w"]) == weight_after(6)


def test_the_end_is_measured_too(tmp_path):
    scores = Scores([1, 2, 3, 4, 5, 6, 7])
    state, _ = train(tmp_path, scores, steps=5)
    assert scores.asked == [2, 4, 5] and int(state.step) == 4


def test_nothing_better_for_too_long_ends_it(tmp_path):
    scores = Scores([1, 5, 4, 5, 9, 9])
    state, said = train(tmp_path, scores, patience=2)
    assert scores.asked == [2, 4, 6, 8] and int(state.step) == 4
    assert "ends after 8 of 12 steps, because 2 measurements in a row were" in said
    assert "not better than score 5 of step 4" in said
    again, said = train(tmp_path, scores, patience=2)
    assert int(again.step) == 4 and len(scores.asked) == 4


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 8, 11])
def test_a_stopped_training_ends_with_the_same_bits(tmp_path, stop_at):
    values = [1, 3, 5, 2, 4, 4]
    whole, _ = train(tmp_path / "whole", Scores(values))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Scores(values), stop_at=stop_at)
    state, said = train(tmp_path, Scores(values))
    assert f"continuing from step {stop_at}" in said
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(whole)):
        np.testing.assert_array_equal(ours, theirs)


def test_a_best_state_that_was_saved_last_is_replaced(tmp_path):
    """As after a kill between the best state's checkpoint and the newest one's."""
    where = tmp_path / "run" / "seed_0"
    with checkpoints.open_checkpoints(best_of(where), keep=1) as manager:
        checkpoints.save(manager, init_state(MODEL.init(0), optax.sgd(RATE)))
        spoilt = init_state(({"w": jnp.float32(7)}, MODEL.init(0)[1]), optax.sgd(RATE))
        checkpoints.save(manager, spoilt._replace(step=jnp.int32(6)))
    state, _ = train(tmp_path, Scores([1, 3, 5, 2, 4, 4]))
    assert float(state.params["w"]) == weight_after(6)


def test_data_that_begin_anew_are_not_continued(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, None, stop_at=5, data=unsteady)
    with pytest.raises(EntryError, match="can go on at step 5.*begins anew") as error:
        train(tmp_path, None, data=unsteady)
    assert error.value.key == "data"


def test_a_measurement_that_is_no_number_is_named(tmp_path):
    scores = Scores([1, np.nan])
    with pytest.raises(EntryError, match=r"metrics.score: .*got nan after 4 updates"):
        train(tmp_path, scores)
    with checkpoints.open_checkpoints(tmp_path / "run" / "seed_0") as manager:
        assert manager.latest_step() == 3
