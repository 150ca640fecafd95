"""The analog multiplication against golden numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain.periphery import IOParameters, analog_mvm
from hwtrain.periphery._range_gradient import PROBE_SCALE
from hwtrain.periphery.input_range import Range

NOISE_MANAGEMENT = {
    "None": "none",
    "AbsMax": "abs_max",
    "Max": "max",
    "Constant": "constant",
    "AbsMaxNPSum": "abs_max_np_sum",
}
BOUND_MANAGEMENT = {
    "None": "none",
    "Iterative": "iterative",
    "IterativeWorstCase": "iterative_worst_case",
}
CPP = [
    "clip_only",
    "inp_res6",
    "inp_res_1/6",
    "inp_res6_absmax",
    "absmax_nm_thres1",
    "max",
    "constant2",
    "absmax_npsum",
    "out_bound0.5",
    "out_res10_bound2",
    "out_scale2",
    "iterative_bm",
    "iterative_worst_case",
    "out_asymmetry0.1",
    "inp_asymmetry0.1",
    "ir_drop1",
    "ir_drop1_small_ratio50",
    "out_nonlinearity1_bound2",
    "out_nonlinearity1_bound2_slope0.5",
    "r_series0.1",
    "r_series0.1_wmin0",
]
TORCH_TILE = [
    "clip_only",
    "inp_res6",
    "inp_res_1/6",
    "inp_res6_absmax",
    "absmax_nm_thres1",
    "max",
    "constant2",
    "out_bound0.5",
    "out_res10_bound2",
    "out_scale2",
    "iterative_bm",
    "out_asymmetry0.1",
    "inp_asymmetry0.1",
]
# The torch tile runs its iterative_worst_case as iterative; we follow the C++ engine.


def io_of(case):
    """Translates the reference's parameters, where -1 or None means off."""
    given = dict(case["pars"])
    given.pop("is_perfect")
    options = {}
    for name, value in given.items():
        if name == "noise_management":
            value = NOISE_MANAGEMENT[value]
        elif name == "bound_management":
            value = BOUND_MANAGEMENT[value]
        if value not in (-1, 0.0):
            options[name] = value
    if given.get("v_offset_w_min") == 0.0:
        options["v_offset_w_min"] = 0.0
    if options.get("noise_management") == "abs_max_np_sum":
        if "out_bound" not in options:
            # The case has no bound; then the sums do not matter, and we ask for one.
            options["out_bound"] = 1e6
    return IOParameters(**options)


def multiply(x, w, io, **options):
    """Multiplies by a matrix on one tile, unless sizes are given."""
    x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    options = {"row_sizes": w.shape[:1], "column_sizes": w.shape[1:], **options}
    stages = (Range(), *io.parts) if "input_range" in options else io.parts
    return analog_mvm(x, w, stages, **options)


@pytest.mark.parametrize(
    "section, name",
    [("mvm_cpp", name) for name in CPP]
    + [("mvm_torch_tile", name) for name in TORCH_TILE],
)
def test_golden(golden, section, name):
    case = golden("aihwkit_mvm")[section][name]
    y = multiply(case["x"], np.transpose(case["w"]), io_of(case))
    np.testing.assert_allclose(y, case["y"], rtol=1e-5, atol=2e-6)


def test_golden_covers_every_case_that_we_build(golden):
    cases = golden("aihwkit_mvm")
    # Inputs of either sign in passes of their own; our multiplication has one pass.
    passes = {"pos_neg_separate", "pos_neg_separate_digital"}
    assert set(cases["mvm_cpp"]) - set(CPP) == passes | {"rounding_ties"}
    recorded_errors = passes | {"absmax_npsum"}
    others = set(cases["mvm_torch_tile"]) - set(TORCH_TILE)
    assert others == recorded_errors | {"iterative_worst_case"}


def layer_gradients(case, io, *, row_sizes=None, r, scale=None):
    """Runs a whole layer of a golden case, forward and backward."""
    x, w = jnp.asarray(case["x"]), jnp.asarray(case["W"]).T
    row_sizes = row_sizes or w.shape[:1]
    ranges = jnp.full((len(row_sizes), 1), r)
    probe = jnp.zeros((len(row_sizes), 1, 6))

    def layer(x, w, ranges, probe):
        return multiply(
            x,
            w,
            io,
            row_sizes=row_sizes,
            input_range=ranges,
            probe=probe,
            scale=scale,
        )

    y, pull = jax.vjp(layer, x, w, ranges, probe)
    d_x, d_w, d_range, d_probe = pull(jnp.asarray(case["grad_y"]))
    return y, d_x, d_w.T, d_range.ravel(), d_probe[:, 0] / PROBE_SCALE


def decayed(case, d_range, sums):
    share = sums[:, 1] / sums[:, 0]
    return d_range + case["pars"]["decay"] * case["input_range"] * (share > 0.95)


