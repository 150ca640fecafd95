"""Rules that assign hardware to layers."""

import dataclasses
import inspect
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from hwtrain._errors import InputError
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import own_names
from hwtrain._plan.weight import FROZEN


@dataclasses.dataclass(frozen=True)
class Rule:
    """Puts the layers, or the parameters, with a matching path on hardware.

    Rules are tried in order, and the first that matches wins. A pattern must match the
    whole path (`re.fullmatch`); paths are relative to the model and joined by `/`. A
    slash in a name is written `~1` and a tilde `~0`, as in a JSON Pointer: a layer
    named "a/b" has the path "a~1b".

    >>> Rule("encoder/.*", Hardware()).pattern
    'encoder/.*'
    >>> Rule(params="w_in", rows=0, columns=1, hardware=Hardware()).params
    'w_in'

    Args:
      pattern: regular expression for layer paths.
      hardware: the hardware; `None` keeps matching layers or parameters digital. One
        with `outputs` alone does so too, and stores what matching modules return.
      params: regular expression for parameter paths, instead of `pattern`. Such
        parameters get the weight side only: noise, clipping, mismatch, export.
      rows: with `params`, the input axes of the array. Default: the second to last, or
        none for a vector.
      columns: with `params`, the output axes. Default: the last.
      frozen: never train the arrays and the leaves that `analogize` puts beside them:
        no transformation of `hwtrain.optim` changes them, and the base optimiser of
        `hardware_aware` does not see them. Biases are not affected.

    Raises:
      ValueError: unless exactly one of `pattern` and `params` is given; if a regular
        expression is invalid; if axes are given without `params`; or if a rule both
        freezes arrays and keeps them digital.
    """

    pattern: str | None = None
    hardware: Hardware | None = None
    params: str | None = dataclasses.field(default=None, kw_only=True)
    rows: int | tuple[int, ...] | None = dataclasses.field(default=None, kw_only=True)
    columns: int | tuple[int, ...] | None = dataclasses.field(
        default=None, kw_only=True
    )
    frozen: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        if (self.pattern is None) == (self.params is None):
            raise InputError(
                "a Rule takes either a pattern for layers or params= for parameters; "
                f"got pattern={self.pattern!r}, params={self.params!r}"
            )
        if self.params is None and (self.rows, self.columns) != (None, None):
            raise InputError(
                f"rows and columns describe the parameters of a rule with params=; "
                f"the geometry of the layers that {self.pattern!r} matches is known, "
                "leave them out"
            )
        if not isinstance(self.hardware, Hardware | None):
            raise InputError(
                f"{self}: hardware must be a Hardware, or None to stay digital; got "
                f"{type(self.hardware).__name__}"
            )
        if self.frozen and self.hardware is None:
            raise InputError(
                f"{self}: frozen=True has no effect on a digital layer; leave it out, "
                "and freeze it in the base optimiser, such as by "
                'optax.partition({"frozen": optax.set_to_zero(), ...}, labels)'
            )
        if self.stores_alone:
            if self.params is not None:
                raise InputError(
                    f"{self}: outputs are what a module returns, and a parameter "
                    "returns nothing. Name the module: Rule(pattern, hardware)"
                )
            if self.frozen:
                raise InputError(
                    f"{self}: frozen=True has no effect with outputs alone, which "
                    "leave weights digital; leave it out"
                )
        if not isinstance(self.expression, str):
            raise InputError(
                "a Rule's pattern must be text, a regular expression for paths; got "
                f"{reprlib.repr(self.expression)}"
            )
        try:
            re.compile(self.expression)
        except re.error as error:
            raise InputError(
                f"the rule's pattern {self.expression!r} is not a regular expression: "
                f"{error}"
            ) from error

    @property
    def stores_alone(self) -> bool:
        """Whether it only stores what modules return, and leaves weights digital."""
        return self.hardware is not None and self.hardware.digital

    @property
    def expression(self) -> str:
        """The regular expression, of layers or of parameters."""
        return self.pattern if self.pattern is not None else self.params or ""

    def __str__(self) -> str:
        """Returns the rule as it is written in code."""
        kind = "params=" if self.pattern is None else ""
        return f"Rule({kind}{self.expression!r}{FROZEN if self.frozen else ')'}"


@dataclasses.dataclass(frozen=True)
class Assignment:
    """The arguments of `analogize`, static and hashable.

    Attributes:
      rules: the rules, in order.
      default: hardware of every other layer that can be analog, if one was given.
      name: prefix of all paths.
      stream: the rng stream that a step draws from.
    """

    rules: tuple[Rule, ...] = ()
    default: Hardware | None = None
    name: str = ""
    stream: str = "mismatch"

    @property
    def own_leaves(self) -> tuple[str, ...]:
        """The names of the leaves that users' parts may put beside arrays."""
        every = (self.default, *(rule.hardware for rule in self.rules))
        found = (own_names(hardware) for hardware in every if hardware is not None)
        return tuple(dict.fromkeys(name for names in found for name in names))


def assignment(hardware_or_rules: Any, name: str | None) -> Assignment:
    """Returns the assignment that the arguments of `analogize` specify.

    Raises:
      ValueError: unless given one `Hardware`, or a sequence of `Rule` that may end with
        a `Hardware`.
    """
    if isinstance(hardware_or_rules, Hardware):
        return Assignment(default=hardware_or_rules, name=name or "")
    several = isinstance(hardware_or_rules, Iterable)
    several &= not isinstance(hardware_or_rules, str | Mapping)
    rules = tuple(hardware_or_rules) if several else (hardware_or_rules,)
    default = rules[-1] if rules and isinstance(rules[-1], Hardware) else None
    rules = rules if default is None else rules[:-1]
    for rule in rules:
        if not isinstance(rule, Rule):
            raise InputError(
                "analogize takes one Hardware for all layers, or a sequence of Rule, "
                f"which may end with the Hardware of all other layers; {_told(rule)}"
            )
    return Assignment(rules=rules, default=default, name=name or "")


def _told(rule: Any) -> str:
    """Returns what is wrong with an argument that is no rule, and what to write."""
    if isinstance(rule, Hardware):
        return "got a Hardware before the end: write it last, or as Rule(pattern, it)"
    said = f"got {type(rule).__name__}: {reprlib.repr(rule)}"
    if inspect.isfunction(rule):
        said += f". Call it: {rule.__name__}()"
    return said
