"""Parts of your own on the command line: found, described, and refused in one line."""

import json
from pathlib import Path

import pytest

from hwtrain import Hardware, cli
from hwtrain._parts import registry
from hwtrain._parts.fields import from_dict
from hwtrain._parts.slot import home
from hwtrain.train import read_config
from hwtrain.train._folder import changed_parts, make_folder, open_folder

STAGE = """
import hwtrain

@hwtrain.register("stage", "{name}", inside="adc")
class Own(hwtrain.Part):
    {doc}
    def around(self, inner, x, ctx):
        return inner(x)
"""
CONFIG = """
model = "model.py:model"
data = "model.py:data"
parts = ["chip.py"]
[training]
steps = 1
[hardware.converter]
type = "single_pair"
g_max = 25.0
[hardware.mismatch]
type = "add_normal"
std_dev = 0.1
"""
MODEL = """
import numpy as np
from flax import linen as nn

def model():
    return nn.Dense(2)

def data():
    x = np.ones((64, 3), np.float32)
    y = np.zeros(64, np.int32)
    return (x, y), (x, y)
"""


@pytest.fixture(autouse=True)
def _forget_parts():
    """Restores the registry, because each test registers other parts."""
    before = {kind: registry.names(kind) for kind in registry.KINDS}
    yield
    for kind, names in before.items():
        for name in {*registry.names(kind)} - {*names}:
            if home(registry.named(kind, name)):
                registry.forget(kind, name)


@pytest.fixture
def project(tmp_path):
    """A configuration with a file of parts, `chip.py`."""
    (tmp_path / "run.toml").write_text(CONFIG)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "chip.py").write_text("import hwtrain\n")
    return tmp_path


@pytest.fixture
def said(capsys):
    """Runs the command; returns its exit status, stdout and stderr."""

    def call(*words):
        status = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def error_of(answer):
    """Returns the one line of an error."""
    status, out, error = answer
    assert status == 2 and out == ""
    assert error.startswith("hwtrain: error: ") and error.count("\n") == 1
    return error


def install(folder, monkeypatch, text, value="{module}"):
    """Makes a package, with a part as its entry point, look installed."""
    module = f"package_of_{folder.name}".replace("-", "_")
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir()
    (folder / f"{module}.py").write_text(text)
    (about / "METADATA").write_text(f"Name: {module}\nVersion: 1.0\n")
    value = value.format(module=module)
    (about / "entry_points.txt").write_text(f"[hwtrain.parts]\nmine = {value}\n")
    monkeypatch.syspath_prepend(str(folder))
    return module


@pytest.mark.parametrize(
    ("name", "doc", "shown"),
    [
        ("stage_without_words", "", ""),
        ("stage_of_blanks", '"""  """', ""),
        ("stage_in_words", '"""Leaks.\n\n    Much.\n    """', "Leaks."),
    ],
)
@pytest.mark.parametrize("installed", [False, True])
def test_stages_of_your_own_are_listed_without_a_model(
    tmp_path, monkeypatch, said, name, doc, shown, installed
):
    name = f"{name}_{installed}".lower()
    text = STAGE.format(name=name, doc=doc)
    words = ["inspect", "--stages"]
    if installed:
        module = install(tmp_path, monkeypatch, text)
    else:
        module = f"file_of_{name}"
        (tmp_path / f"{module}.py").write_text(text)
        words += ["--parts", tmp_path / f"{module}.py"]
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = said(*words)
    assert status == 0
    (row,) = [line for line in out.splitlines() if f" {name} " in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == [name, f"{shown} ({module}:Own)".strip()]


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("raise RuntimeError('boo')", "{module}", "RuntimeError: boo"),
        ("import sys; sys.exit(0)", "{module}", "SystemExit: 0"),
        ("import no_such_thing", "{module}", "ModuleNotFoundError: No module"),
        ("", "{module}:Gone", "AttributeError: "),
    ],
)
@pytest.mark.parametrize("words", [("inspect", "--stages"), ("inspect", "."), ()])
def test_a_broken_package_is_one_line(
    project, monkeypatch, said, text, value, reason, words
):
    module = install(project, monkeypatch, text, value)
    if not words:  # a name that the configuration leaves to installed packages
        file = project / "run.toml"
        file.write_text(CONFIG.replace("add_normal", "of_a_package"))
        words = ("train", file, "--out", project / "run")
    error = error_of(said(*words))
    assert f"the installed package {module} cannot be used" in error
    assert "'mine' in the group hwtrain.parts" in error
    assert reason in error
    assert "uninstall" in error


EXITS = {
    "parts": ("chip.py", "import sys; sys.exit(0)", "chip.py: "),
    "model": ("model.py", MODEL + "\nimport sys; sys.exit(0)", "model.py:data: "),
    "data": (
        "model.py",
        MODEL.replace("    x = np.ones", "    raise SystemExit\n    x = np.ones"),
        "model.py:data raised SystemExit",
    ),
    "network": (
        "model.py",
        MODEL.replace("return nn.Dense(2)", "raise SystemExit"),
        "model.py:model raised SystemExit",
    ),
}


@pytest.mark.parametrize("where", EXITS)
def test_a_file_that_exits_does_not_end_the_command_silently(project, said, where):
    file, text, message = EXITS[where]
    (project / file).write_text(text)
    words = ("train", project / "run.toml", "--out", project / "run")
    error = error_of(said(*words))
    assert f"{project / 'run.toml'}: " in error
    assert message in error and "SystemExit" in error
    assert not (project / "run").exists()


