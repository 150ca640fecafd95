"""The page of the recipes names what there is, and its forks to own data run."""

import difflib
import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from hwtrain import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/recipes.md").read_text("utf-8")
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
TUNING = (ROOT / "docs/finetuning.md").read_text("utf-8")
"""The page of the recipes that start from a trained model."""

OTHERS = TUNING + "".join(
    (ROOT / "docs" / page).read_text("utf-8")
    for page in ("language_models.md", "evaluation.md")
)
"""The pages of recipes beside the page of the recipes."""

FORKS = re.findall(
    r"`recipes/(\w+)\.py` and `configs/(\w+)\.toml`[^#]*?```diff\n(.*?)```",
    PAGE,
    re.DOTALL,
)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short(recipe):
    assert len(recipe.read_text("utf-8").splitlines()) <= 200


def test_the_page_names_every_configuration_and_forks_every_recipe():
    for path in CONFIGS:
        assert f"`{path.name}`" in PAGE or f"configs/{path.name}" in OTHERS, path.name
    forked = [name for name, _, _ in FORKS]
    assert forked == sorted({*forked})
    others = {path.stem for path in RECIPES} - {*forked}
    for name in others:
        assert f"recipes/{name}.py" in OTHERS, name


def patched(text, diff):
    """Returns a text with a diff applied, whose hunks have no line numbers."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.M)[1:]:
        lines = hunk.splitlines()
        before = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
        after = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


def changed_lines(before, after):
    """Returns how many lines one has to delete and to write."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0)
    return sum(line[:1] in "+-" and line[:3] not in ("+++", "---") for line in lines)


def fork(folder, recipe, config, diff):
    """Writes `mine.py` and `mine.toml`; returns how many lines changed."""
    changed = 0
    sources = (ROOT / "recipes" / f"{recipe}.py", ROOT / "configs" / f"{config}.toml")
    for source, name in zip(sources, ("mine.py", "mine.toml")):
        before = source.read_text("utf-8")
        after = before.replace(f"../recipes/{recipe}.py", "mine.py")
        after = after.replace("../recipes/", f"{ROOT}/recipes/")
        if source.suffix == ".py":
            after = patched(after, diff)
        (folder / name).write_text(after, "utf-8")
        changed += changed_lines(before, after)
    return changed


@pytest.mark.parametrize(
    ("recipe", "config", "diff"), FORKS, ids=[name for name, _, _ in FORKS]
)
def test_a_fork_changes_at_most_thirty_lines(recipe, config, diff, tmp_path):
    assert 0 < fork(tmp_path, recipe, config, diff) <= 30