@pytest.mark.parametrize(
    "name, options",
    [
        ("perfect/r2/no_decay", {}),
        ("perfect/r2/decay0.1", {}),
        ("perfect/r2/noclip/decay0.1", {}),
        ("perfect/r2/omega1_scaled0.5", {}),
        ("inp_res6/r2/no_decay", {"inp_res": 6.0}),
        ("out_bound0.6/r2/manage_off", {"out_bound": 0.6}),
    ],
)
def test_golden_layers_of_the_torch_tile(golden, name, options):
    case = golden("aihwkit_mvm")["input_range_full_layer"][f"TorchInferenceTile/{name}"]
    s = 1.0 if case["mapping_scales"] is None else case["mapping_scales"][0]
    y, d_x, d_w, d_range, sums = layer_gradients(
        case, IOParameters(**options), r=case["input_range"], scale=jnp.full((1, 1), s)
    )
    np.testing.assert_allclose(y, case["y"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_x, case["grad_x"], rtol=1e-5, atol=1e-6)
    # Theirs is the gradient at w = W / s, divided by s^2, for plain SGD on w.
    theirs = np.asarray(case["grad_W_normalised_analog"]) * s
    np.testing.assert_allclose(d_w, theirs, rtol=1e-5, atol=1e-6)
    if name.startswith("perfect"):
        # Elsewhere the torch tile adds the derivative through x / r and y * r.
        expected = case["grad_input_range"]
        np.testing.assert_allclose(decayed(case, d_range, sums), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "perfect/r2/no_decay",
        "perfect/r2/omega1_scaled0.5",
        "inp_res6/r2/no_decay",
        "out_bound0.6/r2/manage_off",
    ],
)
def test_golden_outputs_of_the_cpp_layers(golden, name):
    # Its gradients pass straight through clipping, and miss a factor r at the weights;
    # ours are those of the torch tile.
    case = golden("aihwkit_mvm")["input_range_full_layer"][f"InferenceTile_cpp/{name}"]
    options = {"inp_res": 6.0} if name.startswith("inp_res6") else {}
    options |= {"out_bound": 0.6} if name.startswith("out_bound") else {}
    y, *_ = layer_gradients(case, IOParameters(**options), r=case["input_range"])
    np.testing.assert_allclose(y, case["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name, options, row_sizes",
    [
        ("ir/r2/no_decay", {}, None),
        ("ir/r2/decay0.1", {}, None),
        ("ir/r2/noclip/decay0.1", {}, None),
        ("ir/r2/inp_res6/no_decay", {"inp_res": 6.0}, None),
        ("ir/r2/two_splits/no_decay", {}, (2, 2)),
        ("ir/r2/out_bound0.3_out_res10", {"out_bound": 0.3, "out_res": 10.0}, None),
    ],
)
def test_golden_lightning_layers(golden, name, options, row_sizes):
    case = golden("aihwkit_mvm")["lightning_layer"][name]
    y, d_x, d_w, d_range, sums = layer_gradients(
        case, IOParameters(**options), row_sizes=row_sizes, r=case["input_range"]
    )
    np.testing.assert_allclose(y, case["y"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_x, case["grad_x"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_w, case["grad_W"], rtol=1e-5, atol=1e-6)
    expected = case["grad_input_range"]
    np.testing.assert_allclose(decayed(case, d_range, sums), expected, rtol=1e-5)


def test_golden_dynamic_range_is_abs_max(golden):
    case = golden("aihwkit_mvm")["lightning_layer"]["ir/dynamic/inp_res6"]
    io = IOParameters(inp_res=6.0, noise_management="abs_max")
    x, w = jnp.asarray(case["x"]), jnp.asarray(case["W"]).T
    y, pull = jax.vjp(lambda x, w: multiply(x, w, io), x, w)
    d_x, d_w = pull(jnp.asarray(case["grad_y"]))
    np.testing.assert_allclose(y, case["y"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_x, case["grad_x"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_w.T, case["grad_W"], rtol=1e-5, atol=1e-6)


def test_golden_management_of_output_clipping(golden):
    cases = golden("aihwkit_mvm")["input_range_full_layer"]
    managed = cases["InferenceTile_cpp/out_bound0.6/r2/manage_on"]
    # Here more than half of the outputs are inside, so that nothing is added.
    enough = cases["InferenceTile_cpp/out_bound0.6/r2/manage_on_minpct0.5"]
    io = IOParameters(out_bound=0.6)
    y, _, _, d_range, sums = layer_gradients(managed, io, r=2.0)
    np.testing.assert_allclose(y, managed["y"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_range, enough["grad_input_range"], rtol=1e-5)
    outputs, inside = np.asarray(sums[0, 4:])
    assert (outputs, inside) == (9, 5)
    # The engine divides by the number of inputs, 12; we divide by that of outputs.
    theirs = d_range - (outputs - inside) / 12 * 2.0
    np.testing.assert_allclose(theirs, managed["grad_input_range"], rtol=1e-5)
