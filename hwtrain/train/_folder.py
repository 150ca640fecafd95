"""The folder of a run: created once, continued or replaced only on request."""

import json
import shutil
from pathlib import Path
from typing import Any

from hwtrain._parts.fields import from_dict, to_dict
from hwtrain._version import __version__
from hwtrain.checkpoint._disk import AGAIN, complete, writing
from hwtrain.train._config import Config
from hwtrain.train._mismatch_config import MismatchConfig, kind_of
from hwtrain.train._reading import import_parts, parsed

CONFIG_FILE = "config.json"
_SOURCE_FILE = "source.json"


def open_folder(
    path: Path, config: Config | MismatchConfig, *, resume: bool, overwrite: bool
) -> bool:
    """Checks that a run may write to `path`; changes nothing.

    Args:
      path: the run's folder.
      config: the run's configuration.
      resume: continue the run in the folder.
      overwrite: replace the run in the folder.

    Returns:
      Whether the folder holds a run to continue.

    Raises:
      ValueError: if the folder holds anything but a run, or a run that may not be
        touched, or if the run to continue was started with another configuration.
    """
    require_folder_above(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    stored = path / CONFIG_FILE
    if not stored.is_file():
        raise ValueError(
            f"{path}: expected a run folder or nothing, got something without a "
            f"{CONFIG_FILE}; name another folder with --out"
        )
    # Checked before --overwrite too, because many programs write a config.json.
    stored_config = _read_config(stored)
    if overwrite:
        return False
    if not resume:
        raise ValueError(
            f"{path}: there is already a run here; continue it with --resume, write "
            "elsewhere with --out DIR, or delete it and start anew with --overwrite"
        )
    before, now = _flat(to_dict(stored_config)), _flat(to_dict(config))
    changed = [
        f"{key} was {json.dumps(before.get(key))}, is now {json.dumps(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise ValueError(
            f"{path}: a run is continued with the configuration it was started with, "
            f"but {'; '.join(changed)}; start another run with --out DIR"
        )
    return True


def require_folder_above(path: Path) -> None:
    """Raises a `ValueError` if a path lies below a file, so it cannot be created."""
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ValueError(
            f"{path}: cannot be made, because {above} is a file; name another folder"
        )


def make_folder(path: Path, config: Config | MismatchConfig, source: Path) -> None:
    """Creates the folder of a new run, replacing the run in its place, if any.

    Args:
      path: the run's folder.
      config: the run's configuration.
      source: the folder that paths in the configuration are relative to.
    """
    if path.exists():
        shutil.rmtree(path)
    with writing(path, "name another folder with --out, or make room"):
        path.mkdir(parents=True)
    write_json(path / _SOURCE_FILE, {"folder": str(source.resolve())})
    write_json(path / CONFIG_FILE, to_dict(config))


def is_run(path: Path) -> bool:
    """Returns whether a folder holds a run, judged by its file names."""
    return (path / CONFIG_FILE).is_file()


def read_run(path: Path) -> tuple[Config, Path]:
    """Returns the configuration of a run and the folder its paths are relative to.

    Args:
      path: the run's folder.

    Raises:
      ValueError: if it is not the folder of a run.
    """
    if not is_run(path):
        raise ValueError(
            f"{path}: expected the folder of a run, got one without a {CONFIG_FILE}; "
            "give the folder that hwtrain train wrote to (--out)"
        )
    config = _read_config(path / CONFIG_FILE)
    if isinstance(config, MismatchConfig):
        raise ValueError(
            f"{path}: expected a run that exports, got one that compares trainings "
            "under mismatch; its results are in results.json, and DynapSim neurons are "
            "written for a chip by hwtrain.checkpoint._dynapse.export_dynapse "
            "(docs/deployment.md)"
        )
    return config, _source(path)


def import_parts_of(path: Path) -> None:
    """Imports the parts named in a run's configuration, if it can be read.

    Args:
      path: the run's folder.

    Raises:
      ValueError: naming the part that cannot be imported.
    """
    try:
        data = parsed(json.loads, (path / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # a checkpoint in the folder may still be valid; opening the run raises
    if isinstance(data, dict) and data.get("parts"):
        import_parts(data, _source(path))


def _source(path: Path) -> Path:
    """Returns the folder that the paths in a run's configuration are relative to."""
    try:
        source = json.loads((path / _SOURCE_FILE).read_text(encoding="utf-8"))
        return Path(source["folder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path / _SOURCE_FILE}: expected the folder of the run's configuration, "
            f'such as {{"folder": "/home/me/configs"}}, got {error!r}; write the file '
            "like this"
        ) from error


def write_json(path: Path, data: Any, hint: str = AGAIN) -> None:
    """Writes a JSON file atomically.

    Args:
      path: the file.
      data: any data that JSON can hold.
      hint: the way out if the disk is full.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    with complete(path, hint) as partial:
        partial.write_text(text, encoding="utf-8")


def _read_config(path: Path) -> Config | MismatchConfig:
    """Returns the configuration of a run from its file."""
    try:
        data = parsed(json.loads, path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and data.get("parts"):
            import_parts(data, _source(path.parent))
        return from_dict(kind_of(data), data, plugins=True)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: expected the configuration of a run of hwtrain {__version__}, "
            f"got something else or a damaged file ({reason}); name another folder "
            "(--out, if you were training), or delete this one yourself"
        ) from error


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    flat = {}
    for key, value in data.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else key))
    return flat
