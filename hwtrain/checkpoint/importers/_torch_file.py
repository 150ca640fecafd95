"""Reads a file of `torch.save` without PyTorch, and runs no code of the file."""

import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from hwtrain._errors import InputError

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
"""The elements of PyTorch's storages, by the names of their classes."""

_DTYPES = {
    "float32": np.float32,
    "float": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}
_PACKAGES = ("aihwkit", "aihwkit_lightning")
"""Packages of which every class becomes an inert record."""

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of PyTorch's format before 1.6."""

_ANEW = "load the model in PyTorch, and write torch.save(model.state_dict(), path)"


class Record:
    """An object of a package, as its class's name and its fields; nothing of it runs.

    Each class of a file is a subclass of this one. `args` are what an enumeration's
    member was made of: its value.
    """

    module = name = ""
    args: tuple[Any, ...]
    fields: dict[str, Any]

    def __new__(cls, *args: Any):
        """Makes the object, also where a file asks for one without `__init__`."""
        made = super().__new__(cls)
        made.args, made.fields = args, {}
        return made

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any):
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"the fields of {self.name} are no dictionary")
        self.fields = {name: _whole(value) for name, value in state.items()}

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a field, or a default."""
        return self.fields.get(name, default)


class StateDict(dict):
    """A dictionary with PyTorch's metadata of modules, by their names."""

    metadata: Mapping[str, Any] = {}

    def __setstate__(self, state: Any):
        found = state.get("_metadata", {}) if isinstance(state, dict) else {}
        self.metadata = found if isinstance(found, dict) else {}


class _Function:
    """A function that a file may call, whose attributes it cannot change."""

    __slots__ = ("_run",)

    def __init__(self, run: Any):
        self._run = run

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)

    def __setstate__(self, state: Any):
        raise pickle.UnpicklingError("the file changes a function")


class NotReadError(InputError):
    """A file that is not read; the message says why, and the way out."""


