import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._arrays import rounding
from hwtrain._arrays.random import normal, uniform
from hwtrain.weights import levels, noises
from hwtrain.weights.pcm import pcm_noise

KEY = jax.random.key(7)
W = np.float32([[0.5, -1.6, 0.0], [0.0, 0.8, -0.3]])
N = 40_000

# A correct estimator leaves 4.5 standard errors once in 150,000 keys.
Z = 4.5


def many(values):
    return jnp.broadcast_to(jnp.float32(values), (N, len(values)))


def test_discretize_agrees_with_the_torch_tile(golden):
    cases = {
        k: c
        for k, c in golden("aihwkit_weights")["modifier_torch_tile"].items()
        if "out" in c
    }
    assert len(cases) >= 6
    for name, case in cases.items():
        w, out = np.float32(case["w"]).T, np.float32(case["out"]).T
        w_max = case["pars"].get("assumed_wmax", np.abs(w).max())
        if case["pars"].get("rel_to_actual_wmax", True):
            w_max = np.abs(w).max()
        result = levels.discretize(jnp.asarray(w), w_max, res=case["pars"]["res"])
        np.testing.assert_allclose(result, out, atol=1e-6, err_msg=name)


def test_discretize_departs_from_the_c_engine_by_its_step(golden):
    # The C++ engine takes the step A * res, half of ours, and rounds half away from
    # zero: half the res gives its numbers, but for ties.
    for name in ("discretize_res0.25/W_ASYM", "discretize_res0.1_assumed_wmax1.5/W45"):
        case = golden("aihwkit_weights")["modifier_cpp"][name]
        w, out = np.float32(case["w"]).T, np.float32(case["out"]).T
        w_max = case["pars"].get("assumed_wmax", np.abs(w).max())
        if case["pars"].get("rel_to_actual_wmax", True):
            w_max = np.abs(w).max()
        res = case["pars"]["res"]
        tie = np.abs(np.abs(w / (w_max * res)) % 1 - 0.5) < 1e-4
        result = levels.discretize(jnp.asarray(w), w_max, res=res / 2)
        np.testing.assert_allclose(result[~tie], out[~tie], atol=1e-6, err_msg=name)


def test_dorefa_agrees_with_the_c_engine_but_for_ties(golden):
    cases = {
        k: c
        for k, c in golden("aihwkit_weights")["modifier_cpp"].items()
        if k.startswith("dorefa")
    }
    assert len(cases) == 6
    for name, case in cases.items():
        pars = case["pars"]
        w, out = np.float32(case["w"]).T, np.float32(case["out"]).T
        w_max = np.abs(w).max() if pars.get("rel_to_actual_wmax", True) else 1.0
        clip = pars.get("dorefa_clip", 0.6)
        level = np.abs(clip / np.tanh(w_max) * np.tanh(w)) / pars["res"]
        tie = np.abs(level % 1 - 0.5) < 1e-4
        result = levels.dorefa(jnp.asarray(w), w_max, res=pars["res"], clip=clip)
        np.testing.assert_allclose(result[~tie], out[~tie], atol=1e-6, err_msg=name)


def test_rounding_takes_ties_to_even():
    result = levels.discretize(jnp.float32([0.25, 0.75, 1.25]), 1.0, res=0.25)
    np.testing.assert_array_equal(result, [0.0, 1.0, 1.0])


def test_stochastic_rounding_has_the_right_mean_and_spread(golden):
    # Our step is 2 A res, the reference's A res.
    case = golden("aihwkit_weights")["modifier_cpp_statistics"]["discretize_sto_round"]
    w = many([0.5, -1.6, 0.0, 0.8])
    result = levels.discretize(w, 1.6, res=case["pars"]["res"] / 2, key=KEY)
    step = 1.6 * case["pars"]["res"]
    share = np.float64([0.5, 1.6, 0.0, 0.8]) / step % 1
    sigma = step * np.sqrt(share * (1 - share))
    mean_error = np.abs(result.mean(0) - np.float32([0.5, -1.6, 0.0, 0.8]))
    np.testing.assert_array_less(mean_error, Z * sigma / np.sqrt(N) + 1e-5)
    recorded = np.ravel(case["emp_std"])
    # sigma / sqrt(2n) for n = 4000 normal draws; that of two values is smaller.
    np.testing.assert_allclose(np.std(result, axis=0), recorded, atol=Z * 0.32 / 89)
    np.testing.assert_allclose(np.unique(result[:, 0]), [0.0, step], rtol=1e-6)


