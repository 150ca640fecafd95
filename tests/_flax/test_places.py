"""Draws of layers at a read depend on their place, never on values, in both frameworks.

`test_loops.py` tests the mechanism; this file tests all kinds of layers in models.
"""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import paths

# A correct estimator leaves 4 standard errors once in 16,000.
Z = 4.0
STEPS, BATCH, WIDTH = 64, 2, 4
KEY = jax.random.key(1)
OUT = hw.Hardware(forward=hw.IOParameters(out_noise=0.1))
lax = jax.lax


def drawn(**options):
    return hw.Hardware(forward=hw.IOParameters(**options))


def per(name):
    return hw.WeightModifierParameter(type="add_normal", std_dev=0.1, **{name: True})


EFFECTS = {
    "out_noise": OUT,
    "inp_noise": drawn(inp_noise=0.1),
    "input rounding": drawn(inp_bits=3, inp_bound=4.0, inp_sto_round=True),
    "output rounding": drawn(out_bits=3, out_bound=4.0, out_sto_round=True),
    "read noise": drawn(w_noise=0.1, w_noise_type="pcm_read"),
    "per_vector": hw.Hardware(modifier=per("per_vector")),
}

LINEN = {
    "dense": lambda: nn.Dense(WIDTH),
    "dense_general": lambda: nn.DenseGeneral((2, 2), axis=(-1,)),
    "einsum": lambda: nn.Einsum((WIDTH, WIDTH), "...i,io->...o"),
    "attention": lambda: nn.MultiHeadDotProductAttention(2),
    "conv": lambda: nn.Conv(WIDTH, (2,)),
    "conv_tiled": lambda: nn.Conv(WIDTH, (2,), feature_group_count=2),
    "conv_transpose": lambda: nn.ConvTranspose(WIDTH, (2,)),
    "conv_local": lambda: nn.ConvLocal(WIDTH, (2,)),
    "gru": lambda: nn.RNN(nn.GRUCell(WIDTH)),
    "optimized_lstm": lambda: nn.RNN(nn.OptimizedLSTMCell(WIDTH)),
}
NNX = {
    "dense": lambda rngs: nnx.Linear(WIDTH, WIDTH, rngs=rngs),
    "dense_general": lambda rngs: nnx.LinearGeneral((WIDTH,), (2, 2), rngs=rngs),
    "einsum": lambda rngs: nnx.Einsum("...i,io->...o", (WIDTH, WIDTH), rngs=rngs),
    "attention": lambda rngs: nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs),
    "conv": lambda rngs: nnx.Conv(WIDTH, WIDTH, (2,), rngs=rngs),
    "conv_transpose": lambda rngs: nnx.ConvTranspose(WIDTH, WIDTH, (2,), rngs=rngs),
    "lora": lambda rngs: nnx.LoRALinear(WIDTH, WIDTH, lora_rank=2, rngs=rngs),
}

LOOPS = {
    "scan": lambda f, n: lax.scan(lambda c, _: (c, f()), 0, None, n)[1],
    "reversed": lambda f, n: lax.scan(lambda c, _: (c, f()), 0, None, n, reverse=True)[
        1
    ],
    "map": lambda f, n: lax.map(lambda _: f(), jnp.arange(n)),
    "vmap": lambda f, n: jax.vmap(lambda _: f())(jnp.arange(n)),
    "fori_loop": lambda f, n: lax.fori_loop(
        0, n, lambda i, y: y.at[i].set(f()), jnp.zeros((n, *jax.eval_shape(f).shape))
    ),
    "calls": lambda f, n: jnp.concatenate([f()[None] for _ in range(n)]),
}


class LinenLoop(nn.Module):
    """A layer that is called in a loop, always with the same input."""

    kind: str
    loop: str
    count: int

    @nn.compact
    def __call__(self, x):
        layer = LINEN[self.kind]()
        first = layer(x)
        if self.is_initializing():
            return first
        return LOOPS[self.loop](lambda: layer(x), self.count)


class NnxLoop(nnx.Module):
    def __init__(self, kind, loop, count, rngs):
        self.layer = NNX[kind](rngs)
        self.loop, self.count = loop, count

    def __call__(self, x):
        return LOOPS[self.loop](lambda: self.layer(x), self.count)


def inputs(seed=0):
    return jax.random.normal(jax.random.key(seed), (BATCH, 3, WIDTH))


