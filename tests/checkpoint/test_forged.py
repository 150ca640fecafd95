"""Forged checkpoints with valid hashes: refused in one line, or known to be neutral."""

import copy
import dataclasses
import json
import random
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from safetensors.numpy import load_file, save_file

import hwtrain as hw
from hwtrain.checkpoint import (
    Graph,
    HardwareCheckpointError,
    Measurement,
    export,
    load,
    verify,
)
from hwtrain.checkpoint import _manifest as manifests
from hwtrain.checkpoint._dynapse import export_dynapse, load_dynapse
from hwtrain.dynapse._biases import computed_table
from hwtrain.dynapse._connectivity import Limits
from hwtrain.dynapse._deployment import deploy

CONVERTER = hw.SinglePairConductanceConverter(g_min=0.1)
TILES = hw.MappingParameter(max_input_size=6, max_output_size=3)
PROGRAMMED = hw.Hardware(
    mapping=TILES,
    input_range=hw.InputRangeParameter(),
    converter=CONVERTER,
    noise_model=hw.PCMLikeNoiseModel(),
)
MISMATCHED = hw.Hardware(
    mapping=TILES,
    clip=hw.WeightClipParameter(type="fixed_value", fixed_value=1.0),
    converter=CONVERTER,
    mismatch=hw.MismatchParameter(type="mult_normal", std_dev=0.1),
)
RULES = [hw.Rule("conv", PROGRAMMED), hw.Rule("head", MISMATCHED)]


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Conv(4, (2,), strides=2, padding="VALID", name="conv")(x)
        y = nn.BatchNorm(use_running_average=True, name="norm")(y)
        return nn.Dense(3, name="head")(y.reshape(len(y), -1))


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    """A checkpoint with a convolution, batch norm, a drawn and a measured chip."""
    x = jnp.ones((1, 4, 3))
    analog = hw.analogize(Model(), RULES)
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    statistics = {"mean": jnp.arange(4.0), "var": jnp.arange(1.0, 5)}
    variables = {**variables, "batch_stats": {"norm": statistics}}
    plan = hw.plan(analog, variables, x)
    variables |= {"rng": {"key": jax.random.key(5)}, "cache": {}}
    folder = tmp_path_factory.mktemp("genuine")
    nominal = load(export(folder / "nominal", variables, plan))
    measured = {
        f"{path}/tile/{i}/{j}/{device}": 0.9 * g
        for path in plan
        for i, row in enumerate(nominal.conductances(path))
        for j, tile in enumerate(row)
        for device, g in tile.conductances.items()
    }
    path = export(
        folder / "model",
        variables,
        plan,
        chip_seed=3,
        measured={9: measured},
        graph=Graph(
            nodes={"in": "input", "conv": "layer", "head": "layer", "out": "output"},
            edges=(("in", "conv"), ("conv", "head"), ("head", "out")),
        ),
        accuracy=[
            Measurement(
                metric="accuracy in %",
                mode="chip_mode",
                chips=8,
                mean=97.5,
                std=0.5,
                conditions={"t_s": 3600.0, "set": "test"},
            )
        ],
    )
    verify(path)
    return path


@pytest.fixture
def copied(genuine, tmp_path):
    return shutil.copytree(genuine, tmp_path / "model")


def read(directory):
    return json.loads((directory / "manifest.json").read_text("utf-8"))


def sign(content):
    """Gives a manifest a valid hash, as any writer can."""
    content["sha256"] = manifests._digest(content)
    return json.dumps(content)


def refusal(directory, reader=verify):
    """Returns the refusal of a checkpoint, `None` if it is taken."""
    try:
        reader(directory)
    except HardwareCheckpointError as error:
        return str(error)
    return None


# ------------------------------------------------------------ entries of the manifest


def nodes(value, at=()):
    """Yields the place of every entry of a manifest."""
    if at:
        yield at
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from nodes(value[key], (*at, key))


