"""Files of tensors: safetensors, each tensor with its unit and hash."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from hwtrain.checkpoint.errors import HardwareCheckpointError
from hwtrain.checkpoint.manifest import TensorEntry, sha256, sync

# Not safetensors.numpy.load_file: it fails on bfloat16 and on 8-bit floats.
_DTYPES = {
    "BOOL": jnp.bool_,
    "U8": jnp.uint8,
    "U16": jnp.uint16,
    "U32": jnp.uint32,
    "U64": jnp.uint64,
    "I8": jnp.int8,
    "I16": jnp.int16,
    "I32": jnp.int32,
    "I64": jnp.int64,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "F16": jnp.float16,
    "BF16": jnp.bfloat16,
    "F32": jnp.float32,
    "F64": jnp.float64,
    "C64": jnp.complex64,
}
DTYPES = {np.dtype(dtype).name: np.dtype(dtype) for dtype in _DTYPES.values()}
"""The dtypes that a tensor may have, by name."""


def write(
    path: Path, tensors: Mapping[str, tuple[np.ndarray, str]]
) -> dict[str, TensorEntry]:
    """Writes a file of tensors, on disk when it returns, and describes them.

    Args:
      path: the file.
      tensors: arrays and units by name.
    """
    # Not ascontiguousarray: it gives a scalar an axis.
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
      entries: what the manifest says of the file.

    Raises:
      HardwareCheckpointError: if the file is missing, truncated or changed.
    """
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise HardwareCheckpointError(
            f"{path} leads out of the checkpoint, to {path.resolve()}; it was not read"
        )
    try:
        content = dict(safetensors.deserialize(path.read_bytes()))
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error.strerror})") from error
    except safetensors.SafetensorError as error:
        raise _damaged(path, f"truncated, or not safetensors ({error})") from error
    for missing in sorted(entries.keys() - content.keys()):
        raise _damaged(path, f"the tensor {missing!r} is missing")
    for extra in sorted(content.keys() - entries.keys()):
        raise _damaged(path, f"the tensor {extra!r} is not in the manifest")
    arrays = {}
    for tensor, entry in entries.items():
        found = content[tensor]
        dtype = np.dtype(_DTYPES.get(found["dtype"], np.void))
        came = (dtype.name, tuple(found["shape"]))
        if came != (entry.dtype, entry.shape):
            raise _damaged(
                path,
                f"the tensor {tensor!r} should be {entry.dtype}{list(entry.shape)}, it "
                f"is {dtype.name}{list(came[1])}",
            )
        digest = sha256(found["data"])
        if digest != entry.sha256:
            raise _damaged(
                path,
                f"the tensor {tensor!r} should have SHA-256 {entry.sha256}, it has "
                f"{digest}",
            )
        arrays[tensor] = np.frombuffer(found["data"], dtype).reshape(entry.shape)
    return arrays


def _damaged(path: Path, why: str) -> HardwareCheckpointError:
    return HardwareCheckpointError(
        f"{path} is damaged or was changed: {why}. Get the checkpoint again from its "
        "source, or export the model again"
    )