def linen_outputs(kind, loop, count=STEPS, hardware=OUT):
    model = hw.analogize(LinenLoop(kind, loop, count), hardware)
    variables = jax.jit(model.init)(jax.random.key(0), inputs())
    return jax.jit(lambda x: model.apply(variables, x, rngs={"mismatch": KEY}))


def nnx_outputs(kind, loop, count=STEPS, hardware=OUT):
    plain = NnxLoop(kind, loop, count, nnx.Rngs(0))
    analog = hw.analogize(plain, hardware, rngs=nnx.Rngs(mismatch=1))
    graph, state = nnx.split(analog)
    call = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    return lambda x: call(state, x)


CASES = [(linen_outputs, kind) for kind in LINEN] + [
    (nnx_outputs, kind) for kind in NNX
]
layers = pytest.mark.parametrize(
    ("outputs", "kind"),
    CASES,
    ids=[f"{f.__name__.removesuffix('_outputs')}-{kind}" for f, kind in CASES],
)


@pytest.mark.sampled(4)
@layers
def test_equal_steps_draw_anew_in_every_layer(outputs, kind):
    y = np.asarray(outputs(kind, "scan", count=4)(inputs()))
    for one in range(4):
        for other in range(one):
            difference = np.abs(y[one] - y[other])
            assert (difference > 0).mean() > 0.9, (one, other)


@pytest.mark.sampled
@pytest.mark.parametrize("outputs", [linen_outputs, nnx_outputs])
@pytest.mark.parametrize("loop", LOOPS)
def test_equal_steps_have_the_configured_deviation(outputs, loop):
    count = 16 if loop == "calls" else STEPS  # each is traced
    y = np.asarray(outputs("dense", loop, count)(inputs()))
    # No scale, no range: the noise is 0.1 in the units of the output.
    columns = y.reshape(count, -1)
    noise = columns - columns.mean(axis=0)
    degrees = (count - 1) * columns.shape[1]
    std = np.sqrt(np.square(noise).sum() / degrees)
    np.testing.assert_allclose(std, 0.1, rtol=Z / np.sqrt(2 * degrees))
    # And the steps are independent.
    neighbours = (noise[1:] * noise[:-1]).mean() / std**2
    # The mean over steps leaves neighbours correlated by -1 / count.
    assert abs(neighbours + 1 / count) < Z / np.sqrt(noise[1:].size)


@pytest.mark.sampled
@pytest.mark.parametrize("outputs", [linen_outputs, nnx_outputs])
@pytest.mark.parametrize("effect", EFFECTS)
def test_every_effect_is_another_one_at_each_step(outputs, effect):
    call = outputs("dense", "scan", 16, EFFECTS[effect])
    y = np.asarray(call(inputs()))
    assert (y.reshape(16, -1).std(axis=0) > 1e-3).mean() > 0.5
    if effect == "out_noise":  # also where there is nothing to see
        zeros = np.asarray(call(0 * inputs()))
        assert (zeros.reshape(16, -1).std(axis=0) > 1e-3).all()


@pytest.mark.parametrize("outputs", [linen_outputs, nnx_outputs])
def test_noise_does_not_depend_on_the_input(outputs):
    call, clean = (
        outputs("dense", "scan", 4, hardware) for hardware in (OUT, hw.Hardware())
    )
    noise = [np.asarray(call(x) - clean(x)) for x in (inputs(), 5 * inputs(1))]
    np.testing.assert_allclose(*noise, atol=1e-5)


class LinenBlock(nn.Module):
    """A wide and a narrow layer, or one for each effect side by side."""

    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x, _):
        if not self.names:
            return nn.Dense(32, name="narrow")(
                jnp.tanh(nn.Dense(64, name="wide")(x))
            ), None
        return jnp.tanh(sum(nn.Dense(3, name=name)(x) for name in self.names)), None


class LinenBlocks(nn.Module):
    names: tuple[str, ...]
    policy: str | None

    @nn.compact
    def __call__(self, x):
        block = LinenBlock
        if self.policy is not None:
            policy = getattr(jax.checkpoint_policies, self.policy)
            block = nn.remat(LinenBlock, policy=policy)
        stack = nn.scan(
            block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )
        return stack(self.names, name="blocks")(x, None)[0]  # keys are named by paths


