"""Noise currents of neurons, against closed forms and a linearised equation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._flax.observation import noise_observed, tell
from hwtrain.dynapse import DynapSim, Layout, NnxDynapSim, _neuron, currents
from hwtrain.dynapse._layout import quantity_names

KEY = jax.random.key(0)
LAYOUT = Layout()
KAPPA = (LAYOUT.kappa_n + LAYOUT.kappa_p) / 2
NOMINAL = {name: getattr(LAYOUT, name) for name in quantity_names()}
NODES = ("ahp", "gaba", "mem", "syn")
X = 3 * jax.random.bernoulli(KEY, 0.3, (2, 25, 4)).astype(jnp.float32)
DENSITY = 2e-14


def density(sigma, node):
    """Returns the density S of noise of relative strength sigma, in 1/sqrt(s)."""
    return math.sqrt(2) * getattr(LAYOUT, f"C_{node}") * LAYOUT.Ut / KAPPA * sigma


@functools.partial(jax.jit, static_argnames=("node", "steps", "dt_s"))
def settled(node, s, state, drive, quantities, *, steps, dt_s):
    """Returns the states of independent neurons after some steps with noise."""

    def one(state, key):
        return (
            _neuron.step(
                state,
                jnp.full(state.imem.shape, drive),
                {name: jnp.float32(value) for name, value in quantities.items()},
                dt_s=dt_s,
                weight_current=LAYOUT.Iscale,
                noise={node: s * jax.random.normal(key, state.imem.shape)},
            ),
            None,
        )

    return jax.lax.scan(one, state, jax.random.split(KEY, steps))[0]


def undisturbed(node, drive, count, dt_s, quantities=NOMINAL):
    """Returns neurons whose dendrite has settled without noise, and its current."""
    state = _neuron.resting_state((count,), LAYOUT.Io)
    state = settled(node, 0.0, state, drive, quantities, steps=400, dt_s=dt_s)
    return state, float(getattr(state, f"i{node}")[0])


@pytest.mark.parametrize("dt_s", [0.5e-3, 2e-3, 5e-3])
@pytest.mark.parametrize("node", ["syn", "gaba"])
def test_a_dendrite_deviates_by_the_closed_form_whatever_the_step(node, dt_s):
    count, tau, sigma = 20_000, 10e-3, 0.5
    # Drives of spikes in every step; the membrane does not matter.
    drive = 1e-2 if node == "syn" else -1e-2
    state, mean = undisturbed(node, drive, count, dt_s)
    assert mean > 40 * LAYOUT.Io
    steps = round(6 * tau / dt_s)
    s = density(sigma, node)
    state = settled(node, s, state, drive, NOMINAL, steps=steps, dt_s=dt_s)
    found = np.log(getattr(state, f"i{node}") / mean).std()
    expected = sigma * math.sqrt(tau / 2)
    # Of the logarithm, the next order is the square of the deviation, 0.1 %.
    assert abs(found / expected - 1) < 5 / math.sqrt(2 * count) + expected**2


def test_a_strongly_disturbed_dendrite_has_the_inverse_gamma_distribution():
    # dy = (exp(-y) - 1) dt / tau + sigma dW for y = ln(I / I_inf): exp(-y) has a gamma
    # distribution of mean 1 and variance sigma^2 tau / 2, at any strength.
    count, tau, dt_s, variance = 20_000, 10e-3, 0.1e-3, 0.25
    sigma = math.sqrt(2 * variance / tau)
    state, mean = undisturbed("syn", 1e-2, count, dt_s)
    s = density(sigma, "syn")
    state = settled("syn", s, state, 1e-2, NOMINAL, steps=800, dt_s=dt_s)
    found = mean / np.asarray(state.isyn, np.float64)
    # Splitting decay from noise shifts both by the order of dt / tau.
    assert abs(found.mean() - 1) < 5 * math.sqrt(variance / count) + dt_s / tau
    kurtosis = 3 + 6 * variance
    error = 5 * math.sqrt((kurtosis - 1) / count) + 2 * dt_s / tau
    assert abs(found.var() / variance - 1) < error


def membrane(current, dc):
    """Returns the rate of a membrane's logarithm: its equation, written again."""
    q = NOMINAL
    tau = q["Ut"] / KAPPA * q["C_mem"] / q["Itau_mem"]
    leak, gain, io = q["Itau_mem"], q["Igain_mem"], q["Io"]
    feedback = io * (current / io) ** (KAPPA / (KAPPA + 1))
    change = (
        gain / leak * (dc - leak - io)
        + feedback / leak * (current + gain)
        - current * (1 + io / leak)
    )
    return change / (tau * (current + gain))


