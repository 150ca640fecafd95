"""Tests of hwtrain.train._entries."""

import pytest

from hwtrain.train import resolve


def test_a_file_is_relative_to_the_folder(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.py").write_text("def answer():\n    return 42\n")
    assert resolve("../recipes/mine.py:answer", tmp_path / "recipes")() == 42


def test_files_of_one_name_do_not_meet(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(f"def who():\n    return '{name}'\n")
    assert resolve("a/mine.py:who", tmp_path)() == "a"
    assert resolve("b/mine.py:who", tmp_path)() == "b"


@pytest.mark.parametrize(
    "source, message",
    [
        ("gone.py:data", r"expected the file .*gone\.py, got none"),
        (
            "mine.py:dta",
            r"expected a function dta in .*mine\.py, .* did you mean data\?",
        ),
        ("broken.py:data", r"broken\.py cannot be imported: ZeroDivisionError"),
        ("no_such_module:data", "no_such_module cannot be imported"),
        (
            "needy.py:data",
            r"No module named 'no_such_module'; the shipped recipes need",
        ),
        ("math:pi", "expected a function pi in"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, source, message):
    (tmp_path / "mine.py").write_text("def data():\n    return None\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "needy.py").write_text("import no_such_module\n")
    with pytest.raises(ValueError, match=message) as error:
        resolve(source, tmp_path)
    assert str(error.value).startswith(f"{source}: ")
