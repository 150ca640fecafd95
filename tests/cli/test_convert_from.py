"""Trained models of other packages compute the same in hwtrain.

`tests/golden/trained` has their files and their outputs.
"""

import gzip
import json
import re
import shlex
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from safetensors.numpy import load_file

import hwtrain
from hwtrain import cli
from hwtrain._arrays import paths
from hwtrain.cli._convert_from import _READERS, _nnx_variables, _write
from hwtrain.cli._parser import SOURCES
from hwtrain.dynapse import DynapSim
from hwtrain.train import initialised, prepare, read_arrays, read_config

GOLDEN = Path(__file__).parents[1] / "golden" / "trained"
CASES = sorted(path.name.partition(".")[0] for path in GOLDEN.glob("*.th.gz"))
MODELS = Path(__file__).with_name("trained_models.py")


@pytest.fixture
def case(tmp_path):
    """Returns the file, the input and the output of a case, images channels last."""
    with np.load(GOLDEN / "outputs.npz") as held:
        arrays = dict(held)

    def make(name):
        file = tmp_path / f"{name}.th"
        file.write_bytes(gzip.decompress((GOLDEN / f"{name}.th.gz").read_bytes()))
        x, y = arrays[f"{name}/x"], arrays[f"{name}/y"]
        return file, np.moveaxis(x, 1, -1) if x.ndim > 2 else x, y

    return make


def test_there_are_cases():
    assert len(CASES) == 13


def test_the_help_names_every_package():
    assert {*SOURCES} == {*_READERS, "rockpool"}


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_package(conversions, name, case, tmp_path):
    (file, x, y), out = case(name), tmp_path / "out"
    package, model = name.partition("_")[0], conversions.name_of(name)
    assert conversions.convert(file, out, package, model, x) == 0
    np.testing.assert_allclose(conversions.outputs(out, model, x), y, rtol=0, atol=1e-6)
    assert not jnp.array_equal(y, 0)


@pytest.mark.parametrize(
    "name",
    [
        "aihwkit_cnn",
        pytest.param("aihwkit_mlp", marks=pytest.mark.nightly),
        pytest.param("lightning_learned", marks=pytest.mark.nightly),
    ],
)
def test_outputs_of_a_model_of_nnx(conversions, name, case, tmp_path):
    (file, x, y), out = case(name), tmp_path / "out"
    model = f"nnx_{conversions.name_of(name)}"
    assert conversions.convert(file, out, name.partition("_")[0], model) == 0
    np.testing.assert_allclose(conversions.outputs(out, model, x), y, rtol=0, atol=1e-6)


def test_the_same_file_gives_the_same_bytes(conversions, case, tmp_path):
    file, x, _ = case("aihwkit_remapped")
    outs = tmp_path / "a", tmp_path / "b"
    for out in outs:
        assert conversions.convert(file, out, "aihwkit", "mlp", x) == 0
    names = {path.name for path in outs[0].iterdir()}
    wanted = {"hardware.toml", "plain.safetensors", "analog.safetensors"}
    assert names == wanted | {"report.json"}
    for name in names:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_learned_scales_and_bounds_are_part_of_plain_weights(
    conversions, case, tmp_path
):
    for name, leaf in (
        ("aihwkit_columns", "output_scale"),
        ("lightning_learned", "clip_bound"),
    ):
        (file, x, _), out = case(name), tmp_path / name
        assert conversions.convert(file, out, name.partition("_")[0], "mlp", x) == 0
        plain = load_file(out / "plain.safetensors")
        analog = load_file(out / "analog.safetensors")
        kernel = analog["params/fc_0/kernel"]
        rows = np.repeat(analog[f"params/fc_0/{leaf}"], (6, 5), axis=0)
        wanted = (
            kernel * rows if leaf == "output_scale" else np.clip(kernel, -rows, rows)
        )
        np.testing.assert_allclose(plain["params/fc_0/kernel"], wanted, rtol=1e-6)
        assert f"params/fc_0/{leaf}" not in plain
        # So that the plain model computes the same, and training can start from it.
        assert not np.allclose(plain["params/fc_0/kernel"], kernel)


def test_what_is_lost_is_printed_and_kept(conversions, case, tmp_path, capsys):
    (file, x, _), out = case("aihwkit_drifted"), tmp_path / "out"
    assert conversions.convert(file, out, "aihwkit", "mlp", x) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["names"] == {"0": "fc_0", "2": "fc_1"}
    printed = capsys.readouterr().out
    assert "0 -> fc_0" in printed
    assert any("drifted ones alone" in text for text in report["lost"])
    assert all(text in printed for text in report["lost"])


def test_layers_that_differ_get_rules(conversions, case, tmp_path):
    (file, x, _), out = case("aihwkit_mixed"), tmp_path / "out"
    assert conversions.convert(file, out, "aihwkit", "deep", x) == 0
    hardware = tomllib.loads((out / "hardware.toml").read_text())
    assert hardware["rules"] == [{"pattern": "fc_0", "digital": True}]
    rule, chip = conversions.hardware_of(out)
    assert rule.hardware is None and chip.forward.out_bound == 10.0


