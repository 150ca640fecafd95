"""Both models of a comparison run on the configured chip with all its effects."""

import dataclasses
import io
import json
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain.devices import StuckParameter
from hwtrain.train import _closing
from hwtrain.train import _comparison as comparison
from hwtrain.train import _linen as linen
from hwtrain.train import _nnx as nnx
from hwtrain.train._alike import alike, fingerprint
from hwtrain.train._batches import Split
from hwtrain.train._chips import chip_hardware
from hwtrain.train._config import Config, EvaluationParameter, TrainingParameter
from hwtrain.train._entries import EntryError
from hwtrain.train._preparation import prepare
from hwtrain.train._report import HARDWARE_AWARE, PLAIN

RECIPE = """
import numpy as np
from flax import linen as nn
from flax import nnx

class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(8, name="hidden")(x)))

class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))

def model_linen():
    return Linen()

def model_nnx(rngs):
    return Nnx(rngs)

class Deaf(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(0 * nn.Dense(8, name="hidden")(x))

def model_deaf():
    return Deaf()

def model_few():
    return Linen()

def few():
    (x, y), (x_test, y_test) = data()
    return (x, y), (x_test[:4], y_test[:4])

def data():
    rng = np.random.default_rng(0)
    x = 5 * rng.normal(size=(600, 4)).astype(np.float32)
    y = np.argmax(x[:, :3] + 0.3 * x[:, 1:4] ** 2, axis=1).astype(np.int32)
    return (x[:300], y[:300]), (x[300:], y[300:])
"""
FRAMEWORKS = {"linen": linen, "nnx": nnx}
CONVERTER = hw.SinglePairConductanceConverter(g_max=25.0)
PCM: dict[str, Any] = {"converter": CONVERTER, "noise_model": hw.PCMLikeNoiseModel()}
RANGE: dict[str, Any] = {"input_range": hw.InputRangeParameter(init_value=0.01)}
STUCK = StuckParameter(at_g_min=0.2)
EFFECTS: dict[str, dict[str, Any]] = {
    "programming": PCM,
    "stuck": {"converter": CONVERTER, "stuck": STUCK},
    "reads": {**PCM, **RANGE, "forward": hw.IOParameters(out_noise=2.0)},
    "input bits": {**PCM, **RANGE, "forward": hw.IOParameters(inp_bits=2)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "recipe.py").write_text(RECIPE)
    return folder


def config_of(hardware, framework="linen", mismatch_std=(0.0,)):
    return Config(
        model=f"recipe.py:model_{framework}",
        data=f"recipe.py:{'few' if framework == 'few' else 'data'}",
        training=TrainingParameter(steps=60, batch_size=50, learning_rate=0.02),
        hardware=hardware,
        evaluation=EvaluationParameter(chips=4, mismatch_std=mismatch_std),
    )


def compared(config, folder, out, console=None):
    ready = prepare(config, folder)
    out.mkdir()
    console = console or Console(quiet=True)
    return comparison.compare(config, ready, out, console=console), ready


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("framework", "effect"),
    [*(("linen", effect) for effect in EFFECTS), ("nnx", "input bits")],
)
def test_the_plain_model_is_on_the_same_chip(folder, framework, effect):
    """Equal parameters on it give equal accuracies, chip by chip."""
    hardware = hw.Hardware(**EFFECTS[effect])
    config = config_of(hardware, framework)
    ready = prepare(config, folder)
    fitted = comparison.deployed(
        config,
        ready,
        comparison.start(config, ready, PLAIN, 0),
        0,
        Console(quiet=True),
        lambda: False,
    )
    same = [
        comparison._evaluate(config, ready, name, [fitted], 0.0, lambda: False)[0][0]
        for name in (PLAIN, HARDWARE_AWARE)
    ]
    same = [found.values for found in same]
    np.testing.assert_array_equal(*same)
    (test,) = ready.data.evaluation()
    digital, y = ready.plain.evaluate(*ready.plain.init(0), test), test.labels
    assert (same[0] != 100 * np.mean(np.argmax(digital, axis=1) == y)).any()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_its_ranges_are_the_largest_training_inputs(folder, framework):
    hardware = hw.Hardware(
        **PCM, **RANGE, mapping=hw.MappingParameter(max_input_size=3)
    )
    ready = prepare(config_of(hardware, framework), folder)
    params, _ = jax.tree.map(np.asarray, ready.plain.init(0))
    (train,) = ready.data.calibration()
    x = train.inputs
    batches = [Split(x[:128], 0), Split(x[128:256], 0), Split(x[256:], 0)]
    found = FRAMEWORKS[framework].deployed(
        ready.factory,
        hardware,
        {"params": params},
        ready.task.on_chip,
        batches,
        Console(quiet=True),
    )["params"]
    hidden = np.maximum(x @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    for name, inputs in (("hidden", x), ("head", hidden)):
        ranges = np.ravel(found[name]["input_range"])
        sizes = {"hidden": (2, 2), "head": (3, 3, 2)}[name]
        parts = np.split(np.abs(inputs), np.cumsum(sizes)[:-1], axis=1)
        np.testing.assert_allclose(ranges, [p.max() for p in parts], rtol=1e-6)
    for path, leaf in paths.leaves(params).items():
        np.testing.assert_array_equal(paths.leaves(found)[path], leaf)


def test_hardware_without_a_mismatch_has_one_population(folder, tmp_path):
    out = tmp_path / "run"
    console = Console(file=io.StringIO(), width=100)
    config = config_of(hw.Hardware(**PCM))
    results, _ = compared(config, folder, out, console)
    assert [(r.model, r.mismatch_std, r.mismatch) for r in results] == [
        (PLAIN, None, ""),
        (HARDWARE_AWARE, None, ""),
    ]
    assert all(result.std > 0 for result in results)
    said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "4 chips" in said and "programming noise" in said
    assert "mismatch" not in said
    data = json.loads((out / "results.json").read_text())
    assert {entry["mismatch"] for entry in data["results"]} == {"none"}
    manifest = hw.load(out / "export" / "seed_0").manifest
    assert [found.conditions for found in manifest.accuracy] == [{"mismatch": "none"}]


@pytest.mark.parametrize("sigma", [0.1, 0.2])
def test_an_own_mismatch_labels_its_results(folder, sigma):
    """With its description, or its name if it has none; never with a deviation of 0."""
    hw.register("mismatch", "gains")(Gains)
    hardware = hw.Hardware(**PCM, mismatch=Gains(sigma=sigma))
    config = config_of(hardware)
    ready = prepare(config, folder)
    given = [{"params": ready.aware.init(0)[0]}]
    (found,), _ = comparison._evaluate(
        config, ready, HARDWARE_AWARE, given, config.levels[0], lambda: False
    )
    expected = "gains of 0.2" if sigma == 0.2 else "gains as configured"
    assert (found.mismatch_std, found.mismatch) == (None, expected)
    drawn = _closing._drawn(config)
    assert drawn == ", chip 0 with its frozen mismatch and programming noise"


class Gains(hw.Mismatch):
    sigma: float = 0.1

    def on_weight(self, w, ctx):
        return w * (1 + self.sigma * ctx.normal("gains", w.shape))

    def describe(self):
        return "" if self.sigma == 0.1 else f"gains of {self.sigma:g}"


def test_a_mismatch_without_a_deviation_is_evaluated_as_it_is():
    hw.register("mismatch", "gains")(Gains)
    hardware = hw.Hardware(**PCM, mismatch=Gains())
    config_of(hardware)
    assert chip_hardware(hardware, 0.0) == hardware
    with pytest.raises(ValueError, match="'gains' has no field std_dev"):
        config_of(hardware, mismatch_std=(0.0, 0.1))


def test_a_level_of_mismatch_needs_one():
    with pytest.raises(ValueError, match=r"expected a table \[hardware.mismatch\]"):
        config_of(hw.Hardware(**PCM), mismatch_std=(0.0, 0.1))
    with pytest.raises(ValueError, match="mismatch_std of 0"):
        chip_hardware(hw.Hardware(**PCM), 0.1)
    mismatch = hw.MismatchParameter(type="add_normal", std_dev=0.1)
    hardware = hw.Hardware(**PCM, mismatch=mismatch)
    expected = dataclasses.replace(mismatch, std_dev=0.3)
    assert chip_hardware(hardware, 0.3) == hw.Hardware(**PCM, mismatch=expected)


def test_a_layer_that_gets_zeros_is_named_with_the_model(folder, tmp_path):
    config = config_of(hw.Hardware(**PCM, **RANGE), "deaf")
    with pytest.raises(
        EntryError, match="plain model of seed 0.*head/input_range"
    ) as e:
        compared(config, folder, tmp_path / "run")
    assert str(e.value).startswith("hardware.input_range: ")


DEVIATING = hw.Hardware(mismatch=hw.MismatchParameter(type="mult_normal", std_dev=0.1))
READING = hw.Hardware(forward=hw.IOParameters(out_bits=8, out_bound=9.0, out_noise=0.1))
CONVERTING = hw.Hardware(forward=hw.IOParameters(out_bits=8, out_bound=9.0))


@pytest.mark.parametrize(
    ("values", "hardware", "expected"),
    [
        ([[0.5, 0.5]], [DEVIATING], True),
        ([[0.5, 0.5]], [CONVERTING, DEVIATING], True),
        ([[0.5, 0.5]], [READING], True),
        ([[0.5, 0.4], [0.5, 0.5]], [DEVIATING], True),  # one of the seeds
        ([[0.5, 0.4]], [DEVIATING], False),
        ([[0.5]], [DEVIATING], False),
        ([[0.5, 0.5]], [CONVERTING], False),  # whose chips do not differ
        ([[0.5, 0.5]], [], False),
    ],
)
def test_a_model_is_alike_where_chips_differ_and_outputs_do_not(
    values, hardware, expected
):
    assert alike([np.array(seed) for seed in values], hardware) == expected


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3)])
def test_a_fingerprint_differs_where_one_output_does(shape):
    outputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    batch = (np.zeros((4, 2)), np.zeros(4))
    before = fingerprint((outputs, np.float32(2.0)), batch)
    for index in np.ndindex(shape):
        other = outputs.copy()
        other[index] += 1e-3
        differ = fingerprint((other, np.float32(2.0)), batch) != before
        np.testing.assert_array_equal(differ, np.arange(4) == index[0])
    swapped = outputs[:, ::-1] if len(shape) > 1 else outputs[::-1]
    assert (fingerprint((swapped, np.float32(2.0)), batch) != before).any()


@pytest.mark.parametrize("dead", [False, True])
def test_equal_accuracies_of_few_examples_are_no_equal_outputs(folder, tmp_path, dead):
    """Four examples have five accuracies, and chips of small mismatch the same one."""
    mismatch = hw.MismatchParameter(type="mult_normal", std_dev=1e-3)
    # Half a step of this ADC is more than any output.
    forward = hw.IOParameters(out_bits=2, out_bound=1e9) if dead else None
    config = config_of(hw.Hardware(mismatch=mismatch, forward=forward), "few", ())
    shown = io.StringIO()
    console = Console(file=shown, width=400)
    results, _ = compared(config, folder, tmp_path / "run", console)
    assert all(np.ptp(result.values) == 0 for result in results)
    noted = [
        line for line in shown.getvalue().splitlines() if "exactly the same" in line
    ]
    assert len(noted) == (2 if dead else 0)
    for model, line in zip((PLAIN, HARDWARE_AWARE), noted):
        assert f"outputs of the {model} model" in line and "out_bound" in line
