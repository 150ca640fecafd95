"""Graphs traced from the programs of models, compared with the models' definitions."""

import warnings

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
    """Returns the operations between one layer and the other."""
    found, node = [], before
    while node != after:
        (node,) = {b for a, b in graph.edges if a == node}
        found.append(graph.nodes[node])
    return found[:-1]


@jax.custom_jvp
def truncated(x):
    """Whole numbers, with the gradient of a straight line."""
    return x.astype(jnp.int32).astype(jnp.float32)


truncated.defjvps(lambda g, _, x: g)

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
    (lambda x: jax.lax.reduce_precision(x, 8, 7), ["identity"]),
    (lambda x: jax.lax.reduce_precision(x, 5, 3), None),
    (truncated, ["truncated"]),
]

# Chains of dtypes, and the casts among them that change the numbers.
CASTS = {
    ("bfloat16", "float32"): [],
    ("float16", "bfloat16", "float32"): [],
    ("complex64", "float32"): ["float32"],
    ("int8", "float32"): ["int8"],
    ("int32", "float32"): ["int32"],
    ("bfloat16", "int32", "float32"): ["int32"],
    ("int32", "int8", "float32"): ["int32", "int8"],
    ("int8", "int32", "float32"): ["int8"],
    ("uint8", "float32"): ["uint8"],
    ("bool", "float32"): ["bool"],
    ("float8_e4m3fn", "float32"): ["float8_e4m3fn"],
    ("float8_e5m2", "float32"): ["float8_e5m2"],
}


@pytest.mark.parametrize("types", CASTS, ids=" ".join)
@pytest.mark.parametrize("place", ["input", "between", "output"])
def test_a_cast_that_does_not_keep_the_numbers_is_an_operation(types, place):
    def cast(x):
        for name in types:
            x = x.astype(name)
        return x

    def call(m, x):
        x = m.a(cast(x) if place == "input" else x)
        x = m.b(cast(x) if place == "between" else x)
        return cast(x) if place == "output" else x

    if "complex64" in types:
        warnings.filterwarnings("ignore", "Casting from complex", DeprecationWarning)
    graph = traced(call, X, a=nn.Dense(4), b=nn.Dense(3))
    ends = {"input": ("input", "a"), "between": ("a", "b"), "output": ("b", "output")}
    found = between(graph, *ends[place])
    nothing = ["identity"] if place == "between" else []
    assert found == ([f"cast to {name}" for name in CASTS[types]] or nothing)


@pytest.mark.parametrize("function", [nn.gelu, nn.softmax, nn.selu])
def test_an_operation_says_which_activation_it_is_part_of(function):
    graph = traced(lambda m, x: m.b(function(m.a(x))), X, a=nn.Dense(4), b=nn.Dense(3))
    name = function.__name__
    operations = {k: v for k, v in graph.nodes.items() if k not in "a b input output"}
    assert operations
    for node, what in operations.items():
        assert node.startswith(name) and what.partition("(")[0] == name


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool"])
def test_whole_numbers_go_into_a_layer_as_they_are(dtype):
    graph = traced(lambda m, x: m.a(x.astype(float)), X.astype(dtype), a=nn.Dense(4))
    assert between(graph, "input", "a") == []


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


@pytest.mark.parametrize("analog", [False, True])
@pytest.mark.parametrize("around", [nn.WeightNorm, nn.SpectralNorm])
def test_a_layer_whose_variables_are_mapped(around, analog):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            more = {"update_stats": False} if around is nn.SpectralNorm else {}
            x = around(nn.Dense(4, name="a"))(x, **more)
            return nn.Dense(3, name="b")(nn.relu(x))

    model = Model()
    if analog:
        model = analogize(model, Hardware(input_range=InputRangeParameter()))
    graph = trace_graph(model, model.init(jax.random.key(0), X), X)
    (first,) = {after for before, after in graph.edges if before == "input"}
    assert graph.nodes[first] == "layer"
    assert between(graph, first, "b") == ["relu"]


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
    (lambda x: nn.MultiHeadDotProductAttention(2)(x, x), SEQUENCE, {"softmax(exp)"}),
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


class Switched(nn.Module):
    """A method with arguments by name, of which one is no array."""

    def setup(self):
        self.a, self.b = nn.Dense(4), nn.Dense(3)

    def encode(self, *, x, deep):
        return self.b(self.a(x)) if deep else self.a(x)


class NnxSwitched(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(6, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def encode(self, *, x, deep):
        return self.b(self.a(x)) if deep else self.a(x)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_call_with_arguments_by_name_is_traced(framework, deep):
    if framework == "linen":
        model, everything = Switched(), {"deep": True, "method": "encode"}
        variables = model.init(jax.random.key(0), x=X, **everything)
    else:
        model, variables = NnxSwitched(nnx.Rngs(0)), None
    edges = trace_graph(model, variables, x=X, deep=deep, method="encode").edges
    inner = [("a", "identity"), ("identity", "b"), ("b", "output")]
    inner = inner if deep else [("a", "output")]
    assert [*edges] == [("input", "a"), *inner]


class Joined(nn.Module):
    """Joins four parts of a layer's outputs, of which some are computed alike."""

    @nn.compact
    def __call__(self, x):
        u, v = jnp.split(nn.Dense(4, name="first")(x), 2, -1)
        parts = [u * 2 - v * 3, u * 4, jnp.tanh(v), v * 5, u * 6]
        return nn.Dense(4, name="last")(jnp.concatenate(parts, -1))


def test_edges_into_a_node_are_in_the_order_of_its_operands():
    analog = analogize(Joined(), Hardware())
    x = jnp.ones((2, 3))
    variables = analog.init(jax.random.key(0), x)
    edges = trace_graph(analog, variables, x).edges
    into = [source for source, target in edges if target == "concatenate"]
    assert into == ["sub", "mul 3", "tanh", "mul 4", "mul 5"]