def test_parts_are_relative_to_where_the_command_runs(tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    error = error_of(said("inspect", "--stages", "--parts", "gone.py"))
    assert f"--parts gone.py: expected the file {tmp_path / 'gone.py'}" in error
    assert f"relative paths start at {tmp_path}" in error


@pytest.mark.parametrize("text", [None, "import hwtrain; hwtrain.no_such_name"])
@pytest.mark.parametrize("override", [(), ("--set", 'parts=["other.py"]')])
def test_an_error_of_parts_names_where_they_are_given(project, said, text, override):
    name = "other.py" if override else "chip.py"
    (project / name).unlink(missing_ok=True)
    if text:
        (project / name).write_text(text)
    words = ("train", project / "run.toml", "--out", project / "run", *override)
    place = " ".join(override) if override else project / "run.toml"
    assert f"error: {place}: parts: {name}: " in error_of(said(*words))


@pytest.mark.parametrize(
    ("table", "name", "meant"),
    [
        ("[[hardware.forward.stages]]", "stage_withuot", "stage_without"),
        ("[hardware.modifier]", "modifier_withuot", "modifier_without"),
        ("[hardware.clip]", "layer_guassian", "layer_gaussian"),
        ("[hardware.noise_model]", "pcm_lik", "pcm_like"),
    ],
)
def test_a_misspelt_name_of_a_part_is_recognised(project, said, table, name, meant):
    (project / "chip.py").write_text(
        STAGE.format(name="stage_without", doc="")
        + """
@hwtrain.register("modifier", "modifier_without")
class Modifier(hwtrain.WeightModifier):
    def on_weight(self, w, ctx):
        return w
"""
    )
    (project / "run.toml").write_text(f'{CONFIG}{table}\ntype = "{name}"\n')
    words = ("train", project / "run.toml", "--out", project / "run")
    error = error_of(said(*words))
    assert f"did you mean '{meant}'?" in error
    if table == "[hardware.modifier]":
        # Other tests of the process may have registered some too.
        known = error.rpartition("(known so far: ")[2].partition(")")[0]
        assert "modifier_without" in known.split(", ")


@pytest.fixture
def run(project):
    """The folder of a run with parts, as it is before training."""
    config = read_config(project / "run.toml")
    make_folder(project / "run", config, project)
    return project / "run"


@pytest.mark.parametrize("gone", ["chip.py", "model.py"])
def test_a_run_whose_file_has_moved_says_how_to_correct_it(run, said, gone):
    place = run.parent
    to = place / "elsewhere"
    to.mkdir()
    for file in ("chip.py", "model.py"):
        (to / file).write_text((place / file).read_text())
    (place / gone).unlink()
    error = error_of(said("inspect", run))
    assert f"expected the file {place / gone}, got none" in error
    assert f'write their new folder as "folder" into {run / "source.json"}' in error
    assert "delete" not in error
    stored = json.loads((run / "source.json").read_text())
    stored["folder"] = str(to)
    (run / "source.json").write_text(json.dumps(stored))
    assert "until it has saved one" not in error
    assert "has saved one" in error_of(said("inspect", run))


def test_a_run_is_not_continued_with_other_parts(run, said):
    place = run.parent
    config = read_config(place / "run.toml")
    keep = {"resume": True, "overwrite": False}
    assert open_folder(run, config, place, **keep)
    assert changed_parts(run) == []
    former = (place / "chip.py").read_text()
    (place / "chip.py").write_text(f"{former}# stronger\n")
    words = ("train", place / "run.toml", "--out", run, "--resume")
    error = error_of(said(*words))
    assert "chip.py changed since" in error and "--out DIR" in error
    note, _ = said("inspect", run)[2].splitlines()
    assert note == f"hwtrain: note: chip.py changed since {run} was started"
    # Both ways out: without the digests, and with the former text.
    stored = json.loads((run / "source.json").read_text())
    assert f'delete "parts" from {run / "source.json"}' in error
    (run / "source.json").write_text(json.dumps({"folder": stored["folder"]}))
    assert open_folder(run, config, place, **keep)
    (run / "source.json").write_text(json.dumps(stored))
    (place / "chip.py").write_text(former)
    assert open_folder(run, config, place, **keep)


def test_a_run_is_continued_where_its_files_are_now(run):
    """The configuration's folder has moved, and the stored one is gone."""
    place = run.parent
    config = read_config(place / "run.toml")
    moved = place / "moved"
    moved.mkdir()
    (place / "chip.py").rename(moved / "chip.py")
    keep = {"resume": True, "overwrite": False}
    assert open_folder(run, config, moved, **keep)
    with pytest.raises(ValueError, match=f"{Path('run/config.json')}: parts: chip.py"):
        open_folder(run, config, place, **keep)


def test_packages_are_searched_for_a_model_inside_another_one(tmp_path, monkeypatch):
    text = '''
import hwtrain

@hwtrain.register("noise_model", "model_of_a_package")
class Own(hwtrain.devices.NoiseModel):
    """Devices without noise."""

    def programming_sigma(self, g):
        return 0.0 * g
'''
    install(tmp_path, monkeypatch, text)
    around = {"type": "flicker", "relative_std": 0.1, "f_min_hz": 1e-3, "f_max_hz": 1.0}
    around["noise_model"] = {"type": "model_of_a_package", "g_max": 25.0}
    disturbed = {"type": "read_disturb", "read_voltage_v": 0.3, "read_time_s": 1e-7}
    disturbed |= {"reads_per_s": 1e5, "noise_model": around}
    with pytest.raises(ValueError, match="model_of_a_package"):
        from_dict(Hardware, {"noise_model": disturbed})
    hardware = {"noise_model": disturbed}
    hardware["converter"] = {"type": "single_pair", "g_max": 25.0}
    found = from_dict(Hardware, hardware, plugins=True)
    assert found.noise_model.noise_model.noise_model.type == "model_of_a_package"
