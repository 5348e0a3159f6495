"""The files, tests, links and settings that the documents name exist.

Each check is a function that returns the names in a text that it cannot find. The last tests show that each check finds
mistakes.
"""

import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from kdray import Data, Sweep, Teacher, Training
from kdray.settings import dotted_values
from kdray.sources.generated import generators
from kdray.tasks import kinds

ROOT = Path(__file__).parents[1]
USER_DOCUMENTS = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]
DOCUMENTS = [*USER_DOCUMENTS, "CONTRIBUTING.md", "SECURITY.md", "bench/README.md", "deploy/mlflow/README.md"]

FENCED_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
PATH = re.compile(r"(?<![\w./~-])(?:tests|bench|kdray|deploy|docs|sweeps)/[\w./*-]*")
TEST_FILE = re.compile(r"(?<![\w/])test_\w+\.py")
TEST_NAME = re.compile(r"(?:([\w/]+\.py)::)?(?<![\w/.])(test_\w+)(?!\w|\.py)")
"""The file, if it is given, and the name of a test; not the name of a test file."""
NAME_ENDING = re.compile(r"\.\.\.(\w+)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def read_document(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_spans(text: str) -> list[str]:
    """The texts in backticks, without those of fenced blocks. A span may contain line breaks, but no empty line."""
    paragraphs = re.split(r"\n\s*\n", FENCED_BLOCK.sub("", text))
    return [" ".join(span.split()) for paragraph in paragraphs for _, span in CODE_SPAN.findall(paragraph)]


@cache
def functions_by_file() -> dict[str, set[str]]:
    """Path of a test file -> the names of its test functions."""
    return {
        path.relative_to(ROOT).as_posix(): set(re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE))
        for path in ROOT.glob("tests/**/test_*.py")
    }


def missing_paths(text: str) -> list[str]:
    """The paths in backticks that do not exist. A test file may also be named without its folder."""
    spans = code_spans(text)
    paths = [path.rstrip(".") for span in spans for path in PATH.findall(span)]
    missing = [path for path in paths if not any(ROOT.glob(path))]
    files = {Path(path).name for path in functions_by_file()}
    return missing + [name for span in spans for name in TEST_FILE.findall(span) if name not in files]


def missing_tests(text: str) -> list[str]:
    """The test names in backticks that no test function has, or that the named file does not have.

    The id of a parametrised case is ignored. A name after `...` is the end of a test name.
    """
    missing = []
    for span in code_spans(text):
        for file, name in TEST_NAME.findall(span):
            if name not in functions_of(file):
                missing.append(f"{file}::{name}" if file else name)
        for ending in NAME_ENDING.findall(span):
            if not any(name.endswith(ending) for name in functions_of("")):
                missing.append(f"...{ending}")
    return missing


def functions_of(file: str) -> set[str]:
    """The test functions of the test files whose path ends with these parts; of all test files for an empty text."""
    chosen = [names for path, names in functions_by_file().items() if not file or f"/{path}".endswith(f"/{file}")]
    return set().union(*chosen)


def missing_link_targets(text: str, folder: Path) -> list[str]:
    """The relative links in a document of this folder whose file or heading does not exist."""
    missing = []
    for link in LINK.findall(FENCED_BLOCK.sub("", text)):
        target, _, anchor = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = folder / target
        # Without a target, the anchor is one of the document itself.
        has_heading = not anchor or (file.exists() and anchor in heading_anchors(file.read_text() if target else text))
        if not file.exists() or not has_heading:
            missing.append(link)
    return missing


def heading_anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    counts: dict[str, int] = defaultdict(int)
    anchors = set()
    for heading in HEADING.findall(FENCED_BLOCK.sub("", text)):
        anchor = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        anchors.add(f"{anchor}-{counts[anchor]}" if counts[anchor] else anchor)
        counts[anchor] += 1
    return anchors


@cache
def setting_names() -> set[str]:
    """The dotted names of all settings of a sweep and of all groups of settings."""
    # The optional parts are given, because a part that is None has no settings.
    teacher = Teacher(model="folder", training=Training())
    sweep = Sweep(name="example", data=Data(source="folder"), teacher=teacher, space={"student.depth": [1]})
    tasks = [{"task.kind": kind} for kind in kinds.KINDS]
    sources = [{"data.source": {"kind": kind}} for kind in generators.KINDS]
    names = {name for changes in (*tasks, *sources) for name in dotted_values(sweep.with_changes(changes))}
    return names | {name[: dot.start()] for name in names for dot in re.finditer(r"\.", name)}


def unknown_settings(text: str) -> list[str]:
    """The names in backticks that begin with a group of settings and a dot, but are no setting of a sweep.

    A file name such as teacher.json is not meant. `space.NAME` is the domain of the setting NAME.
    """
    groups = {name.partition(".")[0] for name in setting_names() if "." in name}
    pattern = re.compile(rf"(?<![\w./])(?:space\.)?((?:{'|'.join(sorted(groups))})\.[a-z]\w*(?:\.[a-z]\w*)*)")
    names = [name for span in code_spans(text) for name in pattern.findall(span)]
    return [name for name in names if name not in setting_names() and not name.endswith(".json")]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_paths_in_the_documents_exist(name: str) -> None:
    assert missing_paths(read_document(name)) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_tests_in_the_documents_exist(name: str) -> None:
    assert missing_tests(read_document(name)) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_targets_of_the_links_in_the_documents_exist(name: str) -> None:
    assert missing_link_targets(read_document(name), (ROOT / name).parent) == []


# CONTRIBUTING.md also names attributes that are no settings, such as task.quality.
@pytest.mark.parametrize("name", USER_DOCUMENTS)
def test_the_settings_in_the_documents_exist(name: str) -> None:
    assert unknown_settings(read_document(name)) == []


def test_a_missing_path_is_found() -> None:
    text = "`tests/test_docs.py::x`, `docs/*.md`, `deploy/mlflow/`, `s3://kdray/none`, ~/kdray/none, `test_docs.py`"
    assert missing_paths(text) == []
    text = "`kdray run sweeps/none.py`, `docs/*.none`, `test_none.py`, ``tests/none.py::`x` ``"
    assert missing_paths(text) == ["sweeps/none.py", "docs/*.none", "tests/none.py", "test_none.py"]


def test_a_missing_test_is_found() -> None:
    known = "test_a_missing_test_is_found"
    text = f"`{known}[case]`, `..._test_is_found`, `...missing_test_is_found[case]`, `test_docs.py::{known}`"
    assert missing_tests(text) == []
    missing = [f"{known}s", f"tests/test_sweep.py::{known}", f"test_sweep.py::{known}", "..._is_never_found"]
    assert missing_tests(", ".join(f"`{name}[case]`" for name in missing)) == missing


def test_a_missing_link_target_is_found() -> None:
    text = "## One `thing`: here\n[a](#one-thing-here) [b](../README.md#start) [c](https://example.com/none)\n"
    assert missing_link_targets(text, ROOT / "docs") == []
    text = "[a](#none) ![b](none.png) [c](../README.md#none)"
    assert missing_link_targets(text, ROOT / "docs") == ["#none", "none.png", "../README.md#none"]


def test_an_unknown_setting_is_found() -> None:
    text = '`search.trials`, `--set\nteacher.training.epochs=2`, `slots.count="auto"`, `tracking.*`, `teacher.json`'
    assert unknown_settings(text) == []
    text = "`search.trails`, `--set space.student.dept=[1]`, `teacher.training.epoch`, `choose.smallest`"
    assert unknown_settings(text) == ["search.trails", "student.dept", "teacher.training.epoch"]
