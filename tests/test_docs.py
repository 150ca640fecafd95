"""The Python code of the documentation pages runs as written."""

import dataclasses
import json
import re
import runpy
import tomllib
from pathlib import Path
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict

import hwtrain
from hwtrain import cli
from hwtrain._arrays import paths
from hwtrain._parts.fields import from_dict
from hwtrain._parts.registry import named, order
from hwtrain._parts.registry import names as part_names
from hwtrain._parts.slot import home
from hwtrain.checkpoint.adapters import to_npz
from hwtrain.cli._parser import make_parser
from hwtrain.evaluate import population, technologies
from hwtrain.train import read_config
from hwtrain.train._hardware import preset_names

DOCS = Path(__file__).parents[1] / "docs"


def names_after(page):
    """Returns the names after the page's only example has run."""
    text = (DOCS / page).read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    return names


def test_the_examples_of_the_randomness_page_run():
    text = (DOCS / "randomness.md").read_text("utf-8")
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), {})


def test_the_examples_of_the_layers_page_run(capsys):
    text = (DOCS / "layers.md").read_text("utf-8")
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    printed = capsys.readouterr().out
    assert "Heads_0/w: modifier: " in printed
    last = ["(1, 2)", "TheirDense", "TheirGate", "Einsum"]
    assert printed.splitlines()[-4:] == last
    assert {*names["model"].__dict__} >= {"w", "w_input_range", "w_probe"}
    # The method that is written again is the original one, on a tile without levels.
    ideal = hwtrain.Hardware(forward=hwtrain.IOParameters(out_bound=1e6))
    x, layer = names["x"], names["TheirGate"]()
    plain, variables = layer.init_with_output(jax.random.key(0), x)
    y = hwtrain.eval_mode(hwtrain.analogize(layer, ideal)).apply(variables, x)
    chex.assert_trees_all_close(plain, y, rtol=1e-5)


def test_the_examples_of_the_energy_page_run(capsys):
    text = (DOCS / "energy.md").read_text("utf-8")
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    printed = capsys.readouterr().out
    conv = names["found"].analog[0]
    # 64 positions; 36 rows on one tile, 32 columns on two tiles of 16.
    assert (conv.counts.products, conv.counts.tiles) == (64.0, 2)
    assert conv.counts.conversions == 64 * 8 * 32 * 8
    assert "conv/kernel" in printed and "energy of digital products is not" in printed


