"""Imports point one way, and what must not meet does not."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hwtrain"

# Each part may import those of earlier lines, and its own.
LAYERS = [
    {"version", "paths", "lazy"},
    {"physics"},
    {"hardware"},
    {"plan"},
    {"clip_bounds"},
    {"crossbar", "conductances"},
    {"chips", "mismatch", "optim"},
    {"programming"},
    {"transforms"},
    {"objectives"},
    {"dynapse"},
    {"checkpoint"},
    {"evaluate"},
    {"training"},
    {"cli"},
    {"__main__", "__init__"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
PHYSICS_MAY_IMPORT = {"jax", "numpy", "chex"}


def imports(file):
    """Yields the modules that a file imports, `from a import b` as `a` and `a.b`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    part = part_of(file)
    assert part in RANK, f"{part} is in no layer; see LAYERS"
    for module in imports(file):
        package, _, rest = module.partition(".")
        if package != "hwtrain":
            continue
        other = rest.partition(".")[0]
        # A bare name, as in `from hwtrain import analogize`, is for users only.
        other = other if other in RANK else "__init__"
        assert other == part or RANK[other] < RANK[part], f"{part} imports {module}"


@pytest.mark.parametrize(
    "file",
    sorted((PACKAGE / "physics").rglob("*.py")),
    ids=lambda file: file.stem,
)
def test_physics_imports_arrays_only(file):
    standard = {"collections", "functools", "hashlib", "math", "typing", "dataclasses"}
    for module in imports(file):
        package = module.partition(".")[0]
        inside = module.startswith("hwtrain.physics")
        assert inside or package in PHYSICS_MAY_IMPORT | standard, module


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_linen_and_nnx_do_not_meet(file):
    names = {*file.relative_to(PACKAGE).parts[:-1], file.stem}
    for mine, other in (("linen", "nnx"), ("nnx", "linen")):
        if mine in names:
            for module in imports(file):
                assert other not in module.split("."), f"{file} imports {module}"


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.py")))
def test_recipes_import_the_public_package_only(file):
    for module in imports(file):
        parts = module.split(".")
        assert parts[0] != "recipes"
        assert parts[0] != "hwtrain" or len(parts) <= 2, module


def test_nothing_imports_recipes():
    for file in FILES:
        assert not any(module.startswith("recipes") for module in imports(file)), file
