"""A trained DynapSim, deployed, read back and simulated."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file

from hwtrain.checkpoint._dynapse import export_dynapse, load_dynapse
from hwtrain.dynapse import DynapSim, Layout, currents, logarithms
from hwtrain.dynapse._biases import computed_table
from hwtrain.dynapse._connectivity import Limits
from hwtrain.dynapse._deployed import deploy_layers, deployed_layers
from hwtrain.dynapse._layout import quantity_names

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
    return deploy_layers({"neurons": (cell, kernel)}, **options)


def deployed(deployment, chip=None):
    """Returns the parameters of the one layer, and its kernel."""
    return deployed_layers(deployment, layout=LAYOUT, chip=chip)["neurons"]


def test_the_network_that_was_read_back_computes_what_its_codes_say(trained, tmp_path):
    spikes, kernel, cell = trained
    path = export_dynapse(tmp_path / "net", deployment_of(trained))
    read = load_dynapse(path)
    params, achieved_kernel = deployed(read)
    found = simulate(spikes, achieved_kernel, {**cell, **params})

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
    inputs, kernel, cell = trained
    deviation = 0.2 * jax.random.normal(jax.random.key(4), (2, NEURONS))
    factors = [
        1 + 0.2 * jax.random.normal(jax.random.key(5 + number), matrix.shape)
        for number, matrix in enumerate((kernel, cell["w_rec"]))
    ]
    chip = {
        **cell,
        "log_Ispkthr": cell["log_Ispkthr"] + deviation[0],
        "log_C_mem": cell["log_C_mem"] + deviation[1],
        "w_rec": cell["w_rec"] * factors[1],
    }
    plain = deployment_of(trained)
    chips = {7: {"neurons": (chip, kernel * factors[0])}}
    deployment = deployment_of(trained, chips=chips)
    assert deployment.biases == plain.biases
    np.testing.assert_array_equal(deployment.weights_in.mask, plain.weights_in.mask)
    read = load_dynapse(export_dynapse(tmp_path / "net", deployment))
    found, found_kernel = deployed(read, chip=7)
    achieved, achieved_kernel = deployed(read)
    np.testing.assert_allclose(
        found["log_Ispkthr"] - achieved["log_Ispkthr"], deviation[0], atol=1e-5
    )
    np.testing.assert_allclose(found["log_C_mem"], deviation[1], atol=1e-5)
    np.testing.assert_allclose(
        found["log_Itau_mem"], achieved["log_Itau_mem"], atol=1e-5
    )
    np.testing.assert_allclose(found_kernel, achieved_kernel * factors[0], rtol=1e-5)
    np.testing.assert_allclose(
        found["w_rec"], achieved["w_rec"] * factors[1], rtol=1e-5
    )
    spikes = simulate(inputs, found_kernel, {**cell, **found})
    nominal = simulate(inputs, achieved_kernel, {**cell, **achieved})
    assert (spikes != nominal).any()
    with pytest.raises(ValueError, match="holds no chip 8; it holds 7"):
        deployed_layers(deployment, layout=LAYOUT, chip=8)


class TwoLayers(nn.Module):
    """A recurrent layer, and behind it one without recurrence."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(NEURONS, use_bias=False, name="to_first")(x)
        x = nn.RNN(DynapSim(features=NEURONS, name="first"))(x)
        x = nn.Dense(3, use_bias=False, name="to_second")(x)
        return nn.RNN(DynapSim(features=3, recurrent=False, name="second"))(x)


@pytest.fixture(scope="module")
def two_layers(trained):
    """Returns input spikes, and the parameters of two layers."""
    spikes, kernel, cell = trained
    params = jax.jit(TwoLayers().init)(jax.random.key(0), spikes)["params"]
    params["first"], params["to_first"]["kernel"] = dict(cell), kernel
    uniform = jax.random.uniform(jax.random.key(1), (NEURONS, 3), minval=-0.2)
    params["to_second"]["kernel"] = 25 * uniform
    params["second"]["log_Ispkthr"] = jnp.full(3, 0.3)
    return spikes, params


def layers_of(params):
    return {
        name: (params[name], params[f"to_{name}"]["kernel"])
        for name in ("first", "second")
    }


