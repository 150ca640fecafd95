"""The log of a training: its numbers, how it goes on, and whom it tells."""

import csv
import io
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from rich.console import Console

import hwtrain as hw
from hwtrain.train import LogParameter, TrainingParameter, _linen, _nnx
from hwtrain.train._batches import of_iterators
from hwtrain.train._entries import EntryError
from hwtrain.train._log import logged, open_log, read_log
from hwtrain.train._log_plot import CLIPPED, RANGE, plot_layers, plot_losses
from hwtrain.train._loop import init_state, make_step
from hwtrain.train._task import forward_of
from hwtrain.train._training import Training, train_seed

X = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
CHIP = hw.Hardware(
    input_range=hw.InputRangeParameter(init_value=0.8, init_from_data=0),
    forward=hw.IOParameters(inp_bits=8),
)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(x)


def squared(outputs, batch):
    return ((outputs - batch[1]) ** 2).mean(-1)


def train_batches(seed, start_step):
    while True:
        yield X, Y


DATA = of_iterators("data", train_batches, lambda: [(X, Y)])


def functional(framework):
    forward = forward_of(lambda x: x)
    frontend, factory = {"linen": (_linen, Net), "nnx": (_nnx, NnxNet)}[framework]
    return frontend.hardware_aware(factory, CHIP, forward, DATA.example)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_the_numbers_are_those_of_numpy(framework):
    model, plan = functional(framework)
    optimizer = optax.sgd(0.1)
    state = init_state(model.init(0), optimizer)
    training = TrainingParameter(steps=1, log=LogParameter())
    what = logged(training, model, squared, DATA, Path(), plan=plan)
    found = what.measure(state, jax.random.key(0))
    assert float(found["head/input_range"]) == pytest.approx(0.8)
    share = float(np.mean(np.abs(X) > 0.8))
    assert float(found["head/clipped_share"]) == pytest.approx(share, abs=1e-5)
    params = state.params["head"]
    clipped = np.round(np.clip(X / 0.8, -1, 1) * 127) / 127 * 0.8
    outputs = clipped @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    loss = np.mean((outputs - Y) ** 2)
    assert float(found["loss"]) == pytest.approx(loss, rel=1e-2)
    slope = 2 * (outputs - Y) / outputs.size
    norm = np.sqrt(np.sum((clipped.T @ slope) ** 2) + np.sum(slope.sum(0) ** 2))
    assert float(found["gradient_norm"]) == pytest.approx(norm, rel=1e-2)


def test_the_strength_of_the_noise_is_that_of_the_training():
    chip = hw.Hardware(
        modifier=hw.WeightModifierParameter(type="add_normal", std_dev=1.0)
    )
    model, plan = _linen.hardware_aware(
        Net, chip, forward_of(lambda x: x), DATA.example
    )
    state = init_state(model.init(0), optax.sgd(0.1))
    training = TrainingParameter(steps=1, log=LogParameter())
    losses = {}
    for strength in (0.0, 1.0):
        what = logged(
            *(training, model, squared, DATA, Path()),
            plan=plan,
            strength=lambda step, strength=strength: strength,
        )
        losses[strength] = float(what.measure(state, jax.random.key(0))["loss"])
    plain = _linen.plain(Net, forward_of(lambda x: x), DATA.example)
    outputs = plain.evaluate(state.params, state.model_state, (X, Y))
    assert losses[0.0] == pytest.approx(
        float(squared(outputs, (X, Y)).mean()), rel=1e-5
    )
    assert losses[1.0] > 1.1 * losses[0.0]


def train(folder, *, log, steps=12, stop_at=None, hook=None):
    model, plan = functional("linen")
    optimizer = hw.optim.hardware_aware(optax.sgd(0.05), plan)
    parameter = TrainingParameter(steps=steps, checkpoint_every=5, log=log)
    what = logged(parameter, model, squared, DATA, Path(), plan=plan)
    if what is not None and hook is not None:
        what = what._replace(hook=hook)
    training = Training(
        title="model, seed 3",
        parameter=parameter,
        step=make_step(model, optimizer, squared),
        data=DATA,
        log=what,
    )
    seen = iter(range(1000))
    return train_seed(
        training,
        init_state(model.init(0), optimizer),
        3,
        folder / "run" / "hardware-aware" / "seed_3",
        Console(file=io.StringIO()),
        lambda: stop_at is not None and next(seen) == stop_at,
    )


