"""Reads the arrays of a plain checkpoint: Orbax, safetensors, Flax msgpack, or any."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors
from etils import epath
from flax.serialization import msgpack_restore

from hwtrain import checkpoint
from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._flax.stripping import strip
from hwtrain._parts.source import reason, resolve
from hwtrain.checkpoint._entries import DTYPES
from hwtrain.checkpoint._manifest import FILE_NAME as MANIFEST
from hwtrain.checkpoint._tensors import DTYPE_NAMES
from hwtrain.train._checkpoints import no_reports_of_threads
from hwtrain.train._training import best_of

Arrays = dict[str, np.ndarray]
"""Arrays by the path under which a checkpoint holds them."""

_KINDS = (
    "an Orbax checkpoint, a folder of a CheckpointManager or of a run's model, a file "
    ".safetensors or a folder of such files, a file .msgpack of flax.serialization, a "
    "hardware-ready checkpoint, or path/to/file.py:function"
)
_INDEX = ".safetensors.index.json"
_RUN = {"step", "params", "model_state", "opt_state", "average"}
"""What a checkpoint of a run holds."""


def read_arrays(source: str | Path, folder: str | Path = ".") -> Arrays:
    """Returns the arrays of a plain checkpoint by path.

    A path is the names on the way to an array, joined by `/`, without a trailing
    `/value`. In names of safetensors that have no slash, dots separate. Of a model of
    `hwtrain train`, these are the averaged parameters, if it averages, and those of the
    best state, if it keeps one; of a hardware-ready checkpoint, the nominal weights
    without the leaves of hardware. States of optimizers are not read.

    >>> import tempfile
    >>> from safetensors.numpy import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"head.bias": np.zeros(2)}, f"{folder}/model.safetensors")
    ...     read_arrays("model.safetensors", folder)
    {'head/bias': array([0., 0.])}

    Args:
      source: an Orbax checkpoint; a folder of a `CheckpointManager`, whose newest step
        is read; a `.safetensors` file, or a folder with one, or with several and their
        index; a `.msgpack` file of `flax.serialization`; a hardware-ready checkpoint;
        or `path/to/file.py:function` or `module:function` that returns a tree of
        arrays.
      folder: base of relative paths.

    Raises:
      ValueError: one line that names the source, if it cannot be read or is of another
        kind.
    """
    path = Path(folder) / source
    if not path.exists() and re.fullmatch(r".+:[A-Za-z_]\w*", str(source)):
        return _of_function(str(source), folder)
    if not path.exists():
        raise InputError(
            f"{source}: expected a checkpoint, got no such file or folder, "
            f"{path.resolve()}"
        )
    read = _reader(path)
    if read is None:
        what = "a folder" if path.is_dir() else "a file"
        raise InputError(f"{source}: expected {_KINDS}; got {what} of another kind")
    try:
        found = read(path)
    # Orbax, TensorStore and msgpack raise errors of many types, including KeyError.
    except Exception as error:
        raise InputError(
            f"{source}: expected the arrays of a checkpoint, got a damaged or "
            f"unfinished one ({reason(error)}); take another copy or an earlier step"
        ) from error
    if not found:
        raise InputError(f"{source}: expected arrays, got a checkpoint without any")
    return found


def _reader(path: Path) -> Callable[[Path], Arrays] | None:
    """Returns the function that reads a checkpoint of the path's kind."""
    if path.is_file():
        kinds = {".safetensors": read_safetensors, ".msgpack": _msgpack}
        return kinds.get(path.suffix)
    if (path / MANIFEST).is_file():
        return _hardware_ready
    if _is_orbax(path):
        return _orbax
    if any(path.glob("*.safetensors")):
        return _shards
    return _newest_step if _steps(path) else None


def _of_function(source: str, folder: str | Path) -> Arrays:
    tree = resolve(source, folder)()
    if not isinstance(tree, Mapping):
        raise InputError(
            f"{source}: expected a function without arguments that returns a tree of "
            f"arrays by name, got one that returns {type(tree).__name__}"
        )
    # By whole paths, as `read_arrays` returns them, or by names in nested mappings.
    if not any(isinstance(entry, Mapping) for entry in tree.values()):
        return {str(name): np.asarray(leaf) for name, leaf in tree.items()}
    return _arrays(tree)


