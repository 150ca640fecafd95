"""Modules of raw parameters and einsums, as Gemma's are, unedited and on hardware."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

# Modules as such code writes them: no layers of Flax, no hwtrain.

EMBED, HEADS, HEAD, HIDDEN = 6, 2, 4, 10


class LinenEinsum(nn.Module):
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, equation, x):
        w = self.param("w", nn.initializers.lecun_normal(), self.shape)
        return jnp.einsum(equation, x, w)


class LinenFeedForward(nn.Module):
    @nn.compact
    def __call__(self, x):
        shape, start = (2, HIDDEN, EMBED), nn.initializers.lecun_normal()
        gating = self.param("gating", start, shape)
        gate, up = jnp.moveaxis(jnp.einsum("...F,NHF->...NH", x, gating), -2, 0)
        linear = self.param("linear", start, (HIDDEN, EMBED))
        return jnp.einsum("...H,HF->...F", nn.gelu(gate) * up, linear)


class NnxEinsum(nnx.Module):
    def __init__(self, equation, shape, *, rngs):
        self.equation = equation
        self.w = nnx.Param(nn.initializers.lecun_normal()(rngs.params(), shape))

    def __call__(self, x):
        return jnp.einsum(self.equation, x, self.w[...])


class NnxFeedForward(nnx.Module):
    def __init__(self, *, rngs):
        start = nn.initializers.lecun_normal()
        self.gating = nnx.Param(start(rngs.params(), (2, HIDDEN, EMBED)))
        self.linear = nnx.Param(start(rngs.params(), (HIDDEN, EMBED)))

    def __call__(self, x):
        both = jnp.einsum("...F,NHF->...NH", x, self.gating[...])
        gate, up = jnp.moveaxis(both, -2, 0)
        return jnp.einsum("...H,HF->...F", nn.gelu(gate) * up, self.linear[...])


# What makes them analog.


def feed_forward(module, x):
    both = hw.analog_einsum(module, "gating", "...F,NHF->...NH", x)
    gate, up = jnp.moveaxis(both, -2, 0)
    return hw.analog_einsum(module, "linear", "...H,HF->...F", nn.gelu(gate) * up)


hw.sockets.register(
    LinenEinsum,
    "w",
    lambda module, equation, x: equation,
    call=lambda module, equation, x: hw.analog_einsum(module, "w", equation, x),
)
hw.sockets.register(
    NnxEinsum,
    "w",
    lambda module: module.equation,
    call=lambda module, x: hw.analog_einsum(module, "w", module.equation, x),
)
for cls in (LinenFeedForward, NnxFeedForward):
    hw.sockets.register(cls, "gating", "...F,NHF->...NH", call=feed_forward)
    hw.sockets.register(cls, "linear", "...H,HF->...F", call=feed_forward)

SHAPES = {
    "q": ("BTD,NDH->BTNH", (HEADS, EMBED, HEAD)),
    "kv": ("BSD,CKDH->CBSKH", (2, HEADS, EMBED, HEAD)),
    "o": ("BTNH,NHD->BTD", (HEADS, HEAD, EMBED)),
}


def mixed(q, keys, values):
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, keys)
    return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores), values)


class LinenBlock(nn.Module):
    def setup(self):
        self.layers = {name: LinenEinsum(shape) for name, (_, shape) in SHAPES.items()}
        self.mlp = LinenFeedForward()

    def __call__(self, x):
        def project(name, x):
            return self.layers[name](SHAPES[name][0], x)

        y = mixed(project("q", x), *project("kv", x))
        return self.mlp(project("o", y))


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.q, self.kv, self.o = (
            NnxEinsum(*SHAPES[name], rngs=rngs) for name in ("q", "kv", "o")
        )
        self.mlp = NnxFeedForward(rngs=rngs)

    def __call__(self, x):
        return self.mlp(self.o(mixed(self.q(x), *self.kv(x))))


CHIP = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.05),
    clip=hw.WeightClipParameter(type="layer_gaussian", sigma=1.5),
    input_range=hw.InputRangeParameter(init_value=1.5),
    forward=hw.IOParameters(inp_bits=5, out_bits=6, out_bound=3.0, out_noise=0.02),
    mapping=hw.MappingParameter(weight_scaling_omega=1.0),
    converter=hw.SinglePairConductanceConverter(g_max=25.0),
    mismatch=hw.MismatchParameter(type="add_normal", std_dev=0.1),
)
X = jax.random.normal(jax.random.key(3), (2, 3, EMBED))
ROWS = {"q": (1,), "kv": (2,), "o": (0, 1), "gating": (2,), "linear": (0,)}
"""The axes that are summed over, by the equations."""
BOTH = pytest.mark.parametrize("framework", ["linen", "nnx"])


def block(framework, hardware=CHIP):
    """Returns a plain and an analog block, its variables and its plan."""
    if framework == "linen":
        analog = hw.analogize(LinenBlock(), hardware)
        variables = analog.init(jax.random.key(0), X)
        return LinenBlock(), analog, variables, hw.plan(analog, variables, X)
    plain = NnxBlock(nnx.Rngs(0))
    analog = hw.analogize(plain, hardware, rngs=nnx.Rngs(mismatch=0))
    return plain, analog, None, hw.plan(analog, None, X)


@BOTH
def test_every_product_has_both_sides(framework):
    *_, plan = block(framework)
    found = {}
    for path, weight in plan.items():
        *_, layer, array = path.split("/")
        found[layer.removeprefix("layers_") if array == "w" else array] = weight
    assert {name: weight.rows for name, weight in found.items()} == ROWS
    assert all(weight.ranged and weight.hardware == CHIP for weight in found.values())


@pytest.mark.nightly
@BOTH
def test_every_effect_of_every_product_is_active(framework):
    _, analog, variables, plan = block(framework)
    found = str(hw.assert_active(analog, variables, X))
    effects = ("modifier", "input_range", "clip", "mismatch", "out_noise")
    for path in plan:
        for effect in effects:
            assert f"{path}: {effect}" in found, found


@BOTH
def test_on_ideal_hardware_nothing_changes(framework):
    ideal = hw.Hardware(mapping=hw.MappingParameter(weight_scaling_omega=1.0))
    plain, analog, variables, plan = block(framework, ideal)
    assert len(plan) == len(ROWS)
    if framework == "linen":
        found, wanted = analog.apply(variables, X), plain.apply(variables, X)
    else:
        found, wanted = analog(X), plain(X)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.parametrize("name", [*SHAPES])
def test_a_product_is_what_numpy_says(framework, name):
    equation, shape = SHAPES[name]
    inputs = {"B": 2, "T": 3, "S": 3, "D": EMBED, "N": HEADS, "H": HEAD}
    x = jax.random.normal(
        jax.random.key(5), [inputs[c] for c in equation.partition(",")[0]]
    )
    quiet = hw.Hardware(
        input_range=hw.InputRangeParameter(init_value=1.5),
        forward=hw.IOParameters(inp_bits=5),
    )
    if framework == "linen":
        analog = hw.eval_mode(hw.analogize(LinenEinsum(shape), quiet))
        variables = analog.init(jax.random.key(0), equation, x)
        w, found = variables["params"]["w"], analog.apply(variables, equation, x)
    else:
        plain = NnxEinsum(equation, shape, rngs=nnx.Rngs(0))
        analog = hw.eval_mode(hw.analogize(plain, quiet))
        w, found = plain.w[...], analog(x)
    x = np.asarray(x, np.float64)
    step = 1.5 * 2 / 30
    codes = np.round(np.clip(x, -1.5, 1.5) / step)
    wanted = np.einsum(equation, step * codes, np.asarray(w, np.float64))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(wanted - np.einsum(equation, x, w)).max() > 0.1


def test_an_equation_of_a_call_is_refused_in_nnx():
    class Late(NnxEinsum):
        def __call__(self, equation, x):
            return jnp.einsum(equation, x, self.w[...])

    hw.sockets.register(Late, "w", lambda module, equation, x: equation)
    layer = Late("BD,DH->BH", (3, 4), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="planned before it is called"):
        hw.analogize(layer, CHIP, rngs=nnx.Rngs(mismatch=0))
