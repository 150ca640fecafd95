"""A trained DynapSim, deployed, read back and simulated."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file

from hwtrain.checkpoint.dynapse import export_dynapse, load_dynapse
from hwtrain.dynapse import DynapSim, Layout, currents
from hwtrain.dynapse.biases import computed_table
from hwtrain.dynapse.connectivity import Limits
from hwtrain.dynapse.deployed import deploy_neurons, deployed_params
from hwtrain.dynapse.layout import quantity_names

LAYOUT, TABLE = Layout(), computed_table()
LIMITS = Limits(neurons_per_core=4)
NEURONS = 6


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        drive = nn.Dense(NEURONS, use_bias=False, name="input")(x)
        return nn.RNN(DynapSim(features=NEURONS, name="neurons"))(drive)


@pytest.fixture(scope="module")
def trained():
    """Returns input spikes, the kernel before the neurons, and their parameters."""
    keys = jax.random.split(jax.random.key(0), 3)
    spikes = jax.random.bernoulli(keys[0], 0.3, (2, 60, 5)).astype(float)
    cell = {f"log_{name}": jnp.zeros(NEURONS) for name in quantity_names()}
    cell["w_rec"] = 1.5 * jax.random.normal(keys[1], (NEURONS, NEURONS))
    # Leak and threshold of the membrane were trained, for all neurons alike.
    cell["log_Itau_mem"] = jnp.full(NEURONS, 0.21)
    cell["log_Ispkthr"] = jnp.full(NEURONS, -0.4)
    return spikes, 10.0 * jax.random.normal(keys[2], (5, NEURONS)), cell


APPLY = jax.jit(Network().apply)


def simulate(spikes, kernel, cell):
    cell = {name: jnp.asarray(value, jnp.float32) for name, value in cell.items()}
    kernel = jnp.asarray(kernel, jnp.float32)
    params = {"input": {"kernel": kernel}, "neurons": cell}
    return np.asarray(APPLY({"params": params}, spikes))


def deployment_of(trained, **options):
    _, kernel, cell = trained
    options = {"layout": LAYOUT, "table": TABLE, "limits": LIMITS, **options}
    return deploy_neurons(cell, kernel, **options)


def test_the_network_that_was_read_back_computes_what_its_codes_say(trained, tmp_path):
    spikes, kernel, cell = trained
    path = export_dynapse(tmp_path / "net", deployment_of(trained))
    read = load_dynapse(path)
    deployed = {**cell, **deployed_params(read, layout=LAYOUT)}
    found = simulate(spikes, read.weights_in.achieved, deployed)

    # The same from the files alone: codes, looked up in the table.
    manifest = json.loads((path / "manifest.json").read_text())
    arrays = load_file(path / "tensors.safetensors")
    codes = [manifest["biases"][str(core)] for core in arrays["cores"]]

    def current(name):
        return np.array([TABLE[c[name]["coarse"], c[name]["fine"]] for c in codes])

    by_hand = dict(cell)
    for name in cell:
        if name.startswith("log_I") and name != "log_Io":
            nominal = getattr(LAYOUT, name.removeprefix("log_"))
            by_hand[name] = np.log(current(name.removeprefix("log_")) / nominal)
    bases = np.stack([current(f"Iw_{bit}") for bit in range(4)], -1)

    def weights(part):
        bits = arrays[f"{part}/mask"][..., None] >> np.arange(4) & 1
        return arrays[f"{part}/sign"] * (bits * bases).sum(-1) / LAYOUT.Iscale

    by_hand["w_rec"] = weights("weights_rec")
    expected = simulate(spikes, weights("weights_in"), by_hand)
    np.testing.assert_array_equal(found, expected)
    assert found.sum() > 50
    # The codes change when neurons spike, and hardly how often.
    nominal = simulate(spikes, kernel, cell)
    assert (found != nominal).any()
    assert found.sum() == pytest.approx(nominal.sum(), rel=0.2)


def test_the_achieved_currents_are_near_the_trained_ones(trained):
    deployment = deployment_of(trained)
    wanted = currents(trained[2], LAYOUT)
    for name, achieved in deployment.currents.items():
        if name in wanted:
            # The lowest codes are 2.75e-13 A apart.
            np.testing.assert_allclose(
                achieved, wanted[name], rtol=0.5 / 32, atol=1.4e-13
            )
    assert deployment.biases[0]["Ispkthr"].wanted == pytest.approx(
        1e-7 * np.exp(-0.4), rel=1e-6
    )


def test_a_chip_deviates_from_what_was_achieved(trained, tmp_path):
    inputs, _, cell = trained
    deviation = 0.2 * jax.random.normal(jax.random.key(4), (2, NEURONS))
    chip = {
        **cell,
        "log_Ispkthr": cell["log_Ispkthr"] + deviation[0],
        "log_C_mem": cell["log_C_mem"] + deviation[1],
    }
    plain = deployment_of(trained)
    deployment = deployment_of(trained, chips={7: chip})
    assert deployment.biases == plain.biases
    read = load_dynapse(export_dynapse(tmp_path / "net", deployment))
    found = deployed_params(read, layout=LAYOUT, chip=7)
    achieved = deployed_params(read, layout=LAYOUT)
    np.testing.assert_allclose(
        found["log_Ispkthr"] - achieved["log_Ispkthr"], deviation[0], atol=1e-5
    )
    np.testing.assert_allclose(found["log_C_mem"], deviation[1], atol=1e-5)
    np.testing.assert_allclose(
        found["log_Itau_mem"], achieved["log_Itau_mem"], atol=1e-5
    )
    spikes = simulate(inputs, read.weights_in.achieved, {**cell, **found})
    nominal = simulate(inputs, read.weights_in.achieved, {**cell, **achieved})
    assert (spikes != nominal).any()
    with pytest.raises(ValueError, match="holds no chip 8, it holds 7"):
        deployed_params(read, layout=LAYOUT, chip=8)


def test_what_no_code_can_hold_is_refused(trained):
    _, kernel, cell = trained
    options = {"layout": LAYOUT, "table": TABLE, "limits": LIMITS}
    mismatched = {**cell, "log_Itau_mem": jnp.linspace(-0.1, 0.1, NEURONS)}
    with pytest.raises(ValueError, match="have Itau_mem from .* one bias for all"):
        deploy_neurons(mismatched, kernel, **options)
    chip = {**cell, "log_C_mem": jnp.full(NEURONS, 0.1)}
    with pytest.raises(ValueError, match="C_mem was trained, .* made of silicon"):
        deploy_neurons(chip, kernel, **options)
