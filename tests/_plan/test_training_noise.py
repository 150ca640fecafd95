"""Hardware without noise in training is reported exactly when a model draws nothing."""

import dataclasses
import io
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from rich.console import Console

import hwtrain as hw
from hwtrain._plan.training_noise import quiet_training
from hwtrain.train import compare, prepare, read_config

ROOT = Path(__file__).parents[2]
X = jax.random.normal(jax.random.key(1), (4, 6))
NOISE = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
PRESETS = [
    "ideal",
    "pcm",
    "hermes",
    "reram_wan2022",
    "reram_milo",
    "sonos",
    "reram_cmo",
    "sram_c3",
    "standard_hwa_training",
    "aihwkit_default",
]
CHIPS = {name: getattr(hw.presets, name)() for name in PRESETS} | {
    "pcm with a modifier": dataclasses.replace(hw.presets.pcm(), modifier=NOISE),
    "mismatch": hw.Hardware(
        mismatch=hw.MismatchParameter(type="add_normal", std_dev=0.1)
    ),
    "a modifier of no strength": dataclasses.replace(
        hw.presets.pcm(), modifier=dataclasses.replace(NOISE, std_dev=0.0)
    ),
    "rounding": dataclasses.replace(
        hw.presets.pcm(),
        modifier=hw.WeightModifierParameter(type="discretize", res=254.0),
    ),
}


def linen(chip):
    analog = hw.analogize(nn.Dense(5), chip)
    return analog, jax.jit(analog.init)(jax.random.key(0), X)


def differs(chip):
    """Whether the model, as it is trained, gives other outputs at other keys.

    Of several, because an ADC of few levels hides the noise of most.
    """
    analog, variables = linen(chip)
    call = jax.jit(lambda key: analog.apply(variables, X, rngs={"mismatch": key}))
    first, *others = (np.asarray(call(jax.random.key(k))) for k in range(16))
    return any((first != other).any() for other in others)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CHIPS)
def test_it_is_said_where_nothing_is_drawn(name):
    chip = CHIPS[name]
    analog, variables = linen(chip)
    model = hw.analogize(nnx.Linear(6, 5, rngs=nnx.Rngs(0)), chip)
    quiet = not differs(chip) and chip.frozen
    for found in (hw.inspect(analog, variables, X), hw.inspect(model)):
        assert ("Nothing is drawn in training" in str(found)) == quiet
        assert "modifier=WeightModifierParameter" in found.note or not quiet
    if name in ("pcm", "pcm with a modifier", "rounding"):
        active = str(hw.assert_active(analog, variables, X))
        assert ("Nothing is drawn in training" in active) == quiet
    if name == "pcm":
        assert quiet


def test_noise_of_the_drift_in_training_counts():
    drift = hw.DriftParameter(nu=0.1, nu_dtod=0.2)
    for chip, quiet in (
        (dataclasses.replace(hw.presets.pcm(), drift=drift), False),
        (dataclasses.replace(hw.presets.pcm(), drift=hw.SimpleDriftParameter()), True),
    ):
        analog, variables = linen(chip)
        assert (quiet_training(hw.plan(analog, variables, X)) is not None) == quiet


def test_the_page_says_what_each_preset_draws():
    page = (ROOT / "docs" / "physics.md").read_text("utf-8")
    page = page.partition("## Presets")[2]
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| [^|]*\|$", page, re.MULTILINE
    )
    assert [name for name, _ in rows] == PRESETS
    for name, drawn in rows:
        assert (drawn != "nothing") == differs(CHIPS[name]), name


@pytest.mark.parametrize(
    "objective", [False, pytest.param(True, marks=pytest.mark.nightly)]
)
def test_a_training_says_so_before_it_begins(tmp_path, monkeypatch, objective):
    overrides = ["hardware.modifier.std_dev=0.0"]
    if objective:
        overrides.append('training.objective={type="gaussian", std_dev=0.1}')
    config = read_config(ROOT / "configs" / "digits_mlp.toml", overrides)
    console = Console(file=io.StringIO(), width=500)
    ready = prepare(config, ROOT / "configs")
    with pytest.raises(KeyboardInterrupt):
        compare(config, ready, tmp_path, console=console, stop=lambda: True)
    said = "note: Nothing is drawn in training" in console.file.getvalue()
    assert said != objective


def test_the_page_s_example_draws():
    page = (ROOT / "docs" / "physics.md").read_text("utf-8")
    code, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(code, names)
    assert differs(names["chip_type"])
    assert jnp.asarray(names["chip_type"].modifier.std_dev) > 0