def test_the_energy_page_lists_every_technology():
    page = (DOCS / "energy.md").read_text("utf-8")
    table = page.partition("| `technologies.` |")[2].partition("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(listed) == preset_names(technologies)


@pytest.mark.nightly
def test_the_examples_of_the_meshes_page_run_on_eight_devices(on_devices):
    text = (DOCS / "meshes.md").read_text("utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    on_devices(8, f"{code}\nprint('equal')")


@pytest.mark.nightly
def test_the_run_of_the_meshes_page_continues_on_any_mesh(on_devices):
    """To the rounding of sums, which converters would show as whole levels."""
    text = (DOCS / "meshes.md").read_text("utf-8")
    first, *others = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    converters = "inp_bits=8, out_bits=8, out_bound=10.0, "
    assert converters in first
    (loop,) = [code for code in others if "def train(folder" in code]
    loop = loop.partition("folder = Path(")[0]
    program = """
folder = Path(tempfile.mkdtemp())
whole = train(folder / "whole", on_devices(4, 2), steps=6)
for steps, shape in zip((2, 4, 6), [(8, 1), (1, 2), (1, 1)]):
    moved = train(folder / "moved", on_devices(*shape), steps)
for one, other in zip(*map(jax.tree.leaves, (whole["params"], moved["params"]))):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
print("equal")
"""
    on_devices(8, first.replace(converters, "") + loop + program)


def test_the_device_of_the_devices_page_is_whole(capsys):
    text = (DOCS / "devices.md").read_text("utf-8")
    names, learned = {}, {}
    code, of_leaves, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, names)
    exec(of_leaves, learned)
    printed = capsys.readouterr().out
    for effect in ("telegraph noise 0.05", "log-normal 0.05", "flash, 2%"):
        assert effect in printed
    assert "(2, 1)" in printed and "learned full scale of the ADC" in printed
    assert (learned["params"]["full_scale"] != 1.0).all()
    assert "my_telegraph draws: anew at each step" in printed
    for effect in ("my_telegraph", "modifier"):
        strength = re.search(rf"{effect}: ([0-9.]+) x the configured", printed)
        assert strength is not None and abs(float(strength[1]) - 1) < 0.2
    kernel = names["variables"]["params"]["kernel"]
    assert (names["after_a_day"]["kernel"] != kernel).all()


def test_the_small_parts_of_the_devices_page_act(capsys):
    text = (DOCS / "devices.md").read_text("utf-8")
    section = text.partition("## Clips, mismatches")[2].partition("\n## ")[0]
    clip, drivers, compensated, stored = {}, {}, {}, {}
    codes = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for code, names in zip(codes, (clip, drivers, compensated, stored), strict=True):
        exec(code, names)
    assert "outputs, levels: as NumPy computes them" in capsys.readouterr().out
    found = np.asarray(stored["layer"].apply(stored["variables"], stored["x"]))
    assert found.min() == 0 and found.max() <= 1.5 + 1e-6
    np.testing.assert_allclose(found, np.rint(found / 0.1) * 0.1, atol=1e-6)
    before = np.abs(clip["variables"]["params"]["kernel"])
    after = np.abs(clip["params"]["kernel"])
    bound = np.quantile(before, 0.8)
    np.testing.assert_allclose(after, np.minimum(before, bound), rtol=1e-5)

    gains = np.asarray(drivers["gains"])
    np.testing.assert_allclose(gains, np.repeat(gains[:, :1], 4, 1), rtol=1e-4)
    assert 0.03 < gains[:, 0].std() < 0.2

    hardware, x = compensated["hardware"], compensated["x"]
    without = hwtrain.analogize(
        nn.Dense(4), dataclasses.replace(hardware, drift_compensation=None)
    )
    params = compensated["variables"]["params"]
    plan = hwtrain.plan(without, compensated["variables"], x)
    chip = hwtrain.program_chip(params, plan, hwtrain.chip_key(0))
    drifted = chip.at(86_400.0, key=jax.random.key(2))
    nominal = np.abs(params["kernel"]).sum()
    # The mean exponent of large conductances is 0.06, and (86400 / 20)**-0.06 is 0.6.
    assert np.abs(drifted["kernel"]).sum() / nominal < 0.8
    assert abs(np.abs(compensated["after_a_day"]["kernel"]).sum() / nominal - 1) < 0.15


@hwtrain.register("stage", "of_shapes", inside="adc")
class OfShapes(hwtrain.Part):
    """Records the shapes of the arrays of a stage."""

    draws = "chip"
    as_whole: bool = False
    seen: ClassVar[dict] = {}

    def runs_whole(self):
        return self.as_whole

    def leaves(self, weight):
        return (hwtrain.LeafSpec(name="gain_of_tile"),)

    def around(self, inner, x, ctx):
        y = inner(x)
        arrays = {"x": x, "y = inner(x)": y, "ctx.w": ctx.w}
        arrays["ctx.spread(std, name)"] = ctx.spread(1.0, "a spread")
        arrays["ctx.leaf(name)"] = ctx.leaf("gain_of_tile")
        self.seen.update({name: jnp.shape(array) for name, array in arrays.items()})
        return y


@pytest.mark.parametrize("as_whole", [False, True])
def test_the_shapes_of_a_stage_are_those_of_the_devices_page(as_whole):
    """A matrix on 3 x 2 tiles of 4 x 5, and a convolution in two groups."""
    page = (DOCS / "devices.md").read_text("utf-8")
    rows = re.findall(
        r"^\| `([^`]+)` \| `(\[.*?\])`.*? \| `(\[.*?\])`", page, re.MULTILINE
    )
    said = {name: shapes[as_whole] for name, *shapes in rows}
    if as_whole:
        layer, shape = (
            nn.Conv(6, (3,), feature_group_count=2, padding="VALID"),
            (7, 9, 8),
        )
        size = None
        sizes = {"batch": (7,), "*spatial": (9,), "*positions": (7,), "channels": (8,)}
        sizes |= {"groups": (2,), "1": (1,), "*taps": (3,), "columns": (6,)}
        sizes |= {"channels of a group": (4,), "columns of a group": (3,)}
    else:
        layer, shape, size = nn.Dense(10), (7, 12), 4
        sizes = {"...": (7,), "row tiles": (3,), "column tiles": (2,), "rows": (4,)}
        sizes |= {"columns": (5,), "column tiles or 1": (1,)}
    chip = hwtrain.Hardware(
        forward=hwtrain.IOParameters(stages=(OfShapes(as_whole=as_whole),)),
        mapping=hwtrain.MappingParameter(
            max_input_size=size, max_output_size=size and 5
        ),
    )
    analog, x = hwtrain.analogize(layer, chip), jnp.ones(shape)
    variables = analog.init(jax.random.key(0), x)
    plan = hwtrain.plan(analog, variables, x)
    params = hwtrain.apply_mismatch(variables["params"], plan, hwtrain.chip_key(0))
    OfShapes.seen.clear()
    rngs = {"mismatch": jax.random.key(1)}
    hwtrain.chip_mode(analog).apply({"params": params}, x, rngs=rngs)
    assert len(OfShapes.seen) == len(rows) == 5
    for name, seen in OfShapes.seen.items():
        axes = said[name].strip("[]").split(", ")
        if name == "ctx.leaf(name)":
            axes.remove("...")  # none follows
        assert seen == sum((sizes[axis] for axis in axes), ()), name


def test_the_devices_page_has_the_order_of_the_built_in_stages():
    page = (DOCS / "devices.md").read_text("utf-8")
    (listed,) = re.findall(r"```text\n(range, .*?)```", page, re.DOTALL)
    built_in = [name for name in order("stage") if not home(named("stage", name))]
    assert re.findall(r"\w+", listed) == built_in


def test_the_devices_page_has_every_field_of_a_leaf():
    page = (DOCS / "devices.md").read_text("utf-8")
    table = page.partition("| `LeafSpec` has |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    listed = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    fields = dataclasses.fields(hwtrain.LeafSpec)
    assert listed == {field.name for field in fields}


def test_the_nest_of_noise_models_is_one_in_python_and_in_a_configuration():
    text = (DOCS / "physics.md").read_text("utf-8")
    section = text.partition("#### All of them together")[2].partition("\n### ")[0]
    (python,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (toml,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    names = {"hw": hwtrain}
    exec(python, names)
    chip = names["chip"]
    assert from_dict(hwtrain.Hardware, tomllib.loads(toml)["hardware"]) == chip
    within, kinds = chip.noise_model, []
    while within is not None:
        kinds.append(within.type)
        within = getattr(within, "noise_model", None)
    table = section.partition("| model | stands |")[2]
    listed = re.findall(r"^\| (?:the devices, such as )?`(\w+)`", table, re.MULTILINE)
    assert listed == kinds[::-1]
    # Every built-in model that stands around another one is in it.
    around = [n for n in part_names("noise_model") if _stands_around(n)]
    assert set(around) <= set(kinds) and len(around) == 6

    # What the page says of lags: inside at_temperature, they are A times as long.
    hot, flicker = names["NEST"].noise_model.noise_model, names["NEST"]
    quiet = hwtrain.PCMLikeNoiseModel(read_noise_scale=0.0, drift_scale=0.0)
    flicker = dataclasses.replace(flicker, noise_model=quiet)
    inside = dataclasses.replace(hot, noise_model=flicker)
    devices = flicker.program(jax.random.key(0), jnp.full(50, 10.0))
    factor = np.exp(0.4 / 8.617333262e-5 * (1 / 300 - 1 / 330))
    key = jax.random.key(1)
    np.testing.assert_allclose(
        inside.at(key, devices, 20.0),
        flicker.at(key, devices, np.float32(20.0 * factor)),
        rtol=1e-3,
    )
    outside = dataclasses.replace(
        flicker, noise_model=dataclasses.replace(hot, noise_model=quiet)
    )
    np.testing.assert_allclose(
        outside.at(key, devices, 20.0), flicker.at(key, devices, 20.0), rtol=1e-5
    )


def _stands_around(name):
    part = named("noise_model", name)
    return home(part) == "" and "noise_model" in part.__dataclass_fields__


@pytest.mark.nightly
def test_the_nest_of_noise_models_is_proved():
    text = (DOCS / "physics.md").read_text("utf-8")
    section = text.partition("#### All of them together")[2]
    names = {"hw": hwtrain}
    exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0], names)
    x = jax.random.normal(jax.random.key(0), (8, 24))
    analog = hwtrain.analogize(nn.Dense(16), names["chip"])
    variables = analog.init(jax.random.key(1), x)
    hwtrain.assert_active(analog, variables, x)
    table = str(hwtrain.inspect(analog, variables, x))
    for said in ("write_verify", "corrected 20 times", "330 K", "1/f noise"):
        assert said in " ".join(table.replace("│", " ").split())


def test_the_examples_of_the_physics_page_run(capsys):
    text = (DOCS / "physics.md").read_text("utf-8")
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    assert names["chip_type"].stores_scale
    assert names["chip_at_85_degrees"].noise_model.g_max == 25.0
    # The devices have an error of 4 µS - 0.01 g.
    rows = zip(names["fit"].rows(), (4.0, -0.01), strict=True)
    assert all(low < true < high for (_, _, low, high), true in rows)
    printed = capsys.readouterr().out
    assert "prog_coeff[1]: -0.00" in printed
    assert names["my_devices"].g_max == 200.0
    # As the page says.
    errors = [float(x[:-1]) for x in re.findall(r"^[0-9.]+%$", printed, re.MULTILINE)]
    assert [round(error) for error in errors[-3:]] == [7, 4, 3]
    assert "1/f noise 0.03 from 1e-06 to 1000 Hz, disturbed" in printed


@pytest.mark.nightly
def test_the_examples_of_the_periphery_page_run(capsys):
    text = (DOCS / "periphery.md").read_text("utf-8")
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    assert "weight slices: as computed" in capsys.readouterr().out


def test_the_example_of_results_in_few_bits_runs(capsys):
    text = (DOCS / "periphery.md").read_text("utf-8")
    imports = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    section = text.partition("## Results in few bits")[2]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {}
    exec(imports + code, names)
    assert "8 bits, full scale of each vector" in capsys.readouterr().out
    steps = np.asarray(names["y"]) * 127 / 4
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert [x.path for x in names["outputs"]] == [
        "",
        "down",
        "norm",
        "up",
    ]


def test_the_examples_of_the_optimisation_page_run():
    text = (DOCS / "optimisation.md").read_text("utf-8")
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    assert names["step"]._cache_size() == 1
    assert names["value"] > 0
    # Only the head moves, with its range: no norm, no statistics, no other bias.
    fresh = hwtrain.analogize(names["NnxNet"](nnx.Rngs(0)), names["rules"])
    of_nnx = [
        nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState)))
        for model in (fresh, names["nnx_net"])
    ]
    for pair in ((names["whole"], names["trained"]), of_nnx):
        before, after = map(paths.leaves, pair)
        moved = {path for path in before if (before[path] != after[path]).any()}
        layers, leaves = zip(*(path.rsplit("/", 2)[-2:] for path in moved))
        assert set(layers) == {"head"}
        assert set(leaves) == {"bias", "input_range", "kernel"}


