"""A new task costs one file and one line: no other code knows which tasks there are."""

import ast
from functools import cache
from pathlib import Path

import pytest

import kdray
from kdray.tasks.kinds import KINDS, TASKS
from kdray.tasks.task import Task
from tests.rooms import PACKAGE, modules, modules_imported

THE_LIST = PACKAGE / "tasks" / "kinds.py"
IMPORT_THE_DEFAULT = {PACKAGE / "sweep.py"}
"""They import the task of a sweep that names none."""


def file_of(task: type[Task]) -> Path:
    return PACKAGE.joinpath(*task.__module__.split(".")[1:]).with_suffix(".py")


@cache
def imports() -> dict[Path, set[Path]]:
    return {path: modules_imported(path) for path in modules()}


@pytest.mark.parametrize("task", TASKS)
def test_only_the_list_imports_a_task(task: type[Task]) -> None:
    importers = {path for path, imported in imports().items() if file_of(task) in imported}
    assert importers - (IMPORT_THE_DEFAULT if task is TASKS[0] else set()) == {THE_LIST}


def compares_kinds(code: str) -> bool:
    """Whether the code compares the name of a kind, or the attribute `kind` of a task, with something."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Compare | ast.match_case | ast.Match)]
    inner = [part for node in nodes for part in ast.walk(node.subject if isinstance(node, ast.Match) else node)]
    if any(isinstance(part, ast.Constant) and part.value in KINDS for part in inner):
        return True
    return any(isinstance(part, ast.Attribute) and ast.unparse(part).endswith("task.kind") for part in inner)


def test_no_code_outside_of_the_tasks_asks_which_task_it_is() -> None:
    asking = {path for path in modules() if compares_kinds(path.read_text())}
    assert {path.relative_to(PACKAGE).as_posix() for path in asking if path.parent != THE_LIST.parent} == set()


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("if task.kind == name: pass", True),
        ("x = 1 if 'regression' in names else 2", True),
        ("match sweep.task.kind:\n    case 'multi_label': pass", True),
        ("if source.kind == 'reviews': pass", False),
        ("print(f'(task.kind={task.kind})')", False),
    ],
)
def test_code_that_asks_for_the_task_is_found(code: str, is_found: bool) -> None:
    assert compares_kinds(code) == is_found


def test_every_task_has_a_kind_and_a_public_name() -> None:
    assert list(KINDS.values()) == list(TASKS)
    assert {task.__name__ for task in TASKS} <= set(kdray.__all__)
    assert Task.kinds == KINDS
