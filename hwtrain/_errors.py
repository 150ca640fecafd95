"""The error for a user's input, which ends with the page to read."""

import sys
from typing import Any

PAGES = {
    "cli": "command.md",
    "train": "training.md",
    "train._reading": "configuration.md",
    "train._entries": "configuration.md",
    "train._overrides": "configuration.md",
    "train._config": "configuration.md",
    "train._mismatch_config": "configuration.md",
    "_plan": "layers.md",
    "_plan.hardware": "physics.md",
    "_plan.plan": "life_cycle.md",
    "_plan.planning": "training.md",
    "_plan.rules": "training.md",
    "_flax": "layers.md",
    "_flax.errors": "life_cycle.md",
    "_flax.modes": "quickstart.md",
    "sockets": "layers.md",
    "_parts": "devices.md",
    "weights": "physics.md",
    "periphery": "periphery.md",
    "devices": "physics.md",
    "chips": "life_cycle.md",
    "presets": "choosing.md",
    "optim": "optimisation.md",
    "objectives": "optimisation.md",
    "evaluate": "evaluation.md",
    "checkpoint": "checkpoint.md",
    "checkpoint.adapters": "deployment.md",
    "checkpoint.importers": "deployment.md",
    "dynapse": "mixed_signal.md",
    "_arrays": "randomness.md",
}
"""By module, without `hwtrain`, the page of the docs about what it does."""


def page_of(module: str) -> str:
    """Returns the page of the docs about a module.

    >>> page_of("hwtrain.checkpoint.adapters._nir"), page_of("hwtrain.optim._bounds")
    ('docs/deployment.md', 'docs/optimisation.md')

    Args:
      module: its full name. One outside of hwtrain has parts of a user's own.
    """
    names = module.split(".")[1:]
    while names and ".".join(names) not in PAGES:
        names.pop()
    return f"docs/{PAGES.get('.'.join(names), 'devices.md')}"


class InputError(ValueError):
    """A user's input is wrong: what was expected, what came, where, and the way out.

    A note at its end names the page of the docs about the matter.
    """

    def __init__(self, *args: object):
        super().__init__(*args)
        frame = sys._getframe(1)
        while frame.f_locals.get("self") is self and frame.f_back is not None:
            frame = frame.f_back  # the initialiser of a subclass
        self.add_note(f"See {page_of(frame.f_globals.get('__name__', ''))}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns how pickle makes it anew: without the initialiser of its class."""
        # This is what processes of a pool hand on. An initialiser may take something
        # other than the message, and would note another page.
        return _unpickled, (type(self), *self.args), self.__dict__


def _unpickled(kind: type[InputError], *args: object) -> InputError:
    return kind.__new__(kind, *args)
