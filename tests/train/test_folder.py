"""Tests of hwtrain.train._folder: nothing is overwritten unless requested."""

import json
from pathlib import Path

import pytest

from hwtrain._version import __version__
from hwtrain.train import _folder as folder
from hwtrain.train import read_config

CONFIG = Path(__file__).parents[2] / "configs" / "digits_mlp.toml"


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    folder.make_folder(path, read_config(CONFIG), CONFIG.parent)
    (path / "result").write_text("precious")
    return path


def test_a_new_or_empty_folder_is_free(tmp_path):
    config = read_config(CONFIG)
    free = {"resume": False, "overwrite": False}
    assert not folder.open_folder(tmp_path / "new", config, CONFIG.parent, **free)
    assert not folder.open_folder(tmp_path, config, CONFIG.parent, **free)


def test_a_run_is_not_overwritten(run):
    with pytest.raises(ValueError, match="--resume.*--out DIR.*--overwrite"):
        folder.open_folder(
            run, read_config(CONFIG), CONFIG.parent, resume=False, overwrite=False
        )


def test_a_run_is_continued_or_replaced_if_asked(run):
    config = read_config(CONFIG)
    assert folder.open_folder(run, config, CONFIG.parent, resume=True, overwrite=False)
    assert not folder.open_folder(
        run, config, CONFIG.parent, resume=False, overwrite=True
    )
    assert (run / "result").exists()
    folder.make_folder(run, config, CONFIG.parent)
    assert not (run / "result").exists()


def test_a_run_is_continued_only_with_its_configuration(run):
    config = read_config(CONFIG, ["training.steps=7", "hardware.clip.sigma=3.0"])
    message = r"hardware.clip.sigma was 2.0, is now 3.0; training.steps was 2000, is n"
    with pytest.raises(ValueError, match=message):
        folder.open_folder(run, config, CONFIG.parent, resume=True, overwrite=False)


def test_what_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="got something without a config.json"):
        folder.open_folder(
            tmp_path, read_config(CONFIG), CONFIG.parent, resume=False, overwrite=True
        )


@pytest.mark.parametrize(
    "text", ["{}", '{"theme": "dark"}', '{"model": "a.py:b"', "\x00\xff"]
)
def test_a_config_json_of_another_program_is_left_alone(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    config = read_config(CONFIG)
    for keep in ({"resume": True, "overwrite": False}, {"resume": False}):
        with pytest.raises(
            ValueError, match=r"config\.json: expected the config.*--ou"
        ):
            folder.open_folder(
                tmp_path, config, CONFIG.parent, **{"overwrite": True, **keep}
            )
    assert (tmp_path / "config.json").exists()


def test_a_run_of_another_version_is_refused_in_words(run):
    file = run / folder.CONFIG_FILE
    data = json.loads(file.read_text("utf-8"))
    data["training"]["stpes"] = data["training"].pop("steps")
    data["hardware"]["clip"]["sigma"] = "2"
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError) as error:
        folder.read_run(run)
    assert str(error.value).startswith(
        f"{file}: expected the configuration of a run of hwtrain {__version__}, "
        "got one of another version, something else or a damaged file (config.json: "
    )
    for said in (
        "unknown key training.stpes; did you mean training.steps?",
        'hardware.clip.sigma: expected a number, got "2"',
        "training.steps: expected a value, because it has no default; got none",
    ):
        assert str(error.value).count(said) == 1