def pattern(content, at):
    """Returns the kind of an entry: its place without numbers and names."""
    names = dict.fromkeys(
        ("conditions", "nodes", "beside", "libraries", "units", "rules"), 1
    )
    names["files"] = 1 if at[0] == "chips" else 2
    found, skip = [], 0
    for key in at:
        free = skip > 0 or isinstance(key, int)
        skip = max(skip - 1, 0)
        found.append("*" if free else key)
        if not free and key in names:
            skip = names[key]
    if at[0] == "biases":  # by core and by bias
        found[1:3] = ["*" for _ in at[1:3]]
    if at[0] == "leaves" and len(at) > 1:
        found[1] = "empty" if content["leaves"][at[1]]["kind"] == "empty" else "*"
    return ".".join(found)


def number_like(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def other_values(value):
    """Yields forged values: of other types, out of range, huge."""
    for other in (None, True, 7, 1.5, "x", "7", [], {}, [[]], {"x": 1}):
        same = isinstance(other, type(value)) and isinstance(value, type(other))
        if not same and not (number_like(other) and isinstance(value, float)):
            yield f"{type(other).__name__} {json.dumps(other)}", other
    if number_like(value):
        yield "text", str(value)
        for other in (-1, 0, -value - 1, value + 1, 2**40, 10**30, 1e308, -0.5):
            if other != value:
                yield f"number {other:g}", other
    if isinstance(value, bool):
        yield "inverted", not value
        yield "0 or 1", int(value)
    if isinstance(value, str):
        for other in ("", f"{value}x", f"../{value}", "x" * 10**5, "a\nb", "\ud800"):
            if other != value:
                yield f"text {other[:20]!r}", other


def forgeries(content, at):
    """Yields the ways to forge one entry: how, what else it touches, the manifest."""

    def forged(change):
        # Only what lies on the way is copied.
        root = dict(content)
        parent = root
        for key in at[:-1]:
            parent[key] = copy.copy(parent[key])
            parent = parent[key]
        change(parent)
        return root

    key, parent = at[-1], content
    for step in at[:-1]:
        parent = parent[step]
    value = parent[key]
    for name, other in other_values(value):
        yield name, (), forged(lambda p, o=other: p.__setitem__(key, o))
    yield "deleted", (), forged(lambda p: p.__delitem__(key))
    if isinstance(parent, list):
        yield "doubled", (), forged(lambda p: p.insert(key, value))
        if key + 1 < len(parent) and parent[key + 1] != value:
            yield "swapped", (), forged(lambda p: swap(p, key, key + 1))
    else:
        yield "renamed", (), forged(lambda p: p.__setitem__(f"{key}x", p.pop(key)))
        for other in [k for k in parent if k > key and parent[k] != value][:1]:
            yield "swapped", (other,), forged(lambda p, o=other: swap(p, key, o))
    if isinstance(value, dict):
        surplus = {**value, "surplus": 1}
        yield "extended", (), forged(lambda p: p.__setitem__(key, surplus))
    if isinstance(value, list) and value:
        yield "emptied", (), forged(lambda p: p.__setitem__(key, []))


def swap(parent, a, b):
    parent[a], parent[b] = parent[b], parent[a]


# Accepted forgeries, and why a reader cannot or need not refuse them.
OTHER_MODEL = "says another model or chip type, which could have these very tensors"
FREE = "text for people, or a measurement that nothing in a checkpoint can prove"
_NUMBER = "number [^-].*"
NEUTRAL = {
    r"accuracy(\.\*)?: (emptied|deleted|doubled)": FREE,
    r"accuracy\.\*\.(metric|mode): (text .*|swapped)": FREE,
    rf"accuracy\.\*\.(chips|mean|std): ({_NUMBER}|deleted)": FREE,
    r"accuracy\.\*\.conditions: (extended|emptied)": FREE,
    r"accuracy\.\*\.conditions\.\*: (str|int|float|text|number) ?.*": FREE,
    r"accuracy\.\*\.conditions\.\*: (deleted|renamed|swapped)": FREE,
    r"libraries: extended": FREE,
    r"libraries\.\*: (text .*|deleted|renamed|swapped)": FREE,
    r"digital\.\*\.reason: text .*": FREE,
    r"layers\.\*\.weight\.(rule|layer): text .*": FREE,
    r"(digital|state|others)\.\*: swapped": "the order of names says nothing",
    r"graph: deleted": OTHER_MODEL,
    r"graph\.edges(\.\*)*: (emptied|deleted|doubled|swapped)": OTHER_MODEL,
    r"graph\.nodes\.\*: text .*": OTHER_MODEL,
    # Constants that act in training or at a read, and leave no trace in the stored
    # data.
    rf"layers\.\*\.weight\.hardware\.input_range\.\w+: ({_NUMBER}|inverted)": (
        OTHER_MODEL
    ),
    rf"layers\.\*\.weight\.hardware\.clip\.fixed_value: {_NUMBER}": OTHER_MODEL,
    r"layers\.\*\.weight\.hardware\.noise_model\."
    r"(read_noise_scale|t_0|t_read|read_coeff(\.\*)?): "
    rf"({_NUMBER}|swapped)": OTHER_MODEL,
    # Limits that cut a small weight the same way; a first scale where one is stored.
    r"layers\.\*\.weight\.hardware\.mapping\.(max_.*_size|weight_scaling_omega): "
    rf"{_NUMBER}": OTHER_MODEL,
    rf"layers\.\*\.weight\.window\.(strides|.*_dilation)\.\*: {_NUMBER}": OTHER_MODEL,
    r"leaves\.(\*|empty): swapped": "the order of leaves says nothing",
    r"leaves\.\*\.key_impl: deleted": OTHER_MODEL,
}
_LONG = ("rules.*", "units.*", "libraries.*", "files.*.*.sha256")
"""Entries of which there are many, all alike."""
UNREADABLE = "it is not JSON"


def check_forgeries(genuine, copied, places, neutral_kinds=NEUTRAL, reader=None):
    """Forges entries, and returns what was taken and is not known to be neutral."""
    content = read(genuine)
    wrong = []
    for at in places:
        for name, others, forged in forgeries(content, at):
            text = json.dumps(forged) if at == ("sha256",) else sign(forged)
            (copied / "manifest.json").write_text(text)
            kind = f"{pattern(content, at)}: {name}"
            neutral = any(re.fullmatch(known, kind) for known in neutral_kinds)
            try:
                message = refusal(copied, reader or (load if neutral else verify))
            except Exception as error:
                wrong.append(f"{kind}: raw {type(error).__name__}: {error}"[:300])
                continue
            if message is None:
                if not neutral:
                    wrong.append(f"{kind} at {at}: taken")
                continue
            if len(message.splitlines()) != 1 or str(copied) not in message:
                wrong.append(f"{kind}: not one line with the file: {message[:300]}")
            if UNREADABLE not in message and not named(message, (*at, *others)):
                wrong.append(f"{kind}: names no entry: {message[:300]}")
    return wrong


def named(message, keys):
    """Whether a message names one of the entries, or one that they contradict."""
    said = message.partition("valid manifest: ")[2] or message
    kinds = "layers|leaves|chips|files|digital|state|others|tensors"
    entry = re.match(rf"({kinds})\b", said)
    names = [str(key) for key in keys if isinstance(key, str)]
    return entry or any(name in said.replace("SHA-256", "sha256") for name in names)


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (2,), 2, padding="VALID", rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        y = self.norm(self.conv(x))
        return self.head(y.reshape(len(y), -1))


@pytest.fixture(scope="module", params=["linen", "nnx"])
def of_both(request, tmp_path_factory):
    """A checkpoint that holds more than its plan names."""
    if request.param == "linen":
        path = request.getfixturevalue("genuine")
        beside, others = ("params/conv/bias", "params/head/bias"), ("cache", "rng/key")
        state = ("batch_stats/norm/mean", "batch_stats/norm/var")
    else:
        folder = tmp_path_factory.mktemp("nnx")
        model = hw.analogize(NnxModel(nnx.Rngs(0)), RULES)
        plan = hw.plan(model)
        beside = ("params/conv/bias", "params/head/bias")
        state, others = ("norm/mean", "norm/var"), ("params/norm/scale",)
        part = tuple(x for x in plan.digital if x.path != "norm/scale")
        plan = dataclasses.replace(plan, digital=part)
        path = export(folder / "model", model, plan, chip_seed=3)
    content = read(path)
    assert {f"params/{x['path']}" for x in content["digital"]} >= {*beside}
    assert (*content["state"],) == state
    assert (*content["others"],) == others
    assert verify(path)["passed"]
    return path


LISTS = ("layers", "digital", "state", "others", "leaves", "chips")


@pytest.mark.parametrize("reader", [load, verify])
@pytest.mark.parametrize("name", LISTS)
def test_nothing_of_a_list_can_be_left_out(of_both, tmp_path, name, reader):
    copied = shutil.copytree(of_both, tmp_path / "copy")
    content = read(copied)
    entries = content.pop(name)
    left = [entries[:n] + entries[n + 1 :] for n in range(len(entries))]
    for forged in (content, *({**content, name: found} for found in ([], *left))):
        (copied / "manifest.json").write_text(sign(forged))
        message = refusal(copied, reader)
        assert message and "\n" not in message and str(copied) in message
        missing = [entry for entry in entries if entry not in forged.get(name, [])]
        if name in forged and name in ("digital", "state", "others"):
            said = [x if isinstance(x, str) else x["path"] for x in missing]
            assert any(f"{x}." in message for x in said)


@pytest.mark.nightly
def test_forged_entries(genuine, copied):
    content = read(genuine)
    kinds = {}
    for at in nodes(content):
        kinds.setdefault(pattern(content, at), []).append(at)
    rng = random.Random(0)
    places = [rng.choice(group) for group in kinds.values()]
    wrong = check_forgeries(genuine, copied, places)
    assert not wrong, "\n".join(wrong)


def test_a_mean_that_becomes_a_variance(genuine, copied):
    """Both tensors lie in one file, have one shape, and every hash is right."""
    content = read(genuine)
    mean, variance = (
        next(leaf for leaf in content["leaves"] if leaf["keys"][-1] == name)
        for name in ("mean", "var")
    )
    assert mean["file"] == variance["file"]
    mean["tensor"], variance["tensor"] = variance["tensor"], mean["tensor"]
    (copied / "manifest.json").write_text(sign(content))
    expected = r"leaves.\d.tensor should be 'nominal/batch_stats/norm/mean'"
    with pytest.raises(HardwareCheckpointError, match=expected):
        load(copied)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(4))
