"""Files of torch.save are read without PyTorch, and none of their code runs."""

import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from hwtrain.checkpoint.importers._torch_file import Record, read_torch


def write(path, pickled, storages=(), **beside):
    """Writes a zip archive as torch.save does."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        for key, data in enumerate(storages):
            archive.writestr(f"model/data/{key}", data)
        for name, data in beside.items():
            archive.writestr(f"model/{name}", data)
    return path


def tensor(size, stride, kind="FloatStorage", key="0", offset=0, bit=""):
    """Returns the pickle (protocol 0) of a tensor, as PyTorch writes it."""

    def numbers(values):
        return "(" + "".join(f"I{value}\n" for value in values) + "t"

    storage = f"(S'storage'\nctorch\n{kind}\nS'{key}'\nS'cpu'\nI0\ntQ"
    return (
        f"ctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n"
        f"{numbers(size)}{numbers(stride)}I00\nccollections\nOrderedDict\n(tR"
        + (f"(dS'{bit}'\nI01\nstR" if bit else "tR")
    )


def dictionary(**entries):
    text = "".join(f"S'{name}'\n{entry}s" for name, entry in entries.items())
    return f"(d{text}.".encode()


X = np.arange(12, dtype=np.float32)


@pytest.mark.parametrize(
    "kind, dtype",
    [
        ("FloatStorage", np.float32),
        ("DoubleStorage", np.float64),
        ("HalfStorage", np.float16),
        ("BFloat16Storage", ml_dtypes.bfloat16),
        ("LongStorage", np.int64),
        ("ByteStorage", np.uint8),
    ],
)
def test_tensors_of_every_dtype(kind, dtype, tmp_path):
    array = X.astype(dtype)
    pickled = dictionary(a=tensor((2, 3), (3, 1), kind), b=tensor((2,), (6,), kind))
    found = read_torch(write(tmp_path / "m.th", pickled, [array.tobytes()]))
    assert found["a"].dtype == dtype
    np.testing.assert_array_equal(found["a"], array[:6].reshape(2, 3))
    np.testing.assert_array_equal(found["b"], array[[0, 6]])


def test_views_of_one_storage(tmp_path):
    turned = tensor((3, 2), (1, 3), offset=3)
    found = read_torch(write(tmp_path / "m.th", dictionary(a=turned), [X.tobytes()]))
    np.testing.assert_array_equal(found["a"], X[3:9].reshape(2, 3).T)
    found["a"][:] = 0  # an array of its own, not a view of the file


def test_bits_of_tensors(tmp_path):
    # As torch.save writes a negative view, such as the imaginary part of a conjugate.
    pickled = dictionary(a=tensor((12,), (1,), bit="neg"), b=tensor((12,), (1,)))
    found = read_torch(write(tmp_path / "m.th", pickled, [X.tobytes()]))
    np.testing.assert_array_equal(found["a"], -X)
    np.testing.assert_array_equal(found["b"], X)
    pickled = dictionary(a=tensor((12,), (1,), bit="conj"))
    with pytest.raises(ValueError, match="the bit of conjugate numbers; load the"):
        read_torch(write(tmp_path / "m.th", pickled, [X.tobytes()]))


def test_numbers_of_a_machine_of_the_other_order(tmp_path):
    data, pickled = X.astype(">f4").tobytes(), dictionary(a=tensor((12,), (1,)))
    found = read_torch(write(tmp_path / "m.th", pickled, [data], byteorder=b"big"))
    np.testing.assert_array_equal(found["a"], X)


def test_classes_of_the_packages_are_records(tmp_path):
    # An enumeration's member, made by its value or found by its name, and an object.
    pickled = (
        b"(dS'value'\ncaihwkit.x\nKind\n(S'AbsMax'\ntRs"
        b"S'name'\nc__builtin__\ngetattr\n(caihwkit.x\nKind\nS'ABS_MAX'\ntRs"
        b"S'object'\n\x8c\x09aihwkit.y\x8c\x04Part\x93)\x81(dS'size'\nI3\nsbs."
    )
    found = read_torch(write(tmp_path / "m.th", pickled))
    assert all(isinstance(entry, Record) for entry in found.values())
    assert (found["value"].args, found["name"].args) == (("AbsMax",), ("ABS_MAX",))
    assert (found["object"].module, found["object"].name) == ("aihwkit.y", "Part")
    assert found["object"].get("size") == 3


class Harm:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_of_a_file_never_runs(tmp_path):
    harm = tmp_path / "harm"
    for protocol in range(2, 6):
        pickled = pickle.dumps({"weight": Harm(harm)}, protocol=protocol)
        path = write(tmp_path / "m.th", pickled)
        with pytest.raises(ValueError, match=r"m\.th: it wants (_?io)\.open, which is"):
            read_torch(path)
    assert not harm.exists()


@pytest.mark.parametrize(
    "pickled, message",
    [
        (b"cos\nsystem\n(S'true'\ntR.", "it wants os.system, which is not imported"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "it wants builtins.eval"),
        (b"ctorch.nn.modules.linear\nLinear\n(tR.", "torch.nn.modules.linear.Linear"),
        (b"caihwkitty.nn\nX\n(tR.", "it wants aihwkitty.nn.X"),
        (b"c__main__\nMyNoise\n(tR.", "it wants __main__.MyNoise"),
        # Attributes of what a file may name are not found either.
        (b"c__builtin__\ngetattr\n(ctorch\nSize\nS'__call__'\ntR.", "calls getattr"),
        (
            b"c__builtin__\ngetattr\n(ccollections\nOrderedDict\nS'x'\ntR.",
            "calls getattr",
        ),
        # Nor can it change them.
        (b"ctorch._utils\n_rebuild_tensor_v2\n(dS'x'\nI1\nsb.", "changes a function"),
        (b"caihwkit.x\nKind\n(dS'x'\nI1\nsb.", "got a damaged one"),
        (b"(S'other'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI0\ntQ.", "not to a storage"),
        (b"", "got a damaged one"),
        (b"(d", "got a damaged one"),
    ],
)
def test_what_else_a_file_wants_is_refused(pickled, message, tmp_path):
    with pytest.raises(ValueError) as caught:
        read_torch(write(tmp_path / "m.th", pickled, [X.tobytes()]))
    text = str(caught.value)
    assert message in text and "torch.save(model.state_dict(), path)" in text
    assert text.startswith(str(tmp_path / "m.th"))


@pytest.mark.parametrize(
    "size, stride, offset",
    [
        ((13,), (1,), 0),
        ((4,), (1,), 9),
        ((2, 3), (-3, 1), 3),
        ((2,), (1,), -1),
        # A few bytes that claim to be a huge tensor.
        ((10**6, 10**6), (0, 0), 0),
    ],
)
def test_tensors_outside_of_their_storage(size, stride, offset, tmp_path):
    pickled = dictionary(a=tensor(size, stride, offset=offset))
    path = write(tmp_path / "m.th", pickled, [X.tobytes()])
    with pytest.raises(ValueError, match="lies outside of its storage"):
        read_torch(path)


def test_files_of_other_formats(tmp_path):
    path = tmp_path / "m.th"
    with pytest.raises(ValueError, match=r"m\.th: it cannot be read: No such file"):
        read_torch(path)
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))
    with pytest.raises(ValueError, match=r"PyTorch 1\.6 or newer, got its older"):
        read_torch(path)
    path.write_bytes(b"\x89HDF")
    with pytest.raises(ValueError, match="got another or a damaged one"):
        read_torch(path)
    write(path, b"N.", **{"constants.pkl": b""})
    with pytest.raises(ValueError, match="a TorchScript program"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(ValueError, match=r"expected one data\.pkl"):
        read_torch(path)
    # A storage is gone.
    with pytest.raises(ValueError, match="got a damaged one"):
        read_torch(write(path, dictionary(a=tensor((2,), (1,)))))
