"""Tests of the commands that read a run or a checkpoint; `train` has its own."""

import dataclasses
import json
import shutil
import tomllib
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain import checkpoint, cli, presets
from hwtrain._arrays import paths
from hwtrain._parts.fields import from_dict
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint.adapters import ADAPTERS
from hwtrain.evaluate import Population
from hwtrain.train import _checkpoints as checkpoints
from hwtrain.train import init_state
from hwtrain.train._folder import make_folder
from hwtrain.train._mismatch_config import kind_of
from hwtrain.train._preparation import variables_of
from hwtrain.train._run import Run, open_run

CONFIG = Path(__file__).parents[2] / "configs" / "digits_mlp.toml"


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory):
    """A checkpoint of the run's first model and of two chips, elsewhere."""
    out = tmp_path_factory.mktemp("out") / "chip"
    assert cli.main(["export", str(run), str(out), "--chips", "2"]) == 0
    return out


@pytest.fixture
def hwtrain(capsys):
    """Runs the command; returns its exit status, stdout and stderr."""

    def call(*words):
        status = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.nightly
def test_export_of_a_run_is_that_of_the_main_job(run, tmp_path, hwtrain):
    out = tmp_path / "chip"
    status, said, _ = hwtrain("export", run, out, "--seed", 4, "--chip", 0)
    assert status == 0
    assert "training seed 4, step 20" in said
    ours, theirs = checkpoint.load(out), checkpoint.load(run / "export" / "seed_4")
    chex.assert_trees_all_equal(ours.params, theirs.params)
    chex.assert_trees_all_equal(ours.chip(0), theirs.chip(0))
    other = checkpoint.load(run / "export" / "seed_3").params
    assert not np.array_equal(other["head"]["kernel"], ours.params["head"]["kernel"])


def test_export_of_a_checkpoint_draws_other_chips(exported, tmp_path, hwtrain):
    assert checkpoint.load(exported).chip_seeds == (0, 1)
    graph = checkpoint.load(exported).manifest.graph
    assert ("hidden_0", "relu") in graph.edges and ("relu", "hidden_1") in graph.edges
    again, other = tmp_path / "again", tmp_path / "other"
    assert hwtrain("export", exported, again, "--chips", 2)[0] == 0
    assert files(again) == files(exported)
    assert hwtrain("export", exported, other, "--chip", 7, "--chip", 1)[0] == 0
    assert checkpoint.load(other).chip_seeds == (1, 7)


def test_nothing_in_a_run_changes(run, exported, tmp_path, hwtrain):
    before = files(run)
    hwtrain("export", run, tmp_path / "out")
    hwtrain("inspect", run)
    hwtrain("evaluate", run, "--chips", 2)
    assert files(run) == before


def test_inspect_shows_what_there_is(run, exported, tmp_path, hwtrain):
    status, said, _ = hwtrain("inspect", run)
    assert status == 0
    assert "hidden_0/kernel" in said and "64x128" in said
    assert "tiles: 3, analog weights: 17,024, digital parameters: 202" in said
    png = tmp_path / "histogram.png"
    status, said, _ = hwtrain("inspect", exported, "--png", png)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "16,384 │  0.00" in said and "0 to 25 µS" in said


def test_inspect_proves_that_effects_are_on(run, monkeypatch, hwtrain):
    status, said, _ = hwtrain("inspect", run, "--active")
    assert status == 0
    assert "Effects that are on" in said and "x the configured deviation" in said

    def nothing(*_):
        raise ValueError("configured effects that do nothing:\n  head: modifier: off")

    monkeypatch.setattr("hwtrain.cli._inspect.assert_active", nothing)
    status, _, error = hwtrain("inspect", run, "--active")
    assert status == 1 and "head: modifier: off" in error