def test_stochastic_rounding_keeps_what_lies_on_a_level():
    w = jnp.float32([-1.0, -0.5, 0.0, 0.5, 1.0])
    np.testing.assert_array_equal(levels.discretize(w, 1.0, res=4, key=KEY), w)


def test_add_and_mult_normal_are_their_formulas():
    w, xi = jnp.asarray(W), np.asarray(normal(KEY, W.shape))
    added = noises.add_normal(KEY, w, 1.6, std_dev=0.1)
    np.testing.assert_allclose(added, W + 0.16 * xi, rtol=1e-6)
    # The C++ engine multiplies by max |w| once more; the torch tile does not.
    multiplied = noises.mult_normal(KEY, w, std_dev=0.1)
    np.testing.assert_allclose(multiplied, W * (1 + 0.1 * xi), rtol=1e-6)


def test_add_normal_spreads_as_the_c_engine(golden):
    case = golden("aihwkit_weights")["modifier_cpp_statistics"]["add_normal0.1"]
    result = noises.add_normal(KEY, many(np.ravel(case["w"])), 1.6, std_dev=0.1)
    # The standard error of a standard deviation of n normal draws is sigma / sqrt(2n).
    atol = Z * 0.16 / np.sqrt(2 * case["n_samples"])
    np.testing.assert_allclose(result.std(0), np.ravel(case["emp_std"]), atol=atol)


def test_poly_is_its_formula_and_its_coefficients_are_those_of_25_microsiemens():
    xi = np.asarray(normal(KEY, W.shape))
    a = np.abs(W) / 1.6
    sigma = 1.6 * (0.26348 + 1.9650 * a - 1.1731 * a**2) / 25
    result = noises.poly(KEY, jnp.asarray(W), 1.6, std_dev=0.5)
    np.testing.assert_allclose(result, W + 0.5 * sigma * xi, rtol=1e-5)


def test_poly_spreads_as_the_c_engine_with_its_swapped_digit(golden):
    case = golden("aihwkit_weights")["modifier_cpp_statistics"][
        "poly_default_coeffs_std1"
    ]
    swapped = (0.0105392, 0.0768, -0.046925)
    w = many(np.ravel(case["w"]))
    sigma = noises.poly_sigma(w[0], 1.6, coeffs=swapped)
    recorded = np.ravel(case["emp_std"])
    np.testing.assert_allclose(sigma, recorded, rtol=Z / np.sqrt(2 * case["n_samples"]))


def test_a_negative_polynomial_is_no_noise():
    w = jnp.float32([0.0, 1.0])
    sigma = noises.poly_sigma(w, 1.0, coeffs=(0.1, -1.0))
    np.testing.assert_allclose(sigma, [0.1, 0.0], rtol=1e-6)


def test_prog_noise_keeps_signs_and_gives_zero_a_random_one(golden):
    case = golden("aihwkit_weights")["modifier_cpp_statistics"][
        "prog_noise_std1_coeffs_uS"
    ]
    w = np.ravel(case["w"])
    assert w[2] == 0
    result = noises.prog_noise(KEY, many(w), 1.6, std_dev=1.0)
    mean, spread = result.mean(0), result.std(0)
    other = [0, 1, 3]
    recorded = np.ravel(case["emp_std"])[other]
    tolerance = Z / np.sqrt(2 * case["n_samples"])
    np.testing.assert_allclose(spread[jnp.array(other)], recorded, rtol=tolerance)
    # The reference mirrors zero weights to the positive side (mean 0.0135).
    sigma = 1.6 * 0.26348 / 25
    assert abs(mean[2]) < Z * sigma / np.sqrt(N)
    np.testing.assert_allclose(spread[2], sigma, rtol=Z / np.sqrt(2 * N))
    small = noises.prog_noise(KEY, jnp.full(N, -0.001), 1.6, std_dev=1.0)
    assert (small <= 0).all()
    assert small.min() < -0.01