def test_many_forged_entries(genuine, copied, seed):
    content = read(genuine)
    places = [at for at in nodes(content) if pattern(content, at) not in _LONG]
    wrong = check_forgeries(genuine, copied, random.Random(seed).sample(places, 120))
    assert not wrong, "\n".join(wrong)


# ------------------------------------------------------- a deployed network of neurons

NEUTRAL_DEPLOYMENTS = {
    r"hwtrain: text .*": FREE,
    r"layers\.\*\.\*: text .*": FREE,
    r"layers\.\*: swapped": OTHER_MODEL,
    # A chip with other limits, or another table of currents, holds it too.
    rf"limits\.\w+: ({_NUMBER}|swapped)": OTHER_MODEL,
    rf"biases\.\*\.\*\.(coarse|fine|wanted): ({_NUMBER}|swapped)": OTHER_MODEL,
    rf"biases\.\*\.\*\.achieved: {_NUMBER}": "a bias that no weight is made of",
    r"biases\.\*\.\*: swapped": "two biases that no weight is made of",
}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    rng = np.random.default_rng(0)
    return export_dynapse(
        tmp_path_factory.mktemp("deployed") / "net",
        deploy(
            rng.normal(0, 1, (5, 6)),
            rng.normal(0, 1, (6, 6)),
            {"Itau_mem": 5.3e-12, "Ispkthr": 1e-7},
            table=computed_table(),
            chips={7: {"Itau_mem": rng.normal(5.3e-12, 5e-13, 6)}},
            limits=Limits(neurons_per_core=3),
            layers={"in": 4, "out": 2},
        ),
    )