def test_inspect_shows_costs(run, exported, tmp_path, hwtrain):
    file = tmp_path / "cost.json"
    words = ("--cost", "--technology", "hermes_core")
    status, said, _ = hwtrain("inspect", run, *words, "--json", file)
    assert status == 0 and "HERMES core" in said and "TOPS/W" in said
    found = json.loads(file.read_text())
    # An MLP 64-128-64-10: one tile and one product for each layer.
    weights = 64 * 128 + 128 * 64 + 64 * 10
    assert [layer["counts"]["products"] for layer in found["layers"]] == [1.0] * 3
    assert sum(layer["macs"] for layer in found["layers"]) == weights
    assert found["devices"] == 2 * weights
    # 3 x 131,072 operations at 10.5 TOPS/W.
    energy = 3 * 131.072 / 10.5
    assert found["energy_nj_per_example"] == pytest.approx(energy)
    shown = hwtrain("inspect", exported, *words)[1]
    assert shown.partition("\n")[2] in said


def test_inspect_shows_a_chip_as_it_was_programmed(tmp_path, hwtrain):
    chip = presets.pcm()
    weight = AnalogWeight(
        path="kernel", kind="raw", layer="", shape=(20, 30), rows=(0,), columns=(1,),
        hardware=chip, rule="", ranged=False,
    )  # fmt: skip
    params = {"kernel": np.random.default_rng(0).normal(size=(20, 30))}
    params = {"kernel": params["kernel"].astype(np.float32)}
    path = checkpoint.export(tmp_path / "m", params, Plan((weight,)), chip_seed=1)
    said = hwtrain("inspect", path, "--chip", 1)[1]
    tiles = checkpoint.load(path).conductances("kernel", 1)
    programmed = [device.g_prog for device in tiles[0][0].programmed.values()]
    assert f"{np.mean(programmed):.2f} │ {np.max(programmed):.2f}" in said


def test_verify_prints_a_certificate(exported, tmp_path, hwtrain):
    status, said, table = hwtrain("verify", exported)
    assert status == 0 and "1e-06 is allowed" in table
    assert json.loads(said) == checkpoint.verify(exported)
    assert json.loads(said)["passed"] is True
    damaged = tmp_path / "damaged"
    shutil.copytree(exported, damaged)
    path = damaged / "chips/0001/0002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    status, said, error = hwtrain("verify", damaged)
    assert status == 1
    assert json.loads(said)["passed"] is False
    assert "chips/0001/0002.safetensors is damaged" in json.loads(said)["error"]
    assert error.count("\n") == 1


def test_verify_shows_its_table_on_a_terminal(exported, monkeypatch, hwtrain):
    monkeypatch.setattr("hwtrain.cli._verify.on_terminal", lambda: True)
    status, said, error = hwtrain("verify", exported)
    assert status == 0 and not error
    text, _, table = said.partition("\n}\n")
    assert json.loads(text + "}") == checkpoint.verify(exported)
    assert "1e-06 is allowed" in table and "hidden_0/kernel" in table


@pytest.mark.parametrize("target", sorted(ADAPTERS))
def test_convert_is_the_adapter(exported, tmp_path, hwtrain, target):
    out, direct = tmp_path / "out", tmp_path / "direct"
    status, said, error = hwtrain("convert", exported, "--to", target, "--out", out)
    try:
        ADAPTERS[target](checkpoint.load(exported), direct)
    except checkpoint.HardwareCheckpointError as refused:
        # Its MLP has an activation that NIR has not.
        assert (status, target) == (2, "nir")
        assert "the node 'relu' from 'hidden_0' to 'hidden_1'" in error
        line = " ".join(str(refused).split())
        assert error == f"hwtrain: error: {line} (docs/deployment.md)\n"
        return
    assert (status, said) == (0, f"{out} written\n")
    assert files(out) == files(direct)
    assert out.is_dir() or out.read_bytes() == direct.read_bytes()


def test_convert_of_a_run_says_what_to_give(run, tmp_path, hwtrain):
    status, _, error = hwtrain("convert", run, "--to", "nir", "--out", tmp_path / "out")
    assert status == 2 and error.count("\n") == 1
    assert f"got a run; give one of its exports, such as {run}/export/seed_3" in error


@pytest.mark.parametrize("command", ["convert", "export"])
def test_a_run_of_the_spiking_recipe_points_at_its_own_export(
    command, tmp_path, hwtrain
):
    path = CONFIG.with_name("digits_dynapse.toml")
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    make_folder(tmp_path / "run", from_dict(kind_of(data), data), path.parent)
    words = ["--to", "nir", "--out"] if command == "convert" else []
    status, _, error = hwtrain(command, tmp_path / "run", *words, tmp_path / "out")
    assert status == 2 and error.count("\n") == 1
    assert "compares trainings under mismatch" in error and "export_dynapse" in error


