"""Stuck devices in an export: drawn from the chip's seed, stored and applied."""

import dataclasses
import hashlib

import chex
import jax
import numpy as np
import pytest

import hwtrain
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint import export, load, verify
from hwtrain.devices import PCMLikeNoiseModel, StuckParameter

NOISE = {"pcm": PCMLikeNoiseModel(), "ideal": None}


@pytest.fixture(params=NOISE)
def stuck_plan(plan, request):
    weight = plan["hidden/kernel"]
    chip = dataclasses.replace(
        weight.hardware,
        stuck=StuckParameter(at_g_min=0.2, at_g_max=0.1),
        noise_model=NOISE[request.param],
    )
    return Plan((dataclasses.replace(weight, hardware=chip),), plan.digital)


def test_a_loaded_chip_is_the_programmed_one(tmp_path, variables, stuck_plan):
    path = export(tmp_path / "m", variables, stuck_plan, chip_seed=7)
    checkpoint = load(path)

    @jax.jit
    def programmed(params):
        chip = hwtrain.program_chip(params, stuck_plan, hwtrain.chip_key(7))
        return chip.at(0.0)

    expected = programmed(variables["params"])
    chex.assert_trees_all_close(checkpoint.chip(7), expected, rtol=1e-5, atol=1e-6)
    nominal = checkpoint.params["hidden"]["kernel"]
    assert not np.allclose(checkpoint.chip(7)["hidden"]["kernel"], nominal)
    assert verify(path)["weights"]["hidden/kernel"]["chips"] == {"7": 0.0}


def test_states_are_stored_and_follow_from_the_rule(tmp_path, variables, stuck_plan):
    checkpoint = load(export(tmp_path / "m", variables, stuck_plan, chip_seed=7))
    # What the manifest says, by NumPy and jax.random alone.
    for part, device in enumerate(("g_pos", "g_neg")):
        name = f"hidden/kernel#stuck#{part}"
        digest = hashlib.blake2s(name.encode(), digest_size=4).digest()
        seed = int.from_bytes(digest, "little")
        key = jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), seed)
        u = np.asarray(jax.random.uniform(key, (10, 7)))
        expected = np.where(u < 0.2, 1, np.where(u >= np.float32(0.9), 2, 0))
        grid = checkpoint.conductances("hidden/kernel", 7)
        found = np.block([[tile.programmed[device].stuck for tile in r] for r in grid])
        np.testing.assert_array_equal(found, expected)
        g = np.block([[tile.programmed[device].g_prog for tile in r] for r in grid])
        np.testing.assert_array_equal(g[expected == 1], np.float32(0.1))
        np.testing.assert_array_equal(g[expected == 2], 25.0)


def test_export_again_is_equal(tmp_path, variables, stuck_plan):
    first = export(tmp_path / "a", variables, stuck_plan, chip_seed=7)
    read = load(first)
    second = export(tmp_path / "b", read.variables, read.plan, chip_seed=7)
    for path in first.rglob("*.*"):
        assert (second / path.relative_to(first)).read_bytes() == path.read_bytes()
