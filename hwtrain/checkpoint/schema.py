"""The JSON Schema of the manifest, shipped as a file of the package.

`python -m hwtrain.checkpoint.schema` regenerates it from the model.
"""

import json
from pathlib import Path
from typing import Any

from hwtrain.checkpoint._manifest import MAJOR, Manifest

SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")
"""For programs in other languages: JSON Schema 2020-12."""


def manifest_schema() -> dict[str, Any]:
    """Returns the JSON Schema of the manifest, derived from its model.

    >>> manifest_schema()["title"]
    'Manifest of a hwtrain checkpoint, version 1'
    """
    schema = Manifest.model_json_schema(mode="validation")
    # Pydantic's schema lists the valid names, but does not forbid others.
    schema["properties"]["files"]["additionalProperties"] = False
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": f"Manifest of a hwtrain checkpoint, version {MAJOR}",
    }


def write_schema() -> None:
    """Regenerates the file of the package."""
    text = json.dumps(manifest_schema(), indent=1, sort_keys=True, ensure_ascii=False)
    SCHEMA_FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_schema()
