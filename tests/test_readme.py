"""The README's Python runs as written, and its commands are those that CI runs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(code, "README.md", "exec"), names)
    assert names["as_on_chip_0"]["kernel"].shape == (16, 4)
    assert (tmp_path / "chip" / "manifest.json").exists()


def test_the_two_commands_stand_there():
    assert "pip install '.[test]' && pytest\n" in README
    assert (
        "pip install '.[recipes]' && hwtrain train configs/digits_mlp.toml\n" in README
    )
