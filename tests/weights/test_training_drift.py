import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._parts.fields import from_dict, to_dict
from hwtrain.weights import DriftParameter, SimpleDriftParameter

KEY = jax.random.key(2)
N = 40_000
# A correct estimator leaves 4.5 standard errors once in 150,000 keys.
Z = 4.5


@pytest.mark.parametrize("name", ["nu0.1_t0_1", "nu0.05_t0_20", "nu0"])
def test_simple_drift_agrees_with_the_c_engine(name, golden):
    case = golden("aihwkit_weights")["drift_simple_cpp"][name]
    drift = SimpleDriftParameter(nu=case["nu"], t_0=case["t_0"])
    w = jnp.float32(case["w0"])
    state = drift.begin(w)
    after = case["weights_after_each_call"]
    for dt_s, expected in zip(case["time_since_last_call"], after, strict=True):
        w, state = drift.step(state, w, dt_s)
        np.testing.assert_allclose(w, np.float32(expected), rtol=1e-5)


def test_a_changed_weight_starts_anew(golden):
    case = golden("aihwkit_weights")["drift_simple_cpp"]["nu0.1_t0_1_reset"]
    assert case["poke"] == "before call 2 set w[0][0]=0.3"
    drift = SimpleDriftParameter(nu=case["nu"], t_0=case["t_0"])
    w = jnp.float32(case["w0"])
    state = drift.begin(w)
    for call, dt_s in enumerate(case["time_since_last_call"]):
        if call == 2:
            w = w.at[0, 0].set(0.3)
        w, state = drift.step(state, w, dt_s)
        expected = np.float32(case["weights_after_each_call"][call])
        np.testing.assert_allclose(w, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["plain", "t0_20", "offsets_woff0", "nu_k"])
def test_device_drift_agrees_with_the_c_engine(name, golden):
    case = golden("aihwkit_weights")["drift_device_cpp"][name]
    drift = DriftParameter(**case["pars"])
    w = jnp.float32(case["w0"])
    state = drift.begin(w, KEY)
    after = case["weights_after_each_call"]
    for dt_s, expected in zip(case["time_since_last_call"], after, strict=True):
        w, state = drift.step(state, w, dt_s, KEY)
        # w0 s + b (s - 1) cancels where w0 is -b: errors are relative to b = 0.6.
        np.testing.assert_allclose(w, np.float32(expected), rtol=1e-5, atol=1e-6)


def test_the_weight_offset_is_where_the_conductance_is_its_offset(golden):
    # The C++ engine adds w_offset where w = ratio (g - g_off) + w_off subtracts it:
    # its numbers are ours with the other sign.
    case = golden("aihwkit_weights")["drift_device_cpp"]["offsets"]
    pars = case["pars"]
    flipped = DriftParameter(**{**pars, "w_offset": -pars["w_offset"]})
    w = jnp.float32(case["w0"])
    out, _ = flipped.step(flipped.begin(w), w, 10.0)
    expected = np.float32(case["weights_after_each_call"][0])
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)

    drift = DriftParameter(**pars)
    out, _ = drift.step(drift.begin(w), w, 10.0)
    g = (np.float64(w) - pars["w_offset"]) / pars["wg_ratio"] + pars["g_offset"]
    g = g * 10.0 ** -pars["nu"]
    by_hand = pars["wg_ratio"] * (g - pars["g_offset"]) + pars["w_offset"]
    np.testing.assert_allclose(out, by_hand, rtol=1e-5, atol=1e-6)


def test_negative_weights_have_a_state_dependent_exponent(golden):
    # The C++ engine takes the logarithm of the negative weight: NaN, then the bound.
    case = golden("aihwkit_weights")["drift_device_cpp"]["nu_k_nan_without_offset"]
    drift = DriftParameter(**case["pars"])
    w = jnp.float32(case["w0"])
    out, _ = drift.step(drift.begin(w), w, 10.0)
    positive = np.asarray(w) > 0
    expected = np.float32(case["weights_after_each_call"][0])
    np.testing.assert_allclose(out[positive], expected[positive], rtol=1e-5)
    mirrored, _ = drift.step(drift.begin(-w), -w, 10.0)
    np.testing.assert_array_equal(mirrored, -out)
    chex.assert_tree_all_finite(out)