def test_convert_writes_beside_the_checkpoint(exported, tmp_path, hwtrain):
    copy = tmp_path / "chip"
    shutil.copytree(exported, copy)
    assert hwtrain("convert", copy, "--to", "npz", "--chip", 1)[0] == 0
    assert (tmp_path / "chip.npz").is_file()
    status, _, error = hwtrain("convert", copy, "--to", "npz")
    assert status == 2 and "never overwritten" in error


def test_evaluate_is_what_numpy_finds_on_the_chips_of_the_files(
    run, exported, tmp_path, hwtrain
):
    words = ["--chips", 2, "--json", tmp_path / "of_checkpoint.json"]
    assert hwtrain("evaluate", exported, "--run", run, *words)[0] == 0
    words[-1] = tmp_path / "of_run.json"
    status, said, _ = hwtrain("evaluate", run, *words)
    assert status == 0
    found = json.loads(words[-1].read_text())
    same = json.loads((tmp_path / "of_checkpoint.json").read_text())
    assert (found["chips"], found["values"]) == (same["chips"], same["values"])
    (test,) = open_run(run).ready.data.evaluation()
    expected = []
    for seed in (0, 1):
        chip, x = checkpoint.load(exported).chip(seed), test.inputs
        for name in ("hidden_0", "hidden_1", "head"):
            layer = {key: np.asarray(value) for key, value in chip[name].items()}
            x = np.clip(x, -layer["input_range"], layer["input_range"])
            x = x @ layer["kernel"] + layer["bias"]
            x = x if name == "head" else np.maximum(x, 0)
        expected.append(100 * np.mean(x.argmax(-1) == test.labels))
    np.testing.assert_allclose(found["values"], expected, atol=1e-4)
    assert f"{np.mean(expected):.2f}" in said


def test_evaluate_writes_small_numbers_whole(run, tmp_path, monkeypatch, hwtrain):
    def population(self, params, *, chips, times_s, metric, until):
        values = np.array([6.4761e-6, 3.21e-7])
        return Population(values=values, seeds=tuple(chips))

    monkeypatch.setattr(Run, "population", population)
    out = tmp_path / "values.json"
    assert hwtrain("evaluate", run, "--chips", 2, "--json", out)[0] == 0
    assert json.loads(out.read_text())["values"] == [6.4761e-6, 3.21e-7]


def test_evaluate_over_time(run, tmp_path, monkeypatch, hwtrain):
    def population(self, params, *, chips, times_s, metric, until):
        values = np.add.outer(np.arange(len(chips)), -np.log10(1 + np.array(times_s)))
        return Population(values=values, seeds=tuple(chips), times_s=tuple(times_s))

    monkeypatch.setattr(Run, "population", population)
    out, png = tmp_path / "values.json", tmp_path / "values.png"
    words = ["--chip", 5, "--chip", 6, "--times", 0, 3600, "--json", out, "--png", png]
    status, said, _ = hwtrain("evaluate", run, *words)
    assert status == 0
    assert "on 2 chips (chip_mode)" in said and "1 h" in said
    assert png.read_bytes().startswith(b"\x89PNG")
    found = json.loads(out.read_text())
    assert found["chips"] == [5, 6] and found["times_s"] == [0.0, 3600.0]
    np.testing.assert_allclose(found["values"][1], [1, 1 - np.log10(3601)], atol=1e-4)


