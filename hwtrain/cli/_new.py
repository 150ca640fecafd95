"""`hwtrain new`."""

import argparse
import importlib.resources
import re
import shlex
from pathlib import Path

from hwtrain._errors import InputError
from hwtrain.checkpoint import _destination as destination
from hwtrain.cli._errors import bad_input

_FILES = {
    "project.toml": "project.toml",
    "project.py": "{framework}.py",
    "test_project.py": "test_project.py",
    "README.md": "README.md",
}
"""The files of a project, and the templates that they are written from."""


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    with bad_input():
        write(options.folder, nnx=options.nnx)
    folder = options.folder
    print(f"{folder} has a model, its data, a configuration and a test. Next:")
    # A shell takes a name that begins with a dash for an option.
    place = shlex.quote(f"./{folder}" if str(folder).startswith("-") else str(folder))
    print(f"  cd {place} && python -m pytest && hwtrain train project.toml")
    return 0


def write(folder: Path, *, nnx: bool) -> None:
    """Writes a project into a new folder, all of it or nothing.

    Args:
      folder: the new folder.
      nnx: whether its model is one of NNX instead of Linen.

    Raises:
      ValueError: if the folder exists or cannot be written, or its parent is none.
    """
    folder = folder.absolute()
    if folder.exists():
        raise InputError(f"{folder} exists already; name a new folder")
    if not folder.parent.is_dir():
        raise InputError(
            f"{folder.parent} is not a folder; make it first, or name another one"
        )
    templates = importlib.resources.files("hwtrain.cli") / "_project"
    with destination.new(folder, folder=True) as partial:
        for name, template in _FILES.items():
            source = template.format(framework="nnx" if nnx else "linen") + ".txt"
            text = (templates / source).read_text("utf-8")
            text = re.sub(r"\{name\}", lambda _: folder.name, text)
            (partial / name).write_text(text, "utf-8", newline="\n")
