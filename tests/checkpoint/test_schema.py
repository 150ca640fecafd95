"""The package's JSON Schema matches the manifest model, and manifests conform to it."""

import importlib.resources
import json
import tomllib
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from hwtrain.checkpoint import Graph, Measurement, export, load
from hwtrain.checkpoint.schema import SCHEMA_FILE, manifest_schema

GRAPH = Graph(
    nodes={"in": "input", "hidden": "layer", "act": "relu", "norm": "layer"},
    edges=(("in", "hidden"), ("hidden", "act"), ("act", "norm")),
)
ACCURACY = [
    Measurement(metric="accuracy in %", mode="chip_mode", chips=8, mean=97.5, std=0.5),
    Measurement(
        metric="loss", mode="chip_mode", chips=1, mean=0.1, conditions={"t_s": 3600.0}
    ),
]


@pytest.fixture
def schema():
    package = importlib.resources.files("hwtrain.checkpoint")
    return json.loads(package.joinpath("manifest.schema.json").read_text("utf-8"))


@pytest.fixture
def manifest(tmp_path, variables, plan):
    path = export(
        tmp_path / "m", variables, plan, chip_seed=7, graph=GRAPH, accuracy=ACCURACY
    )
    return json.loads((path / "manifest.json").read_text("utf-8"))


def test_the_file_is_what_the_model_says(schema):
    again = "write it anew with: python -m hwtrain.checkpoint.schema"
    assert schema == json.loads(json.dumps(manifest_schema())), again
    jsonschema.Draft202012Validator.check_schema(schema)


def test_the_file_is_shipped():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    data = project["tool"]["setuptools"]["package-data"]["hwtrain"]
    assert f"checkpoint/{SCHEMA_FILE.name}" in data


def test_a_manifest_keeps_to_it(schema, manifest):
    jsonschema.validate(manifest, schema)
    assert manifest["graph"]["edges"][0] == ["in", "hidden"]
    assert [entry["mean"] for entry in manifest["accuracy"]] == [97.5, 0.1]
    assert "std" not in manifest["accuracy"][1]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("layers"),
        lambda m: m.update(surplus=1),
        lambda m: m["chips"][0].update(seed=-1),
        lambda m: m["chips"][0].update(seed=2**32),
        lambda m: m["layers"][0]["weight"]["hardware"]["converter"].update(g_max="25"),
        lambda m: m["layers"][0]["weight"]["hardware"]["converter"].update(type="x"),
        lambda m: m["files"].update({"../secret.safetensors": {}}),
        lambda m: m["accuracy"][0].update(chips=0),
        lambda m: m["accuracy"][0].update(std=-1.0),
        lambda m: m.pop("rules"),
        lambda m: m["leaves"][0].update(dtype="object"),
        lambda m: m["layers"][0]["weight"].update(surplus=1),
        lambda m: m["layers"][0]["weight"].update(ranged="true"),
        lambda m: m["digital"][0].update(surplus=1),
    ],
)
def test_it_refuses_what_the_reader_refuses(schema, manifest, change):
    change(manifest)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, schema)


def test_what_was_said_of_the_model_is_read_back(tmp_path, variables, plan):
    path = export(tmp_path / "m", variables, plan, graph=GRAPH, accuracy=ACCURACY)
    found = load(path).manifest
    assert found.graph == GRAPH
    assert found.accuracy == tuple(ACCURACY)
    # Said again, it is the same checkpoint, byte by byte.
    again = export(
        tmp_path / "again",
        load(path).variables,
        plan,
        graph=found.graph,
        accuracy=found.accuracy,
    )
    for file in path.rglob("*.*"):
        assert (again / file.relative_to(path)).read_bytes() == file.read_bytes()


def test_a_graph_of_other_layers_is_refused(tmp_path, variables, plan):
    with pytest.raises(ValueError, match="leads to 'b', which is not a node; .* are a"):
        Graph(nodes={"a": "input"}, edges=(("a", "b"),))
    graph = Graph(nodes={"hiden": "layer"}, edges=())
    with pytest.raises(ValueError, match="no layer 'hiden'; it has .*hidden"):
        export(tmp_path / "m", variables, plan, graph=graph)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_either_has_no_entry(tmp_path, variables, plan):
    params = {"norm": {"scale": np.ones(2, np.float32)}}
    path = export(tmp_path / "m", params, type(plan)(()))
    content = json.loads((path / "manifest.json").read_text("utf-8"))
    assert "graph" not in content and content["accuracy"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"std": -1.0},
        {"std": 101.0},
        {"mean": 1.5, "std": 0.1, "metric": "accuracy"},
        {"mean": 101.0},
        {"mean": -0.1},
        {"mean": float("nan")},
        {"std": float("inf")},
        {"std": 0.1, "chips": 1},
        {"chips": True},
        {"mean": "97"},
        {"metric": ""},
    ],
)
def test_an_accuracy_that_cannot_be(wrong):
    right = {"metric": "accuracy in %", "mode": "chip_mode", "chips": 8, "mean": 97.5}
    Measurement(**right, std=0.5)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Measurement(**{**right, **wrong})
