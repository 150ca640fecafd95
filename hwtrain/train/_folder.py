"""The folder of a run: created once, continued or replaced only on request."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hwtrain._errors import InputError
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain._parts.source import MissingFileError
from hwtrain._version import __version__
from hwtrain.checkpoint._disk import AGAIN, complete, writing
from hwtrain.train._config import Config
from hwtrain.train._entries import EntryError
from hwtrain.train._mismatch_config import MismatchConfig, kind_of
from hwtrain.train._reading import import_parts, located, one_line
from hwtrain.train._toml import parsed

CONFIG_FILE = "config.json"
_SOURCE_FILE = "source.json"
_TRIES = 30
_MOST_SHOWN = 5
"""Most changed entries that an error lists."""


def open_folder(
    path: Path,
    config: Config | MismatchConfig,
    source: Path,
    *,
    resume: bool,
    overwrite: bool,
) -> bool:
    """Checks that a run may write to `path`; changes nothing.

    Args:
      path: the run's folder.
      config: the run's configuration.
      source: the folder that paths in the configuration are relative to.
      resume: continue the run in the folder.
      overwrite: replace the run in the folder.

    Returns:
      Whether the folder holds a run to continue.

    Raises:
      ValueError: if the folder holds anything but a run, or a run that may not be
        touched, or if the run to continue was started with another configuration or
        with other parts.
    """
    require_folder_above(path)
    if not path.exists() or (path.is_dir() and not _begun(path)):
        return False
    stored = path / CONFIG_FILE
    if not stored.is_file():
        raise InputError(
            f"{path}: expected a run folder or nothing, got something without a "
            f"{CONFIG_FILE}; name another folder with --out"
        )
    # Checked before --overwrite too, because many programs write a config.json.
    stored_config = _read_config(stored, source)
    if overwrite:
        return False
    if not resume:
        raise InputError(
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
        more = len(changed) - _MOST_SHOWN
        if more > 0:
            changed[_MOST_SHOWN:] = [f"{more} more entries changed"]
        raise InputError(
            f"{path}: a run is continued with the configuration it was started with, "
            f"but {'; '.join(changed)}; start another run with --out DIR"
        )
    edited = changed_parts(path, source)
    if edited:
        raise InputError(
            f"{path}: a run is continued with the parts it was started with, but "
            f"{' and '.join(edited)} changed since; start another run with --out DIR, "
            "restore the former text, or, if the change means nothing for this run, "
            f'delete "parts" from {path / _SOURCE_FILE}'
        )
    return True


def _begun(path: Path) -> bool:
    """Whether a folder holds anything but the first files of a run.

    A run may have been killed before it wrote its configuration.
    """
    names = {file.name for file in path.iterdir()}
    if _SOURCE_FILE in names:
        try:
            _stored_source(path)
        except ValueError:
            return True  # a file of that name, but not of a run
    first = {_SOURCE_FILE, *(f".{x}.partial" for x in (_SOURCE_FILE, CONFIG_FILE))}
    return bool(names - first)


@contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """Raises a `ValueError` if another process works in a folder; keeps others out.

    Args:
      path: the folder of a run or of a sweep, which exists.
    """
    try:
        import fcntl
    except ImportError:  # Windows has other locks
        yield
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        for left in range(_TRIES, 0, -1):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if left == 1:
                    raise InputError(
                        f"{path}: another process is at work here; wait until it has "
                        "ended, or write elsewhere with --out DIR"
                    ) from None
            time.sleep(0.1)  # one that was killed may be about to end
        yield
    finally:
        os.close(folder)


def changed_parts(path: Path, source: Path | None = None) -> list[str]:
    """Returns the files of users' parts whose text is not that of a run's start.

    Args:
      path: the run's folder.
      source: the folder that their paths are relative to; by default, the stored one.
    """
    try:
        stored = _stored_source(path)
    except ValueError:
        return []  # where the folder is needed, its absence is an error
    digests = stored.get("parts", {})
    if source is None:
        source = Path(stored["folder"])
    return [part for part, was in digests.items() if was != _digest(source / part)]


def _digest(file: Path) -> str | None:
    """Returns the SHA-256 of a file; `None` if there is none."""
    if not file.is_file():
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest()


def require_folder_above(path: Path) -> None:
    """Raises a `ValueError` if a path lies below a file, so it cannot be created."""
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(
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
    about: dict[str, Any] = {"folder": str(source.resolve())}
    files = [part for part in getattr(config, "parts", ()) if part.endswith(".py")]
    if files:
        about["parts"] = {part: _digest(source / part) for part in files}
    write_json(path / _SOURCE_FILE, about)
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
        raise InputError(
            f"{path}: expected the folder of a run, got one without a {CONFIG_FILE}; "
            "give the folder that hwtrain train wrote to (--out)"
        )
    config = _read_config(path / CONFIG_FILE)
    if isinstance(config, MismatchConfig):
        raise InputError(
            f"{path}: expected a run that exports, got one that compares trainings "
            "under mismatch; its results are in results.json, and DynapSim neurons are "
            "written for a chip by hwtrain.checkpoint.export_dynapse "
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
    _import_parts(path, data)


def _import_parts(path: Path, data: Any, source: Path | None = None) -> None:
    """Imports the parts of a run's configuration, given as plain data.

    Args:
      path: the run's folder.
      data: the configuration.
      source: the folder that their paths are relative to; by default, the stored one.
    """
    if not isinstance(data, dict) or not data.get("parts"):
        return
    try:
        import_parts(data, _source(path) if source is None else source)
    except EntryError as error:
        file = path / CONFIG_FILE
        raise InputError(f"{located(error, file)}{moved(error, path)}") from error


def moved(error: EntryError, path: Path) -> str:
    """Returns the way out if a file that a run names is not there; else nothing."""
    if not isinstance(error.__cause__, MissingFileError):
        return ""
    return (
        ". Put the file back; or, if it has moved with its configuration, write their "
        f'new folder as "folder" into {path / _SOURCE_FILE}'
    )


def _source(path: Path) -> Path:
    """Returns the folder that the paths in a run's configuration are relative to."""
    return Path(_stored_source(path)["folder"])


def _stored_source(path: Path) -> dict[str, Any]:
    """Returns what a run has stored of the files that its configuration names."""
    try:
        source = json.loads((path / _SOURCE_FILE).read_text(encoding="utf-8"))
        Path(source["folder"])
        dict(source.get("parts", {}))
        return source
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
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


def _read_config(path: Path, source: Path | None = None) -> Config | MismatchConfig:
    """Returns the configuration of a run from its file.

    Args:
      path: the file.
      source: the folder that paths of parts are relative to; by default, the stored
        one.
    """
    with _damaged(path):
        data = parsed(json.loads, path.read_text(encoding="utf-8"))
        kind = kind_of(data)
    _import_parts(path.parent, data, source)
    with _damaged(path):
        try:
            return from_dict(kind, data, plugins=True)
        except ValidationError as error:
            raise InputError(one_line(kind, error, data, CONFIG_FILE, {})) from None


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Turns an error in reading a run's configuration into one line."""
    try:
        yield
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: expected the configuration of a run of hwtrain {__version__}, "
            f"got one of another version, something else or a damaged file ({reason}); "
            "name another folder (--out, if you were training), or delete this one "
            "yourself"
        ) from error


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    flat = {}
    for key, value in data.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else key))
    return flat