def _arrays(tree: Any) -> Arrays:
    """Returns the arrays of a tree; entries that are none, such as texts, are left."""
    return {
        path: np.asarray(leaf)
        for path, leaf in paths.leaves(tree).items()
        if hasattr(leaf, "dtype")
        and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


def _msgpack(path: Path) -> Arrays:
    tree = msgpack_restore(path.read_bytes())
    if not isinstance(tree, Mapping):
        raise InputError(f"it holds {type(tree).__name__}, not a tree of arrays")
    tree = {name: entry for name, entry in tree.items() if name != "opt_state"}
    return _arrays(tree)


def read_safetensors(path: Path, names: Sequence[str] | None = None) -> Arrays:
    """Returns the arrays of a file; in names without a slash, dots separate.

    Args:
      path: the file.
      names: the arrays that its index says it holds; `None` for all that it holds.
    """
    found, entries = {}, dict(safetensors.deserialize(path.read_bytes()))
    for name in entries if names is None else names:
        if name not in entries:
            raise InputError(f"its index names {name} in {path.name}, which lacks it")
        entry = entries[name]
        # safetensors.numpy.load_file fails on bfloat16 in some versions.
        dtype = DTYPES[DTYPE_NAMES[entry["dtype"]]]
        array = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
        keys = name if "/" in name else name.replace(".", "/")
        found[keys.removesuffix("/value")] = array
    return found


def _shards(path: Path) -> Arrays:
    """Reads a folder as Hugging Face writes it: what an index names, or the one file.

    An array comes from the file that the index names, also if others hold one too.
    """
    indices = sorted(path.glob(f"*{_INDEX}"))
    if len(indices) > 1:
        names = " and ".join(index.name for index in indices)
        raise InputError(f"it has several indices, {names}; name one of their files")
    files = sorted(file.name for file in path.glob("*.safetensors"))
    held: dict[str, list[str]] = {}
    if indices:
        index = json.loads(indices[0].read_text("utf-8"))
        for name, file in index["weight_map"].items():
            held.setdefault(file, []).append(name)
        files = [*held]
        absent = [name for name in files if not (path / name).is_file()]
        if absent:
            raise InputError(
                f"its file {absent[0]}, named by {indices[0].name}, is gone"
            )
    elif len(files) > 1:
        raise InputError(
            f"it has {len(files)} files .safetensors without an index; name one of them"
        )
    found: Arrays = {}
    for name in files:
        found |= read_safetensors(path / name, held.get(name))
    return found


def _hardware_ready(path: Path) -> Arrays:
    held = checkpoint.load(path)
    variables = {**held.variables, "params": strip(held.params, held.plan)}
    return _arrays(variables)


def _is_orbax(path: Path) -> bool:
    """Whether a folder is a checkpoint of Orbax, not one of several steps or items."""
    return (path / "_METADATA").is_file()


def _steps(path: Path) -> dict[int, Path]:
    """Returns the steps in a folder of a `CheckpointManager` by number."""
    found = {}
    for folder in path.iterdir():
        number = re.fullmatch(r"(?:.*\D)?(\d+)", folder.name)
        # Unfinished steps have another name.
        if number and folder.is_dir() and any(map(_is_orbax, folder.iterdir())):
            found[int(number[1])] = folder
    if not found and any(_is_orbax(item) for item in path.iterdir() if item.is_dir()):
        return {0: path}  # a step itself, with its items
    return found


def _newest_step(path: Path) -> Arrays:
    best = best_of(path)
    steps = _steps(best if best.is_dir() else path)
    folder = steps[max(steps)]
    items = sorted(item for item in folder.iterdir() if _is_orbax(item))
    preferred = [x for x in items if x.name in ("default", "state", "params", "model")]
    if len(items) > 1 and len(preferred) != 1:
        names = ", ".join(item.name for item in items)
        raise InputError(f"its step {folder.name} has the items {names}; name one")
    return _orbax((preferred or items)[0])


def _orbax(path: Path) -> Arrays:
    # The handler, because a `Checkpointer` logs a warning for an item of a step.
    handler, directory = ocp.PyTreeCheckpointHandler(), epath.Path(path.absolute())
    tree: Any = handler.metadata(directory).tree
    if isinstance(tree, Mapping):
        tree = {name: entry for name, entry in tree.items() if name != "opt_state"}
    # As NumPy's arrays: those of JAX would ask for the devices that wrote them.
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    args = ocp.args.PyTreeRestore(item=tree, restore_args=kinds, partial_restore=True)
    with no_reports_of_threads():
        tree = handler.restore(directory, args=args)
    if isinstance(tree, Mapping) and {*tree, "opt_state"} == _RUN:
        averaged = tree["average"] is not None
        tree = {
            "params": tree["average"] if averaged else tree["params"],
            **(tree["model_state"] or {}),
        }
    return _arrays(tree)
