"""How digital units store results, in a manifest and beside it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain.checkpoint import HardwareCheckpointError, adapters
from hwtrain.checkpoint import _manifest as manifests
from hwtrain.evaluate import population

X = jax.random.normal(jax.random.key(0), (4, 6))
FEW = hw.DigitalFormat(bits=5)
CHIP = hw.Hardware(
    forward=hw.IOParameters(inp_bits=8, inp_bound=4.0),
    mapping=hw.MappingParameter(max_input_size=3),
    converter=hw.SinglePairConductanceConverter(g_max=25.0),
    mismatch=hw.MismatchParameter(type="mult_normal", std_dev=0.1),
    outputs=hw.DigitalFormat(bits=6, full_scale=3.0),
)
RULES = [
    hw.Rule("norm", hw.Hardware(outputs=FEW)),
    hw.Rule("dense", CHIP),
    hw.Rule("", hw.Hardware(outputs=hw.DigitalFormat(bits=7))),
]


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(6, name="dense")(nn.LayerNorm(name="norm")(x))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    analog = hw.analogize(Model(), RULES)
    variables = analog.init(jax.random.key(1), X)
    plan = hw.plan(analog, variables, X)
    path = tmp_path_factory.mktemp("made") / "model"
    hw.export(path, variables, plan, chip_seed=0)
    return analog, variables, plan, path


def test_the_plan_comes_back(made):
    *_, plan, path = made
    loaded = hw.load(path)
    assert loaded.plan == plan
    formats = {output.path: output.format for output in loaded.plan.outputs}
    assert formats == {
        "": hw.DigitalFormat(bits=7),
        "dense": hw.DigitalFormat(bits=6, full_scale=3.0),
        "norm": FEW,
    }


def test_a_reader_without_hwtrain_computes_the_same_network(made):
    """From the files and docs/checkpoint.md, with NumPy alone."""
    analog, variables, _, path = made
    manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    formats = {each["path"]: each["format"] for each in manifest["outputs"]}
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])

    def stored(path, y):
        form = formats[path]
        assert form["type"] == "integer"
        full = form.get("full_scale") or np.abs(y).max(-1, keepdims=True)
        step = full / (2 ** (form["bits"] - 1) - 1)
        return np.clip(step * np.rint(y / step), -full, full)

    x = np.asarray(X, np.float64)
    y = x - x.mean(-1, keepdims=True)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)
    y = stored("norm", y * p["norm"]["scale"] + p["norm"]["bias"])
    step = 8 / 254
    y = np.clip(step * np.rint(y / step), -4, 4)
    y = stored("dense", y @ p["dense"]["kernel"] + p["dense"]["bias"])
    right = stored("", x + y)
    found = hw.eval_mode(analog).apply(variables, X)
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)


def test_models_without_formats_have_no_entry(tmp_path):
    analog = hw.analogize(nn.Dense(3), hw.Hardware())
    variables = analog.init(jax.random.key(0), X)
    path = hw.export(tmp_path / "m", variables, hw.plan(analog, variables, X))
    assert "outputs" not in json.loads((path / "manifest.json").read_text("utf-8"))


def test_chips_are_not_used_by_a_model_that_stores_other_results(made):
    _, _, _, path = made
    for rules in (
        RULES[1:],
        [RULES[0], RULES[1], hw.Rule("", hw.Hardware(outputs=FEW))],
    ):
        other = hw.analogize(Model(), rules)
        with pytest.raises(
            HardwareCheckpointError, match="the results of .* are stored"
        ):
            population(
                other,
                hw.load(path),
                [(X,)],
                lambda y: jnp.abs(y).mean(-1),
                chips=1,
                key=jax.random.key(0),
            )


def changed(outputs):
    norm = next(x for x in outputs if x["path"] == "norm")
    dense = next(x for x in outputs if x["path"] == "dense")
    return norm, dense


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.append(x[0]), "is there twice"),
        (lambda x: x.remove(changed(x)[1]), "'dense' should be stored as"),
        (lambda x: changed(x)[1]["format"].update(bits=5), "'dense' should be stored"),
        (
            lambda x: changed(x)[0]["format"].update(bits=1),
            "greater than or equal to 2",
        ),
        (lambda x: changed(x)[0]["format"].update(bits="8"), "bits: expected a whole"),
        (lambda x: changed(x)[0]["format"].update(zero=1), "zero"),
        (lambda x: changed(x)[0]["format"].update(type="float"), "integer"),
        (lambda x: changed(x)[0].update(why="so"), "why"),
    ],
)
def test_forged_entries_are_refused(made, tmp_path, change, said):
    content = json.loads((made[3] / "manifest.json").read_text("utf-8"))
    change(content["outputs"])
    content["sha256"] = manifests._digest(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(HardwareCheckpointError, match=said) as error:
        manifests.read(tmp_path)
    assert "\n" not in str(error.value)


def test_an_earlier_format_has_no_such_entry(made, tmp_path):
    content = json.loads((made[3] / "manifest.json").read_text("utf-8"))
    content["version"] = "1.2"
    content["sha256"] = manifests._digest(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(HardwareCheckpointError, match=r"version 1\.2 has none"):
        manifests.read(tmp_path)


@pytest.mark.parametrize(
    ("write", "file"),
    [
        ("aihwkit", "layers.json"),
        ("crosssim", "crosssim.json"),
        ("fusion-csv", "side_car.json"),
    ],
)
def test_other_programs_get_what_they_cannot_compute_in_words(
    made, tmp_path, write, file
):
    adapters.ADAPTERS[write](hw.load(made[3]), tmp_path / "out")
    content = json.loads((tmp_path / "out" / file).read_text("utf-8"))
    assert [x["path"] for x in content["outputs"]] == ["", "dense", "norm"]
    if write != "fusion-csv":
        assert "outputs: 6 bits, full scale 3, behind the bias" in json.dumps(content)