@pytest.mark.parametrize("dt_s", [0.25e-3, 2e-3])
def test_a_membrane_deviates_as_its_linearised_equation(dt_s):
    dc, count, std, tau = 5.6e-12, 4000, 0.03, 20e-3
    level = scipy.optimize.brentq(
        lambda current: membrane(current, dc), LAYOUT.Io, 20 * LAYOUT.Io, xtol=1e-19
    )
    up, down = (membrane(level * math.exp(h), dc) for h in (1e-4, -1e-4))
    rate = -(up - down) / 2e-4
    assert 1 < rate < 1 / tau
    sigma = std * math.sqrt(2 * rate)
    quantities = NOMINAL | {"Idc": dc}
    state = _neuron.resting_state((count,), LAYOUT.Io)
    vmem = LAYOUT.Ut / KAPPA * math.log(level / LAYOUT.Io)
    state = state._replace(imem=state.imem * 0 + level, vmem=state.vmem + vmem)
    steps = round(3 / rate / dt_s)
    s = density(sigma, "mem")
    state = settled("mem", s, state, 0.0, quantities, steps=steps, dt_s=dt_s)
    found = np.log(state.imem / level).std()
    # After three time constants; a step of Euler's matters by the order of dt / tau.
    expected = std * math.sqrt(1 - math.exp(-6))
    assert abs(found / expected - 1) < 5 / math.sqrt(2 * count) + dt_s / tau / 2


def test_shot_noise_is_kt_over_c():
    # The leak and an equal input, each with a two-sided density of q I.
    current = 2 * LAYOUT.Itau_mem
    s = float(hw.dynapse.shot_noise_density(current))
    assert math.isclose(s**2, 2 * 1.602176634e-19 * current, rel_tol=1e-6)
    sigma = KAPPA / LAYOUT.Ut * s / (math.sqrt(2) * LAYOUT.C_mem)
    volts = LAYOUT.Ut / KAPPA * sigma * math.sqrt(20e-3 / 2)
    expected = math.sqrt(1.602176634e-19 * LAYOUT.Ut / KAPPA / LAYOUT.C_mem)
    assert math.isclose(volts, expected, rel_tol=1e-5)


def test_a_membrane_held_by_its_refractory_period_has_no_noise():
    state = _neuron.resting_state((2,), LAYOUT.Io)
    state = state._replace(
        imem=jnp.full(2, 1e-9), timer_ref=jnp.array([5e-3, 0.0], jnp.float32)
    )
    noisy, quiet = (
        settled("mem", s, state, 0.0, NOMINAL, steps=1, dt_s=1e-3).imem
        for s in (1e-13, 0.0)
    )
    assert noisy[0] == quiet[0] and noisy[1] != quiet[1]


def test_gradients_are_those_at_fixed_random_numbers():
    with jax.enable_x64(True):
        noise = jax.random.normal(KEY, (4, 30, 2))

        def log_currents(logs, s):
            def one(state, xi):
                state = _neuron.step(
                    state,
                    jnp.array([0.5, -0.3]),
                    currents(logs, LAYOUT),
                    dt_s=1e-3,
                    weight_current=LAYOUT.Iscale,
                    noise=dict(zip(NODES, s * xi)),
                )
                return state, None

            start = _neuron.resting_state((2,), LAYOUT.Io)
            state = jax.lax.scan(one, start, jnp.moveaxis(noise, 1, 0))[0]
            return sum(jnp.log(getattr(state, f"i{node}")).sum() for node in NODES)

        logs = {f"log_{name}": jnp.full(2, 0.01) for name in quantity_names()}
        logs["log_Iw_ahp"] += 4
        value = jax.jit(log_currents)
        by_logs, by_s = jax.grad(log_currents, (0, 1))(logs, 1e-13)
        for name in ("C_mem", "C_syn", "kappa_p", "Itau_gaba", "Ut"):
            at = f"log_{name}"
            up, down = (
                value({**logs, at: logs[at].at[0].add(h)}, 1e-13) for h in (1e-6, -1e-6)
            )
            expected = (up - down) / 2e-6
            np.testing.assert_allclose(by_logs[at][0], expected, rtol=1e-4)
        up, down = (value(logs, 1e-13 * (1 + h)) for h in (1e-5, -1e-5))
        np.testing.assert_allclose(by_s * 1e-13, (up - down) / 2e-5, rtol=1e-4)


def rule(nodes="ahp|gaba|mem|syn", **options):
    noise = hw.NoiseCurrentParameter(density=DENSITY)
    hardware = hw.Hardware(noise_current=noise, **options)
    return hw.Rule(params=f".*log_C_({nodes})", hardware=hardware)


