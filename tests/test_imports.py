"""Imports point one way, and separated modules do not import each other."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hwtrain"

# Each part may import those of earlier lines, and its own.
LAYERS = [
    {"_version", "_lazy", "_memory", "_errors"},
    {"_arrays"},
    {"_parts"},
    {"devices", "weights", "periphery"},
    {"_plan"},
    {"chips", "sockets"},
    {"_flax"},
    {"optim", "objectives", "dynapse"},
    {"presets"},
    {"checkpoint"},
    {"evaluate"},
    {"train"},
    {"cli"},
    {"__main__", "__init__"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
ARRAYS_MAY_IMPORT = {"jax", "numpy", "chex"}


@functools.cache
def imports(file):
    """Returns the modules that a file imports, `from a import b` as `a` and `a.b`."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def part_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_file_is_in_a_layer():
    # Nor is the walk empty, which would find nothing wrong.
    assert len(FILES) > 100
    assert {part_of(file) for file in FILES} == set(RANK), "see LAYERS"


def test_imports_point_one_way():
    wrong = []
    for file in FILES:
        part = part_of(file)
        for module in imports(file):
            package, _, rest = module.partition(".")
            if package != "hwtrain":
                continue
            other = rest.partition(".")[0]
            # A bare name, as in `from hwtrain import analogize`, is for users only.
            other = other if other in RANK else "__init__"
            if other != part and RANK[other] >= RANK[part]:
                wrong.append(f"{file}: {part} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_arrays_know_no_hardware():
    standard = {"collections", "functools", "hashlib", "math", "sys", "typing"}
    standard |= {"contextlib", "dataclasses", "itertools", "json"}
    allowed = ARRAYS_MAY_IMPORT | standard
    wrong = [
        f"{file} imports {module}"
        for file in FILES
        if part_of(file) == "_arrays"
        for module in imports(file)
        if not module.startswith(("hwtrain._arrays", "hwtrain._errors"))
        and module.partition(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_linen_and_nnx_do_not_meet():
    wrong = []
    for file in FILES:
        names = {*file.relative_to(PACKAGE).parts[:-1], file.stem}
        for mine, other in (("linen", "nnx"), ("nnx", "linen")):
            if mine in names:
                wrong += [
                    f"{file} imports {module}"
                    for module in imports(file)
                    if other in module.split(".")
                ]
    assert not wrong, "\n".join(wrong)


def test_recipes_import_the_public_package_only():
    recipes = sorted((ROOT / "recipes").glob("*.py"))
    assert recipes
    for file in recipes:
        for module in imports(file):
            parts = module.split(".")
            assert parts[0] != "recipes", file
            assert parts[0] != "hwtrain" or len(parts) <= 2, f"{file}: {module}"


def test_nothing_imports_recipes():
    for file in FILES:
        assert not any(module.startswith("recipes") for module in imports(file)), file
