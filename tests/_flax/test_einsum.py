"""Einsum layers against NumPy and against Flax's own, over random equations."""

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._flax.einsums import analog_einsum, describe
from hwtrain._plan.layer import analog_weight

SMALL_TILES = hw.Hardware(
    forward=hw.IOParameters(out_bound=1e6),  # on tiles, but as good as ideal
    mapping=hw.MappingParameter(
        max_input_size=3, max_output_size=2, weight_scaling_omega=1.0
    ),
)


def random_equation(generator):
    """Returns an equation, the shapes, and what each index of the kernel is."""
    names = list(generator.permutation(list(string.ascii_lowercase)))
    kinds = {
        "stack": [names.pop() for _ in range(generator.integers(0, 2))],
        "rows": [names.pop() for _ in range(generator.integers(1, 3))],
        "columns": [names.pop() for _ in range(generator.integers(0, 3))],
        "free": [names.pop() for _ in range(generator.integers(0, 3))],
        "alone": [names.pop() for _ in range(generator.integers(0, 2))],
    }

    def shuffled(*groups):
        return "".join(generator.permutation([c for g in groups for c in kinds[g]]))

    kernel = "".join(kinds["stack"]) + shuffled("rows", "columns")
    inputs = shuffled("stack", "rows", "free", "alone")
    output = shuffled("stack", "columns", "free")
    sizes = {c: int(generator.integers(2, 5)) for c in inputs + kernel}
    shapes = [tuple(sizes[c] for c in operand) for operand in (inputs, kernel)]
    return f"{inputs},{kernel}->{output}", shapes, kinds, kernel


@pytest.mark.parametrize("seed", range(12))
def test_equals_numpy_for_random_equations(seed):
    generator = np.random.default_rng(seed)
    equation, shapes, kinds, names = random_equation(generator)
    x, kernel = (generator.normal(size=shape).astype(np.float32) for shape in shapes)
    layer = describe(equation, kernel.shape)
    array = layer.weights[0]
    assert {names[i] for i in array.rows} == set(kinds["rows"])
    assert {names[i] for i in array.columns} == set(kinds["columns"])
    weight = analog_weight(
        layer,
        array,
        path="layer/kernel",
        shape=kernel.shape,
        hardware=SMALL_TILES,
        rule="",
    )
    y = jax.jit(analog_einsum(weight, "eval", {}), static_argnums=0)(
        equation, x, kernel
    )
    expected = np.einsum(equation, x, kernel)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "shape", "why"),
    [
        ("ab,b->ab", (3,), "sums over no axis"),
        ("ab,cb->a", (4, 3), "sums the kernel alone over 'c'"),
        ("abe,heb->abh", (2, 3, 4), "stacks crossbars over 'b', which must lead"),
        ("aab,bc->ac", (3, 4), "repeats an index"),
        ("ab,b...->a...", (3, 4), "has an ellipsis in the kernel"),
    ],
)
def test_what_is_no_multiplication_by_rows_and_columns_stays_digital(
    equation, shape, why
):
    layer = describe(equation, shape)
    assert layer.kind is None
    assert why in layer.why


CASES = [
    ("bte,ehd->bthd", (4, 2, 3), {}),
    ("bte,hed->bthd", (2, 4, 3), {"use_bias": False}),
    ("...e,ed->...d", (4, 3), {}),
    ("bte,te->bt", (5, 4), {"use_bias": False}),
    ("bte,ehd->bthd", (4, 2, 3), {"dtype": jnp.bfloat16}),
    ("bte,ed->btd", (4, 3), {"preferred_element_type": jnp.float32}),
]
X = jax.random.normal(jax.random.key(0), (2, 5, 4))


@pytest.mark.parametrize(("equation", "shape", "options"), CASES)
def test_linens_own_einsum_gives_the_same(equation, shape, options):
    layer = nn.Einsum(shape, equation, **options)
    variables = jax.jit(layer.init)(jax.random.key(1), X)
    analog = hw.eval_mode(hw.analogize(layer, SMALL_TILES))
    expected = jax.jit(layer.apply)(variables, X)
    found = jax.jit(analog.apply)(variables, X)
    assert found.dtype == expected.dtype
    atol = 0.05 if options.get("dtype") else 1e-6
    np.testing.assert_allclose(
        np.float32(found), np.float32(expected), rtol=1e-5, atol=atol
    )


@pytest.mark.parametrize(("equation", "shape", "options"), CASES)
def test_nnxs_own_einsum_gives_the_same(equation, shape, options):
    options = dict(options)
    output = equation.partition("->")[2]
    kernel = dict(zip(equation.partition(",")[2].partition("->")[0], shape))
    bias = tuple(kernel[c] for c in output if c in kernel)
    if options.pop("use_bias", True):
        options["bias_shape"] = bias
    layer = nnx.Einsum(equation, shape, **options, rngs=nnx.Rngs(1))
    analog = hw.eval_mode(hw.analogize(layer, SMALL_TILES))
    expected, found = nnx.jit(lambda a, b, x: (a(x), b(x)))(layer, analog, X)
    assert found.dtype == expected.dtype
    atol = 0.05 if options.get("dtype") else 1e-6
    np.testing.assert_allclose(
        np.float32(found), np.float32(expected), rtol=1e-5, atol=atol
    )


def test_an_equation_given_at_the_call():
    layer = nn.Einsum((4, 3))
    init = jax.jit(layer.init, static_argnums=2)
    variables = init(jax.random.key(1), X, "bte,ed->btd")
    analog = hw.eval_mode(hw.analogize(layer, SMALL_TILES))
    np.testing.assert_allclose(
        analog.apply(variables, X, einsum_str="bte,ed->btd"),
        layer.apply(variables, X, "bte,ed->btd"),
        rtol=1e-5,
        atol=1e-6,
    )
    twin = hw.analogize(
        nnx.Einsum("bte,ed->btd", (4, 3), rngs=nnx.Rngs(0)), SMALL_TILES
    )
    with pytest.raises(ValueError, match="computes 'bte,ed->btd'; got 'bte,ed->bdt'"):
        twin(X, "bte,ed->bdt")


def test_an_einsum_operation_of_the_users_own_stays_digital():
    def einsum(*args, **kwargs):
        return jnp.einsum(*args, **kwargs)

    layer = nnx.Einsum("bte,ed->btd", (4, 3), einsum_op=einsum, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="it has an einsum_op of its own"):
        hw.analogize(layer, SMALL_TILES)