def analog_model(framework):
    """Returns an analog layer and a function `(model, seed) -> (state, spikes)`."""
    if framework == "nnx":
        cell = NnxDynapSim(4, rngs=nnx.Rngs(0))
        layer = nnx.RNN(cell, return_carry=True)
        analog = hw.analogize(layer, rule(), rngs=nnx.Rngs(mismatch=0))

        def run(model, seed):
            model.analog_stream = nnx.RngStream(jax.random.key(seed), tag="mismatch")
            return nnx.jit(lambda model, x: model(x))(model, X)

        return layer, analog, (), run
    layer = nn.RNN(DynapSim(features=4), return_carry=True)
    analog = hw.analogize(layer, rule())
    variables = jax.jit(layer.init)(KEY, X)

    def run(model, seed):
        rngs = {"mismatch": jax.random.key(seed)}
        return jax.jit(lambda v, r: model.apply(v, X, rngs=r))(variables, rngs)

    return layer, analog, (variables, X), run


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_it_is_drawn_in_training_and_on_a_chip_and_off_in_eval_mode(framework):
    _, analog, arguments, run = analog_model(framework)
    first, second = run(analog, 0)[0], run(analog, 1)[0]
    on_chip = run(hw.chip_mode(analog), 0)[0]
    clean, again = (run(hw.eval_mode(analog), seed)[0] for seed in (0, 1))
    for node in ("syn", "mem"):
        name = f"i{node}"
        values = [getattr(state, name) for state in (first, second, clean)]
        assert (values[0] != values[1]).any() and (values[0] != values[2]).any()
        np.testing.assert_array_equal(getattr(on_chip, name), values[0])
        np.testing.assert_array_equal(getattr(again, name), values[2])
    rows = {row["weight"]: row for row in hw.inspect(analog, *arguments).rows}
    assert rows["cell/log_C_mem"]["noise current"] == "2e-14 A/sqrt(Hz)"


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_draws_of_steps_rows_neurons_and_capacitances_are_independent(framework):
    _, analog, _, run = analog_model(framework)
    found = {}

    def hear(path, effects):
        tell(lambda x: found.setdefault(path[-3:], []).append(np.array(x)), effects)

    with noise_observed(hear):
        jax.block_until_ready(jax.tree.leaves(run(analog, 0)))
        jax.effects_barrier()
    xi = np.stack([np.stack(found[node]) for node in ("ahp", "aba", "mem", "syn")])
    assert xi.shape == (4, 25, 2, 4)
    n = xi.size
    assert abs(xi.mean()) < 5 / math.sqrt(n)
    assert abs(xi.std() - 1) < 5 / math.sqrt(2 * n) + 0.02  # of Euler's step
    for axis in range(4):
        a, b = np.take(xi, [0, 1, 2, 3][: xi.shape[axis] - 1], axis), None
        b = np.take(xi, np.arange(1, a.shape[axis] + 1), axis)
        assert abs((a * b).mean()) < 5 / math.sqrt(a.size), axis


def test_it_is_proved_and_its_absence_is_an_error(monkeypatch):
    _, analog, (variables, x), _ = analog_model("linen")
    active = hw.assert_active(analog, variables, x[:, :8])
    assert len(active.rows) == 4
    monkeypatch.setattr(_neuron, "noise_charge", lambda current, *_: 0 * current)
    jax.clear_caches()
    with pytest.raises(
        ValueError, match="log_C_mem: noise_current: the noise has 0.00"
    ):
        hw.assert_active(analog, variables, x[:, :8])


def test_a_traced_density_and_strength_scale_it():
    _, analog, (variables, _), _ = analog_model("linen")
    rngs = {"mismatch": KEY}

    @jax.jit
    def current(s, strength):
        with hw.noise_strength(strength):
            model = hw.with_constants(analog, {"noise_current.density": s})
            return model.apply(variables, X, rngs=rngs)[0].isyn

    clean = hw.eval_mode(analog).apply(variables, X)[0].isyn
    np.testing.assert_allclose(current(DENSITY, 0.0), clean, rtol=1e-6)
    np.testing.assert_allclose(
        current(2 * DENSITY, 1.0), current(DENSITY, 2.0), rtol=1e-6
    )
    assert (current(DENSITY, 1.0) != current(2 * DENSITY, 1.0)).any()


