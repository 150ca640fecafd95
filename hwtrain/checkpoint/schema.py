"""The JSON Schema of the manifest, a file of the package.

`python -m hwtrain.checkpoint.schema` writes it anew from the model.
"""

import json
from pathlib import Path
from typing import Any

from hwtrain.checkpoint._manifest import MAJOR, Manifest

SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")
"""For programs in other languages: JSON Schema 2020-12."""


def manifest_schema() -> dict[str, Any]:
    """Returns the JSON Schema of the manifest, as the model says it.

    >>> manifest_schema()["title"]
    'Manifest of a hwtrain checkpoint, version 1'
    """
    schema = Manifest.model_json_schema(mode="validation")
    # Pydantic says which names are right, and not that no other is.
    schema["properties"]["files"]["additionalProperties"] = False
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": f"Manifest of a hwtrain checkpoint, version {MAJOR}",
    }


def write_schema() -> None:
    """Writes the file of the package anew."""
    text = json.dumps(manifest_schema(), indent=1, sort_keys=True, ensure_ascii=False)
    SCHEMA_FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_schema()
