"""The models of `peers.py` in torch, at tiny sizes, where torch is installed."""

import jax
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

SIZES = {
    "mlp": {"width": 8, "depth": 2, "batch": 4},
    "cnn": {"channels": 2, "hidden": 4, "pixels": 8, "batch": 4},
    "transformer": {"width": 8, "heads": 2, "tokens": 4, "batch": 2},
}


@pytest.mark.parametrize("name", SIZES)
def test_models_of_torch_have_as_many_parameters(script, name):
    peers, size = script("peers"), SIZES[name]
    theirs = script("torch_peers").plain_model(name, size)
    ours = peers.module(name, size).init(jax.random.key(0), peers.batch(name, size))
    assert sum(p.numel() for p in theirs.parameters()) == sum(
        leaf.size for leaf in jax.tree.leaves(ours)
    )


@pytest.mark.parametrize("name", SIZES)
def test_chips_of_peers_draw(script, name, monkeypatch):
    peers, torch_peers = script("peers"), script("torch_peers")
    monkeypatch.setattr(torch_peers, "LEARNING_RATE", 0.0)
    size = SIZES[name]
    x = peers.batch(name, size)
    plain = torch_peers.plain_step(name, size, x)
    assert plain() == plain()
    for run in torch_peers.analog_steps(name, size, x).values():
        run()
        assert run() != run()


def test_chips_of_peers_differ(script):
    runs = script("torch_peers").evaluations(
        SIZES["cnn"] | {"chips": 3}, script("peers").batch("cnn", SIZES["cnn"])
    )
    for run in runs.values():
        assert run().shape == (3,)