class NnxBlock(nnx.Module):
    def __init__(self, names, rngs):
        if not names:
            self.wide = nnx.Linear(32, 64, rngs=rngs)
            self.narrow = nnx.Linear(64, 32, rngs=rngs)
        for name in names:
            setattr(self, name, nnx.Linear(3, 3, rngs=rngs))
        self.names = names

    def __call__(self, x):
        if not self.names:
            return self.narrow(jnp.tanh(self.wide(x)))
        return jnp.tanh(sum(getattr(self, name)(x) for name in self.names))


class NnxBlocks(nnx.Module):
    def __init__(self, names, policy):
        self.blocks = nnx.vmap(lambda rngs: NnxBlock(names, rngs))(nnx.Rngs(0).split(2))
        self.policy = policy

    def __call__(self, x):
        call = lambda x, block: block(x)  # noqa: E731
        if self.policy is not None:
            policy = getattr(jax.checkpoint_policies, self.policy)
            call = nnx.remat(call, policy=policy)
        return nnx.scan(call, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
            x, self.blocks
        )


def linen_gradients(rules, names, policy, x):
    model = hw.analogize(LinenBlocks(names, policy), rules)
    variables = jax.jit(model.init)(jax.random.key(0), x)

    @jax.jit
    def gradients(variables):
        def loss(variables):
            return (model.apply(variables, x, rngs={"mismatch": KEY}) ** 2).mean()

        return jax.grad(loss)(variables)

    return paths.leaves(gradients(variables))


def nnx_gradients(rules, names, policy, x):
    analog = hw.analogize(NnxBlocks(names, policy), rules, rngs=nnx.Rngs(mismatch=1))
    graph, params, rest = nnx.split(analog, nnx.Param, ...)

    @jax.jit
    def gradients(params, rest):
        def loss(params):
            # Variables belong to the trace that makes them.
            own = jax.tree.map(lambda leaf: leaf, rest)
            return (nnx.merge(graph, params, own)(x) ** 2).mean()

        return jax.grad(loss)(params)

    return paths.leaves(nnx.to_pure_dict(gradients(params, rest)))


POLICIES = ("nothing_saveable", "dots_saveable", "everything_saveable")
NAMES = tuple(effect.replace(" ", "_") for effect in EFFECTS)


@functools.cache
def gradients_of(framework, names, policy):
    """Returns the gradients of two blocks, of one chip or with a layer per effect."""
    rules = [
        hw.Rule(f"blocks/{name}", chip) for name, chip in zip(names, EFFECTS.values())
    ]
    x = jax.random.normal(jax.random.key(5), (16, 3 if names else 32))
    call = {"linen": linen_gradients, "nnx": nnx_gradients}[framework]
    return call(rules or drawn(out_noise=0.3), names, policy, x)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("framework", "names", "policy"),
    [
        pytest.param(
            framework,
            names,
            policy,
            marks=() if often else pytest.mark.nightly,
        )
        for framework in ("linen", "nnx")
        for names, policy in [
            *(((), policy) for policy in POLICIES),
            (NAMES, POLICIES[0]),
        ]
        # One effect in one framework, all of them in the other.
        for often in [
            (framework, policy, names)
            in (("linen", POLICIES[0], NAMES), ("nnx", POLICIES[0], ()))
        ]
    ],
)
def test_gradients_under_remat_are_those_without(framework, names, policy):
    plain, again = (gradients_of(framework, names, p) for p in (None, policy))
    assert plain.keys() == again.keys()
    assert len(plain) == 2 * len(names or ("wide", "narrow"))
    for path, one in plain.items():
        # Equal up to rounding; other draws would differ by a tenth.
        tolerance = 2e-6 * float(np.abs(one).max())
        np.testing.assert_allclose(one, again[path], atol=tolerance, err_msg=path)


def test_draws_of_layers_effects_calls_and_loops_are_independent():
    """Correlations within 4 / sqrt(N), between all draws of a model."""
    count = 4000

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            a, b = nn.Dense(1, use_bias=False), nn.Dense(1, use_bias=False)
            if self.is_initializing():
                return a(x) + b(x)
            loop = lax.scan(lambda c, _: (c, a(x)), 0, None, 3)[1]
            return jnp.stack(
                [a(x), a(x), b(x), *loop, *jax.vmap(lambda _: b(x))(jnp.arange(2))]
            )

    def noises(effect):
        model = hw.analogize(Model(), EFFECTS[effect])
        x = jnp.ones((count, 2))
        shapes = jax.eval_shape(model.init, jax.random.key(0), x)
        ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
        y = jax.jit(model.apply)(ones, x, rngs={"mismatch": KEY})
        return np.asarray(y)[..., 0]

    # Inputs and outputs have draws of other shapes: the first columns are compared.
    draws = np.concatenate([noises("out_noise"), noises("per_vector")])
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlations).max() < Z / np.sqrt(count)


