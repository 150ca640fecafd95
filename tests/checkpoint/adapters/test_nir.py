"""NIR graphs, read with the nir package and computed with NumPy."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import nir
import numpy as np
import pytest

from hwtrain._arrays.windows import Window
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import HardwareCheckpointError, export, load
from hwtrain.checkpoint._manifest import Graph
from hwtrain.checkpoint.adapters._nir import NirNetwork, from_nir, to_nir, write_nir


def weight(path, shape, window=None, layer="Dense"):
    axes = len(shape) - 2
    return AnalogWeight(
        path=path,
        kind="dense" if window is None else "conv",
        layer=layer,
        shape=shape,
        rows=(axes, *range(axes)),
        columns=(axes + 1,),
        hardware=Hardware(),
        rule="",
        ranged=False,
        window=window,
    )


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def checkpoint_of(path, params, *weights):
    return load(export(path / "checkpoint", params, Plan(weights)))


def neurons(size, *names):
    return {name: draw(size) + 3 for name in names}


LIF = ("tau", "r", "v_leak", "v_threshold", "v_reset")
CUBA = ("tau_syn", "tau_mem", *LIF[1:], "w_in")


@pytest.fixture
def spiking(tmp_path):
    params = {
        "block": {
            "0": {"kernel": draw(4, 3), "bias": draw(3)},
            "1": neurons(3, *LIF),
        },
        "hidden": {"kernel": draw(3, 2)},
        "out": neurons(2, *CUBA),
    }
    return checkpoint_of(
        tmp_path,
        params,
        weight("block/0/kernel", (4, 3)),
        weight("hidden/kernel", (3, 2)),
    )


EDGES = [("block/0", "block/1"), ("block/1", "hidden"), ("hidden", "out")]


@pytest.mark.nightly
def test_a_spiking_network(spiking, tmp_path):
    params = jax.tree.map(np.asarray, spiking.params)
    to_nir(spiking, tmp_path / "net.nir", edges=EDGES)
    graph = nir.read(tmp_path / "net.nir")
    kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    assert kinds == {
        "input": "Input",
        "block.0": "Affine",
        "block.1": "LIF",
        "hidden": "Linear",
        "out": "CubaLIF",
        "output": "Output",
    }
    names = ["input", "block.0", "block.1", "hidden", "out", "output"]
    assert sorted(graph.edges) == sorted(zip(names, names[1:]))
    affine = graph.nodes["block.0"]
    x = draw(5, 4)
    np.testing.assert_allclose(
        x @ affine.weight.T + affine.bias,
        x @ params["block"]["0"]["kernel"] + params["block"]["0"]["bias"],
        rtol=1e-6,
    )
    np.testing.assert_array_equal(graph.nodes["hidden"].weight, draw(3, 2).T)
    for name in LIF:
        np.testing.assert_array_equal(
            getattr(graph.nodes["block.1"], name), params["block"]["1"][name]
        )
    for name in CUBA:
        np.testing.assert_array_equal(
            getattr(graph.nodes["out"], name), params["out"][name]
        )


@pytest.mark.nightly
def test_round_trip(spiking, tmp_path):
    to_nir(spiking, tmp_path / "a", edges=EDGES)
    network = from_nir(tmp_path / "a")
    np.testing.assert_array_equal(
        network.params["block.0"]["kernel"], spiking.params["block"]["0"]["kernel"]
    )
    assert network.inputs == {"input": (4,)} and network.outputs == {"output": (2,)}
    write_nir(network, tmp_path / "b")
    again = from_nir(tmp_path / "b")
    assert again.edges == network.edges
    assert again.params.keys() == network.params.keys()
    for name, params in network.params.items():
        for leaf, array in params.items():
            np.testing.assert_array_equal(again.params[name][leaf], array)
            assert array.dtype == np.float32


@pytest.mark.nightly
def test_the_graph_of_the_checkpoint(spiking, tmp_path):
    nodes = {name: "layer" for edge in EDGES for name in edge}
    nodes |= {"x": "input", "y": "output"}
    edges = (("x", "block/0"), *EDGES, ("out", "y"))
    graph = Graph(nodes=nodes, edges=edges)
    path = export(tmp_path / "graph", spiking.variables, spiking.plan, graph=graph)
    to_nir(load(path), tmp_path / "a")
    to_nir(spiking, tmp_path / "b", edges=EDGES)
    assert set(from_nir(tmp_path / "a").edges) == set(from_nir(tmp_path / "b").edges)
    graph = Graph(nodes={**nodes, "act": "relu"}, edges=edges)
    path = export(tmp_path / "relu", spiking.variables, spiking.plan, graph=graph)
    with pytest.raises(HardwareCheckpointError, match="the node 'act' .* no 'relu'"):
        to_nir(load(path), tmp_path / "c")


def test_without_the_package(spiking, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(HardwareCheckpointError, match=r"pip install hwtrain\[nir\]"):
        to_nir(spiking, tmp_path / "net", edges=EDGES)


@pytest.mark.nightly
def test_learned_output_scales(make, scaled, tmp_path):
    checkpoint = make("scaled", norm=False)
    to_nir(checkpoint, tmp_path / "net")
    found = from_nir(tmp_path / "net").params["scaled"]["kernel"]
    np.testing.assert_allclose(found, scaled(checkpoint), rtol=1e-6)


@pytest.mark.nightly
def test_recurrence(tmp_path):
    params = {
        "in": {"kernel": draw(4, 3)},
        "lif": neurons(3, *LIF),
        "rec": {"kernel": draw(3, 3)},
    }
    checkpoint = checkpoint_of(
        tmp_path, params, weight("in/kernel", (4, 3)), weight("rec/kernel", (3, 3))
    )
    edges = [("in", "lif"), ("lif", "rec"), ("rec", "lif"), ("lif", "output")]
    to_nir(checkpoint, tmp_path / "net", edges=edges)
    network = from_nir(tmp_path / "net")
    assert set(network.edges) == {*edges, ("input", "in")}


@pytest.mark.nightly
@pytest.mark.parametrize(
    "window",
    [
        Window.of((3,), padding=((2, 2),), strides=(2,)),
        Window.of((3, 3), padding="SAME"),
        Window.of((3, 3), strides=(2, 1), kernel_dilation=(1, 2)),
        Window.of((2, 2), padding=((1, 1), (0, 0))),
    ],
)
def test_a_convolution_computes_the_same(tmp_path, window):
    axes = len(window.sizes)
    channels = 4
    shape = (*window.sizes, channels // window.groups, 6)
    params = {"conv": {"kernel": draw(*shape), "bias": draw(6)}}
    checkpoint = checkpoint_of(
        tmp_path, params, weight("conv/kernel", shape, window, "Conv")
    )
    to_nir(checkpoint, tmp_path / "net", input_shape=(channels, *(8, 7)[:axes]))
    graph = nir.read(tmp_path / "net")
    node = graph.nodes["conv"]
    x = draw(1, *(8, 7)[:axes], channels)
    spatial = "HW"[:axes]
    # NIR's convolutions are PyTorch's: channels first, [out, in, *taps].
    padding = node.padding
    if not isinstance(padding, str):
        padding = [(int(p), int(p)) for p in np.broadcast_to(padding, axes)]
    found = jax.lax.conv_general_dilated(
        jnp.moveaxis(x, -1, 1),
        node.weight,
        [int(n) for n in np.broadcast_to(node.stride, axes)],
        padding.upper() if isinstance(padding, str) else padding,
        rhs_dilation=[int(n) for n in np.broadcast_to(node.dilation, axes)],
        dimension_numbers=(f"NC{spatial}", f"OI{spatial}", f"NC{spatial}"),
        feature_group_count=int(node.groups),
    )
    found = np.moveaxis(found, 1, -1) + node.bias
    expected = jax.lax.conv_general_dilated(
        x,
        params["conv"]["kernel"],
        window.strides,
        window.padding,
        rhs_dilation=window.kernel_dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=window.groups,
    )
    expected = expected + params["conv"]["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert tuple(graph.nodes["output"].output_type["output"]) == (
        6,
        *expected.shape[1:-1],
    )
    network = from_nir(tmp_path / "net")
    np.testing.assert_array_equal(network.params["conv"]["kernel"], draw(*shape))
    same = network.windows["conv"]
    assert same.output_sizes((8, 7)[:axes]) == window.output_sizes((8, 7)[:axes])
    assert (same.strides, same.groups) == (window.strides, window.groups)


@pytest.mark.parametrize(
    "window, match",
    [
        (Window.of((3, 3), padding="SAME", strides=(2, 2)), "padding 'SAME'"),
        (Window.of((3, 3), padding=((1, 0), (0, 0))), "equal on both sides"),
        (Window.of((3, 3), input_dilation=(2, 2)), "no input dilation"),
        (Window.of((3, 3, 3)), "along 3 axes"),
        (Window.of((3, 3), groups=2), "of 2 groups"),
        (Window.of((3, 2)), "square windows"),
    ],
)
def test_a_convolution_that_nir_does_not_have(tmp_path, window, match):
    shape = (*window.sizes, 2, 2)
    params = {"conv": {"kernel": draw(*shape)}}
    checkpoint = checkpoint_of(
        tmp_path, params, weight("conv/kernel", shape, window, "Conv")
    )
    with pytest.raises(HardwareCheckpointError, match=f"the node 'conv' .*{match}"):
        to_nir(checkpoint, tmp_path / "net", input_shape=(2, 5, 5))
    assert not (tmp_path / "net").exists()


def test_other_layers_are_errors_that_name_the_node(tmp_path):
    params = {"dense": {"kernel": draw(2, 2)}, "norm": {"gamma": draw(2)}}
    checkpoint = checkpoint_of(tmp_path, params, weight("dense/kernel", (2, 2)))
    with pytest.raises(HardwareCheckpointError, match="the node 'norm' .* with gamma"):
        to_nir(checkpoint, tmp_path / "net", edges=[("dense", "norm")])
    with pytest.raises(HardwareCheckpointError, match="nothing says how dense, norm"):
        to_nir(checkpoint, tmp_path / "net")
    with pytest.raises(HardwareCheckpointError, match="edge leads to nrm; there are"):
        to_nir(checkpoint, tmp_path / "net", edges=[("dense", "nrm")])
    assert not (tmp_path / "net").exists()


def embedding(path):
    plain = weight(path, (4, 3), layer="Embed")
    return dataclasses.replace(plain, kind="embed", rows=(1,), columns=(0,))


def of_heads(path):
    return dataclasses.replace(weight(path, (2, 3, 4)), rows=(0,), columns=(1, 2))


@pytest.mark.parametrize(
    "path, shape, planned, edges, match",
    [
        ("emb/embedding", (4, 3), embedding, (), "'emb' .* has nothing like Embed"),
        ("q/kernel", (2, 3, 4), of_heads, (), r"one axis .* has the shape \(2, 3, 4\)"),
        (
            "conv/kernel",
            (3, 3, 1, 2),
            lambda path: weight(path, (3, 3, 1, 2), Window.of((3, 3)), "Conv"),
            [("input", "conv"), ("conv", "output")],
            "'conv' comes first and works on windows",
        ),
    ],
)
def test_what_nir_cannot_hold(tmp_path, path, shape, planned, edges, match):
    layer, leaf = path.split("/")
    checkpoint = checkpoint_of(tmp_path, {layer: {leaf: draw(*shape)}}, planned(path))
    with pytest.raises(HardwareCheckpointError, match=match):
        to_nir(checkpoint, tmp_path / "net", edges=edges or [(layer, "output")])
    assert not (tmp_path / "net").exists()


def test_a_circle_without_an_input(tmp_path):
    params = {"a": {"kernel": draw(2, 2)}, "n": neurons(2, *LIF)}
    checkpoint = checkpoint_of(tmp_path, params, weight("a/kernel", (2, 2)))
    match = "no edge leads from the input to one of a, n; give to_nir"
    with pytest.raises(HardwareCheckpointError, match=match):
        to_nir(checkpoint, tmp_path / "net", edges=[("a", "n"), ("n", "a")])
    assert not (tmp_path / "net").exists()


def test_parts_of_a_flattening(tmp_path):
    node = nir.Flatten(
        input_type={"input": np.array([2, 3, 4])}, start_dim=1, end_dim=2
    )
    nir.write(tmp_path / "net", nir.NIRGraph.from_list(node))
    match = "cannot be read: .* a flattening of the axes 1 to 2 of 3"
    with pytest.raises(HardwareCheckpointError, match=match):
        from_nir(tmp_path / "net")


def test_batch_statistics(tmp_path):
    variables = {
        "params": {"dense": {"kernel": draw(2, 2)}},
        "batch_stats": {"norm": {"mean": draw(2)}},
    }
    plan = Plan((weight("dense/kernel", (2, 2)),))
    checkpoint = load(export(tmp_path / "checkpoint", variables, plan))
    with pytest.raises(HardwareCheckpointError, match="collection batch_stats"):
        to_nir(checkpoint, tmp_path / "net")


@pytest.mark.nightly
@pytest.mark.parametrize(
    "node", [nir.I(r=np.ones(2)), nir.Threshold(threshold=np.ones(2))]
)
def test_a_node_that_cannot_be_read(tmp_path, node):
    nir.write(tmp_path / "net", nir.NIRGraph.from_list(node))
    name = type(node).__name__
    match = (
        f"the node '{name.lower()}' cannot be read: it is a node of NIR's type {name}"
    )
    with pytest.raises(HardwareCheckpointError, match=match):
        from_nir(tmp_path / "net")


@pytest.mark.nightly
def test_a_file_that_is_none(tmp_path):
    (tmp_path / "net").write_bytes(b"no HDF5")
    with pytest.raises(HardwareCheckpointError, match="cannot be read as a NIR graph"):
        from_nir(tmp_path / "net")


@pytest.mark.nightly
def test_parameters_of_neurons_that_do_not_fit(tmp_path):
    network = NirNetwork(
        params={"lif": neurons(3, *LIF[:-1])},
        windows={},
        edges=(("input", "lif"), ("lif", "output")),
        inputs={"input": (4,)},
        outputs={"output": None},
    )
    with pytest.raises(HardwareCheckpointError, match="type mismatch: input"):
        write_nir(network, tmp_path / "net")
