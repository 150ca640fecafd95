"""Parts of a model that the other framework runs: they must not be digital unsaid."""

from collections.abc import Callable, Iterable
from typing import Any

from hwtrain.hardware import Hardware
from hwtrain.transforms.layer import Layer


def opaque(inner: Any) -> Layer:
    """Returns the layer that is a bridge to the other framework.

    Args:
      inner: the module on the other side, or its class.
    """
    cls = inner if isinstance(inner, type) else type(inner)
    if hasattr(cls, "_hwtrain_assigned"):
        return Layer(why="an analog model of its own")
    why = f"{cls.__name__} is a module of the other framework"
    return Layer(why=why, opaque=True)


def check_opaque(
    layers: Iterable[Layer],
    shapes: Iterable[str],
    decide: Callable[[str, Layer], tuple[Any, Hardware | None]],
) -> set[Any]:
    """Raises if hardware is asked for where layers cannot be seen.

    Args:
      layers: the modules of the model.
      shapes: the paths of all parameters.
      decide: returns the rule for a parameter, at a path, of a layer, and the hardware
        that it asks for.

    Returns:
      The rules that keep a bridge digital.
    """
    digital = set()
    for bridge in (layer for layer in layers if layer.opaque):
        rule, _ = decide(bridge.path, bridge)
        if rule is not None and rule.hardware is None:
            digital.add(rule)
            continue
        prefix = f"{bridge.path}/" if bridge.path else ""
        for path in (path for path in shapes if path.startswith(prefix)):
            for held in (bridge, Layer(path=path.rpartition("/")[0])):
                rule, hardware = decide(path, held)
                raw = rule is not None and rule.params is not None
                if not raw and hardware not in (None, Hardware()):
                    raise ValueError(
                        f"{bridge.path or 'the model'} ({bridge.name}) is to be "
                        f"analog, but {bridge.why}, whose layers cannot be seen from "
                        "here. Analogize that module before the bridge, or keep it "
                        f"digital by Rule({bridge.path!r}, None) before the others"
                    )
    return digital
