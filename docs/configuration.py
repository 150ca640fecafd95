"""Writes the tables of `configuration.md` from the classes that read a configuration.

`python docs/configuration.py` writes the page anew.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hwtrain.train import Config, MismatchConfig

PAGE = Path(__file__).with_suffix(".md")
PRESETS = {
    "Hardware": "hwtrain.presets",
    "RuleParameter": "hwtrain.presets",
    "CostParameter": "hwtrain.evaluate.technologies",
}
"""Where the presets of a class are."""

MARK = "<!-- From here on written by `python docs/configuration.py`. -->\n"


def page() -> str:
    """Returns the page: its handwritten text, and the generated tables."""
    text = PAGE.read_text("utf-8").partition(MARK)[0]
    schemas = [TypeAdapter(kind).json_schema() for kind in (Config, MismatchConfig)]
    classes = schemas[0]["$defs"] | schemas[1]["$defs"]
    titles = ("A run", "A comparison on mismatch: with a table `[mismatch]`")
    parts = []
    for title, schema in zip(titles, schemas):
        parts += _tables("", title, schema, classes)
    shown = dict.fromkeys(parts)  # The two kinds share some tables.
    return text + MARK + "".join(shown)


def _tables(path: str, title: str, schema: Any, classes: Any) -> list[str]:
    """Returns the table of a class, then the tables of the classes nested in it."""
    lines = [f"\n## {title}\n", "\n| key | default | what |\n|---|---|---|\n"]
    inner = []
    if schema["title"] in PRESETS:
        lines.append(
            f"| `preset` |  | A function of `{PRESETS[schema['title']]}`, or one of "
            "your own as `path/to/file.py:function`, whose result the other entries "
            "change. |\n"
        )
    required = schema.get("required", ())
    names = sorted(schema["properties"], key=lambda name: name not in required)
    for name in names:
        entry = schema["properties"][name]
        where = f"{path}.{name}" if path else name
        kinds = _kinds(entry)
        default = "required" if name in required else _default(entry)
        lines.append(f"| `{name}` | {default} | {_what(entry, kinds, classes)} |\n")
        for kind in kinds:
            own = _fixed_type(classes[kind])
            heading = f"`[{where}]`" + (f" of `type = {own}`" if own else "")
            inner += _tables(where, heading, classes[kind], classes)
        for kind in _kinds(entry.get("additionalProperties", {})):
            heading = f"`[{where}.NAME]`"
            inner += _tables(f"{where}.NAME", heading, classes[kind], classes)
        for kind in _kinds(entry.get("items", {})):
            own = {**classes[kind]["properties"]}
            own.pop("hardware", None)  # its entries stand beside the others
            table = {**classes[kind], "properties": own}
            inner += _tables(where, f"`[[{where}]]`", table, classes)
    return ["".join(lines), *inner]


def _kinds(entry: Any) -> list[str]:
    """Returns the classes of tables that an entry may be."""
    options = [entry, *entry.get("anyOf", ()), *entry.get("oneOf", ())]
    options += [one for option in options[1:] for one in option.get("oneOf", ())]
    found = [one["$ref"].rpartition("/")[2] for one in options if "$ref" in one]
    return list(dict.fromkeys(found))


def _fixed_type(schema: Any) -> str:
    """Returns the `type` that selects this class among several, as TOML, or ''."""
    entry = schema["properties"].get("type", {})
    return json.dumps(entry["const"]) if "const" in entry else ""


def _default(entry: Any) -> str:
    default = entry.get("default")
    return "" if default in (None, []) else f"`{json.dumps(default)}`"


def _what(entry: Any, kinds: list[str], classes: Any) -> str:
    text = entry.get("description", "")
    if not text and kinds:
        text = classes[kinds[0]].get("description", "").partition("\n\n")[0]
    values = [*entry.get("enum", ())]
    for option in entry.get("anyOf", ()):
        values += option.get("enum", ())
    if values:
        listed = ", ".join(f"`{json.dumps(value)}`" for value in values)
        text = f"{text} One of {listed}."
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
