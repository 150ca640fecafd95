"""Windows of convolutions, against JAX's own convolutions."""

import dataclasses
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hwtrain._arrays import windows
from hwtrain._arrays.windows import Window

SPATIAL = "DHW"


def numbers(shape, seed=0):
    # Integers: sums are exact in any order, so that all comparisons are too.
    return jnp.asarray(np.random.default_rng(seed).integers(-4, 5, shape), jnp.float32)


def random_window(seed):
    rng = random.Random(seed)
    rank = rng.choice([1, 2, 3])

    def sizes(low, high):
        return tuple(rng.randint(low, high) for _ in range(rank))

    explicit = rng.random() < 0.5
    padding = rng.choice(["SAME", "VALID", "SAME_LOWER"])
    if explicit:
        padding = tuple((rng.randint(-1, 3), rng.randint(-1, 3)) for _ in range(rank))
    window = Window.of(
        sizes(1, 4),
        strides=sizes(1, 3),
        padding=padding,
        # JAX resolves names of paddings only for inputs that are not dilated.
        input_dilation=sizes(1, 2) if explicit else None,
        kernel_dilation=sizes(1, 2),
    )
    return window, numbers((2, *sizes(5, 7), 3), seed)


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_those_of_jax_patches(seed):
    window, x = random_window(seed)
    axes = SPATIAL[-len(window.sizes) :]
    expected = lax.conv_general_dilated_patches(
        x,
        window.sizes,
        window.strides,
        window.padding,
        window.input_dilation,
        window.kernel_dilation,
        (f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    )
    seen = windows.patches(x, window)
    assert window.output_sizes(x.shape[1:-1]) == seen.shape[1:-1]
    np.testing.assert_array_equal(seen, expected)


def test_a_window_by_hand():
    x = jnp.arange(12.0).reshape(1, 3, 2, 2)  # [row, column, channel]
    window = Window.of((2, 1), padding=((1, 0), (0, 0)))
    seen = windows.patches(x, window)[0]
    # Rows -1..1 and their followers; per channel: the upper tap, then the lower one.
    np.testing.assert_array_equal(seen[0, 1], [0, 2, 0, 3])
    np.testing.assert_array_equal(seen[2, 0], [4, 8, 5, 9])


def test_flipped_windows_see_their_taps_in_reverse():
    x = numbers((1, 6, 5, 2))
    window = Window.of((3, 2), strides=(1, 2), kernel_dilation=(2, 1))
    flipped = dataclasses.replace(window, flipped=True)
    plain = windows.patches(x, window).reshape(1, 2, 2, 2, 3, 2)
    turned = windows.patches(x, flipped).reshape(plain.shape)
    np.testing.assert_array_equal(turned, plain[..., ::-1, ::-1])


def test_a_window_larger_than_its_input_sees_nothing():
    x = jnp.ones((2, 3, 4))
    assert windows.patches(x, Window.of((5,))).shape == (2, 0, 20)


def lax_pads(size, taps, stride, padding, dilation, flipped):
    """Returns the zeros around the input in JAX's own transposed convolution."""
    jaxpr = jax.make_jaxpr(
        lambda x, kernel: lax.conv_transpose(
            x,
            kernel,
            (stride,),
            padding,
            rhs_dilation=(dilation,),
            transpose_kernel=flipped,
        )
    )(jnp.ones((1, size, 1)), jnp.ones((taps, 1, 1)))
    (equation,) = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    assert equation.params["lhs_dilation"] == (stride,)
    return equation.params["padding"], jaxpr.out_avals[0].shape[1:-1]


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2),)])
def test_transposed_windows_are_those_of_jax(padding):
    for size, taps, stride, dilation, flipped in itertools.product(
        [1, 2, 5], [1, 2, 3, 6], [1, 2, 3], [1, 2], [False, True]
    ):
        window = windows.transposed(
            (taps,),
            strides=(stride,),
            padding=padding,
            kernel_dilation=(dilation,),
            flipped=flipped,
        )
        pads, positions = lax_pads(size, taps, stride, padding, dilation, flipped)
        assert window.pads((size,)) == pads
        assert window.output_sizes((size,)) == positions


@pytest.mark.parametrize("flipped", [False, True])
def test_a_transposed_window_computes_what_jax_does(flipped):
    x, kernel = numbers((2, 4, 3, 2)), numbers((3, 2, 2, 3), 1)
    given = jnp.swapaxes(kernel, 2, 3) if flipped else kernel
    options = {"strides": (2, 1), "padding": "SAME"}
    expected = lax.conv_transpose(
        x, given, rhs_dilation=(1, 2), transpose_kernel=flipped, **options
    )
    window = windows.transposed(
        (3, 2), kernel_dilation=(1, 2), flipped=flipped, **options
    )
    matrix = jnp.moveaxis(kernel, 2, 0).reshape(-1, 3)
    np.testing.assert_array_equal(windows.patches(x, window) @ matrix, expected)


def test_infinite_inputs_stay_where_they_are():
    x = jnp.zeros((1, 4, 2)).at[0, 1, 0].set(jnp.inf)
    seen = windows.patches(x, Window.of((2,)))
    assert int(jnp.isinf(seen).sum()) == 2
    assert not jnp.isnan(seen).any()


def test_the_gradient_adds_what_every_window_says():
    x = numbers((1, 5, 1))
    d = numbers((1, 3, 3), 1)
    gradient = jax.vjp(lambda x: windows.patches(x, Window.of((3,))), x)[1](d)[0]
    by_hand = np.zeros(5)
    for position, tap in itertools.product(range(3), range(3)):
        by_hand[position + tap] += d[0, position, tap]
    np.testing.assert_array_equal(gradient[0, :, 0], by_hand)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sizes": (3, 0)}, "sizes of a window of 2 axes"),
        ({"strides": (0, 1)}, "strides of a window of 2 axes"),
        ({"strides": (1, 1, 1)}, "strides of a window of 2 axes"),
        ({"input_dilation": (-1, 1)}, "input_dilation of a window"),
        ({"kernel_dilation": (2,)}, "kernel_dilation of a window"),
        ({"groups": 0}, "at least 1 group, got 0"),
        ({"padding": "CIRCULAR"}, "one of SAME, SAME_LOWER, VALID"),
        ({"padding": ((1, 1),)}, "should be 2 pairs"),
        ({"border": ((1, 1),)}, "should be 2 pairs or nothing"),
        ({"border": ((1, -1), (0, 0))}, "a border must not be negative"),
    ],
)
def test_a_window_that_cannot_be(change, match):
    window = Window.of((3, 3))
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(window, **change)