def test_a_layer_that_a_plain_model_calls_twice_draws_anew():
    class Plain(nn.Module):
        def setup(self):
            self.layer = hw.analogize(nn.Dense(WIDTH), OUT)

        def __call__(self, x):
            return self.layer(x), self.layer(x)

    model, x = Plain(), inputs()
    variables = jax.jit(model.init)(jax.random.key(0), x)
    first, second = map(np.asarray, model.apply(variables, x, rngs={"mismatch": KEY}))
    assert (first != second).all()
    again, _ = model.apply(variables, x, rngs={"mismatch": KEY})
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("outputs", [linen_outputs, nnx_outputs])
def test_rows_of_a_map_are_examples_with_weights_of_their_own(outputs):
    chip = hw.Hardware(modifier=per("per_batch_sample"))
    y = np.asarray(outputs("dense", "vmap", 16, chip)(inputs()))
    assert (y.reshape(16, -1).std(axis=0) > 1e-3).all()
    # But at every step of a loop, and every call, they are those of the step.
    for loop in ("scan", "calls"):
        y = np.asarray(outputs("dense", loop, 4, chip)(inputs()))
        np.testing.assert_allclose(y, np.broadcast_to(y[0], y.shape), atol=1e-6)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint], ids=["jit", "remat"])
def test_a_product_of_the_users_may_call_a_noisy_layer(wrap):
    class Adapted(nn.Module):
        @nn.compact
        def __call__(self, x):
            hook = nn.Dense(WIDTH, use_bias=False, name="hook")  # linear
            kept = wrap(lambda a: hook(a))

            def product(a, b, numbers, **options):
                return kept(jax.lax.dot_general(a, b, numbers, **options))

            layer = nn.Dense(WIDTH, name="layer", dot_general=product)
            if self.is_initializing():
                return hook(x) + nn.Dense(WIDTH, name="layer")(x)
            scanned = lax.scan(lambda c, _: (c, layer(x)), 0, None, 3)[1]
            return jnp.stack([layer(x), layer(x), *scanned])

    # What is around the outer layer is all but nothing: the hook's noise is seen.
    quiet = drawn(inp_noise=1e-7)
    rules = [hw.Rule("hook", OUT), hw.Rule("layer", quiet)]
    plain = jax.jit(nn.Dense(WIDTH).init)(jax.random.key(0), inputs())["params"]
    params = {"hook": {"kernel": plain["kernel"]}, "layer": plain}
    model = hw.analogize(Adapted(), rules)
    apply = jax.jit(model.apply)  # without: `test_loops.py`
    y = np.asarray(apply({"params": params}, inputs(), rngs={"mismatch": KEY})).round(4)
    assert len(np.unique(y.reshape(5, -1), axis=0)) == 5


def test_no_array_of_another_rank_is_promoted():
    model = hw.analogize(nn.Dense(WIDTH, use_bias=False), OUT)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((2, 3)))
    with jax.numpy_rank_promotion("raise"):
        model.apply(variables, jnp.ones((2, 3)), rngs={"mismatch": KEY})


