"""What the fields of a configuration mean, for its JSON Schema."""

import ast
import inspect
import itertools
from typing import Any


def add_meanings(schema: dict[str, Any], kind: type) -> None:
    """Describes each field in the JSON Schema of a configuration.

    Pydantic would too, with `use_attribute_docstrings`, but reads the source of each
    class already when it is defined, which makes every import of hwtrain slow.

    Args:
      schema: the JSON Schema of the class; changed in place.
      kind: the class. What a field means is the string below it.
    """
    for name, meaning in _meanings(kind).items():
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
