"""Draws the rooms of kdray: what each of them answers, how large it is, and which rooms it imports.

    python -m tests.rooms [FOLDER_OF_THE_PACKAGE]

A room is a folder of the package, or a module that lies beside them. `test_rooms` holds the order of the rooms.
"""

import ast
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "kdray"

ORDER = [
    "safe_text",
    "errors",
    "settings",
    "storage",
    "slots",
    "sources",
    "data",
    "losses",
    "tasks",
    "vocabulary",
    "networks",
    "models",
    "students",
    "augmentation",
    "forms",
    "evaluation",
    "training",
    "teacher",
    "search",
    "choice",
    "tracking",
    "report",
    "export",
    "sweep",
    "stages",
    "run",
    "cli",
]
"""Each room may import the rooms before it; the modules of one room may import each other."""


@dataclass
class Room:
    """A part of the package."""

    name: str
    answer: str = ""
    """The first sentence of its docstring."""
    files: int = 0
    lines: int = 0
    imports: set[str] = field(default_factory=set)
    """The other rooms that its modules import."""


def modules(package: Path = PACKAGE) -> list[Path]:
    """Every module of the package but the list of public names."""
    return [path for path in sorted(package.rglob("*.py")) if path != package / "__init__.py"]


def room_of(path: Path, package: Path = PACKAGE) -> str:
    """The name of the room that a module belongs to."""
    relative = path.relative_to(package)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_names(path: Path) -> set[str]:
    """Everything that a module imports, by dotted name; of `from a import b` both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules_imported(path: Path, package: Path = PACKAGE) -> set[Path]:
    """The modules of the package that a module imports."""
    found = set()
    for name in imported_names(path):
        head, *rest = name.split(".")
        module = package.joinpath(*rest)
        if head == package.name and rest:
            found |= {each for each in (module.with_suffix(".py"), module / "__init__.py") if each.exists()}
    return found - {path}


@cache
def rooms(package: Path = PACKAGE) -> dict[str, Room]:
    """The rooms by name."""
    found: dict[str, Room] = {}
    for path in modules(package):
        room = found.setdefault(room_of(path, package), Room(room_of(path, package)))
        room.files += 1
        room.lines += len(path.read_text().splitlines())
        if path.name == "__init__.py" or path.parent == package:
            room.answer = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        room.imports |= {room_of(each, package) for each in modules_imported(path, package)} - {room.name}
    return found


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """The groups of names that reach each other by the arrows: strongly connected components of two or more."""

    def reached(start: str) -> set[str]:
        seen, waiting = set[str](), [start]
        while waiting:
            new = arrows.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    all_reached = {name: reached(name) for name in arrows}
    found: list[set[str]] = []
    for name in arrows:
        group = {other for other in all_reached[name] if name in all_reached.get(other, set())}
        if len(group) > 1 and group not in found:
            found.append(group)
    return found


def drawing(package: Path = PACKAGE) -> str:
    """The rooms in their order, each with its size, its answer, and the rooms that it imports."""
    all_rooms = rooms(package)
    names = [name for name in ORDER if name in all_rooms]
    names += sorted(all_rooms.keys() - set(names))
    lines = []
    for number, name in enumerate(names, 1):
        room = all_rooms[name]
        lines.append(f"{number:2}  {name:<12} {room.files:3} files {room.lines:5} lines  {room.answer}")
        lines.append(f"    {'':<12} imports {', '.join(sorted(room.imports, key=names.index)) or 'nothing'}")
    arrows = sum(len(room.imports) for room in all_rooms.values())
    between_files = sum(len(modules_imported(path, package)) for path in modules(package))
    return "\n".join(
        [
            *lines,
            "",
            f"{len(names)} rooms, {arrows} arrows between them; {_circles(all_rooms.values())}",
            f"{len(modules(package))} files, {between_files} arrows between them",
        ]
    )


def _circles(all_rooms: Iterable[Room]) -> str:
    found = circles({room.name: room.imports for room in all_rooms})
    return "no circle" if not found else "circles: " + "; ".join(", ".join(sorted(group)) for group in found)


if __name__ == "__main__":
    print(drawing(Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else PACKAGE))
