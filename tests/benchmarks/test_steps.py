"""The scripts that time steps, at tiny sizes: they run, and their rows are complete."""

import math

import numpy as np
import pytest

ROUNDS = 2
GPU = ["layers", "tiles", "convolutions", "transformer", "recurrence", "population"]
PEERS = {
    "mlp": {"width": 8, "depth": 2, "batch": 4},
    "cnn": {"channels": 2, "hidden": 4, "pixels": 8, "batch": 4},
    "transformer": {"width": 8, "heads": 2, "tokens": 4, "batch": 2},
}


def assert_measured(rows):
    assert rows[0]["ratio"] == 1
    for entry in rows:
        low, high = entry["quartiles_ms"]
        assert entry["ratio"] == pytest.approx(entry["ms"] / rows[0]["ms"])
        assert 0 < entry["fastest_ms"] <= low <= entry["ms"] <= high
    names = [entry["case"] for entry in rows]
    assert len({*names}) == len(names) > 1


@pytest.mark.parametrize("name", GPU)
@pytest.mark.sampled(2)
def test_gpu_section(script, name):
    gpu = script("gpu")
    assert [*gpu.SECTIONS] == GPU
    tables = gpu.SECTIONS[name](gpu.SMALL, ROUNDS)
    assert tables
    for rows in tables.values():
        assert_measured(rows)


def test_steps_of_a_model(script):
    speed, models = script("speed"), script("models")
    cases = {name: speed.CASES[name] for name in ("plain", "all, tiles of 512, fast")}
    x, sgd = speed.inputs(2, 4), speed.optax.sgd(1e-4)
    rows = speed.steps(models.Squares(4, 1), x, cases, ROUNDS, sgd)
    assert_measured(rows)
    assert rows[0]["memory"] == 1 < rows[1]["memory"]


@pytest.mark.nightly
def test_steps_of_digits(script):
    assert_measured(script("digits_step").measure(blocks=ROUNDS, steps=2))


def test_first_step(script):
    compilation = script("compilation")
    for hardware in compilation.HARDWARE.values():
        found = compilation.measured(compilation.nn.Dense(2), hardware, (1, 2))
        assert [*found] == ["trace", "lower", "compile", "lines"]
        assert min(found.values()) > 0


def test_roofline(script):
    width, batch = 16, 12
    roofline = script("roofline")
    steps, rates = roofline.table(width, batch, ROUNDS).values()
    for entry in steps:
        parts = ("products", "draws", "weights", "activations")
        least = sum(entry[f"{part}, ms"] for part in parts)
        assert entry["least, ms"] == pytest.approx(least)
        assert entry["measured, ms"] / entry["measured / least"] == pytest.approx(least)
    assert steps[0]["draws, ms"] == 0 and steps[1]["draws, ms"] > 0
    assert all(math.isfinite(entry["per second"]) for entry in rates)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.sampled(1)
def test_steps_beside_peers(script, name):
    peers, interleaved = script("peers"), script("interleaved").interleaved
    assert [*peers.SIZES] == [*PEERS]
    assert {*peers.HEADINGS} == {*PEERS, "chips"}
    size = PEERS[name]
    only = ["flax, plain", "hwtrain, all effects, tiles of 512"]
    runs = peers.flax_steps(name, size, peers.batch(name, size), only)
    timings = interleaved(runs, ROUNDS, rest=1e-3)
    assert [*timings] == only
    assert all(timing.median > 0 for timing in timings.values())


def test_chips_beside_peers(script):
    peers, interleaved = script("peers"), script("interleaved").interleaved
    size = PEERS["cnn"] | {"chips": 2}
    runs = peers.flax_evaluations(size, peers.batch("cnn", size))
    each, once = list(runs.values())[1:]
    np.testing.assert_array_equal(np.concatenate(each()), once())
    rows = peers.with_ratios(interleaved(runs, ROUNDS), len(runs))
    assert [entry["ratio"] for entry in rows][0] == 1 and len(rows) == 3


def test_passes_without_gradient(script):
    speed, models = script("speed"), script("models")
    hardware = models.chip(4, **speed.READ)
    model, x = (
        speed.hwtrain.analogize(models.Squares(8, 1), hardware),
        speed.inputs(2, 8),
    )
    quiet, noisy = (run() for run in speed.passes(model, x).values())
    assert quiet.shape == noisy.shape and (quiet != noisy).any()


@pytest.mark.nightly
def test_a_step_in_a_process_of_its_own(script):
    process = script("peers").Alone("flax", "mlp", PEERS["mlp"])
    process.step()
    process.step()
    process.close()
    assert process.process.returncode == 0
