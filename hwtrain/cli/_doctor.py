"""`hwtrain doctor`."""

import argparse
import importlib.metadata
import platform
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.table import Table

_PACKAGE = "hwtrain"

Row = tuple[str, str, str]
"""What was looked at, what was found, and what is wrong; empty if nothing is."""


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console = Console()
    wrong = _show(console, "Packages", packages())
    try:
        # Imported late, because it needs all packages to be in order.
        parts = importlib.import_module("hwtrain.cli._self_test")
    except Exception as error:
        wrong += _show(console, "Self-test", iter([_not_imported(error)]))
    else:
        wrong += _show(console, "Devices", parts.devices())
        if not options.quick:
            wrong += _show(console, "Self-test", parts.self_test())
    console.print(
        "All is well." if not wrong else f"{wrong} to mend, see above.", soft_wrap=True
    )
    return 1 if wrong else 0


def _not_imported(error: Exception) -> Row:
    way = "mend the packages above; a file or a folder of that name may hide one"
    return _PACKAGE, "no import", f"{said(error)}: {way}"


def packages() -> Iterator[Row]:
    """Yields the versions of Python and of all packages, next to what is needed."""
    yield "Python", platform.python_version(), ""
    about = importlib.metadata.metadata(_PACKAGE)
    yield _PACKAGE, about["Version"], ""
    needed = [Requirement(text) for text in importlib.metadata.requires(_PACKAGE) or ()]
    modules: dict[str, list[str]] = {}
    for module, owners in importlib.metadata.packages_distributions().items():
        for owner in owners:
            modules.setdefault(canonicalize_name(owner), []).append(module)
    for requirement in needed:
        if requirement.marker is None:
            name = canonicalize_name(requirement.name)
            yield _package(requirement, modules.get(name, []))
    for extra in about.get_all("Provides-Extra") or ():
        own = [x for x in needed if x.marker and x.marker.evaluate({"extra": extra})]
        absent = [x.name for x in own if x.name != _PACKAGE and not _version(x.name)]
        found = "installed"
        if absent:
            found = f"without {', '.join(absent)}: pip install '{_PACKAGE}[{extra}]'"
        yield f"extra {extra}", found, ""


def _package(requirement: Requirement, modules: list[str]) -> Row:
    version = _version(requirement.name)
    wanted = f"{requirement.name}{requirement.specifier}"
    if version is None:
        return requirement.name, "missing", f"pip install '{wanted}'"
    found = f"{version} (needs {requirement.specifier})"
    fits = requirement.specifier.contains(version, prereleases=True)
    if not fits:
        return requirement.name, found, f"pip install '{wanted}'"
    try:
        for module in modules:
            importlib.import_module(module)
    except Exception as error:
        again = f"pip install --force-reinstall '{wanted}'"
        return requirement.name, found, f"no import: {said(error)}: {again}"
    return requirement.name, found, ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def said(error: Exception) -> str:
    """Returns an error in one line."""
    return ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))


def _show(console: Console, title: str, rows: Iterator[Row]) -> int:
    """Prints a table, and returns how many of its rows are wrong."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    with console.status(f"{title} ...") as status:
        wrong = 0
        for name, found, fault in rows:
            status.update(f"{title}: {name} done")
            wrong += bool(fault)
            shown = f"[red]{found}[/]: {_plain(fault)}" if fault else _plain(found)
            table.add_row(name, shown)
    console.print(table)
    return wrong


def _plain(text: str) -> str:
    """Returns text in which rich finds no markup."""
    return text.replace("[", r"\[")