def test_drop_connect_drops_its_share(golden):
    case = golden("aihwkit_weights")["modifier_cpp_statistics"]["drop_connect0.3"]
    w = many(np.ravel(case["w"]))
    result = noises.drop_connect(KEY, w, pdrop=0.3)
    kept = np.asarray(result[:, 0] != 0)
    assert abs(kept.mean() - 0.7) < Z * np.sqrt(0.3 * 0.7 / N)
    np.testing.assert_array_equal(result[kept, 0], w[kept, 0])
    np.testing.assert_array_equal(noises.drop_connect(KEY, w, pdrop=0.0), w)


def pcm_by_hand(w, w_max, *, std_dev, t_s, t0_s=20.0, g_max=25.0):
    xi_1, xi_2, xi_3 = (
        np.float64(normal(jax.random.fold_in(KEY, part), w.shape)) for part in range(3)
    )
    g = np.clip(w, -w_max, w_max) * g_max / w_max
    a = np.abs(g) / g_max
    g_p = np.abs(g) + std_dev * (0.26348 + 1.9650 * a - 1.1731 * a**2) * xi_1
    a_p = np.maximum(np.abs(g_p) / g_max, 1e-6)
    nu = np.abs(xi_2 * np.clip(-0.0125 * np.log(a_p) - 0.0059, 0.008, 0.045))
    g_d = g_p * ((t_s + t0_s) / t0_s) ** -nu
    q = np.minimum(0.0088 / np.maximum(a_p**0.65, 1e-3), 0.2)
    read = q * np.sqrt(np.log((t_s + t0_s + 250e-9) / 500e-9))
    g_f = g_d + std_dev * np.abs(g_d) * read * xi_3
    return np.sign(w) * np.abs(g_f) / g_max * w_max


@pytest.mark.parametrize("t_s", [0.0, 1.0, 86_400.0])
def test_pcm_noise_is_its_formula(t_s):
    result = pcm_noise(KEY, jnp.asarray(W), 1.0, std_dev=0.7, t_inference_s=t_s)
    by_hand = pcm_by_hand(W, 1.0, std_dev=0.7, t_s=t_s)
    np.testing.assert_allclose(result, by_hand, rtol=1e-5, atol=1e-6)


def test_pcm_noise_off_is_the_clipped_weight():
    result = pcm_noise(KEY, jnp.asarray(W), 1.0, std_dev=0.0)
    np.testing.assert_allclose(result, np.clip(W, -1, 1), rtol=1e-6)


def test_pcm_noise_sets_small_conductances_to_zero():
    w = jnp.float32([0.02, 0.022]) / 1.0
    # 2 * 0.26348 µS of 25 µS is 0.0211.
    result = pcm_noise(KEY, w, 1.0, std_dev=1.0, zero_threshold=2.0)
    assert result[0] == 0 and result[1] != 0


def test_pcm_devices_stick_where_they_should():
    w = jnp.full(N, 0.5)
    stuck = {"prob_at_reset": 0.1, "prob_at_gmax": 0.2, "prob_at_random": 0.3}
    result = np.asarray(pcm_noise(KEY, w, 1.0, std_dev=0.0, **stuck))
    for value, share in ((0.0, 0.1), (1.0, 0.1), (-1.0, 0.1), (0.5, 0.4)):
        tolerance = Z * np.sqrt(share * (1 - share) / N)
        assert abs((result == value).mean() - share) < tolerance, value
    rest = result[~np.isin(result, [0.0, 1.0, -1.0, 0.5])]
    assert (rest > 0).all()
    assert abs(rest.mean() - 0.5) < Z * np.sqrt(1 / 12 / len(rest))


