"""The modules of a model whose results digital units store in few bits."""

import dataclasses
import re
from collections.abc import Container, Iterable
from typing import Annotated, Any

from hwtrain._errors import InputError
from hwtrain._parts.slot import OpenSlot
from hwtrain.periphery import DigitalFormat, OutputFormat


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredOutput:
    """A module, and how a digital unit stores what it returns.

    Attributes:
      path: path of the module; that of the model itself is empty, or its prefix.
      layer: name of its class.
      format: the format.
      rule: the rule that says so, as text.
    """

    __pydantic_config__ = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    path: str
    layer: str
    format: Annotated[DigitalFormat | OutputFormat, OpenSlot("output_format")]
    rule: str

    @property
    def row(self) -> dict[str, str]:
        """Its row in tables."""
        return {
            "module": self.path or "the model",
            "layer": self.layer,
            "stored as": self.format.describe(),
            "by": self.rule,
        }


def outputs_of(
    assigned: Any, layers: Iterable[Any], analog: Container[str]
) -> tuple[tuple[StoredOutput, ...], set[Any]]:
    """Returns the modules whose results are stored in few bits.

    Args:
      assigned: the arguments of `analogize`.
      layers: the modules that a call reaches.
      analog: the paths of the layers on crossbars, with the prefix.

    Returns:
      Them, and the rules that say so.

    Raises:
      ValueError: for a layer on crossbars whose results no call of it returns.
    """
    found, rules = [], set()
    for layer in sorted(layers, key=lambda layer: layer.path):
        rule = next((x for x in assigned.rules if _matches(x, layer.path)), None)
        default = assigned.default if layer.kind and not layer.by_rule else None
        hardware = default if rule is None else rule.hardware
        if hardware is None or hardware.outputs is None:
            continue
        path = "/".join(filter(None, (assigned.name, layer.path)))
        if not hardware.digital and path not in analog:
            continue
        by = str(rule or "the model's hardware")
        if layer.called:
            rules.add(rule)
            found.append(
                StoredOutput(
                    path=path, layer=layer.name, format=hardware.outputs, rule=by
                )
            )
        elif not hardware.digital:
            around = layer.path.rpartition("/")[0]
            raise InputError(
                f"{path} ({layer.name}): {by} gives it outputs, but no call of its "
                "__call__ returns its results: they are those of another method, or of "
                "the module around it. Leave outputs out of its hardware, and for the "
                f"module around it write Rule({around!r}, Hardware(outputs=...))"
            )
    return tuple(found), rules


def _matches(rule: Any, path: str) -> bool:
    return rule.pattern is not None and bool(re.fullmatch(rule.pattern, path))
