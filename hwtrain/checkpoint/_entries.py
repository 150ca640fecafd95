"""The manifest's entries for a tensor, a leaf, an analog weight and a chip."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import jax.numpy as jnp
import numpy as np
from pydantic import AfterValidator, Field, model_validator

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint._description import Entry
from hwtrain.checkpoint._geometry import check_geometry

DTYPES = {
    np.dtype(dtype).name: np.dtype(dtype)
    for dtype in (
        jnp.bool_,
        jnp.uint8,
        jnp.uint16,
        jnp.uint32,
        jnp.uint64,
        jnp.int8,
        jnp.int16,
        jnp.int32,
        jnp.int64,
        jnp.float8_e4m3fn,
        jnp.float8_e5m2,
        jnp.float16,
        jnp.bfloat16,
        jnp.float32,
        jnp.float64,
        jnp.complex64,
    )
}
"""The possible dtypes of tensors, by name."""

KEY_WORDS = {"threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}
"""The generators of PRNG keys, with the number of words in their key data."""

LARGEST_SEED = 2**32 - 1
"""The largest chip seed. JAX would take a larger one modulo 2^32."""


def _known_dtype(name: str) -> str:
    if name not in DTYPES:
        raise InputError(
            f"a dtype must be one of {', '.join(DTYPES)}; got {name[:40]!r}"
        )
    return name


FileName = Annotated[
    str, Field(pattern=r"^(tensors|chips/[0-9]{4,10})/[0-9]{4,9}\.safetensors$")
]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


# A safetensors file counts in 64 bits, and NumPy has at most 64 axes.
Size = Annotated[int, Field(ge=0, lt=2**63)]
Sizes = Annotated[tuple[Size, ...], Field(max_length=64)]
Pieces = tuple[Size, ...]
Dtype = Annotated[
    str, AfterValidator(_known_dtype), Field(json_schema_extra={"enum": [*DTYPES]})
]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def tensor_name(keys: Sequence[str | int]) -> str:
    """Returns the name of the tensor of a leaf.

    >>> tensor_name(("params", "norm", "dense/kernel/scale"))
    'nominal/params/norm/dense~1kernel~1scale'
    """
    return paths.join(["nominal", *keys])


class TensorEntry(Entry):
    """One tensor of a file."""

    dtype: Dtype
    shape: Sizes
    unit: str
    sha256: Hash


class LeafEntry(Entry):
    """One leaf of the variables: its keys, and where its value is stored."""

    keys: Annotated[tuple[str | int, ...], Field(min_length=1)]
    kind: Literal["tensor", "zeros", "empty"]
    """`"zeros"`: a probe, which carries no information. `"empty"`: an empty mapping."""
    dtype: Dtype | None = None
    shape: Sizes | None = None
    key_impl: Literal["threefry2x32", "rbg", "unsafe_rbg"] | None = None
    """The implementation of a PRNG key; the tensor holds its key data."""
    file: FileName | None = None
    tensor: str | None = None

    @property
    def path(self) -> str:
        """Its path within its collection."""
        return paths.join(self.keys[1:]).removesuffix("/value")

    @property
    def name(self) -> str:
        """The name of its tensor."""
        as_before = "/".join(["nominal", *map(str, self.keys)])
        return as_before if self.tensor == as_before else tensor_name(self.keys)

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = {
            "tensor": {"dtype", "shape", "file", "tensor"},
            "zeros": {"dtype", "shape"},
            "empty": set(),
        }[self.kind]
        for field in ("dtype", "shape", "file", "tensor", "key_impl"):
            optional = field == "key_impl" and self.kind == "tensor"
            if (getattr(self, field) is not None) != (field in fields) and not optional:
                raise InputError(
                    f"a leaf of the kind {self.kind!r} has "
                    f"{', '.join(sorted(fields)) or 'nothing'} beside its keys: "
                    f"{field} is {'missing' if field in fields else 'not allowed'}"
                )
        if not isinstance(self.keys[0], str):
            raise InputError(
                f"the first key must be the name of a collection, got {self.keys}"
            )
        if self.key_impl is not None:
            words = KEY_WORDS[self.key_impl]
            if self.dtype != "uint32" or (self.shape or (0,))[-1] != words:
                raise InputError(
                    f"a key of {self.key_impl} must be uint32[..., {words}], got "
                    f"{self.dtype}{list(self.shape or ())}"
                )
        return self


class LayerEntry(Entry):
    """One analog weight: its geometry, its hardware and the place of its tensors."""

    weight: AnalogWeight
    stack: Sizes
    row_sizes: Pieces
    column_sizes: Pieces
    dtype: Dtype
    file: FileName
    nominal: str
    """The tensor with the nominal weights, as the model stores them."""
    beside: dict[str, str]
    """The other tensors of the layer by name: bias, input_range, mapping_scale."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        weight = self.weight
        said = (self.stack, self.row_sizes, self.column_sizes)
        check_geometry(weight, tiles=(len(self.row_sizes), len(self.column_sizes)))
        grid = (weight.stack, weight.row_sizes, weight.column_sizes)
        if grid != said:
            raise InputError(
                f"{weight.path}: stack, row_sizes and column_sizes are {said}, but its "
                f"shape and mapping give {grid}"
            )
        return self


class ChipEntry(Entry):
    """One frozen chip: its seed, and the file of each analog weight by path."""

    seed: Seed
    """The chip's seed; for a measured chip, its number."""
    measured: bool = False
    """Whether its conductances were read back from a chip instead of drawn."""
    files: dict[str, FileName]
