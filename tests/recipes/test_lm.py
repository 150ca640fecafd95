"""The language models: their sizes, their precision, their teacher, their plan."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.flax import save_file

import hwtrain as hw
from hwtrain import train

RECIPES = Path(__file__).parents[2] / "recipes"
TOKENS = np.arange(20).reshape(2, 10)

pytestmark = pytest.mark.usefixtures("forgotten_parts")


def recipe(name, file="lm.py"):
    return train.resolve(f"{file}:{name}", RECIPES)


# As their authors count them; those of the first two follow from the sizes by hand.
PARAMETERS = {
    "lm_tiny": 2 * 256 * 64
    + 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176 + 2 * 64)
    + 64,
    "lm_100m": 2 * 256 * 768 + 14 * (4 * 768**2 + 3 * 768 * 2048 + 2 * 768) + 768,
    "lm_1b": 1_235_814_400,
    "lm_8b": 8_030_261_248,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_model_is_planned_on_shapes_alone(name):
    def build():
        rules = [hw.Rule("blocks/.*", hw.presets.standard_hwa_training())]
        model = recipe(name)(nnx.Rngs(0))
        return hw.analogize(model, rules, rngs=nnx.Rngs(mismatch=0))

    plain = nnx.eval_shape(lambda: recipe(name)(nnx.Rngs(0)))
    params = jax.tree.leaves(nnx.state(plain, nnx.Param))
    assert sum(leaf.size for leaf in params) == PARAMETERS[name]
    assert {leaf.dtype for leaf in params} == {np.dtype(np.float32)}
    analog = nnx.eval_shape(build)
    plan = hw.plan(analog)
    layers = ("q", "k", "v", "o", "gate", "up", "down")
    assert {*plan} == {f"blocks/{layer}/kernel" for layer in layers}
    assert {weight.stack[0] for weight in plan.weights} == {plain.sizes.depth}
    state = nnx.to_pure_dict(nnx.state(analog, nnx.Param))
    tx = hw.optim.hardware_aware(train.resolve("optax:adamw", ".")(1e-3), plan)
    moments = jax.tree.leaves(jax.eval_shape(tx.init, state))
    assert sum(leaf.size for leaf in moments) > 2 * PARAMETERS[name]


def test_it_computes_in_bfloat16_and_returns_float32():
    model = recipe("lm_tiny")(nnx.Rngs(0))
    assert model.embed(TOKENS).dtype == jnp.bfloat16
    block = nnx.eval_shape(lambda: recipe("Block")(model.sizes, nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((2, 10, 64), jnp.bfloat16)
    assert nnx.eval_shape(lambda block, x: block(x), block, x).dtype == jnp.bfloat16
    assert model(TOKENS).dtype == jnp.float32


def test_a_prediction_depends_on_what_is_before_alone():
    model = recipe("lm_tiny")(nnx.Rngs(0))
    changed = TOKENS.copy()
    changed[:, 6] = 99
    one, other = np.asarray(model(TOKENS)), np.asarray(model(changed))
    np.testing.assert_array_equal(one[:, :6], other[:, :6])
    assert (np.abs(one - other)[:, 6:].max(axis=(0, 2)) > 1e-3).all()


def test_bits_per_byte_are_those_of_equal_probabilities():
    found = recipe("bits_per_byte")(jnp.zeros((2, 10, 256)), TOKENS)
    np.testing.assert_allclose(found, 8, rtol=1e-6)


def test_the_loss_of_distillation_is_least_at_the_teacher():
    loss = recipe("distilled", "lm_distilled.py")
    logits = 3 * jax.random.normal(jax.random.key(0), (2, 10, 256))
    batch = TOKENS, logits
    shares = np.asarray(jax.nn.softmax(np.asarray(logits, np.float64)))
    entropy = -(shares * np.log(shares)).sum(-1)[:, :-1].mean(-1)
    found = loss(logits + 5.0, batch)  # a softmax does not see a constant
    np.testing.assert_allclose(found, entropy, rtol=1e-5)
    gradient = jax.grad(lambda outputs: loss(outputs, batch).sum())
    assert np.abs(gradient(logits)).max() < 1e-6
    assert np.abs(gradient(logits + TOKENS[..., None] * logits)).max() > 1e-3


def test_the_teacher_is_the_plain_model_of_a_run(tmp_path, monkeypatch):
    model = recipe("lm_tiny")(nnx.Rngs(7))
    state = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    arrays = {
        ".".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    save_file(arrays, tmp_path / "teacher.safetensors")
    monkeypatch.setenv("TEACHER", str(tmp_path / "teacher.safetensors"))
    train_batches, _ = recipe("data", "lm_distilled.py")()
    tokens, logits = next(train_batches(0, 0))
    assert tokens.shape == (32, 65)
    np.testing.assert_allclose(
        logits, nnx.jit(lambda m, x: m(x))(model, tokens), atol=1e-2
    )
    arrays.pop("norm.scale")
    save_file(arrays, tmp_path / "teacher.safetensors")
    with pytest.raises(ValueError, match="expected all parameters of the teacher"):
        recipe("data", "lm_distilled.py")()


MESH = """
import jax, numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from hwtrain import train

model = train.resolve("recipes/lm.py:lm_tiny", ".")(nnx.Rngs(0))
tokens = np.arange(80).reshape(8, 10)
graph, params = nnx.split(model)
call = jax.jit(lambda params, x: nnx.merge(graph, params)(x))
alone = call(params, tokens)
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

def place(leaf):
    spread = P(*[None] * (leaf.ndim - 2), "data", "model") if leaf.ndim > 1 else P()
    return jax.device_put(leaf, NamedSharding(mesh, spread))

spread = jax.tree.map(place, params)
given = jax.device_put(tokens, NamedSharding(mesh, P("data")))
with jax.set_mesh(mesh):
    found = jax.jit(lambda params, x: nnx.merge(graph, params)(x))(spread, given)
np.testing.assert_allclose(found, alone, atol=0.05)
print("equal")
"""


@pytest.mark.nightly
def test_a_mesh_computes_the_same(on_devices, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    on_devices(8, MESH)
