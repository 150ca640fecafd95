"""XLA's convolution of clipped inputs, against written-out windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._arrays.windows import Window, patches
from hwtrain.periphery._range_gradient import RangeGradient, ranged_matmul
from hwtrain.periphery._ranges_of_windows import ranged_convolution
from hwtrain.periphery._window_gradients import _times_seen

WINDOWS = {
    "overlapping": (Window.of((3, 2), padding="SAME", groups=2), (4, 3)),
    "dilated": (
        Window.of(
            (3,), padding=((2, 1),), input_dilation=(2,), kernel_dilation=(2,), groups=1
        ),
        (4,),
    ),
    "cut and strided": (
        Window.of((2,), strides=(3,), padding=((-1, 2),), groups=4),
        (7,),
    ),
}


def of_windows(x, kernel, r, probe, window, gradient):
    """The same by `ranged_matmul`, one group after the other."""
    seen = patches(x, window)
    groups = window.groups
    seen = seen.reshape(*seen.shape[:-1], groups, -1)
    matrix = jnp.moveaxis(kernel, -2, 0).reshape(-1, groups, kernel.shape[-1] // groups)
    outputs = [
        ranged_matmul(
            seen[..., g, :],
            matrix[:, g],
            r[g],
            probe[g],
            row_sizes=(matrix.shape[0],),
            column_sizes=(matrix.shape[-1],),
            gradient=gradient,
        )
        for g in range(groups)
    ]
    return jnp.concatenate(outputs, -1)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        ("overlapping", RangeGradient()),
        ("dilated", RangeGradient(0.5, relative=False, straight_through=True)),
        ("cut and strided", RangeGradient()),
    ],
    ids=list(WINDOWS),
)
def test_outputs_gradients_and_statistics_of_the_windows(name, gradient):
    window, spatial = WINDOWS[name]
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (2, *spatial, 4))
    kernel = jax.random.normal(keys[1], (*window.sizes, 4 // window.groups, 8))
    r = jax.random.uniform(keys[2], (window.groups, 1, 1), minval=0.3, maxval=1.0)
    probe = jnp.zeros((*r.shape, 6))

    def run(function):
        @jax.jit
        def value_and_gradients(*arrays):
            y, pull = jax.vjp(lambda *a: function(*a, window, gradient), *arrays)
            return y, pull(jax.random.normal(keys[3], y.shape))

        return value_and_gradients(x, kernel, r, probe)

    (y, found), (expected, wanted) = run(ranged_convolution), run(of_windows)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for ours, theirs in zip(found, wanted):
        top = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6 * top)
    assert (found[2] < 0).any()


def test_a_value_at_the_range_widens_it_and_keeps_its_gradient():
    # x = r: clipped in the statistics, inside for the gradient to x; d = -1 widens.
    x = jnp.array([[0.5, 0.0]])[..., None]
    r, probe = jnp.full((1, 1, 1), 0.5), jnp.zeros((1, 1, 1, 6))
    kernel = jnp.ones((1, 1, 1))

    def loss(x, r, probe):
        return -ranged_convolution(x, kernel, r, probe, Window.of((1,))).sum()

    d_x, d_r, d_probe = jax.grad(loss, (0, 1, 2))(x, r, probe)
    np.testing.assert_array_equal(d_x.ravel(), [-1, -1])
    assert float(d_r.sum()) == -0.5
    np.testing.assert_array_equal(d_probe.ravel() * 2.0**40, [2, 1, 1, 1, 0, 0])


def test_without_a_probe_forward_mode_works():
    x = jnp.array([[1.0, 4.0, 2.0]])[..., None]

    def convolve(x):
        r = jnp.full((1, 1, 1), 3.0)
        return ranged_convolution(x, jnp.ones((2, 1, 1)), r, None, Window.of((2,)))

    y, moved = jax.jvp(convolve, (x,), (jnp.ones_like(x),))
    np.testing.assert_array_equal(y.ravel(), [4, 5])
    np.testing.assert_array_equal(moved.ravel(), [1, 1])  # the 4 is clipped


@pytest.mark.parametrize("name", WINDOWS)
def test_the_times_that_an_input_is_seen(name):
    window, spatial = WINDOWS[name]
    ones = np.ones((1, *spatial, window.groups), np.float32)
    seen = jax.vjp(lambda x: patches(x, window), jnp.asarray(ones))
    (expected,) = seen[1](jnp.ones_like(seen[0]))
    found = _times_seen((*spatial, window.groups), window, None)
    np.testing.assert_array_equal(np.broadcast_to(found, ones[0].shape), expected[0])


def test_the_times_of_a_long_input_take_little_memory():
    """An array of inputs times positions would have 10^12 entries."""
    window = Window.of((3,), padding="SAME", groups=1)
    found = np.ravel(_times_seen((1_000_000, 1), window, None))
    assert (found[1:-1] == 3).all() and found[0] == found[-1] == 2
