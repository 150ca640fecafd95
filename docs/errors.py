"""Lists every error of the library: `python docs/errors.py`.

With a folder, as `pytest --raises=FOLDER` fills it, it lists those that no test raised,
and fails if there are any.
"""

import ast
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from hwtrain._errors import page_of

ROOT = Path(__file__).parents[1]
ROOMS = {
    "cli": "The command line",
    "train": "Configurations, training",
    "_plan": "Rules and plans",
    "_flax": "Models and layers",
    "sockets": "Layers of your own",
    "_parts": "Parts of your own",
    "weights": "Weights",
    "periphery": "Reads",
    "devices": "Devices",
    "chips": "Chips",
    "presets": "Presets",
    "optim": "Optimisation",
    "objectives": "Robust objectives",
    "evaluate": "Evaluation",
    "checkpoint": "Checkpoints",
    "dynapse": "Mixed signal",
    "_arrays": "Arrays and randomness",
}
"""By sub-package, what it is about."""


@dataclasses.dataclass(frozen=True)
class Raised:
    """A place that raises.

    Attributes:
      file: path from the root.
      lines: its first and last line.
      kind: the exception's class, or the function that makes it.
      message: the text, with … for what differs.
      here: whether it is raised here, and not by who calls the function here.
    """

    file: str
    lines: tuple[int, int]
    kind: str
    message: str
    here: bool


def text_of(node: ast.AST) -> str:
    """Returns a text, with … for what is computed."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(text_of, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
        case ast.IfExp(body=body, orelse=other):
            return f"{text_of(body)} | {text_of(other)}"
    return "…"


def name_of(node: ast.AST) -> str:
    """Returns the name of what is called."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def raised() -> Iterator[Raised]:
    """Yields every place that raises, in the order of the files."""
    for path in sorted((ROOT / "hwtrain").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                call = node.exc
            elif isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
                call = node.value  # of a function that makes an error
                if not name_of(call.func).endswith("Error"):
                    continue
            else:
                continue
            message = max((text_of(x) for x in call.args), key=len, default="…")
            yield Raised(
                str(path.relative_to(ROOT)),
                (node.lineno, node.end_lineno or node.lineno),
                name_of(call.func),
                " ".join(message.split()),
                isinstance(node, ast.Raise),
            )


def page() -> str:
    """Returns the list, as Markdown."""
    found = list(raised())
    parts = []
    for room, title in ROOMS.items():
        about = page_of(f"hwtrain.{room}").removeprefix("docs/")
        own = [x for x in found if x.file.split("/")[1].removesuffix(".py") == room]
        texts = {x.message for x in own if x.message.strip("… |") != ""}
        if texts:
            rows = "\n".join(f"- {text}" for text in sorted(map(_escaped, texts)))
            parts.append(f"## {title}\n\nRead [{about}]({about}).\n\n{rows}\n")
    return "\n".join(parts)


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>()#+-!|$~" else c for c in text)


def not_raised(folder: Path) -> list[Raised]:
    """Returns the places that no test reached.

    Args:
      folder: that of `pytest --raises`.
    """
    seen: dict[str, set[int]] = {}
    for path in folder.glob("*.json"):
        for file, lines in json.loads(path.read_text("utf-8")).items():
            seen.setdefault(file, set()).update(lines)
    return [
        x
        for x in raised()
        if x.here
        and not seen.get(x.file, set()) & set(range(x.lines[0], x.lines[1] + 1))
    ]


if __name__ == "__main__":
    if not sys.argv[1:]:
        print(page())
        sys.exit()
    left = not_raised(Path(sys.argv[1]))
    for place in left:
        print(f"{place.file}:{place.lines[0]}: {place.kind}: {place.message[:90]}")
    there = sum(place.here for place in raised())
    print(f"{len(left)} of {there} places were not reached")
    sys.exit(bool(left))
