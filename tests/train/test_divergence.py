"""Training that diverges stops, is not saved, and gives no result."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from hwtrain.train import TrainingParameter
from hwtrain.train import _checkpoints as checkpoints
from hwtrain.train import _training as training_of_a_model
from hwtrain.train._batches import Split, of_arrays
from hwtrain.train._divergence import DivergedError, first_bad
from hwtrain.train._functional import Functional
from hwtrain.train._loop import TrainState, init_state, make_step
from hwtrain.train._training import Training, train_seed

EXAMPLES = Split(np.ones((8, 1), np.float32), np.ones(8, np.int32))
DATA = of_arrays("data", EXAMPLES, EXAMPLES, batch_size=1, evaluated=8)


def squared(outputs, batch):
    del batch
    return jnp.mean(outputs**2, axis=-1)


def growing(params, state, batch, key):
    """A parabola: with a rate above 1, a weight w becomes w (1 - 2 rate)."""
    del key
    return batch.inputs * params["w"], state


def poisoned(params, state, batch, key):
    """A loss that is finite where a parameter that it needs not is not."""
    outputs, state = growing(params, state, batch, key)
    return outputs + 0 * jnp.clip(params["other"], -1, 1), state


def train(tmp_path, apply, params, optimizer, **options):
    model = Functional(init=lambda seed: (params, {}), apply=apply, evaluate=None)
    step = make_step(model, optimizer, squared, take=DATA.take)
    start = init_state((jax.tree.map(jnp.asarray, params), {}), optimizer)
    training = Training(
        title="plain, seed 3",
        parameter=TrainingParameter(batch_size=1, learning_rate=10.0, **options),
        step=step,
        data=DATA,
    )
    console = Console(file=io.StringIO())
    return train_seed(training, start, 3, tmp_path / "s", console)


def overflow(rate, dtype=np.float32):
    """The first update after which the parabola's loss or weight is not finite."""
    w = dtype(1)
    for update in range(1, 100):
        with np.errstate(over="ignore", invalid="ignore"):
            loss, w = w * w, dtype(w - dtype(rate) * 2 * w)
        if not (np.isfinite(loss) and np.isfinite(w)):
            return update
    raise AssertionError


def test_a_loss_that_overflows_names_model_seed_and_update(tmp_path):
    expected = overflow(10.0)  # w = (-19)^n, and its square passes 3.4e38
    assert expected == 17
    with pytest.raises(DivergedError) as error:
        train(
            tmp_path,
            growing,
            {"w": np.float32(1)},
            optax.sgd(10.0),
            steps=60,
            checkpoint_every=5,
        )
    text = str(error.value)
    assert text.startswith("plain, seed 3: ") and "\n" not in text
    assert f"from update {expected} on" in text
    assert "its checkpoint of step 15 is kept" in text
    assert "training.learning_rate=10" in text
    with checkpoints.open_checkpoints(tmp_path / "s") as manager:
        assert manager.latest_step() == 15
        zeros = init_state(({"w": jnp.float32(0)}, {}), optax.sgd(1.0))
        kept, _ = checkpoints.restore_latest(manager, zeros)
    np.testing.assert_allclose(kept.params["w"], (-19.0) ** 15, rtol=1e-5)


def test_a_parameter_alone_is_found_before_it_is_saved(tmp_path):
    def spoil(updates, state, params=None):
        updates = {"w": updates["w"], "other": jnp.where(state == 6, jnp.inf, 0.0)}
        return updates, state + 1

    spoiling = optax.GradientTransformation(lambda params: jnp.int32(0), spoil)
    params = {"w": np.float32(0), "other": np.float32(1)}
    with pytest.raises(DivergedError, match="from update 7 on.*no checkpoint"):
        train(tmp_path, poisoned, params, spoiling, steps=20, checkpoint_every=10)
    assert not [path for path in (tmp_path / "s").iterdir() if path.name.isdigit()]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_the_first_bad_update_is_kept(bad, dtype):
    none, nine = jnp.zeros((), jnp.int32), jnp.int32(9)
    good = {"w": jnp.ones(3, dtype), "count": jnp.arange(3)}
    spoilt = {**good, "w": good["w"].at[1].set(bad)}
    assert int(first_bad(none, nine, good)) == 0
    assert int(first_bad(none, nine, spoilt)) == 9
    assert int(first_bad(jnp.int32(4), nine, spoilt)) == 4
    assert int(first_bad(jnp.int32(4), nine, good)) == 4


def test_a_step_waits_for_the_device_only_to_show_and_to_save(tmp_path, monkeypatch):
    """The flag is read at each checkpoint, and not at the updates between."""
    read = []
    usual = training_of_a_model._require_no_bad
    monkeypatch.setattr(
        training_of_a_model,
        "_require_no_bad",
        lambda state, *rest: read.append(int(state.step)) or usual(state, *rest),
    )
    params = {"w": np.float32(1)}
    train(tmp_path, growing, params, optax.sgd(0.1), steps=20, checkpoint_every=8)
    assert read == [8, 16, 20]


def test_a_saved_state_that_is_not_finite_is_refused(tmp_path):
    def state(w):
        return TrainState(jnp.int32(7), {"w": jnp.float32(w)}, {}, ())

    with checkpoints.open_checkpoints(tmp_path) as manager:
        checkpoints.save(manager, state(np.nan))
    with checkpoints.open_checkpoints(tmp_path) as manager:
        with pytest.raises(checkpoints.DamagedCheckpointError) as error:
            checkpoints.restore_latest(manager, state(0.0))
    assert f"{tmp_path / '7'}: w: 1 of 1 weights are NaN" in str(error.value)
    assert "delete this folder to continue anew" in str(error.value)
