"""The JSON schema of configurations, for editors."""

from typing import Any

from pydantic import TypeAdapter

from hwtrain._parts.cost_constants import CostParameter
from hwtrain._plan.hardware import Hardware
from hwtrain.evaluate import technologies
from hwtrain.train._config import Config, RuleParameter
from hwtrain.train._hardware import PRESET, preset_names
from hwtrain.train._mismatch_config import MismatchConfig

_PRESET = {
    "description": "A preset of `hwtrain.presets`, which other entries change, or a "
    "function of your own that returns hardware.",
    "anyOf": [{"enum": preset_names()}, {"type": "string", "pattern": "^.+:.+$"}],
}
_TECHNOLOGY = {
    "description": "Constants of `hwtrain.evaluate.technologies`, which other entries "
    "change, or a function of your own that returns a `CostParameter`.",
    "anyOf": [
        {"enum": preset_names(technologies)},
        {"type": "string", "pattern": "^.+:.+$"},
    ],
}
_OFF = {"const": "none", "description": "Leaves out what the preset or rule has."}


def schema() -> dict[str, Any]:
    """Returns the JSON schema of the files that `read_config` takes.

    >>> schema()["$schema"]
    'https://json-schema.org/draft/2020-12/schema'
    """
    kinds = [TypeAdapter(kind).json_schema() for kind in (Config, MismatchConfig)]
    classes: dict[str, Any] = {}
    for kind in kinds:
        classes |= kind.pop("$defs")
    hardware = classes[Hardware.__name__]
    sections = {
        name: {"anyOf": [entry, _OFF]} for name, entry in hardware["properties"].items()
    }
    hardware["properties"] = {PRESET: _PRESET, **sections}
    rule = classes[RuleParameter.__name__]
    rule["properties"] |= hardware["properties"]
    cost = classes[CostParameter.__name__]
    cost["properties"] = {PRESET: _TECHNOLOGY, **cost["properties"]}
    cost["anyOf"] = [{"required": [PRESET]}, {"required": cost.pop("required")}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A configuration of hwtrain",
        "if": {"required": ["mismatch"]},
        "then": kinds[1],
        "else": kinds[0],
        "$defs": classes,
    }