DETERMINISTIC = {
    "discretize": lambda w, **kw: levels.discretize(w, 1.6, res=6, **kw),
    "discretize stochastically": lambda w, **kw: levels.discretize(
        w, 1.6, res=6, key=KEY, **kw
    ),
    "dorefa": lambda w, **kw: levels.dorefa(w, 1.6, res=0.1, **kw),
}
NOISY = {
    "add_normal": lambda w, **kw: noises.add_normal(KEY, w, 1.6, std_dev=0.1, **kw),
    "mult_normal": lambda w, **kw: noises.mult_normal(KEY, w, std_dev=0.1, **kw),
    "poly": lambda w, **kw: noises.poly(KEY, w, 1.6, std_dev=1.0, **kw),
    "prog_noise": lambda w, **kw: noises.prog_noise(KEY, w, 1.6, std_dev=1.0, **kw),
    "drop": lambda w, **kw: noises.drop_connect(KEY, w, pdrop=0.5, **kw),
    "pcm": lambda w, **kw: pcm_noise(KEY, w, 1.6, std_dev=1.0, t_inference_s=9.0, **kw),
}
EVERY = DETERMINISTIC | NOISY


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_passes_straight_through(name):
    def loss(w):
        return jnp.sum(jnp.arange(6.0).reshape(2, 3) * EVERY[name](w))

    gradient = jax.grad(loss)(jnp.asarray(W))
    np.testing.assert_array_equal(gradient, np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("name", NOISY)
def test_reparameterized_is_the_true_derivative(name):
    w = jnp.float32([0.5, -1.2, 0.8, -0.3])

    def f(w):
        return NOISY[name](w, reparameterized=True)

    step = 1e-3
    difference = (f(w + step) - f(w - step)) / (2 * step)
    _, derivative = jax.jvp(f, (w,), (jnp.ones_like(w),))
    # Central differences in float32 of numbers near 1: 1e-7 / 1e-3, and a curvature.
    np.testing.assert_allclose(derivative, difference, atol=2e-3)
    np.testing.assert_array_equal(f(w), NOISY[name](w))
    if name not in ("add_normal",):
        assert np.abs(derivative - 1).max() > 5e-3


def test_reparameterized_add_normal_reaches_the_largest_weight():
    def f(w_max):
        return noises.add_normal(
            KEY, jnp.asarray(W), w_max, std_dev=0.1, reparameterized=True
        )

    slope = jax.jvp(f, (1.6,), (1.0,))[1]
    np.testing.assert_allclose(slope, 0.1 * normal(KEY, W.shape), rtol=1e-5)


def test_reparameterized_dorefa_is_the_slope_of_the_squeeze():
    gradient = jax.grad(lambda w: levels.dorefa(w, 1.0, res=0.1, reparameterized=True))(
        0.5
    )
    expected = 0.6 / np.tanh(1.0) / np.cosh(0.5) ** 2
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_bfloat16_stays_and_a_matrix_of_zeros_is_finite(name):
    w = jnp.asarray(W, jnp.bfloat16)
    assert EVERY[name](w).dtype == jnp.bfloat16
    zeros = jnp.zeros((2, 3))
    assert np.isfinite(EVERY[name](zeros)).all()


def test_a_largest_weight_of_zero_is_finite():
    zeros, none = jnp.zeros((2, 3)), jnp.zeros((1, 3))
    np.testing.assert_array_equal(levels.discretize(zeros, none, res=6), zeros)
    np.testing.assert_array_equal(levels.dorefa(zeros, none, res=6), zeros)
    for noisy in (
        noises.poly(KEY, zeros, none, std_dev=1.0),
        noises.prog_noise(KEY, zeros, none, std_dev=1.0),
        pcm_noise(KEY, zeros, none, std_dev=1.0),
    ):
        assert np.isfinite(noisy).all()


def test_uniform_rounding_uses_its_own_numbers():
    u = np.asarray(uniform(KEY, (N,)))
    x = jnp.full(N, 0.3)
    result = rounding.round_to(x, 1.0, jnp.asarray(u))
    np.testing.assert_array_equal(result, (u >= 0.7).astype(np.float32))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of the CPU backend")
def test_pcm_noise_draws_each_number_in_a_kernel_of_its_own():
    # In one kernel with the tiles' cuts, newer XLA needed minutes to compile them.
    def noisy(w):
        return pcm_noise(KEY, w, 1.0, std_dev=1.0, t_inference_s=100.0)

    text = jax.jit(noisy).lower(jnp.asarray(W)).compile().as_text()
    loops = [line for line in text.splitlines() if " while(" in line]
    assert sum("f32[2,3]" in line for line in loops) == 3
