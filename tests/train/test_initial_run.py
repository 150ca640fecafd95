"""A run starts from a checkpoint, reports it, and continues without it."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from rich.console import Console

from hwtrain import cli
from hwtrain._arrays import paths
from hwtrain.train import Loaded, compare, job_of, prepare, read_arrays, read_config
from hwtrain.train._comparison import start
from hwtrain.train._folder import make_folder
from hwtrain.train._initial_run import Initial
from hwtrain.train._report import HARDWARE_AWARE, PLAIN
from hwtrain.train._run import open_run

RECIPE = """
import numpy as np
from flax import linen as nn
from flax import nnx

class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, name="hidden")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(3, name="head")(nn.relu(x))

class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.hidden(x))))

def linen():
    return Linen()

def nnx_(rngs):
    return Nnx(rngs)

def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 4)).astype(np.float32)
    y = np.argmax(x[:, :3], axis=1).astype(np.int32)
    return (x[:64], y[:64]), (x[64:], y[64:])
"""
CONFIG = """
model = "recipe.py:{model}"
data = "recipe.py:data"
[training]
seeds = [0]
steps = 4
batch_size = 16
checkpoint_every = 2
[training.init_from]
path = "plain.safetensors"
rename = {{ "body/(.*)" = '\\1' }}
skip = ["head/.*"]
[hardware]
mapping = {{ weight_scaling_omega = 1.0 }}
input_range = {{ init_from_data = 2 }}
remap = {{ type = "layerwise_symmetric" }}
modifier = {{ type = "add_normal", std_dev = 0.1 }}
mismatch = {{ type = "add_normal", std_dev = 0.1 }}
converter = {{ type = "single_pair" }}
[evaluation]
chips = 2
"""
ARRAYS = {
    "body.hidden.kernel": np.linspace(-3, 3, 32, dtype=np.float32).reshape(4, 8),
    "body.hidden.bias": np.arange(8, dtype=np.float64) / 8,
    "body.norm.mean": np.full(8, 0.25, np.float32),
    "body.head.bias": np.ones(9),
    "body.tail.bias": np.ones(2),
}


@pytest.fixture(params=["linen", pytest.param("nnx_", marks=pytest.mark.nightly)])
def folder(request, tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "run.toml").write_text(CONFIG.format(model=request.param))
    safetensors.numpy.save_file(ARRAYS, tmp_path / "plain.safetensors")
    return tmp_path


def train(folder, name, *, run=None, stop=None, **keep):
    """Trains as the command does; raises `KeyboardInterrupt` if it is stopped."""
    config = read_config(folder / "run.toml")
    ready = prepare(config, folder, folder / name if run else None)
    if not run:
        make_folder(folder / name, config, folder)
    words = {} if stop is None else {"stop": stop}
    compare(config, ready, folder / name, console=Console(quiet=True), **words)


def test_both_models_start_from_it_and_leaves_follow_from_the_weights(folder):
    config = read_config(folder / "run.toml")
    ready = prepare(config, folder)
    for seed in (0, 1):
        plain, aware = (start(config, ready, x, seed) for x in (PLAIN, HARDWARE_AWARE))
        for state in (plain, aware):
            layer = state.params["hidden"]
            np.testing.assert_array_equal(layer["kernel"], ARRAYS["body.hidden.kernel"])
            np.testing.assert_array_equal(layer["bias"], ARRAYS["body.hidden.bias"])
            (mean,) = (
                leaf
                for path, leaf in paths.leaves(state.model_state).items()
                if path.endswith("norm/mean")
            )
            np.testing.assert_array_equal(mean, ARRAYS["body.norm.mean"])
        for name in ("kernel", "bias"):
            # Drawn in two programs, which round in another order.
            np.testing.assert_allclose(
                plain.params["head"][name], aware.params["head"][name], atol=1e-6
            )
        # The scale is the largest weight of the loaded kernel, in closed form.
        scale = aware.params["hidden"]["mapping_scale"]
        np.testing.assert_allclose(scale, jnp.full(scale.shape, 3.0))
    fresh = ready.plain.init(0)[0]["head"]["kernel"]
    assert (fresh != ready.plain.init(1)[0]["head"]["kernel"]).any()


HARDWARE = """
[hardware]
mapping = { weight_scaling_omega = 1.0, learn_out_scaling = true, max_input_size = 3 }
input_range = { init_from_data = 0 }
forward = { inp_bits = 8, out_bits = 8, out_bound = 10.0 }
clip = { type = "fixed_value", fixed_value = 2.0 }
[evaluation]
chips = 2
"""
LEAVES = {
    "input_range": np.array([[1.25], [2.5]], np.float32),
    "mapping_scale": np.array([[2.5], [3.5]], np.float32),
    "output_scale": np.array([[0.5], [1.5]], np.float32),
}


@pytest.fixture
def analog(folder):
    """A folder whose checkpoint has leaves of hardware, as `convert --from` writes."""
    text = (folder / "run.toml").read_text().partition("[training.init_from]")[0]
    text = text.replace("[training]", '[training]\ninit_from = "analog.safetensors"')
    (folder / "run.toml").write_text(text + HARDWARE)
    kernel = {"params/hidden/kernel": ARRAYS["body.hidden.kernel"]}
    leaves = {f"params/hidden/{name}": x for name, x in LEAVES.items()}
    safetensors.numpy.save_file({**kernel, **leaves}, folder / "analog.safetensors")
    return folder


def check_start(ready, config):
    plain, aware = (start(config, ready, x, 0) for x in (PLAIN, HARDWARE_AWARE))
    kernel, found = ARRAYS["body.hidden.kernel"], aware.params["hidden"]
    np.testing.assert_array_equal(found["kernel"], kernel)
    for name, value in LEAVES.items():
        np.testing.assert_array_equal(found[name], value)
    # The plain model has no output scales, so its weights include them: 2 rows each.
    rows = np.repeat([0.5, 1.5], 2)[:, None]
    np.testing.assert_allclose(plain.params["hidden"]["kernel"], kernel * rows)
    # Leaves that the file does not hold follow from the weights.
    assert (aware.params["head"]["input_range"] == 3).all()


def test_the_hardware_aware_model_starts_with_leaves_of_the_checkpoint(analog, capsys):
    config = read_config(analog / "run.toml")
    check_start(prepare(config, analog), config)
    words = ["train", str(analog / "run.toml"), "--out", str(analog / "out")]
    assert cli.main([*words, "--set", "training.steps=2"]) == 0
    names = "hidden/input_range, hidden/mapping_scale, hidden/output_scale"
    assert f"for the hardware-aware model: {names}\n" in capsys.readouterr().out
    # A run keeps them, too.
    (analog / "analog.safetensors").unlink()
    run = open_run(analog / "out")
    check_start(run.ready, run.config)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"max_input_size = 3": "max_input_size = 4"}, r"hidden/\w+ of shape .* tiles"),
        ({"learn_out_scaling = true": ""}, "output_scale is learned .* plain.safetens"),
        ({"fixed_value = 2.0": "fixed_value = 1.0"}, "mapping_scale belongs to other"),
    ],
)
def test_leaves_of_other_hardware_are_one_line(changed, text, analog):
    file = analog / "run.toml"
    for old, new in changed.items():
        file.write_text(file.read_text().replace(old, new).replace(", ,", ","))
    arrays = safetensors.numpy.load_file(analog / "analog.safetensors")
    if "mapping_scale" in text:
        arrays["params/hidden/mapping_scale"] /= 2
        safetensors.numpy.save_file(arrays, analog / "analog.safetensors")
    with pytest.raises(ValueError, match=text) as error:
        prepare(read_config(file), analog)
    assert "\n" not in str(error.value)


def test_it_is_reported_and_kept(folder, capsys):
    command = ["train", str(folder / "run.toml"), "--out", str(folder / "out")]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "started from plain.safetensors: 3 arrays loaded\n" in said
    assert "skipped: head/bias\n" in said and "no such array: tail/bias\n" in said
    stored = json.loads((folder / "out/results.json").read_text())["init_from"]
    assert stored["source"] == "plain.safetensors" and stored["skipped"] == [
        "head/bias"
    ]
    assert len(stored["loaded"]) == 3 and "norm/scale" in stored["missing"]
    assert not any("mapping_scale" in name for name in stored["missing"])
    assert cli.main(["config", "check", str(folder / "run.toml")]) == 0
    assert "3 arrays loaded" in capsys.readouterr().out

    # The run is whole without the file, and knows what it has started from.
    (folder / "plain.safetensors").unlink()
    assert open_run(folder / "out").ready.initial.report.missing == tuple(
        stored["missing"]
    )
    assert cli.main([*command, "--resume"]) == 0
    assert "3 arrays loaded" in capsys.readouterr().out


def test_transposed_arrays_are_kept_as_they_are(tmp_path):
    """As a function returns them that reads the weights of PyTorch."""
    kernel = np.arange(6.0, dtype=np.float32).reshape(2, 3).T
    report = Loaded(source="own.py:arrays", loaded=("kernel",))
    Initial(values={"kernel": kernel}, report=report).begin(
        tmp_path, Console(quiet=True)
    )
    found = read_arrays("initial.safetensors", tmp_path)
    np.testing.assert_array_equal(found["initial/kernel"], kernel)


def test_a_run_goes_on_with_the_same_bits_without_the_file(folder):
    train(folder, "whole")
    asked = iter([False] * 3 + [True] * 1000)
    with pytest.raises(KeyboardInterrupt):
        train(folder, "stopped", stop=lambda: next(asked))
    assert not (folder / "stopped/hardware-aware").exists()
    # Another file has taken its place.
    other = {name: array + 1 for name, array in ARRAYS.items()}
    safetensors.numpy.save_file(other, folder / "plain.safetensors")
    train(folder, "stopped", run=True)
    for model in (PLAIN, HARDWARE_AWARE):
        whole, stopped = (
            read_arrays(folder / name / model / "seed_0")
            for name in ("whole", "stopped")
        )
        chex.assert_trees_all_equal(whole, stopped)
    results = [
        json.loads((folder / name / "results.json").read_text())
        for name in ("whole", "stopped")
    ]
    assert results[0] == results[1]


def test_a_checkpoint_of_another_model_changes_nothing(folder, capsys):
    before = folder / "out"
    make_folder(before, read_config(folder / "run.toml"), folder)
    (before / "kept").write_text("the last good one")
    words = ["train", str(folder / "run.toml"), "--out", str(before), "--overwrite"]
    keys = [f"training.init_from.{key}" for key in ("rename={}", "skip=[]")]
    other = [word for key in keys for word in ("--set", key)]
    assert cli.main([*words, *other]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        "training.init_from: plain.safetensors: expected a checkpoint of this" in said
    )
    assert (before / "kept").read_text() == "the last good one"
    assert cli.main([*words[:2], "--out", str(folder / "new"), *other]) == 2
    assert not (folder / "new").exists()


def test_a_damaged_copy_is_named(folder, capsys):
    out = folder / "out"
    make_folder(out, read_config(folder / "run.toml"), folder)
    (out / "initial.safetensors").write_bytes(b"no")
    words = ["train", str(folder / "run.toml"), "--out", str(out), "--resume"]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "delete it, and they are read from" in said


def test_models_of_a_contest_start_from_it(folder):
    text = (folder / "run.toml").read_text().partition("[hardware]")[0]
    text += "[mismatch]\n[evaluation]\nchips = 2\npercent_deviation = [0.1]\n"
    (folder / "run.toml").write_text(text)
    config = read_config(folder / "run.toml")
    prepare_contest, run = job_of(config)
    ready, out = prepare_contest(config, folder), folder / "out"
    kernel = jax.jit(ready.plain.init)(1)[0]["hidden"]["kernel"]
    np.testing.assert_array_equal(kernel, ARRAYS["body.hidden.kernel"])
    make_folder(out, config, folder)
    run(config, ready, out, console=Console(quiet=True))
    assert (
        len(json.loads((out / "results.json").read_text())["init_from"]["loaded"]) == 3
    )
    assert (out / "initial.safetensors").is_file()


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("init_from = 3", "training.init_from: expected a table, got 3"),
        ("init_from = {}", "training.init_from.path: expected a value"),
        ('init_from = { path = "a", skip = ["("] }', "expected a pattern"),
        (
            'init_from = { path = "a", only = [] }',
            "unknown key training.init_from.only",
        ),
    ],
)
def test_entries_that_are_no_checkpoint_are_named(entry, text, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        f'model = "a.py:b"\ndata = "a.py:c"\n[training]\nsteps = 1\n{entry}\n'
    )
    with pytest.raises(ValueError, match=text):
        read_config(file)


def test_a_path_alone_is_a_table_too(tmp_path):
    file = tmp_path / "run.toml"
    text = 'model = "a.py:b"\ndata = "a.py:c"\n[training]\nsteps = 1\n'
    file.write_text(text + 'init_from = "x.msgpack"\n')
    alone = read_config(file).training.init_from
    file.write_text(text + 'init_from = { path = "x.msgpack" }\n')
    assert alone == read_config(file).training.init_from
    file.write_text(text)
    override = ['training.init_from="x.msgpack"']
    assert alone == read_config(file, override).training.init_from
