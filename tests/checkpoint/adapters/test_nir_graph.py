"""Operations between layers in NIR: none is lost, and none is reordered."""

import jax
import jax.numpy as jnp
import nir
import numpy as np
import pytest
from flax import linen as nn

from hwtrain import Hardware, analogize, plan
from hwtrain.checkpoint import Graph, HardwareCheckpointError, export, load, trace_graph
from hwtrain.checkpoint.adapters._nir import from_nir, to_nir, write_nir
from hwtrain.dynapse import DynapSim


def ones(size):
    return lambda key, shape: 0.5 + jax.random.uniform(key, shape)


class Neurons(nn.Module):
    """One step of neurons from rest, as NIR's parameters are named."""

    names: tuple = ("tau", "r", "v_leak", "v_threshold", "v_reset")

    @nn.compact
    def __call__(self, x):
        shape = x.shape[1:]
        found = {name: self.param(name, ones(shape), shape) for name in self.names}
        return x * found["r"]


class Scale(nn.Module):
    """Multiplies each input."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", ones(0), x.shape[1:])


class Layers(nn.Module):
    """Functions that may make layers, one after the other."""

    layers: tuple

    @nn.compact
    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def exported(path, x, *layers, graph=True):
    """Returns the variables and the checkpoint of layers, one after the other."""
    model = Layers(layers)
    analog = analogize(model, Hardware())
    variables = analog.init(jax.random.key(0), x)
    found = trace_graph(analog, variables, x) if graph else None
    export(path, variables, plan(analog, variables, x), graph=found)
    return model, variables, load(path)


def made(kind, *args, **kwargs):
    """Returns a function that makes a layer in the model and calls it."""
    return lambda x: kind(*args, **kwargs)(x)


def dense(name, size=3):
    return made(nn.Dense, size, name=name)


X = jnp.ones((1, 4))
BETWEEN = [
    nn.relu,
    jnp.tanh,
    nn.softmax,
    lambda x: 10 * x,
    lambda x: x + 1.0,
    lambda x: x.astype(jnp.int8).astype(jnp.float32),
    lambda x: x.astype(jnp.float8_e4m3fn).astype(jnp.float32),
]


@pytest.mark.parametrize("function", BETWEEN)
def test_an_activation_is_refused_by_name(tmp_path, function):
    _, _, checkpoint = exported(tmp_path / "c", X, dense("a"), function, dense("b"))
    match = "the node '.*' from 'a' to 'b' cannot be expressed: NIR has no"
    with pytest.raises(HardwareCheckpointError, match=match):
        to_nir(checkpoint, tmp_path / "net")
    # Edges by hand do not hide it.
    with pytest.raises(HardwareCheckpointError, match=match):
        to_nir(checkpoint, tmp_path / "net", edges=[("a", "b")])
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("function", [nn.gelu, nn.silu, nn.softmax, nn.celu])
def test_an_activation_of_several_operations_has_its_own_name(tmp_path, function):
    _, _, checkpoint = exported(tmp_path / "c", X, dense("a"), function, dense("b"))
    name = function.__name__
    match = f"the node '{name}.*' from 'a' to 'b' .* NIR has no '{name}'. Put neurons"
    with pytest.raises(HardwareCheckpointError, match=match):
        to_nir(checkpoint, tmp_path / "net")


def test_a_readout_has_two_ways_out(tmp_path):
    def readout(x):
        return x.mean(-1) * 10

    body = (dense("a"), made(Neurons, name="n"))
    _, variables, checkpoint = exported(tmp_path / "c", X, *body, readout)
    match = (
        "the node '.*' from 'n' to 'output' .*behind the last layer.* Trace the graph "
        r"of the model without it, or export without graph= and give to_nir\(.*edges="
    )
    with pytest.raises(HardwareCheckpointError, match=match):
        to_nir(checkpoint, tmp_path / "net")
    model = Layers(body)
    export(
        tmp_path / "traced",
        variables,
        checkpoint.plan,
        graph=trace_graph(model, variables, X),
    )
    to_nir(load(tmp_path / "traced"), tmp_path / "one")
    export(tmp_path / "bare", variables, checkpoint.plan)
    edges = [("input", "a"), ("a", "n"), ("n", "output")]
    to_nir(load(tmp_path / "bare"), tmp_path / "two", edges=edges)
    for name in ("one", "two"):
        assert set(nir.read(tmp_path / name).edges) == set(edges)


@pytest.mark.sampled
@pytest.mark.parametrize("function", [*BETWEEN, lambda x: x])
@pytest.mark.parametrize("stated", [False, True])
def test_two_linear_layers_need_a_proof(tmp_path, function, stated):
    path, layers = tmp_path / "c", (dense("a"), function, dense("b"))
    _, variables, checkpoint = exported(path, X, *layers, graph=False)
    edges = [("a", "b")]
    if stated:
        nodes = {"a": "layer", "b": "layer"}
        graph = Graph(nodes=nodes, edges=tuple(edges))
        export(tmp_path / "g", variables, checkpoint.plan, graph=graph)
        checkpoint, edges = load(tmp_path / "g"), None
    match = "'a' leads straight to 'b', and both are linear: nothing proves"
    with pytest.raises(HardwareCheckpointError, match=match):
        to_nir(checkpoint, tmp_path / "net", edges=edges)


@pytest.mark.nightly
def test_two_linear_layers_with_nothing_between(tmp_path):
    _, _, checkpoint = exported(tmp_path / "c", X, dense("a"), dense("b"))
    to_nir(checkpoint, tmp_path / "net")
    assert set(from_nir(tmp_path / "net").edges) == {
        ("input", "a"),
        ("a", "b"),
        ("b", "output"),
    }


def test_edges_against_the_graph(tmp_path):
    _, _, checkpoint = exported(tmp_path / "c", X, dense("a"), made(Neurons, name="n"))
    for edges in ([("n", "a")], [("a", "n"), ("n", "a")]):
        with pytest.raises(HardwareCheckpointError, match="unlike edges="):
            to_nir(checkpoint, tmp_path / "net", edges=edges)


def test_what_is_left_out(tmp_path):
    layers = (dense("a"), made(Neurons, name="n"), dense("b"))
    _, variables, checkpoint = exported(tmp_path / "c", X, *layers)
    with pytest.raises(HardwareCheckpointError, match="no edge leads to or from b"):
        to_nir(
            load(export(tmp_path / "d", variables, checkpoint.plan)),
            tmp_path / "net",
            edges=[("a", "n")],
        )
    graph = Graph(nodes={"a": "layer", "n": "layer"}, edges=(("a", "n"),))
    export(tmp_path / "e", variables, checkpoint.plan, graph=graph)
    with pytest.raises(HardwareCheckpointError, match="graph leaves out b"):
        to_nir(load(tmp_path / "e"), tmp_path / "net")


def test_several_inputs(tmp_path):
    _, variables, checkpoint = exported(tmp_path / "c", X, dense("a"))
    nodes = {"x": "input", "y": "input", "a": "layer"}
    graph = Graph(nodes=nodes, edges=(("x", "a"), ("y", "a")))
    export(tmp_path / "d", variables, checkpoint.plan, graph=graph)
    with pytest.raises(HardwareCheckpointError, match=r"several inputs \(x, y\)"):
        to_nir(load(tmp_path / "d"), tmp_path / "net")


@pytest.mark.parametrize(
    "layer, match",
    [
        (
            made(nn.RMSNorm, name="n"),
            "'scale' .RMSNorm: normalisation is digital.*Scale",
        ),
        (
            lambda x: nn.RNN(DynapSim(3, name="n"))(x),
            "'n' cannot be .* no DynapSim .*dynapse",
        ),
    ],
)
def test_layers_that_only_look_like_a_node(tmp_path, layer, match):
    x = jnp.ones((1, 5, 4))
    _, _, checkpoint = exported(tmp_path / "c", x, dense("a"), layer)
    with pytest.raises(HardwareCheckpointError, match=match):
        to_nir(checkpoint, tmp_path / "net")


NODES = {
    "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    "LI": ("tau", "r", "v_leak"),
    "IF": ("r", "v_threshold", "v_reset"),
    "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
    "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
    "Scale": ("scale",),
}


def layer_of(kind, name):
    if kind == "Scale":
        return made(Scale, name=name)
    return made(Neurons, NODES[kind], name=name)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", NODES)
def test_neurons_in_both_directions(tmp_path, kind):
    layers = (dense("a"), layer_of(kind, "n"))
    _, variables, checkpoint = exported(tmp_path / "c", X, *layers)
    to_nir(checkpoint, tmp_path / "net")
    node = nir.read(tmp_path / "net").nodes["n"]
    assert type(node).__name__ == kind
    network = from_nir(tmp_path / "net")
    assert set(network.params["n"]) == set(NODES[kind])
    for name in NODES[kind]:
        expected = variables["params"]["n"][name]
        np.testing.assert_array_equal(getattr(node, name), expected)
        np.testing.assert_array_equal(network.params["n"][name], expected)


def computed(graph, x):
    """Returns what the linear nodes of a NIR graph compute of `[C, H, W]`, in NumPy."""
    node = "input"
    while node != "output":
        (node,) = [b for a, b in graph.edges if a == node]
        found = graph.nodes[node]
        match type(found).__name__:
            case "Conv2d":
                taps = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (1, 2))
                x = np.einsum("chwij,ocij->ohw", taps, found.weight)
                x = x + found.bias[:, None, None]
            case "AvgPool2d" | "SumPool2d":
                size = tuple(int(s) for s in found.kernel_size)
                (pad_h, pad_w), (step_h, step_w) = found.padding, found.stride
                x = np.pad(x, ((0, 0), (pad_h, pad_h), (pad_w, pad_w)))
                x = np.lib.stride_tricks.sliding_window_view(x, size, (1, 2))
                x = x[:, ::step_h, ::step_w].sum((3, 4))
                if type(found).__name__ == "AvgPool2d":
                    x = x / np.prod(size)
            case "Flatten":
                assert tuple(found.input_type["input"]) == x.shape
                x = x.ravel()
            case "Affine":
                x = found.weight @ x + found.bias
            case "Scale":
                x = x * found.scale
            case "LIF":
                x = x * found.r
    return x


def sum_pool(x):
    return nn.pooling.pool(x, 0.0, jax.lax.add, (2, 2), (2, 1), ((0, 0), (1, 1)))


def flatten(x):
    return x.reshape(len(x), -1)


@pytest.mark.nightly
@pytest.mark.parametrize("neurons", ["LIF", "Scale"])
@pytest.mark.parametrize("where", ["before the pool", "flattened"])
def test_a_picture_is_computed_the_same(tmp_path, neurons, where):
    x = jax.random.normal(jax.random.key(1), (1, 9, 8, 3))
    layer = layer_of(neurons, "n")
    pools = (lambda x: nn.avg_pool(x, (2, 3), (1, 2)), sum_pool)
    middle = (*pools, flatten, layer) if "fl" in where else (layer, *pools, flatten)
    conv = made(nn.Conv, 5, (2, 2), padding="VALID", name="conv")
    layers = (conv, *middle, dense("out", 4))
    model, variables, checkpoint = exported(tmp_path / "c", x, *layers)
    to_nir(checkpoint, tmp_path / "net", input_shape=(3, 9, 8))
    found = computed(nir.read(tmp_path / "net"), np.moveaxis(np.asarray(x[0]), -1, 0))
    np.testing.assert_allclose(found, model.apply(variables, x)[0], rtol=2e-5)
    network = from_nir(tmp_path / "net")
    for name, params in variables["params"].items():
        for leaf, array in params.items():
            np.testing.assert_array_equal(network.params[name][leaf], array)
    write_nir(network, tmp_path / "again")
    again = nir.read(tmp_path / "again")
    x = np.moveaxis(np.asarray(x[0]), -1, 0)
    np.testing.assert_array_equal(computed(again, x), found)


def test_a_dense_layer_along_channels(tmp_path):
    x = jnp.ones((1, 5, 5, 2))
    layers = (
        made(nn.Conv, 2, (2, 2), name="conv"),
        made(Neurons, name="n"),
        dense("out"),
    )
    _, _, checkpoint = exported(tmp_path / "c", x, *layers)
    with pytest.raises(HardwareCheckpointError, match="edge 'n' to 'out' cannot be"):
        to_nir(checkpoint, tmp_path / "net", input_shape=(2, 5, 5))