def test_evaluate_by_layer(run, tmp_path, hwtrain):
    out, png = tmp_path / "layers.json", tmp_path / "layers.png"
    words = ["--sensitivity", "--chips", 2, "--json", out, "--png", png]
    status, said, _ = hwtrain("evaluate", run, *words)
    assert status == 0
    assert "by layer on 2 chips (chip_mode)" in said and "all but this" in said
    assert png.read_bytes().startswith(b"\x89PNG")
    found = json.loads(out.read_text())
    assert sorted(found["layers"]) == ["head", "hidden_0", "hidden_1"]
    whole = tmp_path / "whole.json"
    assert hwtrain("evaluate", run, "--chips", 2, "--json", whole)[0] == 0
    assert found["all"] == json.loads(whole.read_text())["values"]
    alone = [layer["alone"] for layer in found["layers"].values()]
    assert all(len(values) == 2 for values in (*alone, found["none"]))
    assert f"{np.mean(alone[0]):.2f}" in said


def test_a_run_tells_which_values_of_its_metric_are_better(run):
    opened = open_run(run)
    ready = opened.ready
    task = ready.task._replace(metrics=(opened.metric._replace(better="lower"),))
    lower = dataclasses.replace(opened, ready=dataclasses.replace(ready, task=task))
    variables = variables_of(opened.ready, opened.trained(3))
    up, down = (x.sensitivity(variables, chips=1) for x in (opened, lower))
    np.testing.assert_allclose(up.cost, -down.cost)
    assert (up.better, down.better) == ("higher", "lower")


def test_evaluate_varies_what_can_be_traced_and_what_cannot(run, tmp_path, hwtrain):
    out, png = tmp_path / "points.json", tmp_path / "points.png"
    words = ["--vary", "mismatch.std_dev=0.05,0.4", "--required", 20, "--chips", 3]
    words += ["--vary", "mismatch.per_column=true,false", "--json", out, "--png", png]
    status, said, _ = hwtrain("evaluate", run, *words)
    assert status == 0 and "yield at 20" in said
    assert png.read_bytes().startswith(b"\x89PNG")
    points = json.loads(out.read_text())["points"]
    names = [tuple(point["conditions"].values()) for point in points]
    assert names == [(True, 0.05), (True, 0.4), (False, 0.05), (False, 0.4)]
    opened = open_run(run)
    variables = variables_of(opened.ready, opened.trained(3))
    for point, (per_column, std_dev) in zip(points, names):
        changed = dataclasses.replace(
            opened.config.hardware.mismatch, per_column=per_column, std_dev=std_dev
        )
        chip = dataclasses.replace(opened.config.hardware, mismatch=changed)
        alone = opened.population(variables, chips=3, hardware=chip)
        np.testing.assert_allclose(point["values"], alone.values, atol=0.23)
    values = [point["values"] for point in points]
    assert values[0] != values[1] != values[3]


def test_evaluate_of_the_plain_model_is_that_of_the_results(run, tmp_path, hwtrain):
    out = tmp_path / "values.json"
    words = ["--plain", "--vary", "mismatch.std_dev=0.05", "--seed", 4, "--json", out]
    status, said, _ = hwtrain("evaluate", run, *words)
    assert status == 0 and "plain, training seed 4, step 20" in said
    (point,) = json.loads(out.read_text())["points"]
    data = json.loads((run / "results.json").read_text())
    plain = next(x for x in data["values_by_seed_and_chip"] if x["model"] == "plain")
    np.testing.assert_allclose(point["values"], plain["values"][1], atol=1e-3)
    status, _, error = hwtrain("evaluate", run / "export/seed_3", "--plain")
    assert status == 2 and "--plain is for the folder of a run" in error


def test_evaluate_by_another_metric(run, hwtrain):
    status, _, error = hwtrain("evaluate", run, "--metric", "loss", "--chips", 2)
    assert status == 2 and "--metric: expected one of accuracy, got loss" in error
    status, said, _ = hwtrain("evaluate", run, "--metric", "accuracy", "--chips", 2)
    assert status == 0 and "accuracy in % on 2 chips" in said


def test_evaluate_takes_no_more_chips_than_it_needs(run, tmp_path, hwtrain):
    out = tmp_path / "values.json"
    words = ["--chips", 64, "--until", 50, "--json", out]
    assert hwtrain("evaluate", run, *words)[0] == 0
    assert json.loads(out.read_text())["chips"] == list(range(16))


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--vary", "mismatch.std=1"], "did you mean hardware.mismatch.std_dev"),
        (["--vary", "modifier.std_dev=0.1"], "in training only"),
        (["--vary", "mismatch"], "expected KEY=VALUE"),
        (["--until", 0], "above 0"),
        (["--required", "nan"], "--required: expected a number"),
        (["--sensitivity", "--required", 20], "does not take --required"),
        (["--sensitivity", "--vary", "a=1"], "does not take --vary"),
    ],
)
def test_evaluate_refuses_what_would_do_nothing(run, words, expected, hwtrain):
    status, _, error = hwtrain("evaluate", run, *words)
    assert status == 2 and error.count("\n") == 1 and expected in error


