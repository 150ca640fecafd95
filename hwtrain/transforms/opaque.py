"""Parts of a model that the other framework runs: they must not be digital unsaid."""

from collections.abc import Callable, Iterable
from typing import Any

from hwtrain.hardware import Hardware
from hwtrain.transforms.flax_internals import bridged_class
from hwtrain.transforms.layer import Layer


def bridge(module: Any, cls: type) -> Layer | None:
    """Returns the layer that is a bridge to the other framework, or `None`.

    Args:
      module: a module of either framework.
      cls: its plain class.
    """
    inner = bridged_class(module, cls)
    if inner is None:
        return None
    if hasattr(inner, "_hwtrain_assigned"):
        return Layer(why="an analog model of its own")
    why = f"{inner.__name__} is a module of the other framework"
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
    for hidden in (layer for layer in layers if layer.opaque):
        rule, _ = decide(hidden.path, hidden)
        if rule is not None and rule.hardware is None:
            digital.add(rule)
            continue
        prefix = f"{hidden.path}/" if hidden.path else ""
        for path in (path for path in shapes if path.startswith(prefix)):
            for held in (hidden, Layer(path=path.rpartition("/")[0])):
                rule, hardware = decide(path, held)
                raw = rule is not None and rule.params is not None
                if not raw and hardware not in (None, Hardware()):
                    raise ValueError(
                        f"{hidden.path or 'the model'} ({hidden.name}) is to be "
                        f"analog, but {hidden.why}, whose layers cannot be seen from "
                        "here. Analogize that module before the bridge, or keep it "
                        f"digital by Rule({hidden.path!r}, None) before the others"
                    )
    return digital
