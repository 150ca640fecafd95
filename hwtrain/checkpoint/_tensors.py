"""Files of tensors: safetensors, each tensor with its unit and hash."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save_file

from hwtrain.checkpoint._entries import DTYPES, TensorEntry
from hwtrain.checkpoint._files import damaged, opened
from hwtrain.checkpoint._manifest import sha256, sync
from hwtrain.checkpoint._strict_json import parse

# safetensors.numpy.load_file is not used: it fails on bfloat16 and 8-bit floats.
DTYPE_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
"""The names of dtypes in a safetensors file."""

_LARGEST_HEADER = 100_000_000
"""Largest header that safetensors reads, in bytes."""


def write(
    path: Path, tensors: Mapping[str, tuple[np.ndarray, str]]
) -> dict[str, TensorEntry]:
    """Writes a file of tensors and returns their entries; it is on disk on return.

    Args:
      path: the file.
      tensors: arrays and units by name.
    """
    # ascontiguousarray would give a scalar an axis.
    arrays = {
        name: np.require(array, DTYPES[array.dtype.name], "C")
        for name, (array, _) in tensors.items()
    }
    save_file(arrays, path)
    sync(path)
    return {
        name: TensorEntry(
            dtype=array.dtype.name,
            shape=array.shape,
            unit=tensors[name][1],
            sha256=sha256(array.reshape(-1).view(np.uint8).data),
        )
        for name, array in arrays.items()
    }


def read(
    directory: Path, name: str, entries: Mapping[str, TensorEntry]
) -> dict[str, np.ndarray]:
    """Reads a file of tensors and compares everything with the manifest.

    Args:
      directory: the checkpoint.
      name: the file's name in it.
      entries: the manifest's entries for the file.

    Raises:
      HardwareCheckpointError: if the file is missing, truncated or changed.
    """
    path = directory / name
    sizes = (math.prod(e.shape) * DTYPES[e.dtype].itemsize for e in entries.values())
    with opened(directory, name) as (file, size):
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > _LARGEST_HEADER or 8 + length > size:
            raise damaged(path, f"truncated, or not safetensors ({size} bytes)")
        header = file.read(length)
        # Checked before anything of the tensors' size is in memory.
        _check_header(path, header, entries)
        expected = 8 + length + sum(sizes)
        if size != expected:
            raise damaged(path, f"it should have {expected} bytes, but has {size}")
        try:
            data = start + header + file.read(size)
            content = dict(safetensors.deserialize(data))
        except MemoryError as error:
            raise damaged(path, f"{size} bytes exceed the memory") from error
        except (safetensors.SafetensorError, ValueError) as error:
            raise damaged(path, f"truncated, or not safetensors ({error})") from error
    arrays = {}
    for tensor, entry in entries.items():
        found = content[tensor]
        digest = sha256(found["data"])
        if digest != entry.sha256:
            raise damaged(
                path,
                f"the tensor {tensor!r} should have SHA-256 {entry.sha256}, but has "
                f"{digest}",
            )
        if entry.dtype == "bool" and max(found["data"], default=0) > 1:
            raise damaged(path, f"the tensor {tensor!r} holds other bits than 0 and 1")
        array = np.frombuffer(found["data"], DTYPES[entry.dtype])
        arrays[tensor] = array.reshape(entry.shape)
    return arrays


def _check_header(
    path: Path, header: bytes, entries: Mapping[str, TensorEntry]
) -> None:
    """Raises unless a file has exactly the tensors that the manifest lists."""
    try:
        content = parse(header)
        content.pop("__metadata__", None)
        found = {
            name: (DTYPE_NAMES.get(said["dtype"], said["dtype"]), tuple(said["shape"]))
            for name, said in content.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(path, f"truncated, or not safetensors ({error})") from error
    for missing in sorted(entries.keys() - found.keys()):
        raise damaged(path, f"the tensor {missing!r} is missing")
    for extra in sorted(found.keys() - entries.keys()):
        raise damaged(path, f"the tensor {extra!r} is not in the manifest")
    for tensor, entry in entries.items():
        dtype, shape = found[tensor]
        if (dtype, shape) != (entry.dtype, entry.shape):
            raise damaged(
                path,
                f"the tensor {tensor!r} should be {entry.dtype}{list(entry.shape)}, "
                f"but is {dtype}{list(shape)}",
            )
