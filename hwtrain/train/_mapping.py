"""Advice on a run's mapping: which layers digital, which with two devices a weight."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._parts.fields import to_dict
from hwtrain._plan.rules import Rule
from hwtrain._plan.weight import AnalogWeight
from hwtrain.devices import (
    NPairConductanceConverter,
    SinglePairConductanceConverter,
)
from hwtrain.evaluate._advice import Choice, Mapped, Step, greedy
from hwtrain.train._hardware import NONE
from hwtrain.train._run import Run

DIGITAL = "digital"
TWICE = "two pairs"
WEIGHTS, DEVICES = "digital weights", "more devices"
"""The budgets: weights that may be digital, and devices beside those there are."""


def layers_of(run: Run) -> dict[str, list[AnalogWeight]]:
    """Returns the analog arrays of each layer; one named by a rule is its own layer.

    Args:
      run: the run.
    """
    found: dict[str, list[AnalogWeight]] = {}
    for weight in run.ready.plan.weights:
        raw = weight.kind == "raw" or not weight.layer_path
        found.setdefault(weight.path if raw else weight.layer_path, []).append(weight)
    return found


def choices_of(run: Run) -> list[Choice]:
    """Returns the other ways to map each layer.

    Two pairs are a choice where the layer has one pair, and a noise model.

    Args:
      run: the run.
    """
    found = []
    for layer, weights in layers_of(run).items():
        size = sum(int(np.prod(weight.shape)) for weight in weights)
        found.append(Choice(layer, DIGITAL, WEIGHTS, size))
        if all(_can_double(weight) for weight in weights):
            found.append(Choice(layer, TWICE, DEVICES, 2 * size))
    return found


def _can_double(weight: AnalogWeight) -> bool:
    chip = weight.hardware
    single = isinstance(chip.converter, SinglePairConductanceConverter)
    return single and chip.noise_model is not None


def advise(
    run: Run,
    variables: dict[str, Any],
    budgets: Mapping[str, float],
    *,
    chips: int | Sequence[int],
    t_s: float | None = None,
) -> list[Step]:
    """Returns the steps of a greedy search for a better mapping of a trained model.

    Args:
      run: the run.
      variables: the trained variables of its hardware-aware model.
      budgets: the most of `WEIGHTS` and `DEVICES`.
      chips: number of chips, or their seeds.
      t_s: seconds since programming; `None` for just after it.

    Raises:
      ValueError: if no choice fits the budgets.
    """
    choices = choices_of(run)
    if not any(choice.fits({}, budgets) for choice in choices):
        least = min(c.amount for c in choices if budgets.get(c.budget, 0.0) > 0)
        raise InputError(
            f"no layer fits the budget; the smallest would take {least:,}: raise "
            "--digital or --devices"
        )

    def score(mapped: Mapped) -> np.ndarray:
        found = run.population(
            _of_mapping(run, variables, mapped),
            chips=chips,
            times_s=None if t_s is None else (t_s,),
            hardware=[*_rules(run, mapped), *_left(run, mapped)],
        )
        return np.reshape(found.values, len(found.seeds))

    return greedy(score, choices, budgets, better=run.metric.better)


def shadowed(run: Run, mapped: Mapped) -> list[Rule]:
    """Returns the configured rules all of whose layers are mapped in another way.

    Args:
      run: the run.
      mapped: the mapping.
    """
    others = {layer for layer, _ in mapped}
    wins: dict[str, set[str]] = {}
    for layer, weights in layers_of(run).items():
        for weight in weights:
            wins.setdefault(weight.rule, set()).add(layer)
    return [
        rule
        for rule in _configured(run)
        if isinstance(rule, Rule) and wins.get(str(rule), {None}) <= others
    ]


def _configured(run: Run) -> list[Any]:
    assigned = run.config.assigned
    return list(assigned) if isinstance(assigned, tuple) else [assigned]


def _left(run: Run, mapped: Mapped) -> list[Any]:
    """Returns the configured rules that still win a layer, and other hardware."""
    gone = shadowed(run, mapped)
    return [each for each in _configured(run) if each not in gone]


def _rules(run: Run, mapped: Mapped) -> list[Rule]:
    """Returns a rule for each layer that is mapped in another way."""
    layers, rules = layers_of(run), []
    for layer, kind in sorted(mapped):
        (weight, *_) = layers[layer]
        chip = None
        if kind == TWICE:
            converter: Any = weight.hardware.converter
            twice = NPairConductanceConverter(
                f_lst=(1.0, 1.0), g_max=converter.g_max, g_min=converter.g_min
            )
            chip = dataclasses.replace(weight.hardware, converter=twice)
        name = "params" if weight.kind == "raw" else "pattern"
        axes: dict[str, Any] = {}
        if weight.kind == "raw":
            axes = {"rows": weight.rows, "columns": weight.columns}
        frozen = chip is not None and weight.frozen
        rules.append(
            Rule(**{name: re.escape(layer)}, hardware=chip, frozen=frozen, **axes)
        )
    return rules


def _of_mapping(run: Run, variables: dict[str, Any], mapped: Mapped) -> dict[str, Any]:
    """Returns variables without the leaves of layers that are digital."""
    layers = layers_of(run)
    digital = {w.path for x, kind in mapped if kind == DIGITAL for w in layers[x]}
    gone = {
        path
        for path, (weight, _) in run.ready.plan.leaves().items()
        if weight.path in digital
    }
    params = paths.drop(variables["params"], lambda path: path not in gone)
    return {**variables, "params": params}


def as_rules(run: Run, mapped: Mapped) -> list[dict[str, Any]]:
    """Returns a mapping as the entries `[[rules]]` of a configuration.

    Args:
      run: the run.
      mapped: the mapping.
    """
    found, base = [], to_dict(run.config.hardware)
    for rule in _rules(run, mapped):
        entry: dict[str, Any] = {}
        if rule.pattern is not None:
            entry["pattern"] = rule.pattern
        else:
            entry |= {"params": rule.params, "rows": rule.rows, "columns": rule.columns}
        if rule.frozen:
            entry["frozen"] = True
        if rule.hardware is None:
            entry["digital"] = True
        else:
            # Also what a rule of the layer's own has said.
            own = to_dict(rule.hardware)
            entry |= {k: x for k, x in own.items() if base.get(k) != x}
            entry |= {name: NONE for name in base if name not in own}
        found.append({k: x for k, x in entry.items() if x is not None})
    return found
