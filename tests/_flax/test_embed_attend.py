"""Hardware around `Embed.attend`: refused options, and their alternatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

BITS = 6
IDS = jnp.arange(20)[None]
FOLLOWING = {
    "dynamic": ({"dynamic": True}, {}),
    "abs_max": (None, {"noise_management": "abs_max"}),
}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(20, 16, name="embed")
        return embed.attend(4 * embed(ids)), 4 * embed(ids), embed.embedding


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(20, 16, rngs=rngs)

    def __call__(self, ids):
        x = 4 * self.embed(ids)
        return self.embed.attend(x), x, self.embed.embedding[...]


def outputs(framework, rules):
    if framework == "nnx":
        model = hw.analogize(Nnx(nnx.Rngs(0)), rules, rngs=nnx.Rngs(mismatch=0))
        return hw.eval_mode(model)(IDS)
    analog = hw.analogize(Linen(), rules)
    return hw.eval_mode(analog).apply(analog.init(jax.random.key(0), IDS), IDS)


@pytest.mark.parametrize("name", FOLLOWING)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_inputs_of_attend_are_followed_one_by_one(framework, name):
    ranged, managed = FOLLOWING[name]
    chip = hw.Hardware(
        input_range=ranged and hw.InputRangeParameter(**ranged),
        forward=hw.IOParameters(inp_bits=BITS, **managed),
    )
    y, x, embedding = map(np.asarray, outputs(framework, [hw.Rule("embed", chip)]))
    largest = np.abs(x).max(axis=-1, keepdims=True)
    assert largest.max() > 1  # a fixed range of 1 would clip
    step = largest / (2 ** (BITS - 1) - 1)
    expected = np.round(x / step) * step @ embedding.T
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


REFUSED = {
    "input_range": {"input_range": hw.InputRangeParameter()},
    "mapping.learn_out_scaling": {
        "mapping": hw.MappingParameter(weight_scaling_omega=1.0, learn_out_scaling=True)
    },
}


@pytest.mark.parametrize("option", REFUSED)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_what_an_embed_cannot_have_is_refused_with_what_does_instead(framework, option):
    chip = hw.Hardware(forward=hw.IOParameters(inp_bits=BITS), **REFUSED[option])
    message = f"{option}, which an Embed cannot have: .*attend.*dynamic=True.*'abs_max'"
    with pytest.raises(ValueError, match=message):
        outputs(framework, [hw.Rule("embed", chip)])
