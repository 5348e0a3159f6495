"""Imports run one way: the order of the parts, and who may import which outside library, are held here."""

import ast
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kdray"

ORDER = [
    "errors", "interrupts", "settings", "worker", "record", "bucket", "mirror", "paths", "checkpoint", "generated",
    "space", "pareto", "confusion", "statistics", "tasks", "tokens", "sources", "cells", "data", "pretrained",
    "students", "losses", "evaluation", "measuring", "training", "teacher", "transfer", "costs", "trial", "slots",
    "search", "wording", "owner", "records", "claim", "tracking", "choice", "champion", "confirmation", "screen",
    "report", "export", "prediction", "sweep", "comparable", "keeper", "confirming", "outcome", "registering", "run",
    "finished", "cli",
    "__init__",
]  # fmt: skip
"""Each part may import those before it; modules of one part (a folder) may import each other."""

WITHOUT_RAY = ORDER[: ORDER.index("slots")]
MAY_IMPORT = {
    "ray": {"space", "slots", "search"},
    "ray.train": {"slots"},
    "ray.tune": {"space", "search"},
    "optuna": {"space", "search", "sweep"},
    "mlflow": {"claim", "tracking"},
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_parts_that_stand_lower(path: Path) -> None:
    own = part_of(path)
    others = {name.split(".")[1] for name in imported(path) if name.startswith("kdray.")} - {own}
    higher = {other for other in others if ORDER.index(other) >= ORDER.index(own)}
    assert not higher, f"{path.name} imports {higher}, which stand above {own}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_outside_systems_have_one_door_each(path: Path) -> None:
    names = imported(path)
    for library, parts in MAY_IMPORT.items():
        if any(name == library or name.startswith(f"{library}.") for name in names):
            assert part_of(path) in parts, f"{path.name} imports {library}"


def test_every_part_has_a_place_in_the_order() -> None:
    assert {part_of(path) for path in MODULES} == set(ORDER)
    assert all(a != b for a, b in pairwise(sorted(ORDER)))


def test_training_imports_without_ray() -> None:
    """What trains and measures runs on a machine that has torch and transformers only."""
    import_all = "; ".join(f"import kdray.{part}" for part in WITHOUT_RAY if part not in ("space",))
    check = "import sys; bad = {'ray', 'optuna', 'mlflow'} & set(sys.modules); assert not bad, bad"
    script = f"{import_all}\n{check}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
