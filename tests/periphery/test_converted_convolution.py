"""Convolutions with converters, against `analog_mvm` on written-out windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._arrays.windows import Window, patches
from hwtrain._plan.hardware import Hardware
from hwtrain.periphery import IOParameters, analog_mvm
from hwtrain.periphery._read_keys import read_keys
from hwtrain.periphery._whole_convolution import converted_convolution, runs_whole
from hwtrain.periphery.input_range import Range

CONVERTERS = {
    "inp_bound": 1.0,
    "inp_res": 1 / 14,
    "out_bound": 1.5,
    "out_res": 1 / 62,
}
PERIPHERIES = {
    "converters": IOParameters(**CONVERTERS),
    "a low DAC": IOParameters(inp_bound=0.8, inp_res=1 / 14, out_bound=0.7),
    "noise": IOParameters(
        **CONVERTERS, out_noise=0.1, w_noise=0.1, w_noise_type="pcm_read"
    ),
    "distortion": IOParameters(
        **CONVERTERS,
        inp_asymmetry=0.1,
        out_asymmetry=0.2,
        out_scale=1.5,
        out_nonlinearity=0.3,
        slope_calibration=0.2,
        w_noise=0.1,
        w_noise_type="additive_constant",
    ),
    "spreads": IOParameters(
        **CONVERTERS,
        out_nonlinearity=0.3,
        out_nonlinearity_std=0.5,
        out_noise=0.05,
        out_noise_std=0.5,
    ),
    "stochastic": IOParameters(
        inp_bound=1.0, out_bound=1.5, out_res=1 / 14, out_sto_round=True
    ),
}
WINDOWS = {
    "one group": (Window.of((3, 2), padding="SAME"), (4, 3)),
    "tiles": (Window.of((3, 2), padding="SAME"), (4, 3)),
    "strided groups": (
        Window.of(
            (2,), strides=(2,), padding=((1, 1),), kernel_dilation=(2,), groups=2
        ),
        (9,),
    ),
}
TILES = {"tiles": ((5, 5, 5, 5, 4), (3, 3, 2))}
OFTEN = {
    ("noise", "one group"),
    ("noise", "tiles"),
    ("distortion", "strided groups"),
}


def of_windows(
    x, kernel, stages, window, *, row_sizes, column_sizes, keys, chip_keys, **leaves
):
    """The same by `analog_mvm`, one group after the other."""
    seen, groups = patches(x, window), window.groups
    seen = seen.reshape(*seen.shape[:-1], groups, -1)
    matrix = jnp.moveaxis(kernel, -2, 0).reshape(-1, groups, kernel.shape[-1] // groups)
    outputs = [
        analog_mvm(
            seen[..., g, :],
            matrix[:, g],
            stages,
            row_sizes=row_sizes,
            column_sizes=column_sizes,
            keys=keys,
            chip_key=chip_keys[g],
            **{name: leaf[g] for name, leaf in leaves.items() if leaf is not None},
        )
        for g in range(groups)
    ]
    return jnp.concatenate(outputs, -1)


def tiles_of(name):
    window = WINDOWS[name][0]
    one = (4 // window.groups * window.taps,), (8 // window.groups,)
    return TILES.get(name, one)


def arrays(name):
    window, spatial = WINDOWS[name]
    row_sizes, column_sizes = tiles_of(name)
    keys = jax.random.split(jax.random.key(0), 6)
    groups, width = window.groups, 8 // window.groups
    rows = (groups, len(row_sizes))
    tiles = (*rows, len(column_sizes))
    return {
        "x": jax.random.normal(keys[0], (3, *spatial, 4)),
        "kernel": jax.random.normal(keys[1], (*window.sizes, 4 // groups, 8)),
        "scale": jax.random.uniform(keys[2], (*rows, width), minval=1.0, maxval=3),
        "output_scale": jax.random.uniform(keys[3], (*rows, 1), minval=0.5),
        "input_range": jax.random.uniform(keys[4], tiles, minval=0.5),
        "probe": jnp.zeros((*tiles, 6)),
    }


def value_and_gradients(function, given, keys, p, name):
    window = WINDOWS[name][0]
    row_sizes, column_sizes = tiles_of(name)
    chips = jax.random.split(jax.random.key(8), window.groups)
    stages = (Range(), *p.parts)

    @jax.jit
    def run(given):
        def call(given):
            given = dict(given)
            x, kernel = given.pop("x"), given.pop("kernel")
            return function(
                x,
                kernel,
                stages,
                window,
                row_sizes=row_sizes,
                column_sizes=column_sizes,
                keys=keys,
                chip_keys=chips,
                **given,
            )

        y, pull = jax.vjp(call, given)
        return y, pull(jax.random.normal(jax.random.key(7), y.shape))[0]

    return run(given)


@pytest.mark.parametrize(
    ("name", "window"),
    [
        pytest.param(
            name,
            window,
            marks=() if (name, window) in OFTEN else pytest.mark.nightly,
        )
        for name in PERIPHERIES
        for window in WINDOWS
        if window != "strided groups" or name in ("converters", "distortion")
    ],
)
def test_outputs_gradients_and_statistics_are_those_of_the_windows(name, window):
    p, given = PERIPHERIES[name], arrays(window)
    # Groups draw at once what the windows draw one after the other.
    one = WINDOWS[window][0].groups == 1
    keys = read_keys(jax.random.key(9)) if one else None
    (y, found), (expected, wanted) = (
        value_and_gradients(function, given, keys, p, window)
        for function in (converted_convolution, of_windows)
    )
    # A sum at the edge of two levels of the ADC may round to either.
    step = (p.adc.converter.step or 0.0) * 5
    different = np.abs(np.asarray(y - expected)) > 1e-5
    assert different.mean() < 0.01
    np.testing.assert_allclose(y, expected, atol=1e-5 + step)
    for leaf, ours in found.items():
        top = float(jnp.abs(wanted[leaf]).max())
        np.testing.assert_allclose(
            ours, wanted[leaf], rtol=1e-4, atol=1e-5 * top + 1e-30, err_msg=leaf
        )
    # Where the DAC clips below the range, a wider one would change nothing.
    assert (found["input_range"] < 0).any() == (p.dac.bound >= 1)


def test_each_group_has_the_spread_of_its_own_chip():
    p = IOParameters(out_bound=1.5, out_nonlinearity=0.3, out_nonlinearity_std=0.5)
    given = arrays("strided groups")
    (y, _), (expected, _) = (
        value_and_gradients(function, given, None, p, "strided groups")
        for function in (converted_convolution, of_windows)
    )
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"out_noise": 0.1}, 0.1),
        # Two inputs of 1 and two weights of 0.5 meet in each output.
        ({"w_noise": 0.1, "w_noise_type": "additive_constant"}, 0.1 * 2**0.5),
        ({"w_noise": 0.1, "w_noise_type": "pcm_read"}, 0.1),
    ],
)
def test_noise_has_its_strength_and_groups_draw_their_own(options, expected):
    y = converted_convolution(
        jnp.ones((1000, 3, 4)),
        jnp.full((1, 2, 4), 0.5),
        IOParameters(**options).parts,
        Window.of((1,), groups=2),
        keys=read_keys(jax.random.key(0)),
        strength=jnp.array([1.0, 2.0]).reshape(2, 1, 1),
    )
    y = np.asarray(y) - 1
    std = y.reshape(-1, 2, 2).std(axis=(0, 2))
    margin = 5 / np.sqrt(2 * 6000)
    np.testing.assert_allclose(std, [expected, 2 * expected], rtol=margin)
    first, second = y[..., 0].ravel(), y[..., 2].ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(3000)


def test_without_a_probe_forward_mode_works():
    x = jnp.array([[0.25, 4.0, 2.0]])[..., None]
    stages = (Range(), *IOParameters(inp_bound=1.0, inp_res=1 / 8).parts)

    def convolve(x):
        r = jnp.full((1, 1, 1), 3.0)
        kernel = jnp.ones((2, 1, 1))
        return converted_convolution(x, kernel, stages, Window.of((2,)), input_range=r)

    # 1/12, 1 and 2/3 of the range, in levels of 1/4: 0, 1 and 0.75.
    y, moved = jax.jvp(convolve, (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(y.ravel(), [3, 5.25], rtol=1e-6)
    np.testing.assert_allclose(moved.ravel(), [1, 1], rtol=1e-6)  # the 4 is clipped


@pytest.mark.parametrize("name", ["one group", "tiles"])
def test_without_a_probe_the_range_is_a_constant(name):
    given = {**arrays(name), "probe": None, "x": 2 * jnp.ones((3, 4, 3, 4))}
    _, found = value_and_gradients(
        converted_convolution, given, None, PERIPHERIES["converters"], name
    )
    np.testing.assert_array_equal(found["input_range"], 0)
    assert (found["kernel"] != 0).any()


@pytest.mark.parametrize(
    "changed",
    [
        {"inp_noise": 0.1},
        {"inp_res": 0.1, "inp_sto_round": True},
        {"ir_drop": 1.0},
        {"r_series": 0.1},
        {"v_offset_std": 0.1},
        {"noise_management": "abs_max"},
        {"bound_management": "iterative", "out_bound": 1.0},
        {"bound_management": "shift", "out_bound": 1.0},
    ],
)
def test_what_depends_on_the_window_needs_the_windows(changed):
    assert not runs_whole(Hardware(forward=IOParameters(**changed)).stages)