@pytest.mark.parametrize(
    "words, message",
    [
        (["--names", "names.toml"], "the model has no 'head'; it has 'fc_0', 'fc_1'"),
        (["--names", "swapped.toml"], "they do not fit, the file has 11 inputs, 7"),
        (["--names", "none.toml"], "--names: none.toml: it cannot be read: No such"),
        (["--names", "other.toml"], "expected a table [names] of texts alone"),
        (["--input", "11,x"], "expected a shape, such as 1,28,28,1"),
        (["--input", "1,11:text"], "with a dtype other than float32 behind a colon"),
        (["--model", f"{MODELS}:cnn"], "--model: "),
        (["--model", f"{MODELS}:deep"], "have no partner of the same sizes"),
        (["--model", f"{MODELS}:name"], "expected a function name"),
        (["--from", "keras"], "expected one of aihwkit, lightning, rockpool"),
        (["--from", "lightning"], "expected a state_dict of aihwkit-lightning"),
    ],
)
def test_what_does_not_fit_is_one_line(
    words, message, case, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("names.toml").write_text('[names]\n"0" = "head"\n')
    Path("swapped.toml").write_text('[names]\n"0" = "fc_1"\n')
    Path("other.toml").write_text('"0" = "fc_1"\n')
    file, _, _ = case("aihwkit_mlp")
    given = ["convert", str(file), "--from", "aihwkit", "--model", f"{MODELS}:mlp"]
    given += [] if "--input" in words else ["--input", "1,11"]
    assert cli.main([*given, *words, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert not Path("out").exists() and not [*Path().glob(".out*")]


def test_what_is_missing_is_named(conversions, case, capsys, tmp_path):
    file, x, _ = case("aihwkit_mlp")
    start = ["convert", str(file), "--from", "aihwkit"]
    model = ["--model", f"{MODELS}:mlp"]
    for words, message in (
        (model, "--out: expected the new folder"),
        (["--out", str(tmp_path / "o")], "--model: expected the Flax model"),
        ([*model, "--out", str(tmp_path / "o")], "--input: "),
    ):
        assert cli.main([*start, *words]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "there").mkdir()
    assert conversions.convert(file, tmp_path / "there", "aihwkit", "mlp", x) == 2
    assert "never overwritten" in capsys.readouterr().err


def test_an_array_without_axes_keeps_its_shape(tmp_path):
    # Such as the slope of a PReLU.
    _write(tmp_path / "out", {"a.safetensors": {"x": np.asarray(0.25, "f4")}}, {})
    assert load_file(tmp_path / "out/a.safetensors")["x"].shape == ()


def test_a_table_of_names(conversions, case, tmp_path):
    (file, x, y), out = case("aihwkit_cnn"), tmp_path / "out"
    table = tmp_path / "names.toml"
    table.write_text('[names]\n"7" = "Dense_0"\n"1" = "BatchNorm_0"\n')
    assert (
        conversions.convert(file, out, "aihwkit", "cnn", x, "--names", str(table)) == 0
    )
    np.testing.assert_allclose(conversions.outputs(out, "cnn", x), y, rtol=0, atol=1e-6)


LEAVES = {
    "aihwkit_columns": {"mapping_scale", "output_scale"},
    "lightning_learned": {"input_range", "clip_bound"},
}


@pytest.mark.parametrize("name", LEAVES)
def test_training_starts_with_all_of_a_converted_model(
    conversions, name, case, tmp_path
):
    (file, x, _), out = case(name), tmp_path / "out"
    assert conversions.convert(file, out, name.partition("_")[0], "mlp", x) == 0
    (tmp_path / "data.py").write_text(
        "import numpy as np\n"
        "def data():\n"
        "    x, y = np.ones((64, 11), np.float32), np.zeros(64, np.int32)\n"
        "    return (x, y), (x, y)\n"
    )
    plain = load_file(out / "plain.safetensors")
    for file in ("analog", "plain"):
        (tmp_path / "work.toml").write_text(
            f'model = "{MODELS}:mlp"\ndata = "data.py:data"\n'
            f'training = {{ steps = 2, init_from = "out/{file}.safetensors" }}\n'
            + (out / "hardware.toml").read_text()
        )
        ready = prepare(read_config(tmp_path / "work.toml"), tmp_path)
        started = {"plain": ready.plain, "analog": ready.aware}
        found = {
            model: paths.leaves({"params": functional.init(0)[0]})
            for model, functional in started.items()
        }
        # The plain model starts with the plain weights in either case.
        for path, array in plain.items():
            np.testing.assert_allclose(found["plain"][path], array, rtol=1e-6)
        arrays = load_file(out / f"{file}.safetensors")
        leaves = {path.rpartition("/")[2] for path in arrays.keys() - plain.keys()}
        assert leaves == (LEAVES[name] if file == "analog" else set())
        for path, array in arrays.items():
            np.testing.assert_array_equal(found["analog"][path], array)


class Spiking(nn.Module):
    reference: bool = True

    @nn.compact
    def __call__(self, x):
        first = DynapSim(features=4, reference=self.reference)
        second = DynapSim(features=2, reference=self.reference, recurrent=False)
        x = nn.RNN(first)(nn.Dense(4, use_bias=False)(x))
        return nn.RNN(second)(nn.Dense(2)(x))


RENAMED = {
    "0_LinearJax/(.*)": r"Dense_0/\1",
    "1_DynapSim/(.*)": r"DynapSim_0/\1",
    "2_LinearJax/(.*)": r"Dense_1/\1",
    "3_DynapSim/(.*)": r"DynapSim_1/\1",
}


def test_spikes_are_those_of_rockpool(tmp_path):
    golden = json.loads((GOLDEN / "rockpool.json").read_text())
    file, out = tmp_path / "net.json", tmp_path / "out"
    file.write_text(json.dumps(golden["network"]))
    words = ["convert", str(file), "--from", "rockpool", "--out", str(out)]
    assert cli.main(words) == 0
    x, model = jnp.asarray(golden["spikes_in"], jnp.float32), Spiking()
    variables = model.init(jax.random.key(0), x)
    arrays = read_arrays(out / "plain.safetensors")
    variables, report = initialised(variables, arrays, rename=RENAMED)
    assert not report.missing and not report.unused
    spikes = model.apply(variables, x)
    np.testing.assert_array_equal(spikes, golden["spikes"])
    assert spikes.sum() > 20
    report = json.loads((out / "report.json").read_text())
    assert report["cells"]["1_DynapSim"] == {
        "features": 4,
        "recurrent": True,
        "dt_s": 1e-3,
        "Iscale": 1e-8,
    }
    assert report["lost"] == [
        "1_DynapSim, 3_DynapSim: If_nmda has no effect in Rockpool"
    ]


def test_options_that_do_nothing_are_refused(tmp_path, capsys):
    file = tmp_path / "net.json"
    file.write_text("{}")
    words = ["convert", str(file), "--from", "rockpool", "--out", str(tmp_path / "o")]
    assert cli.main([*words, "--input", "1,2"]) == 2
    assert "--input does nothing with --from rockpool" in capsys.readouterr().err
    assert cli.main([*words, "--chip", "3"]) == 2
    assert "--chip does nothing with --from" in capsys.readouterr().err
    words = ["convert", str(file), "--to", "npz", "--input", "1,2"]
    assert cli.main(words) == 2
    assert "--input does nothing with --to" in capsys.readouterr().err


PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"
NETWORK = """
import jax.numpy as jnp
from flax import linen as nn


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(7)(x)))


def network():
    return Network()


def data():
    x, y = jnp.ones((64, 11)), jnp.zeros(64, jnp.int32)
    return (x, y), (x, y)
"""


def test_the_page(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text().partition("## Bring a trained model")[2]
    blocks = re.findall(r"```(\w*)\n(.*?)```", text.partition("\n## ")[0], re.S)
    commands = [
        line for kind, block in blocks if kind == "sh" for line in block.split("\n")
    ]
    tables = [block for kind, block in blocks if kind == "toml"]
    code = [block for kind, block in blocks if not kind]
    file, x, y = case("aihwkit_mlp")
    file.rename("model.th")
    golden = json.loads((GOLDEN / "rockpool.json").read_text())
    Path("net.json").write_text(json.dumps(golden["network"]))
    Path("network.py").write_text(NETWORK)
    for command in filter(None, commands):
        assert cli.main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    hardware = Path("converted/hardware.toml").read_text()
    Path("work.toml").write_text(tables[0] + hardware)
    assert cli.main(["config", "check", "work.toml"]) == 0
    printed = capsys.readouterr().out
    assert "started from converted/analog.safetensors: 4 arrays loaded" in printed
    names = {"hwtrain": hwtrain, "key": jax.random.key(0), "x": jnp.asarray(x)}
    exec(NETWORK, names)
    exec(code[0], names)
    np.testing.assert_allclose(names["y"], y, rtol=0, atol=1e-6)
    # The other tables are TOML that their readers take.
    assert tomllib.loads(tables[1])["names"]["classifier"] == "head"
    rename = tomllib.loads(tables[2])["training"]["init_from"]["rename"]
    assert rename.items() <= RENAMED.items()


class InOrder(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Linear(4, 4, rngs=rngs)
        self.body = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(11)])
        self.final = nnx.Linear(4, 4, rngs=rngs)


def test_variables_of_nnx_are_in_the_order_of_their_definition():
    found = [path for _, path, _ in _nnx_variables(lambda rngs: InOrder(rngs))]
    kernels = [path for path in found if path.endswith("kernel")]
    body = [f"body/{number}/kernel" for number in range(11)]
    assert kernels == ["stem/kernel", *body, "final/kernel"]
