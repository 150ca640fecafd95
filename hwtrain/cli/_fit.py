"""`hwtrain fit`."""

import argparse
import tomllib
from typing import Any

import tomli_w
from pydantic import ValidationError
from rich.console import Console

from hwtrain._errors import InputError
from hwtrain._parts import registry
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain.checkpoint import _destination as destination
from hwtrain.cli._errors import bad_input
from hwtrain.cli._options import known_parts
from hwtrain.devices import (
    Measurements,
    fit_measurements,
    fit_noise_model,
    read_measurements,
)
from hwtrain.train._reading import one_line
from hwtrain.train._toml import parsed


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    with bad_input():
        known_parts(options, None)
        if options.out is not None:
            destination.check_writable(options.out)
        measurements = read_measurements(options.measurements)
        start = _start(options, measurements)
        fit = fit_noise_model(
            start, measurements, names=options.names, confidence=options.confidence
        )
    console = Console()
    for shown in fit.tables():
        console.print(shown, markup=False, highlight=False)
    if options.out is not None:
        part = {"type": options.family, **to_dict(fit.model)}
        with bad_input(), destination.new(options.out) as partial:
            text = tomli_w.dumps({"hardware": {"noise_model": part}})
            partial.write_text(text, encoding="utf-8")
        console.print(f"{options.out} written", soft_wrap=True, highlight=False)
    return 0


def _start(options: argparse.Namespace, measurements: Measurements) -> Any:
    """Returns the model of the family that the fit starts from."""
    family = registry.named("noise_model", options.family)
    given: dict[str, Any] = {}
    for text in options.fields:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: expected FIELD=VALUE, such as g_max=20.0")
        try:
            given[name.strip()] = parsed(tomllib.loads, f"value = {value}")["value"]
        except ValueError as error:
            raise InputError(f"--set {text}: {error}") from error
    if options.family == "measured" and set(given) <= {"t_0"}:
        return fit_measurements(measurements, **given)
    try:
        return from_dict(family, given)
    except ValidationError as error:
        raise InputError(one_line(family, error, given, "--set", {})) from None