def test_forged_deployments(deployed, tmp_path):
    copied = shutil.copytree(deployed, tmp_path / "net")
    content = read(deployed)
    kinds = {}
    for at in nodes(content):
        kinds.setdefault(pattern(content, at), []).append(at)
    rng = random.Random(0)
    places = [rng.choice(group) for group in kinds.values()]
    wrong = check_forgeries(
        deployed, copied, places, NEUTRAL_DEPLOYMENTS, reader=load_dynapse
    )
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (
            "weights_in/mask",
            lambda a: a + 16,
            "a mask must fit into 4 bits|not those of its",
        ),
        ("weights_in/sign", lambda a: a * 2, "a sign must be -1, 0 or 1"),
        (
            "weights_rec/sign",
            lambda a: np.zeros_like(a),
            "0 where, and only where, there is no",
        ),
        ("weights_in/achieved", lambda a: a * 1.01, "not those of its codes"),
        ("weights_in/achieved", lambda a: a * np.nan, "holds NaN"),
        ("weights_rec/wanted", lambda a: a * 1.01, "largest_error.weights_rec: says"),
        ("cores", lambda a: a + 1, "do not match those of the biases"),
        ("chips/7/Itau_mem", lambda a: a * np.inf, "holds NaN or infinite"),
    ],
)
def test_forged_arrays_of_a_deployment(deployed, tmp_path, name, change, match):
    path = shutil.copytree(deployed, tmp_path / "net")
    content = load_file(path / "tensors.safetensors")
    content[name] = change(content[name])
    save_file(content, path / "tensors.safetensors")
    manifest = read(path)
    digest = manifests.sha256(content[name].tobytes())
    manifest["tensors"][name]["sha256"] = digest
    (path / "manifest.json").write_text(sign(manifest))
    with pytest.raises(HardwareCheckpointError, match=match) as error:
        load_dynapse(path)
    assert str(path / "tensors.safetensors") in str(error.value)


