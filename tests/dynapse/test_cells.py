"""DynapSim as a Linen and as an NNX cell."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.dynapse import DynapSim, Layout, NnxDynapSim, currents, logarithms
from hwtrain.dynapse._layout import quantity_names

KEY = jax.random.key(0)
X = 6 * jax.random.bernoulli(KEY, 0.3, (2, 30, 4)).astype(jnp.float32)


def linen_layer(**options):
    return nn.RNN(DynapSim(features=4, **options), return_carry=True)


def nnx_layer(params, **options):
    layer = nnx.RNN(NnxDynapSim(4, rngs=nnx.Rngs(0), **options), return_carry=True)
    state = nnx.state(layer, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    nnx.update(layer, state)
    return layer


def outputs(layer, params, x, **options):
    """Returns what a Linen layer gives, in one program."""
    call = jax.jit(lambda params, x: layer.apply({"params": params}, x, **options))
    return call(params, x)


call = nnx.jit(lambda model, x, **options: model(x, **options))


@pytest.fixture(scope="module")
def params():
    return jax.jit(linen_layer().init)(KEY, X)["params"]


def test_parameters_are_zero_logarithms_and_weights(params):
    cell = params["cell"]
    assert cell["w_rec"].shape == (4, 4)
    logs = {name: leaf for name, leaf in cell.items() if name != "w_rec"}
    assert len(logs) == 26 and all((leaf == 0).all() for leaf in logs.values())
    amperes = currents(cell, Layout())
    np.testing.assert_allclose(amperes["Itau_mem"], np.full(4, 5.319149e-12), rtol=1e-6)
    back = logarithms({n: 2 * v for n, v in amperes.items()}, Layout())
    np.testing.assert_allclose(back["log_Ut"], np.log(2), rtol=1e-6)


@pytest.mark.parametrize("reference", [False, True])
def test_linen_and_nnx_are_one(reference):
    layer = linen_layer(reference=reference)
    params = jax.jit(layer.init)(KEY, X)["params"]
    state, spikes = outputs(layer, params, X)
    nnx_state, nnx_spikes = call(nnx_layer(params, reference=reference), X)
    assert spikes.sum() > 10
    np.testing.assert_array_equal(spikes, nnx_spikes)
    for ours, theirs in zip(state, nnx_state):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_cell_in_reference_mode_is_rockpool(golden):
    data = golden("rockpool")
    forward = data["dynapsim_forward"]
    tree = data["mismatch"]["input_tree"]["1_DynapSim"]
    case = forward["cases"]["recurrent"]
    drive = np.float32(forward["spikes_in"]) @ (4 * np.float32(forward["w_in"]))
    layer = nn.RNN(DynapSim(features=3, reference=True))
    params = jax.jit(layer.init)(KEY, drive[None])["params"]
    params["cell"]["w_rec"] = jnp.asarray(tree["w_rec"], jnp.float32)
    spikes = outputs(layer, params, drive[None])[0]
    np.testing.assert_array_equal(spikes, case["spikes"])
    nnx_rnn = nnx.RNN(NnxDynapSim(3, reference=True, rngs=nnx.Rngs(0)))
    nnx_rnn.cell.w_rec[...] = params["cell"]["w_rec"]
    found = call(nnx_rnn, drive[None])[0]
    np.testing.assert_array_equal(found, case["spikes"])


def test_state_is_carried_from_chunk_to_chunk(params):
    layer = linen_layer()
    x = np.asarray(X)
    _, whole = outputs(layer, params, x)
    state, first = outputs(layer, params, x[:, :13])
    _, second = outputs(layer, params, x[:, 13:], initial_carry=state)
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)
    model = nnx_layer(params)
    state, first = call(model, x[:, :13])
    _, second = call(model, x[:, 13:], initial_carry=state)
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)
    anew = call(model, x[:, 13:])[1]
    assert (np.asarray(second) != np.asarray(anew)).any()


def gradients(params, **options):
    def loss(params):
        return linen_layer(**options).apply({"params": params}, X)[1].mean()

    def nnx_loss(params):
        return nnx_layer(params, **options)(X)[1].mean()

    return [jax.jit(jax.grad(f))(params)["cell"] for f in (loss, nnx_loss)]


@pytest.mark.nightly
def test_only_what_is_named_is_trained(params):
    for gradient in gradients(params, trainable=("Itau_mem", "Ispkthr")):
        gradient = jax.tree.map(np.asarray, gradient)
        trained = {name for name, leaf in gradient.items() if (leaf != 0).any()}
        assert trained == {"w_rec", "log_Itau_mem", "log_Ispkthr"}
    for gradient in gradients(params):
        gradient = jax.tree.map(np.asarray, gradient)
        assert {n for n, leaf in gradient.items() if (leaf != 0).any()} == {"w_rec"}
        # In the reference, gradients of 1e-9 stall Adam, whose epsilon is 1e-8.
        assert 1e-4 < np.abs(gradient["w_rec"]).max() < 10


def test_every_quantity_has_an_effect(params):
    drive = 8 * X - 4 * jnp.roll(X, 1, axis=1)
    # Strong adaptation, or its quantities could hardly be seen.
    cell = {**params["cell"], "log_Iw_ahp": jnp.full(4, 10.0)}

    @jax.jit
    def run(cell):
        return linen_layer().apply({"params": {"cell": cell}}, drive)[0]

    nominal = run(cell)
    for name in quantity_names():
        state = run({**cell, f"log_{name}": cell[f"log_{name}"] - 1.0})
        assert any((a != b).any() for a, b in zip(state, nominal)), name


def test_inputs_in_half_precision(params):
    layer = linen_layer(recurrent=False)
    cell = {name: leaf for name, leaf in params["cell"].items() if name != "w_rec"}
    for dtype in (jnp.float16, jnp.bfloat16, bool):
        # 6e-8 A is less than a half-precision float can hold.
        x = X.astype(dtype)
        spikes = outputs(layer, {"cell": cell}, x)[1]
        expected = outputs(layer, {"cell": cell}, x.astype(jnp.float32))[1]
        assert expected.sum() > 0
        np.testing.assert_array_equal(spikes, expected)


@pytest.mark.nightly
def test_adam_trains_it_and_decay_pulls_to_nominal(params):
    layer = linen_layer(trainable=("Igain_syn",))
    start = {"cell": {**params["cell"], "log_Io": jnp.full(4, 0.2)}}
    optimizer = optax.adamw(5e-2, weight_decay=0.1)

    @jax.jit
    def step(params, state):
        def loss(params):
            rate = layer.apply({"params": params}, 3 * X)[1].mean((0, 1))
            return jnp.mean((rate - 0.3) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, tuned, losses = optimizer.init(start), start, []
    for _ in range(60):
        tuned, state, value = step(tuned, state)
        losses.append(float(value))
    assert min(losses[-5:]) < 0.5 * losses[0]
    assert 0 < tuned["cell"]["log_Io"][0] < 0.2 * 0.995**59
    assert (tuned["cell"]["log_Igain_syn"] > 0.1).any()


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_mismatch_is_on(params, framework):
    union = hw.select(params, ".*log_.*", ".*w_rec")

    def run(model, seed):
        if framework == "nnx":
            return np.asarray(call(model, X)[0].imem)
        rngs = {"mismatch": jax.random.key(seed)}
        return np.asarray(outputs(model, params, X, rngs=rngs)[0].imem)

    if framework == "linen":
        model = hw.with_mismatch(linen_layer(), union)
    else:
        plain = nnx_layer(params)
        prototype = hw.select(plain, ".*log_.*", ".*w_rec")
        model = hw.with_mismatch(plain, prototype, rngs=nnx.Rngs(mismatch=0))
    first, second = run(model, 0), run(model, 1)
    assert (first != second).all()
    clean = outputs(linen_layer(), params, X)[0].imem
    np.testing.assert_allclose(run(hw.eval_mode(model), 0), clean, rtol=1e-5)


@pytest.mark.parametrize(
    "framework", [pytest.param("linen", marks=pytest.mark.nightly), "nnx"]
)
def test_frozen_mismatch_of_quantities_is_in_chips_and_export(
    params, framework, tmp_path
):
    def hardware(**options):
        mismatch = hw.MismatchParameter(type="add_normal", std_dev=0.2, **options)
        return hw.Rule(params="cell/log_.*", hardware=hw.Hardware(mismatch=mismatch))

    rule = hardware(rel_to_actual_wmax=False)
    if framework == "linen":
        layer = nn.RNN(DynapSim(features=4))
        analog = hw.analogize(layer, rule)
        arguments = ({"params": params}, X)
    else:
        layer = nnx_layer(params)
        layer.return_carry = False
        analog, arguments = hw.analogize(layer, rule), ()
    plan = hw.plan(analog, *arguments)
    chip = hw.apply_mismatch(params, plan, hw.chip_key(7))["cell"]
    assert (chip["w_rec"] == params["cell"]["w_rec"]).all()
    draws = jnp.stack([chip[f"log_{name}"] for name in quantity_names()])
    assert abs(draws.std() / 0.2 - 1) < 5 / np.sqrt(2 * draws.size)
    hw.export(tmp_path / "out", {"params": params}, plan, chip_seed=7)
    exported = hw.load(tmp_path / "out").chip(7)["cell"]
    for name, value in chip.items():
        np.testing.assert_allclose(exported[name], value, rtol=1e-6, atol=1e-7)
    rows = {row["weight"]: row for row in hw.inspect(analog, *arguments).rows}
    assert rows["cell/log_Itau_mem"]["mismatch"] == "add_normal 0.2 absolute"

    def rate(spikes):
        return spikes.sum((1, 2))

    if framework == "nnx":
        found = hw.evaluate.population(analog, None, [(X,)], rate, chips=4, key=KEY)
        assert found.std > 0
        return
    # Which quantity costs what: spikes of chips on which it alone deviates.
    found = hw.evaluate.sensitivity(
        analog, {"params": params}, [(X,)], rate, chips=4, key=KEY
    )
    spread = dict(zip(found.layers, found.alone.std(axis=1)))
    assert len(spread) == 26 and found.nominal.std() == 0 and found.whole.std() > 0
    # Without adaptation, its capacitance does nothing.
    assert spread["cell/log_C_ahp"] == 0 and spread["cell/log_Igain_syn"] > 0

    with pytest.raises(ValueError, match="logarithm of a quantity.*rel_to_actual_wmax"):
        hw.plan(hw.analogize(layer, hardware()), *arguments)


def test_a_chip_deviates_in_amperes_by_the_stated_amount():
    names = ("Itau_mem", "Igain_mem", "Itau_syn", "Ispkthr", "C_mem")
    params = {f"log_{name}": jnp.zeros(5000) for name in names}
    prototype = hw.frozen_mismatch_prototype(params)
    assert all(prototype.values())
    chip = currents(hw.mismatch_generator(prototype, 0.3)(params, KEY), Layout())
    for name, value in chip.items():
        ratio = np.log(np.asarray(value, np.float64) / getattr(Layout(), name))
        assert abs(ratio.std() / 0.1 - 1) < 5 / np.sqrt(2 * 5000), name
        assert abs(ratio.mean()) < 5 * 0.1 / np.sqrt(5000)


def test_bad_input(params):
    with pytest.raises(ValueError, match=r"takes inputs \[\.\.\., 4\].*Dense\(4"):
        linen_layer().apply({"params": params}, jnp.ones((2, 3, 5)))
    with pytest.raises(ValueError, match="If_nmda.*does not have"):
        NnxDynapSim(4, trainable=("If_nmda",), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"trainable=\('Iref',\)"):
        NnxDynapSim(4, trainable="Iref", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="greater than 0.*least_ratio"):
        logarithms({"Iref": [-1e-9]}, Layout())
    with pytest.raises(ValueError, match="not a quantity of a DynapSim"):
        logarithms({"If_nmda": [1e-9]}, Layout())
    with pytest.raises(ValueError, match="greater than 0"):
        Layout(Itau_mem=0.0)