def test_evaluate_finds_the_run_that_a_checkpoint_lies_in(run, hwtrain):
    status, said, _ = hwtrain("evaluate", run / "export" / "seed_3", "--chips", 2)
    assert status == 0
    assert "on 2 chips (chip_mode)" in said


def test_calibrate_sets_ranges_to_the_largest_inputs(run, tmp_path, hwtrain):
    out = tmp_path / "chip"
    status, said, _ = hwtrain("calibrate", run, out, "--seed", 4, "--batches", 1)
    assert status == 0
    found, before = (checkpoint.load(p) for p in (out, run / "export" / "seed_4"))
    x = next(iter(open_run(run).ready.data.calibration())).inputs
    for name in ("hidden_0", "hidden_1", "head"):
        layer = {key: np.asarray(value) for key, value in found.params[name].items()}
        np.testing.assert_allclose(layer["input_range"], np.abs(x).max(), rtol=1e-5)
        assert f"{layer['input_range'].max():.4g}" in said
        np.testing.assert_array_equal(layer["kernel"], before.params[name]["kernel"])
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)


@pytest.mark.parametrize(
    "words, message",
    [
        (["export", "{run}", "{exported}"], "exists and is never overwritten"),
        (["export", "{run}", "new", "--chips", "0"], "expected at least 1, got 0"),
        (["export", "{run}", "new", "--chip", "-1"], "whole number from 0 to 42949"),
        (["export", "{run}", "new", "--seed", "9"], "training seeds of this run are 3"),
        (["export", "nowhere", "new"], "nowhere: expected the folder of a run or a"),
        (["export", ".", "new"], "not a hwtrain checkpoint"),
        (["export", "{exported}", "new", "--seed", "3"], "--seed 3 does nothing"),
        (["inspect", "{run}", "--chip", "1"], "a run has no chips; export them"),
        (["inspect", "{exported}", "--chip", "5"], "holds no chip 5; it holds 0, 1"),
        (["inspect", "{exported}", "--png", "no/file.png"], "no folder no"),
        (["convert", "{exported}", "--to", "npz", "--chip", "5"], "holds no chip 5"),
        (["convert", ".", "--to", "npz", "--out", "new"], "not a hwtrain checkpoint"),
        (["calibrate", "{run}", "new", "--batches", "0"], "--batches: expected at le"),
        (["calibrate", "{run}", "new", "--run", "."], "--run . does nothing"),
        (["inspect", "{run}", "--run", "."], "--run is only for --active"),
        (["inspect", "{run}", "--json", "x"], "--json is only for --cost; give --cos"),
        (["inspect", "{run}", "--technology", "isaac"], "--technology is only for --c"),
        (["inspect", "{run}", "--cost"], "has no table [cost]; name constants"),
        (["inspect", "{run}", "--cost", "--active"], "--active does nothing beside it"),
        (["inspect", "{run}", "--cost", "--png", "a.png"], "--png does nothing beside"),
        (["inspect", "{run}", "--cost", "--chip", "1"], "--chip does nothing beside"),
        (
            ["inspect", "{run}", "--cost", "--technology", "isac"],
            "--technology: expected one of hermes, hermes_core, isaac, or a function",
        ),
        (
            ["inspect", "{run}", "--cost", "--technology", "isaac"],
            "kernel: its hardware has no DAC with levels",
        ),
        (
            ["inspect", "{run}", "--cost", "--technology", "hermes", "--json", "a/b"],
            "no folder a",
        ),
        (["verify", "."], "is not a hardware-ready checkpoint"),
        (["evaluate", "{exported}"], "name the run it belongs to: --run RUN"),
        (["evaluate", "{run}", "--png", "file.png"], "give --times, --vary or"),
        (["evaluate", "{run}", "--sensitivity", "--times", "0", "9"], "one of --times"),
        (["evaluate", "{run}", "--times", "10"], "times_s=[10.0] would cha"),
        (["export", "{run}", "new", "--chips", "1000000000000"], "at most 1000000"),
        (
            ["calibrate", "{run}", "new", "--batches", f"{10**21}"],
            "--batches: expected",
        ),
        (["evaluate", "{run}", "--times", "1e300"], "or beyond 1e+12; got [1e+300]"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    run, exported, tmp_path, monkeypatch, hwtrain, words, message
):
    monkeypatch.chdir(tmp_path)
    status, said, error = hwtrain(
        *(word.format(run=run, exported=exported) for word in words)
    )
    assert status == 2
    assert message in error and error.startswith("hwtrain: error: ")
    assert error.count("\n") == 1
    assert said == ""
    assert not any(tmp_path.iterdir())


def test_a_run_whose_recipe_moved_says_where_it_was(run, tmp_path, hwtrain):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    (moved / "source.json").write_text(json.dumps({"folder": "/nowhere/configs"}))
    status, _, error = hwtrain("inspect", moved)
    assert status == 2
    assert "/nowhere/recipes/digits.py" in error
    (moved / "source.json").unlink()
    assert 'such as {"folder": ' in hwtrain("inspect", moved)[2]
    shutil.rmtree(moved / "hardware-aware")
    shutil.copy(run / "source.json", moved)
    assert "hwtrain train CONFIG --resume" in hwtrain("inspect", moved)[2]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("leaf", ["hidden_0/kernel", "head/bias", "head/input_range"])
def test_a_model_that_diverged_is_refused(run, tmp_path, hwtrain, leaf):
    """As a run of an earlier version may have saved it; a bias is digital."""
    spoilt, seed = tmp_path / "spoilt", "hardware-aware/seed_3"
    shutil.copytree(run, spoilt)
    ready = open_run(run).ready
    start = init_state(ready.aware.init(3), ready.aware_optimizer)
    with checkpoints.open_checkpoints(spoilt / seed) as manager:
        state, _ = checkpoints.restore_latest(manager, start)
        params = paths.map_leaves(
            lambda path, value: value.at[..., 0].set(np.nan) if path == leaf else value,
            state.params,
        )
        checkpoints.save(manager, state._replace(step=jnp.int32(21), params=params))
    commands = [
        ("evaluate", spoilt),
        ("export", spoilt, tmp_path / "out"),
        ("calibrate", spoilt, tmp_path / "out"),
        ("inspect", spoilt),
    ]
    for words in commands if leaf == "head/bias" else commands[1:2]:
        status, said, error = hwtrain(*words)
        assert status == 2 and said == ""
        assert error.startswith(f"hwtrain: error: {spoilt / seed / '21'}: {leaf}: ")
        assert "weights are NaN or infinite" in error and error.count("\n") == 1
        assert "delete this folder to continue from step 20" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["export", "calibrate", "convert"])
@pytest.mark.parametrize("below", ["file/out", "file/a/out"])
def test_a_path_below_a_file_is_one_line(exported, tmp_path, hwtrain, command, below):
    (tmp_path / "file").write_text("")
    out = tmp_path / below
    words = [exported, "--to", "npz", "--out"] if command == "convert" else [exported]
    status, said, error = hwtrain(command, *words, out)
    assert status == 2 and said == ""
    assert error == (
        f"hwtrain: error: {out} cannot be written, because {tmp_path / 'file'} is a "
        "file; choose another path (docs/checkpoint.md)\n"
    )


@pytest.mark.parametrize("folder", [False, True])
def test_the_clean_up_does_not_hide_what_went_wrong(tmp_path, monkeypatch, folder):
    """The path above becomes a file after it was looked at."""
    monkeypatch.setattr(destination, "check_free", lambda path: None)
    (tmp_path / "file").write_text("")
    with pytest.raises(checkpoint.HardwareCheckpointError, match="could not be writ"):
        with destination.new(tmp_path / "file" / "out", folder=folder):
            pass