# ----------------------------------------------------------------- values of tensors


def forge_tensors(directory, file, change):
    """Changes the tensors of a file, their entries and every hash."""
    content = load_file(directory / file)
    found = change({name: array.copy() for name, array in content.items()})
    save_file(found, directory / file)
    manifest = read(directory)
    for name, array in found.items():
        entry = {"shape": list(array.shape), "dtype": array.dtype.name}
        entry["sha256"] = manifests.sha256(array.tobytes())
        manifest["files"][file].setdefault(name, {"unit": "1"}).update(entry)
    for name in content.keys() - found.keys():
        del manifest["files"][file][name]
    (directory / "manifest.json").write_text(sign(manifest))


VALUES = {
    "negative": lambda array: -array,
    "nothing": np.zeros_like,
    "NaN": lambda array: np.full_like(array, np.nan),
    "infinite": lambda array: np.full_like(array, np.inf),
    "a hundredth more": lambda array: array * np.asarray(1.01, array.dtype),
    "transposed": lambda array: array.T,
    "float16": lambda array: array.astype(np.float16),
    "longer": lambda array: np.concatenate([array, array]) if array.ndim else array,
}
TRAINED = "numbers that training sets, and that nothing else follows from"
NEUTRAL_VALUES = {
    r"nominal/(params/.*/(bias|scale)|batch_stats/.*): "
    r"(negative|nothing|a hundredth more|transposed)": TRAINED,
    r"nominal/batch_stats/.*: infinite": TRAINED,
    r"nominal/params/conv/input_range: a hundredth more": TRAINED,
    r"nominal/rng/key: .*": "any number is a key",
}


def tensor_kinds(genuine):
    """Returns a file and a tensor of each kind."""
    kinds = {}
    for file, content in read(genuine)["files"].items():
        for name in content:
            kind = re.sub(r"\d+/\d+", "*", name)
            kinds.setdefault((file, kind), (file, name))
    return [*kinds.values()]


def test_forged_values(genuine, copied):
    wrong = []
    for file, name in tensor_kinds(genuine):
        for how, change in VALUES.items():
            before = load_file(genuine / file)[name]
            if before.dtype != np.float32 and how in ("NaN", "infinite"):
                continue
            after = change(before)
            if after.shape == before.shape and np.array_equal(after, before):
                continue
            forge_tensors(copied, file, lambda found, n=name, a=after: found | {n: a})
            message = refusal(copied)
            if message is None:
                kind = f"{name}: {how}"
                if not any(re.fullmatch(known, kind) for known in NEUTRAL_VALUES):
                    wrong.append(f"{file}, {kind}: taken")
                continue
            entry = name.removeprefix("nominal/params/")
            weight = re.search("(conv|head)/kernel", message)
            entries = entry in message or (file in message and weight)
            if len(message.splitlines()) != 1 or not entries:
                wrong.append(f"{file}, {name}, {how}: {message[:300]}")
            shutil.copy(genuine / file, copied / file)
            shutil.copy(genuine / "manifest.json", copied / "manifest.json")
    assert not wrong, "\n".join(wrong)
