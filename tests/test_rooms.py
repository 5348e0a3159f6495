"""Imports run one way between the rooms of kdray, and each outside system is imported in few rooms only."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.rooms import ORDER, PACKAGE, circles, drawing, imported_names, modules, modules_imported, room_of, rooms

WITHOUT_RAY = ORDER[: ORDER.index("search")]
"""What these rooms do runs on a machine that has torch and transformers only."""

RAY_MODULES = {
    "slots": {
        "board",
        "client",
        "cluster",
        "local_ray",
        "process_group",
        "ray_internals",
        "ray_slots",
        "serving",
        "worker_processes",
    }
}
"""The modules of these rooms that need Ray all the same; no job imports them."""

MAY_IMPORT = {
    "ray": {"slots", "search"},
    "ray.train": {"slots"},
    "ray.tune": {"search"},
    "optuna": {"search", "sweep"},
    "mlflow": {"tracking"},
}
"""An outside system -> the rooms that may import it."""

MOST_LINES = 400


@pytest.mark.parametrize("name", ORDER)
def test_a_room_imports_only_rooms_before_it(name: str) -> None:
    later = {other for other in rooms()[name].imports if ORDER.index(other) >= ORDER.index(name)}
    assert not later, f"{name} imports {later}, which stand after it in the order of the rooms"


@pytest.mark.parametrize("name", ORDER)
def test_outside_systems_are_imported_in_few_rooms(name: str) -> None:
    for path in modules():
        if room_of(path) == name:
            for library, allowed in MAY_IMPORT.items():
                found = [each for each in imported_names(path) if each == library or each.startswith(f"{library}.")]
                assert not found or name in allowed, f"{path} imports {found}"


def test_every_room_has_a_place_in_the_order() -> None:
    assert sorted(rooms()) == sorted(ORDER)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles({str(path): {str(each) for each in modules_imported(path)} for path in modules()}) == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", [name for name in ORDER if (PACKAGE / name).is_dir()])
def test_the_docstring_of_a_room_lists_its_files(name: str) -> None:
    text = (PACKAGE / name / "__init__.py").read_text()
    for path in (PACKAGE / name).glob("[!_]*.py"):
        assert f"`{path.stem}`" in text, f"kdray/{name}/__init__.py does not list {path.name}"


def test_the_rooms_can_be_drawn() -> None:
    assert "no circle" in drawing()


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


def test_jobs_import_without_ray() -> None:
    needed = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in modules()
        if room_of(path) in WITHOUT_RAY and path.stem not in RAY_MODULES.get(room_of(path), ())
    ]
    import_all = "; ".join(f"import {module.removesuffix('.__init__')}" for module in needed)
    check = "import sys; bad = {'ray', 'optuna', 'mlflow'} & set(sys.modules); assert not bad, bad"
    script = f"{import_all}\n{check}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