def test_the_example_of_traced_constants_says_what_noise_costs():
    page = (DOCS / "optimisation.md").read_text("utf-8")
    section = page.partition("## Constants as traced values")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["by_noise"].shape == names["of_layer"].shape == (5,)
    assert names["by_noise"][0] != names["by_noise"][4]
    assert names["cost"] > 0
    assert (names["errors"] > 0).all()


def test_the_example_of_the_mixed_signal_page_says_what_the_page_says():
    page = (DOCS / "mixed_signal.md").read_text("utf-8")
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, names)
    stated = re.search(r"`print\(generate\)`.*?\*(.*?)\*", page, re.DOTALL)
    assert " ".join(stated[1].split()) in repr(names["generate"])
    assert (names["chip"]["w_in"]["kernel"] != 1).all()
    assert names["noise"].density == pytest.approx(1.846e-15, rel=1e-3)


def test_the_example_of_the_deployment_page_runs():
    names = names_after("deployment.md")
    kernel = names["params"]["kernel"]
    assert abs(names["kernel"] - kernel).max() < 1e-6


def test_the_deployment_page_has_every_adapter():
    from hwtrain.checkpoint.adapters import ADAPTERS

    page = (DOCS / "deployment.md").read_text("utf-8")
    for name, adapter in ADAPTERS.items():
        assert f"| `{name}` | `{adapter.__name__}` |" in page


