"""Every number in every configuration has a sensible bound within float32."""

import dataclasses
import functools
import inspect
import math
import tomllib
import types
import typing
from pathlib import Path

import jsonschema
import numpy as np
import pydantic
import pytest
import tomli_w

from hwtrain._parts.fields import CONFIG
from hwtrain._parts.registry import built_in
from hwtrain._parts.slot import OpenSlot
from hwtrain.dynapse import Layout
from hwtrain.train import Config, MismatchConfig, read_config

CONFIGS = Path(__file__).parents[1] / "configs"
BASES = {Config: "digits_mlp.toml", MismatchConfig: "digits_dynapse.toml"}
HUGE = [10**18, 10**400, 1e308, 3.5e38, 1e30, 10**12, 2**31]
TINY = [1e-40, 5e-324]
ODD = [-1, -0.5, math.nan, math.inf, -math.inf, True, False, "1", "x", [], {}, 1.5, 0]


def values(seed):
    """Values to try: strange ones, and random ones of every size."""
    rng = np.random.default_rng(seed)
    every = rng.choice([-1, 1], 6) * 10.0 ** rng.uniform(-320, 308, 6)
    near = rng.choice([-1, 1], 6) * 10.0 ** rng.uniform(-14, 14, 6)
    whole = [int(10**size) for size in rng.uniform(0, 22, 3)]
    return [*ODD, *HUGE, *TINY, -1e-40, *every.tolist(), *near.tolist(), *whole]


def members(hint):
    """Yields the types that an annotation allows, without what annotates them."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        inner, *about = typing.get_args(hint)
        slots = [built_in(x.kind) for x in about if isinstance(x, OpenSlot)]
        yield from members(slots[0] if slots else inner)
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from members(member)
    else:
        yield hint


def fields(kind, where=()):
    """Yields the keys, the class and the annotation of every field that is a value.

    A class that is one of several is entered by its `type`, which stands in the keys.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, inner = hints[field.name], []
        for member in members(hint):
            if dataclasses.is_dataclass(member) and not inspect.isabstract(member):
                inner.append(member)
        for member in inner:
            tag = typing.get_type_hints(member).get("type")
            tag = typing.get_args(tag)[0] if len(inner) > 1 else None
            yield from fields(member, (*where, (field.name, tag)))
        if not inner:
            yield (*where, (field.name, None)), kind, hint


def numeric(hint):
    """Returns whether a field holds numbers, alone or in a list, and no text."""
    text = str(pydantic.TypeAdapter(hint, config=CONFIG).json_schema())
    return ("'number'" in text or "'integer'" in text) and "'enum'" not in text


FIELDS = [
    pytest.param(
        root, keys, kind, id=f"{root.__name__}-{'.'.join(k for k, _ in keys)}-{t}"
    )
    for root in BASES
    for keys, kind, hint in fields(root)
    for t in [next((tag for _, tag in reversed(keys) if tag), "")]
    if numeric(hint) and keys[-1][0] not in ("arguments", "layers")
]


@functools.cache
def schema_of(kind, name):
    """Returns the JSON Schema of a field, as the schema of its class has it."""
    schema = pydantic.TypeAdapter(kind).json_schema()
    return schema["properties"][name] | {"$defs": schema.get("$defs", {})}


def bounded(schema):
    """Yields every numeric part of a schema."""
    for entry in schema.get("anyOf", [schema]):
        if entry.get("type") == "array":
            yield from bounded(entry["items"])
        elif entry.get("type") in ("number", "integer"):
            yield entry


def wrapped(schema, value):
    """Returns a value as deep in lists as a field's schema has it."""
    for entry in schema.get("anyOf", [schema]):
        if entry.get("type") == "array":
            return [wrapped(entry["items"], value)] * entry.get("minItems", 1)
    return value


def numbers_in(value):
    if isinstance(value, list | tuple):
        return [number for part in value for number in numbers_in(part)]
    return [value] if isinstance(value, int | float) else []


