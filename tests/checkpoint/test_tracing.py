"""Graphs of models, traced from their programs, compared with what was written."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from hwtrain import Hardware, InputRangeParameter, analogize
from hwtrain.checkpoint import trace_graph

X = jnp.ones((2, 6))


class Chain(nn.Module):
    """Two dense layers with a function between them."""

    function: object

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="b")(self.function(nn.Dense(4, name="a")(x)))


class NnxChain(nnx.Module):
    """The same in NNX."""

    def __init__(self, function):
        self.a = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
        self.b = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.function = function

    def __call__(self, x):
        return self.b(self.function(self.a(x)))


def between(graph, before="a", after="b"):
    """Returns what lies on the way from one layer to the other."""
    found, node = [], before
    while node != after:
        (node,) = {b for a, b in graph.edges if a == node}
        found.append(graph.nodes[node])
    return found[:-1]


FUNCTIONS = [
    (lambda x: x, ["identity"]),
    (nn.relu, ["relu"]),
    (jax.jit(nn.relu), ["relu"]),
    (jax.checkpoint(nn.relu), ["relu"]),
    (lambda x: jnp.maximum(x, 0), ["max"]),
    (nn.gelu, None),
    (jnp.tanh, ["tanh"]),
    (lambda x: 2 * x, ["mul"]),
    (lambda x: x + 1, ["add"]),
    (lambda x: x + x, ["add"]),
    (lambda x: x[:, ::-1], ["rev"]),
    (lambda x: jnp.ones((2, 2)) @ x, ["dot_general"]),
    (lambda x: nn.relu(jnp.tanh(x)), ["tanh", "relu"]),
    (lambda x: jax.lax.map(jnp.abs, x), ["abs"]),
    (lambda x: jax.lax.cond(x[0, 0] > 0, jnp.abs, lambda x: x, x), None),
    (lambda x: jax.lax.fori_loop(0, 2, lambda i, x: -x, x), None),
    (lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), ["identity"]),
    (lambda x: jax.lax.stop_gradient(x), ["identity"]),
]


@pytest.mark.sampled
@pytest.mark.parametrize("function, expected", FUNCTIONS)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
@pytest.mark.parametrize("analog", [False, True])
def test_what_lies_between_two_layers(framework, function, expected, analog):
    hardware = Hardware(input_range=InputRangeParameter())
    if framework == "linen":
        model = Chain(function)
        variables = jax.eval_shape(model.init, jax.random.key(0), X)
    else:
        model, variables = NnxChain(function), None
    if analog:
        rngs = None if framework == "linen" else nnx.Rngs(mismatch=0)
        model = analogize(model, hardware, rngs=rngs)
    graph = trace_graph(model, variables, X)
    assert graph.nodes["a"] == graph.nodes["b"] == "layer"
    if expected is not None:
        assert between(graph) == expected
    else:
        assert ("a", "b") not in graph.edges
        assert "identity" not in graph.nodes.values()


def traced(call, x, **layers):
    """Returns the graph of a Linen model that calls layers."""

    class Model(nn.Module):
        def setup(self):
            for name, layer in layers.items():
                setattr(self, name, layer.copy(name=name))

        def __call__(self, x):
            return call(self, x)

    model = Model()
    return trace_graph(model, jax.eval_shape(model.init, jax.random.key(0), x), x)


def test_an_addition_of_outputs_is_two_edges():
    graph = traced(
        lambda m, x: m.c(m.a(x) + m.b(x)),
        X,
        a=nn.Dense(4),
        b=nn.Dense(4),
        c=nn.Dense(2),
    )
    assert between(graph, "a", "c") == between(graph, "b", "c") == ["identity"]
    assert {("input", "a"), ("input", "b"), ("c", "output")} < set(graph.edges)


def test_a_layer_that_is_called_twice_is_two_nodes():
    graph = traced(lambda m, x: m.a(m.a(x)), X, a=nn.Dense(6))
    assert sorted(graph.nodes.values()) == [
        "another call of a",
        "input",
        "layer",
        "output",
    ]


@pytest.mark.parametrize("jitted", [False, True])
def test_pictures(jitted):
    def call(m, x):
        pool = jax.jit(nn.avg_pool, static_argnums=(1, 2)) if jitted else nn.avg_pool
        x = pool(m.a(x), (2, 2), (2, 1))
        summed = nn.pooling.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), ((0, 0), (1, 1)))
        return m.b(summed.reshape(len(x), -1))

    graph = traced(call, jnp.ones((2, 8, 8, 3)), a=nn.Conv(5, (3, 3)), b=nn.Dense(2))
    assert between(graph) == [
        "avg_pool(kernel=2x2, stride=2x1, padding=0x0)",
        "sum_pool(kernel=2x2, stride=2x2, padding=0x1)",
        "flatten",
    ]


def test_a_sum_that_something_else_needs_too_stays_a_sum():
    def call(m, x):
        pooled = nn.pooling.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID")
        return m.a(pooled), m.b(pooled / 4), m.c(pooled / 3)

    layers = {name: nn.Conv(2, (1, 1)) for name in "abc"}
    graph = traced(call, jnp.ones((1, 4, 4, 1)), **layers)
    into = {
        name: [graph.nodes[a] for a, b in graph.edges if b == name] for name in "abc"
    }
    sizes = "(kernel=2x2, stride=2x2, padding=0x0)"
    assert into == {"a": [f"sum_pool{sizes}"], "b": [f"avg_pool{sizes}"], "c": ["div"]}


def test_a_recurrent_network():
    class Neurons(nn.Module):
        @nn.compact
        def __call__(self, state, x):
            tau = self.param("tau", nn.initializers.ones, (4,))
            state = state + (x - state) / tau
            return state, (state > 1).astype(jnp.float32)

    def call(m, x):
        def step(m, carry, x):
            state, spikes = m.lif(carry[0], m.a(x) + m.rec(carry[1]))
            return (state, spikes), m.b(spikes)

        scan = nn.scan(
            step,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        zeros = jnp.zeros((len(x), 4))
        return scan(m, (zeros, zeros), x)[1]

    layers = {"a": nn.Dense(4), "rec": nn.Dense(4), "b": nn.Dense(2), "lif": Neurons()}
    graph = traced(call, jnp.ones((2, 5, 6)), **layers)
    assert set(graph.nodes.values()) == {"input", "output", "layer", "identity"}
    after = {}
    for first, second in graph.edges:
        after.setdefault(first, set()).add(second)
    after = {
        node: {
            target
            for name in found
            for target in (after[name] if name.startswith("identity") else {name})
        }
        for node, found in after.items()
        if not node.startswith("identity")
    }
    assert after == {
        "input": {"a"},
        "a": {"lif"},
        "rec": {"lif"},
        "lif": {"rec", "b"},
        "b": {"output"},
    }


def test_errors():
    with pytest.raises(ValueError, match="takes a flax.linen.Module or a flax.nnx"):
        trace_graph(jnp.tanh, {}, X)
    with pytest.raises(ValueError, match="known only by a call"):
        trace_graph(nn.Dense(2), {"params": {}})


class Block(nn.Module):
    """A layer of a stack, as `nn.scan` takes it."""

    @nn.compact
    def __call__(self, carry, _):
        return nn.Dense(6, name="dense")(carry), None


def lifted(transform):
    return lambda x: transform(nn.Dense)(4, name="a")(x)


@pytest.mark.parametrize("transform", [nn.remat, nn.jit])
def test_lifted_layers(transform):
    graph = made(lambda x: nn.Dense(3, name="b")(nn.relu(lifted(transform)(x))), X)
    assert between(graph) == ["relu"]


def made(call, x):
    """Returns the graph of a Linen model that makes its layers in a call."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return call(x)

    model = Model()
    return trace_graph(model, jax.eval_shape(model.init, jax.random.key(0), x), x)


def stack(x):
    axes, split = {"params": 0}, {"params": True}
    scan = nn.scan(Block, variable_axes=axes, split_rngs=split, length=3)
    return scan(name="stack")(x, None)[0]


SEQUENCE = jnp.ones((2, 5, 6))
MODELS = [
    (stack, X, {"scan"}),
    (lambda x: nn.MultiHeadDotProductAttention(2)(x, x), SEQUENCE, {"exp"}),
    (lambda x: nn.RNN(nn.GRUCell(4))(x), SEQUENCE, {"logistic", "tanh"}),
    (lambda x: nn.Dropout(0.5, deterministic=False)(nn.Dense(4)(x)), X, {"select_n"}),
    (lambda x: nn.max_pool(nn.Conv(2, (3,))(x), (2,)), SEQUENCE, {"reduce_window_max"}),
]


@pytest.mark.parametrize("call, x, operations", MODELS)
def test_what_is_no_chain_of_layers_is_said_too(call, x, operations):
    graph = made(lambda x: call(x), x)
    assert operations <= set(graph.nodes.values())
    reached, waiting = set(), ["input"]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += [b for a, b in graph.edges if a == node]
    assert "output" in reached