MESH = """
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec as P
import hwtrain as hw

assert jax.device_count() == 8
io = hw.IOParameters(
    inp_noise=0.1, out_noise=0.3, w_noise=0.1, w_noise_type="additive_constant"
)
chip = hw.Hardware(forward=io)

class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.Dense(16)(x)
        rnn = nn.RNN(nn.SimpleCell(8))(hidden.reshape(-1, 4, 16))
        return nn.Dense(8)(rnn)

x = jax.random.normal(jax.random.key(1), (64, 12))
model = hw.analogize(Model(), chip)
variables = jax.jit(model.init)(jax.random.key(0), x)
call = jax.jit(
    lambda v, x: model.apply(v, x, rngs={"mismatch": jax.random.key(3)})
)
whole = call(variables, x)
mesh = jax.make_mesh((8,), ("data",))
split = jax.device_put(x, NamedSharding(mesh, P("data")))
np.testing.assert_allclose(whole, call(variables, split), rtol=1e-5, atol=1e-5)
text = call.lower(variables, split).compile().as_text()

# Under shard_map every device has noise of its own, if the key has its index.
dense = hw.analogize(nn.Dense(8), chip)
of_dense = jax.jit(dense.init)(jax.random.key(0), x)

@jax.jit
@jax.shard_map(mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
def on_each(variables, x):
    key = jax.random.fold_in(jax.random.key(3), jax.lax.axis_index("data"))
    return dense.apply(variables, x, rngs={"mismatch": key})

same = jnp.broadcast_to(x[:8], (8, 8, 12)).reshape(64, 12)
same = jax.device_put(same, NamedSharding(mesh, P("data")))
each = np.asarray(on_each(of_dense, same)).reshape(8, -1)
assert len(np.unique(each[:, 0])) == 8

# A map over rows that an explicit axis of the mesh spreads.
class Rows(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(8)
        return layer(x) if self.is_initializing() else jax.vmap(layer)(x)

explicit = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
rows = hw.analogize(Rows(), chip)
start = jax.jit(rows.init)(jax.random.key(0), x)
apply = jax.jit(lambda v, x: rows.apply(v, x, rngs={"mismatch": jax.random.key(3)}))
spread = jax.device_put(x, NamedSharding(explicit, P("data")))
np.testing.assert_allclose(apply(start, x), apply(start, spread), rtol=1e-5, atol=1e-5)
for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
    assert collective not in text, collective
print("equal")
"""


def test_draws_of_the_periphery_are_equal_on_a_mesh_without_a_collective():
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    # Compiles faster, and spares no collective.
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    run = subprocess.run(
        [sys.executable, "-c", MESH], env=environment, capture_output=True, text=True
    )
    assert run.stdout.strip() == "equal", run.stderr


def branch(layer, x):
    """Doubles the layer's output for rows with a positive sum: a branch inside a
    map."""

    def row(x):
        return lax.cond(x.sum() > 0, lambda x: 2 * layer(x), lambda x: layer(x), x)

    return jax.vmap(row)(x)


class LinenBranch(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(3, name="layer")
        return layer(x) if self.is_initializing() else branch(layer, x)


class NnxBranch(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(WIDTH, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return branch(self.layer, x)


def branch_outputs(framework, hardware, mode):
    """Returns a function of the kernel and inputs, and the kernel."""
    if framework == "linen":
        analog = hw.analogize(LinenBranch(), hardware)
        variables = analog.init(jax.random.key(0), jnp.ones((1, WIDTH)))
        analog = analog if mode == "train" else hw.eval_mode(analog)
        kernel = variables["params"]["layer"].pop("kernel")

        def outputs(kernel, x):
            given = {**variables["params"]["layer"], "kernel": kernel}
            return analog.apply({"params": {"layer": given}}, x, rngs={"mismatch": KEY})

        return outputs, kernel
    analog = hw.analogize(NnxBranch(), hardware, rngs=nnx.Rngs(mismatch=1))
    analog = analog if mode == "train" else hw.eval_mode(analog)
    graph, state = nnx.split(analog)

    def outputs(kernel, x):
        new = nnx.map_state(lambda path, v: kernel if "kernel" in path else v, state)
        return nnx.merge(graph, new)(x)

    return outputs, analog.layer.kernel[...]


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_branch_in_a_map_has_the_stored_weights_and_draws_for_each_row(framework):
    x = jax.random.normal(jax.random.key(3), (6, WIDTH)).at[3:].set(1.0)
    evaluated, kernel = branch_outputs(framework, OUT, "eval")
    positive = np.asarray(x).sum(1, keepdims=True) > 0
    assert len(set(positive[:, 0])) == 2
    factor = np.where(positive, 2.0, 1.0)
    expected = factor * (np.asarray(x) @ np.asarray(kernel))
    np.testing.assert_allclose(evaluated(kernel, x), expected, rtol=1e-5, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda kernel: evaluated(kernel, x).sum()))(kernel)
    by_hand = np.asarray(x).T @ np.repeat(factor, 3, 1)
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-5, atol=1e-5)

    trained, kernel = branch_outputs(framework, OUT, "train")
    rows = np.asarray(trained(kernel, x))[3:]  # of equal inputs
    assert len(np.unique(rows, axis=0)) == 3