@pytest.mark.nightly
def test_the_chip_in_the_loop_of_the_checkpoint_page_runs(tmp_path, monkeypatch):
    """What is tuned on a measured chip comes back on that chip, and nothing else."""
    x = jax.random.normal(jax.random.key(0), (64, 12))
    labels = jnp.argmax(x[:, :4], axis=-1)
    pair = hwtrain.SinglePairConductanceConverter(g_max=25.0)
    hardware = hwtrain.Hardware(
        modifier=hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.05),
        input_range=hwtrain.InputRangeParameter(),
        forward=hwtrain.IOParameters(
            inp_bits=8, out_bits=8, out_bound=10.0, v_offset_std=0.02
        ),
        mapping=hwtrain.MappingParameter(weight_scaling_omega=1.0),
        converter=pair,
        mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.3),
    )
    model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(4)])
    analog = hwtrain.analogize(model, hardware)
    variables = analog.init(jax.random.key(1), x)
    plan = hwtrain.plan(analog, variables, x)
    monkeypatch.chdir(tmp_path)
    drawn = hwtrain.load(hwtrain.export("digits.chip", variables, plan, chip_seed=7))
    to_npz(drawn, "chip7.npz", chip=7)

    def loss_of(logits, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    page = (DOCS / "checkpoint.md").read_text("utf-8")
    section = page.partition("## Chip in the loop")[2].partition("\n## ")[0]
    names = {name: globals()[name] for name in ("hwtrain", "jax", "optax")}
    names |= {"analog": analog, "loss_of": loss_of}
    names |= {"x": x, "labels": labels}
    exec("\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL)), names)

    before, after = hwtrain.load("chip7"), hwtrain.load("chip7_tuned")
    old, new = (flatten_dict(found.params, sep="/") for found in (before, after))
    moved = {path for path in old if (old[path] != new[path]).any()}
    assert moved == {"layers_0/bias", "layers_2/bias"}
    chex.assert_trees_all_equal(after.chip(7), names["on_chip"](names["tuned"]))
    chip = hwtrain.chip_mode(analog)
    rngs = {"mismatch": jax.random.key(0)}  # of reads, which have no noise here
    losses = [
        loss_of(chip.apply({"params": c.chip(7)}, x, rngs=rngs), labels)
        for c in (before, after)
    ]
    assert losses[1] < 0.9 * losses[0]
    found = population(
        analog,
        after,
        [(x, labels)],
        optax.softmax_cross_entropy_with_integer_labels,
        chips=[7],
        key=jax.random.key(0),
    )
    assert abs(found.values[0] - losses[1]) < 1e-5


def shown(page):
    text = (DOCS / page).read_text("utf-8")
    return set(re.findall(r"\(images/(\w+\.png)\)", text))


SCRIPTS = {
    "physics.md": ("plots.py", "device_plots.py"),
    "periphery.md": ("periphery_plots.py",),
    "life_cycle.md": ("life_cycle_plot.py",),
}


@pytest.mark.parametrize("page", SCRIPTS)
def test_a_page_shows_every_plot_that_there_is(page):
    scripts = [runpy.run_path(str(DOCS / script)) for script in SCRIPTS[page]]
    figures = [figure for script in scripts for figure in script["FIGURES"]]
    assert {f"{figure.__name__}.png" for figure in figures} == shown(page)


@pytest.mark.nightly
@pytest.mark.parametrize("page", SCRIPTS)
def test_every_plot_is_drawn(page, tmp_path):
    for script in SCRIPTS[page]:
        runpy.run_path(str(DOCS / script))["main"](tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == shown(page) and drawn


@pytest.mark.nightly
def test_every_plot_of_the_optimisation_page_is_drawn(tmp_path):
    runpy.run_path(str(DOCS / "optimisation_plots.py"))["main"](tmp_path)
    page = (DOCS / "optimisation.md").read_text("utf-8")
    shown = set(re.findall(r"\(images/(\w+\.png)\)", page))
    assert {path.name for path in tmp_path.glob("*.png")} == shown


def test_the_example_of_a_whole_model_runs_and_its_chips_are_one():
    text = (DOCS / "worked_model.md").read_text("utf-8")
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    for logits, chips in (("logits", "chips"), ("nnx_logits", "nnx_chips")):
        of_chip_0 = names["correct"](names[logits], names["labels"]).mean()
        assert abs(of_chip_0 - names[chips].values[0]) < 1e-6
        assert names[chips].mean > 0.7


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The files of the page on training, in the current folder."""
    page = (DOCS / "training.md").read_text("utf-8")
    for kind, name in (("toml", "work.toml"), ("python", "work.py")):
        (text,) = re.findall(rf"```{kind}\n(# {name}\n.*?)```", page, re.DOTALL)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_of_the_training_page_is_right_and_short(work, capsys):
    assert cli.main(["config", "check", "work.toml"]) == 0
    assert "300 updates for 1 seed, 2 analog arrays" in capsys.readouterr().out
    assert len((work / "work.toml").read_text().splitlines()) <= 40
    assert "hwtrain" not in (work / "work.py").read_text()


@pytest.mark.nightly
def test_the_example_of_the_training_page_trains(work, capsys):
    assert cli.main(["train", "work.toml"]) == 0
    said = capsys.readouterr().out
    assert "Accuracy in %, mean" in said and "\nLoss, mean" in said
    folder = work / "runs" / "work"
    results = json.loads((folder / "results.json").read_text())
    assert min(row["mean"] for row in results["results"]) > 85
    (other,) = results["other_metrics"]
    assert other["metric"] == "loss" and len(other["results"]) == 2
    exported = hwtrain.load(folder / "export" / "seed_0")
    assert [*exported.plan] == ["head/kernel", "hidden/kernel"]
    assert "batch_stats" in exported.variables


def test_the_example_of_the_evaluation_page_runs(capsys):
    text = (DOCS / "evaluation.md").read_text("utf-8")
    hook, example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(hook, "hook.py", "exec")
    names = {}
    exec(example, names)
    said = capsys.readouterr().out
    assert "32 chips" in said and "as published" in said
    assert names["worst"].shape == names["low"].shape == (3, 2)
    assert (names["low"] <= names["worst"]).all() and names["good"][0, 0] > 0
    # The commands of the page are commands.
    (commands,) = re.findall(r"```\n(hwtrain evaluate.*?)```", text, re.DOTALL)
    for line in commands.splitlines():
        make_parser().parse_args(line.split()[1:])


def test_the_examples_of_the_page_on_fine_tuning_run(tmp_path, monkeypatch, capsys):
    text = (DOCS / "finetuning.md").read_text("utf-8")
    names = {}
    monkeypatch.chdir(tmp_path)
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    assert "2 arrays loaded" in capsys.readouterr().out
    chex.assert_trees_all_equal(names["params"], names["plain"])
    assert names["adapted"].keys() == {"norm"} and names["folded"].keys() == {
        "hidden",
        "head",
    }
    for code in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        if "model =" not in code:
            code = f'model = "a.py:b"\ndata = "a.py:c"\n{code}'
        if "steps" not in code:
            first = "[training.init_from]"
            steps = "steps = 1\n" + (first if first in code else "")
            code = re.sub(r"\[training(\.init_from)?\]", f"[training]\n{steps}", code)
        (tmp_path / "run.toml").write_text(code)
        read_config(tmp_path / "run.toml")


def test_the_configuration_page_is_what_its_program_writes():
    written = runpy.run_path(str(DOCS / "configuration.py"))["page"]()
    assert (DOCS / "configuration.md").read_text("utf-8") == written


def test_every_key_of_the_configuration_page_says_what_it_is():
    page = (DOCS / "configuration.md").read_text("utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    silent = [row[0] for row in rows if not row[-1].removesuffix("|").strip()]
    assert not silent
    # A class says it for its subclasses, with the unit.
    inherited = page.partition('of `type = "pcm_like"`')[2].partition("## ")[0]
    for key, unit in (("g_max", "µS"), ("t_read", "seconds"), ("prog_coeff", "µS")):
        (row,) = [x for x in inherited.splitlines() if x.startswith(f"| `{key}` ")]
        assert unit in row


@pytest.mark.parametrize("path", sorted((DOCS.parent / "configs").glob("*.toml")))
def test_the_configuration_page_has_every_key_of_the_configurations(path):
    page = (DOCS / "configuration.md").read_text("utf-8")
    tables = {}
    for section in page.split("\n## ")[1:]:
        found = re.match(r"`\[\[?([\w.]+)\]", section)
        name = found[1] if found else ""
        tables[name] = tables.get(name, "") + section

    def check(where, data):
        if f"{where}.NAME" in tables:
            for value in data.values():
                check(f"{where}.NAME", value)
            return
        for name, value in data.items():
            inner = f"{where}.{name}".strip(".")
            if where == "task.metrics":
                inner = "task.metrics.NAME"
            elif not (where == "rules" and f"| `{name}` |" in tables["hardware"]):
                assert f"| `{name}` |" in tables[where], (where, name)
            else:
                inner = f"hardware.{name}"
            for table in value if isinstance(value, list) else [value]:
                if isinstance(table, dict):
                    check(inner, table)

    check("", tomllib.loads(path.read_text("utf-8")))


@pytest.mark.parametrize(
    "command",
    [
        name
        for name in make_parser()._subparsers._group_actions[0].choices
        if name != "config"
    ],
)
def test_the_command_page_has_every_option(command):
    page = (DOCS / "command.md").read_text("utf-8")
    synopses = re.search(r"```\n(.*?)```", page, re.DOTALL)[1]
    shown = "".join(re.findall(rf"^hwtrain {command} (.*\n(?: .*\n)*)", synopses, re.M))
    shared = re.search(r"^All commands but `train`.*?\n\n", page, re.M | re.DOTALL)[0]
    commands = make_parser()._subparsers._group_actions[0].choices
    options = {
        option
        for action in commands[command]._actions
        for option in action.option_strings
    }
    of_all = {"-h", *re.findall(r"`(?:hwtrain COMMAND )?(--\w+)", shared)}
    if f"`{command}`" in shared.partition(" also take")[0]:
        of_all -= {"--parts", "--seed"}
    assert options - of_all == set(re.findall(r"--\w+", shown))
