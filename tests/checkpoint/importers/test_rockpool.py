"""Files of Rockpool's networks that cannot be read as such are refused in one line."""

import copy
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
    ],
)
def test_a_network_that_is_none_is_named(network, tmp_path, change, message):
    file = tmp_path / "net.json"
    wrong = copy.deepcopy(network)
    change(wrong)
    file.write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=message) as error:
        read_rockpool(file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="it cannot be read: No such file"):
        read_rockpool(tmp_path / "net.json")
    (tmp_path / "net.json").write_text("{")
    with pytest.raises(ValueError, match="net.json: expected a JSON file"):
        read_rockpool(tmp_path / "net.json")
