"""Descriptions of configuration fields, for the JSON Schema."""

import ast
import dataclasses
import inspect
import itertools
from typing import Any


def add_meanings(schema: dict[str, Any], kind: type) -> None:
    """Adds the description of each field to the JSON Schema of a configuration.

    Pydantic's `use_attribute_docstrings` would do so, too, but reads the source of each
    class when the class is defined, which slows down every import of hwtrain.

    Args:
      schema: the JSON Schema of the class; changed in place.
      kind: the class. The description of a field is the string below it, in the class
        itself or the nearest of its bases.
    """
    found = {"type": "The kind, by name."}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _meanings(base)
    for name, meaning in found.items():
        if name in schema["properties"]:
            schema["properties"][name].setdefault("description", meaning)


def _meanings(kind: type) -> dict[str, str]:
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for definition in ast.parse(inspect.getsource(kind)).body
        if isinstance(definition, ast.ClassDef)
        for field, below in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
