"""Files of Rockpool's networks that cannot be read as such are refused in one line."""

import json
from pathlib import Path

import pytest

from hwtrain.checkpoint.importers import read_rockpool

GOLDEN = Path(__file__).parents[2] / "golden/trained/rockpool.json"


@pytest.fixture
def network():
    return json.loads(GOLDEN.read_text("utf-8"))["network"]


def neurons(network):
    (first, *_) = [name for name in network if "DynapSim" in name]
    return network[first]


def other(network):
    network["0_LinearJax"] = {"tau": [1.0]}


def without_neurons(network):
    for name in [name for name in network if "DynapSim" in name]:
        del network[name]


def with_text(network):
    network["0_LinearJax"]["weight"] = "many"


def with_nan(network):
    neurons(network)["Itau_mem"] = [float("nan")] * 4


def trained_alone(network):
    del neurons(network)["C_mem"]


def with_another(network):
    neurons(network)["speed"] = [1.0]


def negative(network):
    neurons(network)["Itau_mem"] = [-1e-12] * 4


def under_two_names(network):
    network["a"] = {"b": network["1_DynapSim"]}
    network["a/b"] = network["1_DynapSim"]


def number(network):
    network["0_LinearJax"] = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other, "expected the arrays of a DynapSim or of a LinearJax, got tau"),
        (without_neurons, "expected layers of DynapSim neurons, got none"),
        (with_text, "0_LinearJax: weight: expected numbers, got 'many'"),
        (with_nan, "Itau_mem: expected finite numbers, got NaN or infinity"),
        (trained_alone, "got none of C_mem; save simulation_parameters"),
        (with_another, "speed: expected quantities of a DynapSim"),
        (negative, "DynapSim: Itau_mem"),
        (number, "0_LinearJax: expected the arrays of a layer by name"),
        (dict.clear, "expected the layers of a network by name"),
        (under_two_names, "a/b: expected one layer of this name, got several"),
    ],
)
def test_a_network_that_is_none_is_named(network, tmp_path, change, message):
    change(network)
    _refused(network, tmp_path, message)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("Itau_mem", [1e300] * 4, "DynapSim: Itau_mem: expected numbers that float32"),
        ("Itau_mem", [], "Itau_mem: expected a number for each neuron, got none"),
        ("Itau_mem", [10**400], "Itau_mem: expected numbers, got"),
        ("Itau_mem", "[" * 10**5, "Itau_mem: expected numbers, got"),
        ("Idc", [1e-12] * 7, "Idc: expected 1 number or 4, .* got 7"),
        (
            "w_rec",
            [[1, 2], [3, 4]],
            r"w_rec: .* shape \(4, 4\), .* got one of \(2, 2\)",
        ),
        ("Iscale", 1e300, "Iscale: expected numbers that float32 holds"),
        ("w_rec", [[1e300] * 4] * 4, "w_rec: expected numbers that float32 holds"),
    ],
)
def test_quantities_of_neurons_that_are_none(network, tmp_path, name, value, message):
    neurons(network)[name] = value
    _refused(network, tmp_path, message)


@pytest.mark.parametrize("name", ["dt", "Iscale"])
@pytest.mark.parametrize("value", [[1e-3, 2e-3], [], 0, -1e-3])
def test_arguments_of_cells_are_one_number(network, tmp_path, name, value):
    neurons(network)[name] = value
    _refused(network, tmp_path, f"1_DynapSim: {name}: expected one number above 0, got")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weight": [1, 2, 3]}, r"weight: .* \[inputs, outputs\], .* shape \(3,\)"),
        ({"weight": [[1e300] * 4] * 3}, "weight: expected numbers that float32 holds"),
        (
            {"weight": [[1] * 5] * 3},
            "1_DynapSim: expected 5 inputs, .* 0_LinearJax .* 4",
        ),
        ({"bias": [1]}, r"0_LinearJax: bias: expected 4 numbers, .* shape \(1,\)"),
    ],
)
def test_layers_that_do_not_fit(network, tmp_path, arrays, message):
    network["0_LinearJax"] |= arrays
    _refused(network, tmp_path, message)


def _refused(network, tmp_path, message):
    file = tmp_path / "net.json"
    file.write_text(json.dumps(network))
    with pytest.raises(ValueError, match=message) as error:
        read_rockpool(file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="it cannot be read: No such file"):
        read_rockpool(tmp_path / "net.json")
    for text, message in (
        ("[" * 10**5, "maximum recursion"),
        ('{"a": 1, "a": 2}', "'a'"),
    ):
        (tmp_path / "net.json").write_text(text)
        with pytest.raises(ValueError, match=f"net.json: expected a JSON .*{message}"):
            read_rockpool(tmp_path / "net.json")
    (tmp_path / "net.json").write_text("{")
    with pytest.raises(ValueError, match="net.json: expected a JSON file"):
        read_rockpool(tmp_path / "net.json")