@pytest.mark.nightly
def test_layers_share_a_chip_and_come_back(two_layers, tmp_path):
    spikes, params = two_layers
    deployment = deploy_layers(
        layers_of(params), layout=LAYOUT, table=TABLE, limits=LIMITS
    )
    # Six neurons fill one core of four and begin another; the second layer its own.
    assert deployment.cores.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    wanted = [deployment.biases[core]["Ispkthr"].wanted for core in range(3)]
    expected = 1e-7 * np.exp([-0.4, -0.4, 0.3])
    np.testing.assert_allclose(wanted, expected, rtol=1e-6)
    # As one network: inputs reach the first layer, the first the second.
    wanted = deployment.weights_rec.wanted
    np.testing.assert_array_equal(wanted[:6, 6:], params["to_second"]["kernel"])
    np.testing.assert_array_equal(wanted[:6, :6], params["first"]["w_rec"])
    assert not wanted[6:].any() and not deployment.weights_in.wanted[:, 6:].any()

    read = load_dynapse(export_dynapse(tmp_path / "net", deployment))
    found = deployed_layers(read, layout=LAYOUT)
    assert list(found) == ["first", "second"]
    on_chip = {}
    for name, (its, kernel) in found.items():
        assert its.keys() <= params[name].keys()
        on_chip[name] = {**params[name], **its}
        on_chip[f"to_{name}"] = {"kernel": kernel}
    apply = jax.jit(TwoLayers().apply)
    nominal, achieved = (
        np.asarray(apply({"params": p}, spikes)) for p in (params, on_chip)
    )
    assert nominal.sum() > 20 and (achieved != nominal).any()
    assert achieved.sum() == pytest.approx(nominal.sum(), rel=0.2)

    # The same as one population of neurons, where a spike takes a step more.
    biases = {n: i for n, i in read.currents.items() if f"log_{n}" in params["first"]}
    cell = {
        **{name: jnp.zeros(9) for name in params["second"]},
        **logarithms({**biases, "w_rec": read.weights_rec.achieved}, LAYOUT),
    }
    both = nn.RNN(DynapSim(features=9))
    drive = spikes @ jnp.asarray(read.weights_in.achieved, jnp.float32)
    merged = jax.jit(both.apply)({"params": {"cell": cell}}, drive)
    np.testing.assert_array_equal(merged[:, 1:, 6:], achieved[:, :-1])


def test_limits_are_checked_over_all_layers(two_layers):
    _, params = two_layers
    layers = layers_of(params)
    options = {"layout": LAYOUT, "table": TABLE}
    with pytest.raises(ValueError) as caught:
        deploy_layers(layers, limits=Limits(synapses_per_neuron=5), **options)
    # Five inputs and six neurons; six neurons.
    assert "neuron first/0 (11)" in str(caught.value)
    assert "second/2 (6)" in str(caught.value)
    with pytest.raises(ValueError, match="11 inputs and neurons send .* 10 tags"):
        deploy_layers(layers, limits=Limits(tags=10), **options)


def test_layers_that_do_not_fit_together(two_layers, trained):
    _, params = two_layers
    layers, options = layers_of(params), {"layout": LAYOUT, "table": TABLE}
    turned = {**layers, "second": (params["second"], jnp.ones((3, 6)))}
    with pytest.raises(ValueError, match="'second' should be .6, as 'first' has"):
        deploy_layers(turned, **options)
    dense = {"second": (params["second"], {"kernel": 1, "bias": 2})}
    with pytest.raises(ValueError, match=r"use_bias=False.*the shape \(\)"):
        deploy_layers(dense, **options)
    with pytest.raises(ValueError, match="no layers to deploy"):
        deploy_layers({}, **options)
    other = {n: v for n, v in params["second"].items() if "gaba" not in n}
    mixed = {**layers, "second": (other, layers["second"][1])}
    with pytest.raises(ValueError, match="differ in their quantities.*C_gaba"):
        deploy_layers(mixed, **options)
    with pytest.raises(ValueError, match="chip 3 has the layers .*, the network has"):
        deploy_layers(layers, chips={3: {"first": layers["first"]}}, **options)
    pruned = jnp.asarray(layers["second"][1]).at[0, 0].set(0.0)
    nominal = {**layers, "second": (params["second"], pruned)}
    with pytest.raises(ValueError, match="weights where the network has no synapse"):
        deploy_layers(nominal, chips={3: layers}, **options)


def test_what_no_code_can_hold_is_refused(trained):
    _, kernel, cell = trained
    options = {"layout": LAYOUT, "table": TABLE, "limits": LIMITS}
    mismatched = {**cell, "log_Itau_mem": jnp.linspace(-0.1, 0.1, NEURONS)}
    with pytest.raises(ValueError, match="have Itau_mem from .* one bias for all"):
        deploy_layers({"neurons": (mismatched, kernel)}, **options)
    chip = {**cell, "log_C_mem": jnp.full(NEURONS, 0.1)}
    with pytest.raises(ValueError, match="C_mem was trained, .* fixed in silicon"):
        deploy_layers({"neurons": (chip, kernel)}, **options)