def read_torch(path: Path) -> Any:
    """Returns the content of a file of `torch.save`: tensors as NumPy's arrays.

    Only PyTorch's tensors, dictionaries, lists, numbers and texts are made. Classes of
    aihwkit and aihwkit-lightning become instances of `Record`, and are neither imported
    nor called.

    Args:
      path: the file, in PyTorch's format of zip archives (1.6 or newer).

    Raises:
      ValueError: one line that names the file and what it wants or lacks.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY))
    except OSError as error:
        raise NotReadError(f"{path}: it cannot be read: {error.strerror}") from error
    if start == _LEGACY:
        raise NotReadError(
            f"{path}: expected a file of PyTorch 1.6 or newer, got its older format; "
            f"{_ANEW}"
        )
    if not zipfile.is_zipfile(path):
        raise NotReadError(
            f"{path}: expected a file of torch.save, got another or a damaged one; "
            f"{_ANEW}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(archive).load()
    except NotReadError as error:
        raise NotReadError(f"{path}: {error}") from error
    # A damaged pickle or archive raises errors of many types.
    except Exception as error:
        raise NotReadError(
            f"{path}: expected a file of torch.save, got a damaged one "
            f"({type(error).__name__}: {error}); {_ANEW}"
        ) from error


class _Archive:
    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        names = archive.namelist()
        found = [name for name in names if name.endswith("/data.pkl")]
        roots = {name.partition("/")[0] for name in names}
        if len(found) != 1 or len(roots) != 1:
            raise NotReadError(f"expected one data.pkl in one folder; {_ANEW}")
        self._root = roots.pop()
        if f"{self._root}/constants.pkl" in names:
            raise NotReadError(
                f"it is a TorchScript program, not a state_dict; {_ANEW}"
            )
        order = b"little"
        if f"{self._root}/byteorder" in names:
            order = archive.read(f"{self._root}/byteorder")
        self._order = "<" if order == b"little" else ">"
        self._read: dict[str, bytes] = {}

    def load(self) -> Any:
        with self._archive.open(f"{self._root}/data.pkl") as file:
            return _Unpickler(file, self).load()

    def storage(self, key: str) -> bytes:
        if key not in self._read:
            self._read[key] = self._archive.read(f"{self._root}/data/{key}")
        return self._read[key]

    def array(self, key: str, dtype: Any) -> np.ndarray:
        kind = np.dtype(dtype)
        data = self.storage(key)
        if self._order == ">" and kind.itemsize > 1:
            pairs = np.frombuffer(data, f"u{kind.itemsize}").byteswap()
            data = pairs.tobytes()
        return np.frombuffer(data, kind)


class _Storage:
    """A storage of a file: its key, and its elements if the class tells them."""

    def __init__(self, archive: _Archive, key: str, dtype: Any):
        self.archive, self.key, self.dtype = archive, key, dtype


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: _Archive):
        super().__init__(file, encoding="utf-8")
        self._archive = archive
        self._records: dict[tuple[str, str], type[Record]] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        package = module_name.partition(".")[0]
        if package in _PACKAGES:
            return self._record(module_name, global_name)
        if module_name == "torch" and global_name in _STORAGES:
            return np.dtype(_STORAGES[global_name]).name
        if module_name == "torch" and global_name in _DTYPES:
            return np.dtype(_DTYPES[global_name]).name
        found = _ALLOWED.get((module_name, global_name))
        if found is None:
            raise NotReadError(
                f"it wants {module_name}.{global_name}, which is not imported: a "
                "state_dict holds tensors, numbers and configurations of aihwkit "
                "alone. Take it out of the rpu_config; or, if the file is a whole "
                f"model, {_ANEW}"
            )
        return found

    def _record(self, module: str, name: str) -> type[Record]:
        if (module, name) not in self._records:
            made = type("Record", (Record,), {"module": module, "name": name})
            self._records[module, name] = made
        return self._records[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(key, str):
            raise NotReadError(f"it refers to {kind!r}, not to a storage; {_ANEW}")
        return _Storage(self._archive, key, None if dtype == "untyped" else dtype)


def _tensor(
    storage: Any, offset: int, size: Any, stride: Any, *beside: Any
) -> np.ndarray:
    # Of version 3, the last but one, or the last, is the dtype of an untyped storage.
    dtype = storage.dtype or next(x for x in beside if isinstance(x, str))
    # Behind the hooks: bits of a tensor whose numbers are to be computed.
    bits = [x for x in beside[2:] if isinstance(x, dict)]
    if any(entry.get("conj") for entry in bits):
        raise NotReadError(f"a tensor has the bit of conjugate numbers; {_ANEW}")
    flat = storage.archive.array(storage.key, np.dtype(_named(dtype)))
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if 0 in size:
        return np.zeros(size, flat.dtype)
    if min((offset, *stride)) < 0 or last >= len(flat) or math.prod(size) > len(flat):
        raise NotReadError(
            f"a tensor of shape {size} lies outside of its storage, of "
            f"{len(flat)} elements; {_ANEW}"
        )
    strides = [step * flat.itemsize for step in stride]
    found = np.lib.stride_tricks.as_strided(flat[offset:], size, strides).copy()
    return -found if any(entry.get("neg") for entry in bits) else found


def _named(dtype: str) -> Any:
    return ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype


def _member(owner: Any, name: Any) -> Any:
    """Returns a member of an enumeration that a file names by `getattr`."""
    if not (isinstance(owner, type) and issubclass(owner, Record)):
        raise NotReadError(f"it calls getattr, which is not run; {_ANEW}")
    return owner(name)


class _Array:
    """An array of NumPy, until its content is known."""

    value: Any = None

    def __setstate__(self, state: Any):
        _, shape, dtype, fortran, data = state
        kind = np.dtype(dtype.text)
        if isinstance(data, str):
            data = data.encode("latin1")
        order = "F" if fortran else "C"
        self.value = np.frombuffer(data, kind).reshape(shape, order=order)


def _whole(value: Any) -> Any:
    """Returns a field with NumPy's arrays in place of those that were to come."""
    if isinstance(value, _Array):
        return value.value
    if type(value) is dict:
        return {name: _whole(entry) for name, entry in value.items()}
    return value


class _Dtype:
    def __init__(self, text: Any, *_: Any):
        # Only numbers: "f8", and not "O" or a list of fields.
        self.text = text if str(text)[:1] in "fiub" else "f8"

    def __setstate__(self, state: Any):
        order = state[1] if state[1] in ("<", ">") else ""
        self.text = f"{order}{self.text}"


def _scalar(dtype: _Dtype, data: Any) -> Any:
    if isinstance(data, str):
        data = data.encode("latin1")
    return np.frombuffer(data, np.dtype(dtype.text))[0].item()


def _encoded(text: str, encoding: str) -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): StateDict,
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda data, *_: data),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(lambda data, *_: data),
    ("torch.storage", "UntypedStorage"): "untyped",
    ("torch", "UntypedStorage"): "untyped",
    ("torch", "Size"): _Function(lambda sizes=(): tuple(sizes)),
    ("torch", "device"): _Function(lambda *names: ":".join(map(str, names))),
    ("builtins", "set"): _Function(lambda items=(): list(items)),
    ("__builtin__", "set"): _Function(lambda items=(): list(items)),
    ("builtins", "getattr"): _Function(_member),
    ("__builtin__", "getattr"): _Function(_member),
    ("_codecs", "encode"): _Function(_encoded),
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): "ndarray",
    **{(module, "scalar"): _Function(_scalar) for module in _NUMPY},
    **{(module, "_reconstruct"): _Function(lambda *_: _Array()) for module in _NUMPY},
}
"""What a file may name besides records, and what takes its place."""