def test_exponents_differ_between_devices(golden):
    case = golden("aihwkit_weights")["drift_device_cpp"]["nu_dtod_statistics"]
    nu = (
        DriftParameter(nu=case["nu"], nu_dtod=case["nu_dtod"])
        .begin(jnp.zeros(N), KEY)
        .nu
    )
    assert abs(nu.mean() - 0.1) < Z * 0.03 / np.sqrt(N)
    assert abs(nu.std() - 0.03) < Z * 0.03 / np.sqrt(2 * N)


def test_exponents_vary_between_steps():
    drift, w = DriftParameter(nu=0.1, nu_std=0.2), jnp.ones(N)
    state = drift.begin(w, KEY)
    first, state = drift.step(state, w, 10.0, jax.random.key(0))
    nu = -jnp.log10(first)
    assert abs(nu.std() - 0.02) < Z * 0.02 / np.sqrt(2 * N)
    second, _ = drift.step(state, first, 90.0, jax.random.key(1))
    other = -jnp.log10(second) / 2
    assert abs(np.corrcoef(nu, other)[0, 1]) < Z / np.sqrt(N)


def test_noise_does_not_accumulate_and_is_no_reset():
    drift, w = DriftParameter(nu=0.1, w_noise_std=0.01), jnp.ones(N)
    state = drift.begin(w, KEY)
    for step in range(3):
        w, state = drift.step(state, w, 10.0, jax.random.key(step))
    assert abs(w.std() - 0.01) < Z * 0.01 / np.sqrt(2 * N)
    assert abs(w.mean() - 30**-0.1) < Z * 0.01 / np.sqrt(N)
    np.testing.assert_array_equal(state.set_at, jnp.zeros(N))


def test_steps_compile_once_and_map_over_chips():
    drift = DriftParameter(nu=0.1, nu_dtod=0.2, nu_std=0.1, w_noise_std=0.01)
    keys, w = jax.random.split(KEY, 3), jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)

    @jax.jit
    @chex.assert_max_traces(1)
    def chips(keys, state, w, dt_s):
        return jax.vmap(drift.step, (0, 0, None, 0))(state, w, dt_s, keys)

    state = jax.vmap(drift.begin, (None, 0))(w, keys)
    many, state_many = chips(keys, state, jnp.broadcast_to(w, (3, 3, 4)), 5.0)
    alone, _ = drift.step(drift.begin(w, keys[1]), w, 5.0, keys[1])
    np.testing.assert_allclose(many[1], alone, rtol=1e-5, atol=1e-6)
    chips(keys, state_many, many, 7.0)


@pytest.mark.parametrize(
    "drift",
    [SimpleDriftParameter(nu=0.1, t_0=20.0), DriftParameter(nu=0.1, nu_k=0.01)],
    ids=repr,
)
def test_round_trip(drift):
    assert from_dict(type(drift), to_dict(drift)) == drift


def test_a_negative_exponent_is_an_error():
    # The C++ engine silently ignores it: there is no drift.
    for kind in (SimpleDriftParameter, DriftParameter):
        with pytest.raises(ValueError, match="nu=.*greater than or equal to 0"):
            kind(nu=-0.1)


def test_a_draw_needs_a_key():
    drift, w = DriftParameter(nu=0.1, nu_std=0.1), jnp.ones(2)
    with pytest.raises(ValueError, match="needs a JAX key"):
        drift.begin(w)


def test_in_units_of_a_kernel_drift_is_that_of_the_crossbar_times_the_scale():
    drift = DriftParameter(
        nu=0.1, nu_k=0.02, g_offset=0.2, w_offset=0.1, w_noise_std=0.01, reset_tol=1e-3
    )
    w, s = jnp.linspace(-1.0, 1.0, 6).reshape(3, 2), jnp.array([2.0, 0.5])
    on_crossbar, kernel = drift.begin(w, KEY), drift.begin(s * w, KEY)
    for change in (0.0, 0.9e-3, 1.1e-3):
        expected, on_crossbar = drift.step(on_crossbar, w + change, 10.0, KEY)
        out, kernel = drift.step(kernel, s * (w + change), 10.0, KEY, scale=s)
        np.testing.assert_allclose(out, s * expected, rtol=1e-5, atol=1e-6)
        w = expected