def own_arrays(folder, shape, integers=False):
    """Writes inputs of three classes and their labels."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, *shape)).astype(np.float32)
    if integers:
        inputs = rng.integers(0, 256, (200, *shape), np.uint8)
    labels = rng.integers(0, 3, 200)
    np.savez(folder / "mine.npz", inputs=inputs, labels=labels)


def own_table(folder):
    table = np.random.default_rng(0).normal(size=(120, 7))
    np.savetxt(folder / "mine.csv", table, delimiter=",", header="a,b,c,d,e,f,target")


def own_errors(folder):
    rows = [[0.0, 0.5], [5.0, 1.0], [12.0, 1.4], [20.0, 1.1]]
    np.savetxt(folder / "mine.csv", rows, delimiter=",", header="g,sigma")


def own_series(folder):
    np.savetxt(folder / "mine.csv", np.sin(np.arange(2000) / 7))


def own_texts(folder):
    (folder / "mine").mkdir()
    for number in range(12):
        (folder / "mine" / f"{number}.txt").write_text(f"{number} is a number. " * 40)


OWN_DATA = {
    "cifar10": lambda folder: own_arrays(folder, (32, 32, 3), integers=True),
    "digits": lambda folder: own_arrays(folder, (20,)),
    "digits_cnn": lambda folder: own_arrays(folder, (12, 12, 3)),
    "digits_dynapse": lambda folder: own_arrays(folder, (25, 16)),
    "language_model": own_texts,
    "own_device": own_errors,
    "regression": own_table,
    "time_series": own_series,
}


@pytest.mark.nightly
@pytest.mark.usefixtures("forgotten_parts")
@pytest.mark.parametrize(
    ("recipe", "config", "diff"), FORKS, ids=[name for name, _, _ in FORKS]
)
def test_a_fork_takes_two_steps_on_own_data(
    recipe, config, diff, tmp_path, monkeypatch
):
    OWN_DATA[recipe](tmp_path)
    fork(tmp_path, recipe, config, diff)
    monkeypatch.delenv("CIFAR10", raising=False)
    small = ['model="mine.py:resnet8"'] if recipe == "cifar10" else []
    quick = ["training.seeds=[0]", "training.steps=2", "evaluation.chips=2", *small]
    words = [word for each in quick for word in ("--set", each)]
    out = tmp_path / "run"
    command = ["train", str(tmp_path / "mine.toml"), *words, "--out", str(out)]
    assert cli.main(command) == 0
    assert json.loads((out / "results.json").read_text())["chips"] == 2


TUNING_FORKS = re.findall(
    r"```diff\n--- recipes/(\w+)\.py\n(.*?)```", OTHERS, re.DOTALL
)
SHORT_SCRIPTS = {
    "adabs": {"CHIPS": 2, "INPUTS": 64, "TIMES_S": {"1 day": 86_400.0}},
    "adapters": {"CHIPS": 2, "SEEDS": (0, 1), "STEPS": 2, "TIMES_S": {"1 s": 1.0}},
    "chip_in_the_loop": {"CHIPS": 1, "STEPS": 2, "ROUNDS": 2},
}
"""Recipes that are run as scripts, with what makes them short."""


def test_the_forks_of_recipes_that_start_from_a_trained_model_are_short():
    changed = 0
    for name, diff in TUNING_FORKS:
        before = (ROOT / "recipes" / f"{name}.py").read_text("utf-8")
        changed += changed_lines(before, patched(before, diff))
    assert 0 < changed <= 30


@pytest.mark.nightly
@pytest.mark.optimised
def test_forks_of_recipes_that_start_from_a_trained_model_run(
    tmp_path, monkeypatch, capsys
):
    for folder in ("recipes", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name, diff in TUNING_FORKS:
        path = tmp_path / "recipes" / f"{name}.py"
        path.write_text(patched(path.read_text("utf-8"), diff), "utf-8")
    rng = np.random.default_rng(0)
    for name, shape in (("images", (10, 10, 3)), ("vectors", (20,))):
        inputs, labels = rng.normal(size=(400, *shape)), rng.integers(0, 3, 400)
        np.savez(tmp_path / "recipes" / f"{name}.npz", inputs=inputs, labels=labels)
    monkeypatch.chdir(tmp_path)
    names = ["digits_conv", "digits_folded", "digits_distilled", "digits_mlp"]
    for name in [*names, "digits_lora"]:
        path = tmp_path / "configs" / f"{name}.toml"
        text = re.sub(r"^steps = \d+", "steps = 2", path.read_text("utf-8"), flags=re.M)
        text = re.sub(r"^seeds = .*", "seeds = [0, 1]", text, flags=re.M)
        text = re.sub(r"^chips = \d+", "chips = 2", text, flags=re.M)
        path.write_text(text, "utf-8")
        assert cli.main(["train", str(path)]) == 0
        assert json.loads(Path(f"runs/{name}/results.json").read_text())["chips"] == 2
    for name, constants in SHORT_SCRIPTS.items():
        capsys.readouterr()
        file = tmp_path / "recipes" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, file)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        for constant, value in constants.items():
            monkeypatch.setattr(script, constant, value)
        run = {"adabs": "digits_conv", "chip_in_the_loop": "digits_mlp"}.get(name)
        script.main(*([Path("runs") / run] if run else []))
        assert " ± " in capsys.readouterr().out