def subnormal(value):
    with np.errstate(over="ignore", under="ignore"):
        found = np.float32(value)
    return value != 0 and abs(found) < np.finfo(np.float32).tiny


def put(data, keys, value):
    """Sets an entry; tables on the way are made anew where a `type` chooses one."""
    for name, tag in keys[:-1]:
        if tag is not None:
            data[name] = {"type": tag}
        data = data.setdefault(name, {})
    data[keys[-1][0]] = value


def test_the_walk_finds_the_fields():
    names = [param.id for param in FIELDS]
    assert len(names) == len(set(names)) > 150
    for known in (
        "Config-training.steps-",
        "Config-hardware.noise_model.t_0-hermes",
        "Config-hardware.noise_model.nu_mean_lst-measured",
        "Config-hardware.converter.g_lst-custom_pair",
        "MismatchConfig-mismatch.percent_deviation-",
        "MismatchConfig-evaluation.percent_deviation-",
        "Config-training.objective.attack_steps-",
    ):
        assert known in names


@pytest.mark.nightly
@pytest.mark.parametrize(("root", "keys", "kind"), FIELDS)
def test_a_number_means_something_or_is_one_line(root, keys, kind, tmp_path):
    schema = schema_of(kind, keys[-1][0])
    for entry in bounded(schema):
        assert {"minimum", "exclusiveMinimum"} & entry.keys()
        assert {"maximum", "exclusiveMaximum"} & entry.keys()
    valid = jsonschema.Draft202012Validator(schema).is_valid
    base = tomllib.loads((CONFIGS / BASES[root]).read_text())
    file, key = tmp_path / "run.toml", ".".join(name for name, _ in keys)
    for single in values(len(key)):
        value = single if isinstance(single, list | dict) else wrapped(schema, single)
        data = tomllib.loads(tomli_w.dumps(base))
        put(data, keys, value)
        file.write_text(tomli_w.dumps(data))
        numbers = numbers_in(value)
        sensible = valid(value) and not any(map(subnormal, numbers))
        # As the schema has it, but for a whole number with a point.
        whole = any(entry["type"] == "integer" for entry in bounded(schema))
        sensible = sensible and not (whole and float in map(type, numbers))
        try:
            read_config(file)
        except ValueError as error:
            text = str(error)
            assert text.startswith(f"{file}: ") and "\n" not in text, (value, text)
            assert len(text) < 600
            if not sensible:
                assert text.startswith(f"{file}: {key}"), (value, text)
            else:
                # What a class says of several of its fields.
                assert keys[0][0] in text.removeprefix(f"{file}: "), (value, text)
        else:
            assert sensible, f"{value} is accepted"
            with np.errstate(over="ignore"):
                found = np.float32(numbers)
            assert np.isfinite(found).all()
            assert ((found != 0) == (np.array(numbers) != 0)).all()


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Layout)])
def test_a_quantity_of_a_neuron_is_one_that_float32_has(name):
    for value in values(0):
        try:
            found = getattr(Layout(**{name: value}), name)
        except ValueError as error:
            assert name in str(error)
        else:
            assert 0 < np.float32(found) < np.inf and not subnormal(found)


@pytest.mark.parametrize(("root", "keys", "kind"), FIELDS)
def test_python_raises_nothing_else(root, keys, kind):
    hint = typing.get_type_hints(kind, include_extras=True)[keys[-1][0]]
    adapter = pydantic.TypeAdapter(hint, config=CONFIG)
    schema = schema_of(kind, keys[-1][0])
    for single in values(1):
        value = wrapped(schema, single)
        value = tuple(value) if isinstance(value, list) else value
        try:
            found = adapter.validate_python(value)
        except pydantic.ValidationError:
            continue
        assert np.isfinite(np.float32(numbers_in(found))).all()
        assert not any(map(subnormal, numbers_in(found)))