def test_it_is_exported_beside_the_mismatch(tmp_path):
    mismatch = hw.MismatchParameter(
        type="add_normal", std_dev=0.1, rel_to_actual_wmax=False
    )
    layer = nn.RNN(DynapSim(features=4))
    variables = jax.jit(layer.init)(KEY, X)
    analog = hw.analogize(layer, rule(mismatch=mismatch))
    plan = hw.plan(analog, variables, X)
    hw.export(tmp_path / "out", variables, plan, chip_seed=1)
    checkpoint = hw.load(tmp_path / "out")
    hardware = checkpoint.plan["cell/log_C_mem"].hardware
    assert hardware.noise_current == hw.NoiseCurrentParameter(density=DENSITY)
    chip = {"params": checkpoint.chip(1)}
    assert (chip["params"]["cell"]["log_C_mem"] != 0).all()
    on_chip = hw.chip_mode(analog)
    first, second = (
        on_chip.apply(chip, X, rngs={"mismatch": jax.random.key(seed)})
        for seed in (0, 1)
    )
    assert first.shape == second.shape


def test_what_cannot_have_it_is_refused():
    noise = hw.Hardware(noise_current=hw.NoiseCurrentParameter(density=DENSITY))
    layer = nn.RNN(DynapSim(features=4))
    variables = jax.jit(layer.init)(KEY, X)
    with pytest.raises(ValueError, match="log_C_ref.*only a capacitance of a DynapSim"):
        wrong = hw.Rule(params=".*log_C_ref", hardware=noise)
        hw.plan(hw.analogize(layer, wrong), variables, X)
    with pytest.raises(ValueError, match="kernel.*only a capacitance of a DynapSim"):
        dense = nn.Dense(3, use_bias=False)
        hw.plan(hw.analogize(dense, noise), {"kernel": jnp.ones((4, 3))}, X)
    with pytest.raises(ValueError, match="a stack of neurons, .*columns=-1; got"):
        wrong = hw.Rule(params=".*log_C_mem", hardware=noise, rows=0, columns=())
        hw.plan(hw.analogize(layer, wrong), variables, X)
    with pytest.raises(ValueError, match="greater than 0"):
        hw.NoiseCurrentParameter(density=0.0)
    with pytest.raises(ValueError, match="no rng stream"):
        hw.analogize(layer, rule()).apply(variables, X)


@pytest.mark.nightly
def test_layers_of_a_stack_draw_their_own():
    stack = nn.vmap(
        nn.RNN,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=2,
    )
    layer = stack(DynapSim(features=4), return_carry=True)
    variables = jax.jit(layer.init)(KEY, X)
    variables = jax.tree.map(lambda leaf: leaf.at[1].set(leaf[0]), variables)
    with pytest.raises(ValueError, match=r"rows=\(\) and columns=-1"):
        hw.plan(hw.analogize(layer, rule()), variables, X)
    given = rule()
    own = hw.Rule(params=given.params, hardware=given.hardware, rows=(), columns=-1)
    analog = hw.analogize(layer, own)
    state = analog.apply(variables, X, rngs={"mismatch": KEY})[0]
    assert (state.isyn[0] != state.isyn[1]).any()


@pytest.mark.nightly
def test_rows_and_neurons_of_an_explicit_mesh_have_the_same_noise(on_devices):
    on_devices(
        8,
        """
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import hwtrain as hw
from hwtrain.dynapse import DynapSim
noise = hw.NoiseCurrentParameter(density=2e-14)
rule = hw.Rule(params=".*log_C_(ahp|gaba|mem|syn)",
               hardware=hw.Hardware(noise_current=noise))
x = 3 * jax.random.bernoulli(jax.random.key(0), 0.3, (8, 25, 4)).astype(jnp.float32)
analog = hw.analogize(nn.RNN(DynapSim(features=4), return_carry=True), rule)
variables = analog.init(jax.random.key(1), x)

def run(model, variables, x):
    rngs = {"mismatch": jax.random.key(5)}
    def loss(params):
        state, spikes = model.apply({**variables, "params": params}, x, rngs=rngs)
        return jnp.log(state.isyn).mean(), (state, spikes)
    return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

clean = run(hw.eval_mode(analog), variables, x)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    def put(leaf, *axes):
        return jax.device_put(leaf, NamedSharding(mesh, P(*axes)))
    whole = jax.tree.map(put, variables)
    neurons = jax.tree.map(
        lambda a: put(a, *["model"] * (a.shape == (4,))), variables)
    assert any(a.shape == (4,) for a in jax.tree.leaves(variables))
    for model in (analog, hw.chip_mode(analog)):
        one = run(model, variables, x)
        assert np.abs(one[1][0].isyn / clean[1][0].isyn - 1).max() > 1e-3
        for placed in (whole, neurons):
            many = run(model, placed, put(x, "data"))
            for a, b in zip(*map(jax.tree.leaves, (one, many)), strict=True):
                np.testing.assert_allclose(
                    b, a, rtol=2e-4, atol=1e-5 * np.abs(a).max())
print("equal")
""",
    )