def test_a_log_changes_no_bit_of_the_training(tmp_path):
    with_log = train(tmp_path / "a", log=LogParameter(every=4))
    without = train(tmp_path / "b", log=None)
    for one, other in zip(
        jax.tree.leaves(with_log.params), jax.tree.leaves(without.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    rows = read_log(tmp_path / "a/run/log/hardware-aware/seed_3.csv")
    assert [row["step"] for row in rows] == [1, 4, 8, 12]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not (tmp_path / "b/run/log").exists()


@pytest.mark.parametrize("stop_at", [2, 7, 11])
def test_a_continued_log_is_the_log_of_one_training(tmp_path, stop_at):
    log, told = LogParameter(every=2), []
    train(tmp_path / "whole", log=log)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "halves", log=log, stop_at=stop_at)
    # Killed after rows that no checkpoint knows of, in the middle of one.
    path = tmp_path / "halves/run/log/hardware-aware/seed_3.csv"
    if path.is_file():
        path.write_text(path.read_text() + "12,1,2,3,4\n12,1")
    train(tmp_path / "halves", log=log, hook=lambda *row: told.append(row))
    ours = (tmp_path / "whole/run/log/hardware-aware/seed_3.csv").read_bytes()
    assert path.read_bytes() == ours
    assert all(step > stop_at for _, _, step, _ in told)


def test_a_hook_is_told_every_row(tmp_path):
    told = []
    train(
        tmp_path,
        log=LogParameter(every=6),
        hook=lambda model, seed, step, values: told.append((model, seed, step, values)),
    )
    assert [row[:3] for row in told] == [
        ("hardware-aware", 3, 1),
        ("hardware-aware", 3, 6),
        ("hardware-aware", 3, 12),
    ]
    rows = read_log(tmp_path / "run/log/hardware-aware/seed_3.csv")
    for (*_, values), row in zip(told, rows, strict=True):
        assert all(type(value) is float for value in values.values())
        assert values["loss"] == pytest.approx(row["loss"], rel=1e-5)


def test_a_hook_that_fails_is_named_and_the_last_checkpoint_is_kept(tmp_path):
    def hook(model, seed, step, values):
        if step == 12:
            raise OSError("no network")

    with pytest.raises(EntryError, match="training.log.hook.*no network"):
        train(tmp_path, log=LogParameter(every=6), hook=hook)
    again = train(tmp_path, log=LogParameter(every=6))
    assert int(again.step) == 12


def records(file):
    """The records of a file of events, without their checksums."""
    data = file.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + size]
        data = data[16 + size :]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    train(tmp_path, log=LogParameter(every=6, tensorboard=True))
    place = tmp_path / "run/log/hardware-aware"
    (file,) = (place / "seed_3").iterdir()
    found = {}
    for record in records(file):
        event = Event.FromString(record)
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    rows = read_log(place / "seed_3.csv")
    for row in rows:
        for name, value in row.items():
            if name != "step":
                assert found[name, row["step"]] == pytest.approx(value, rel=1e-5)
    assert len(found) == len(rows) * (len(rows[0]) - 1)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"hook": "gone.py:tell"}, "training.log.hook.*gone.py"),
        ({"hook": "math:gone"}, "training.log.hook.*gone"),
    ],
)
def test_a_hook_that_there_is_not_is_refused(options, expected):
    model, plan = functional("linen")
    training = TrainingParameter(steps=1, log=LogParameter(**options))
    with pytest.raises(EntryError, match=expected):
        logged(training, model, squared, DATA, Path(), plan=plan)


def test_without_tensorboard_the_way_out_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model, plan = functional("linen")
    training = TrainingParameter(steps=1, log=LogParameter(tensorboard=True))
    with pytest.raises(EntryError, match=r"pip install 'hwtrain\[log\]'"):
        logged(training, model, squared, DATA, Path(), plan=plan)


def test_rows_that_cannot_be_read_are_left_out(tmp_path):
    path = tmp_path / "log.csv"
    assert read_log(path) == []
    path.write_text("step,loss\n1,0.5\n2,x\n3,0.25\n4")
    assert read_log(path) == [{"step": 1, "loss": 0.5}, {"step": 3, "loss": 0.25}]
    assert len(list(csv.DictReader(path.read_text().splitlines()))) == 4


def test_large_numbers_of_updates_are_written_whole(tmp_path):
    model, plan = functional("linen")
    training = TrainingParameter(steps=1, log=LogParameter())
    what = logged(training, model, squared, DATA, Path(), plan=plan)
    with open_log(what, tmp_path, "plain", 0, 0) as write:
        for step in (1_000_006, 1_000_013, 12_345_678):
            write(step, {"loss": 0.5})
    rows = read_log(tmp_path / "log/plain/seed_0.csv")
    assert [row["step"] for row in rows] == [1_000_006, 1_000_013, 12_345_678]


@pytest.mark.parametrize("layers", [1, 3, 40])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_logs_can_be_drawn(tmp_path, layers, suffix):
    rows = [
        {"step": step, "loss": 1 / step}
        | {f"layer_{n}{end}": n / 40 for n in range(layers) for end in (RANGE, CLIPPED)}
        for step in (1, 10, 20)
    ]
    start = b"\x89PNG" if suffix == "png" else b"<?xml"
    for name, draw in {
        "loss": lambda path: plot_losses({"plain": rows, "hardware-aware": rows}, path),
        "range": lambda path: plot_layers(rows, RANGE, path, name="r", title="R"),
        "clipped": lambda path: plot_layers(rows, CLIPPED, path, name="c", title="C"),
    }.items():
        path = tmp_path / f"{name}.{suffix}"
        draw(path)
        first = path.read_bytes()
        assert first.startswith(start)
        draw(path)
        assert path.read_bytes() == first


def test_logs_of_a_model_are_files_of_their_own(tmp_path):
    model, plan = functional("linen")
    training = TrainingParameter(steps=1, log=LogParameter())
    what = logged(training, model, squared, DATA, Path(), plan=plan)
    with open_log(what, tmp_path, "with mismatch", 7, 0) as write:
        write(1, {"loss": jnp.float32(0.5)})
    assert read_log(tmp_path / "log/with-mismatch/seed_7.csv") == [
        {"step": 1, "loss": 0.5}
    ]
