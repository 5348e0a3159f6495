"""The files in sweeps/: each is valid, and the commands in its docstring read its data as published."""

import re
import runpy
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kdray.data.splits import load_splits
from kdray.settings import parse_value
from kdray.sweep import Sweep

FILES = {path.stem: path for path in sorted((Path(__file__).parents[1] / "sweeps").glob("*.py"))}
FOLDER = "DIR"
"""What the commands call a folder of the user."""
JOINED_LINES = re.compile(r"\$\(paste -sd, ([^)]+)\)")
"""The shell's way to write the lines of a file with commas between them."""


@pytest.fixture(params=FILES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def read_sweep(name: str) -> tuple[Sweep, str]:
    """The sweep in this file, and the docstring of the file."""
    values = runpy.run_path(str(FILES[name]))
    return values["sweep"], values["__doc__"]


def commands(docstring: str) -> list[list[str]]:
    """The words of each command: the lines with four spaces in front, where a backslash continues a line."""
    lines = re.findall(r"^    (\S.*)$", docstring.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def changes_of(command: list[str]) -> dict[str, Any]:
    """Name -> value, of the --set options of a command."""
    settings = [word for option, word in pairwise(command) if option == "--set"]
    return {name: parse_value(value) for name, _, value in (setting.partition("=") for setting in settings)}


def local_command(name: str, folder: Path) -> tuple[Sweep, dict[str, Any]]:
    """The sweep, and the changes of the command for local folders, with this folder in the place of `FOLDER`."""
    sweep, docstring = read_sweep(name)
    (command,) = (command for command in commands(docstring) if any("data.source" in word for word in command))
    words = [re.sub(rf"\b{FOLDER}\b", str(folder), word) for word in command]
    return sweep, changes_of([JOINED_LINES.sub(lambda file: join_lines(file[1]), word) for word in words])


def join_lines(file: str) -> str:
    return ",".join(Path(file).read_text().split())


def test_a_file_has_a_sweep_of_its_name(name: str) -> None:
    sweep, _ = read_sweep(name)
    assert sweep.name == name
    assert sweep.search.objectives[0] == sweep.choose.best == sweep.task.quality.name


def test_a_smoke_copy_is_smaller(name: str) -> None:
    sweep, _ = read_sweep(name)
    small = sweep.smoke_copy()
    assert small.name == f"{name}-smoke"
    assert (small.search.trials or 99) < (sweep.search.trials or 0)
    assert (small.slots.count, small.confirm.candidates, small.confirm.seeds) == (1, 1, 1)
    # After a step or two, a teacher is hardly better than chance.
    assert small.teacher.above_chance == 0


def test_the_commands_of_a_docstring_name_the_file_and_existing_settings(name: str) -> None:
    sweep, docstring = read_sweep(name)
    found = commands(docstring)
    assert found[0] == ["kdray", "run", f"sweeps/{name}.py"]
    for command in found:
        assert f"sweeps/{name}.py" in command
        sweep.smoke_copy().with_changes(changes_of(command))


# The data as they are published: a few rows in files with the same names and the same form.


def write_sst2(folder: Path) -> None:
    for split in ("train", "dev", "test"):
        (folder / f"{split}.tsv").write_text(f'a "warm" film of {split}\t1\nno film of {split}\t0\nok {split}\t1\n')


def write_wnut17(folder: Path) -> None:
    names = ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")
    for number, name in enumerate(names):
        words = f"Empire\tB-location\nState\tI-location\n{number}\tO\n\t\n@paul\tO\nis\tO\n{number}\tO\n\n"
        (folder / name).write_text(words + "Ann\tB-person\n\n" * number)
    (folder / names[0]).write_text((folder / names[0]).read_text() + "Bob\tB-person\n")


def write_goemotions(folder: Path) -> None:
    (folder / "labels.txt").write_text("joy\nlove\nneutral\n")
    for split in ("train", "dev", "test"):
        rows = f'"Good" {split}.\t0,1\ta1\nSo {split}\t2\tb2\nLovely {split}\t1\tc3\n'
        (folder / f"{split}.tsv").write_text(rows)


def write_stsb(folder: Path) -> None:
    for split in ("train", "dev", "test"):
        start = f"main\tMSR\t2012\t000{len(split)}"
        rows = [f'{start}\t2.200\t"Leave {split}.\tStay.', f'{start}\t5.000\tA {split}.\tOne "{split}".\tx\thttp://y']
        (folder / f"sts-{split}.csv").write_text("\n".join([*rows, f"{start}\t0.0\tA.\tB {split}.", ""]))


WRITERS: dict[str, Callable[[Path], None]] = {
    "sst2": write_sst2,
    "wnut17": write_wnut17,
    "goemotions": write_goemotions,
    "stsb": write_stsb,
}


@pytest.mark.parametrize(
    ("name", "labels", "rows_of_test", "text", "label"),
    [
        ("sst2", ("0", "1"), 3, 'a "warm" film of train', 1),
        ("goemotions", ("joy", "love", "neutral"), 3, '"Good" train.', [0, 1]),
        ("stsb", (), 3, '"Leave train.', 2.2),
        (
            "wnut17",
            ("O", "B-location", "I-location", "B-person", "I-person"),
            4,
            ["Empire", "State", "0"],
            [1, 2, 0],
        ),
    ],
)
def test_the_command_for_local_folders_reads_the_published_files(
    name: str,
    labels: tuple[str, ...],
    rows_of_test: int,
    text: Any,
    label: Any,
    tmp_path: Path,
) -> None:
    WRITERS[name](tmp_path)
    sweep, changes = local_command(name, tmp_path)
    assert changes["teacher.model"] == str(tmp_path)
    changed = sweep.with_changes(changes)
    splits = load_splits(changed.data, changed.task)
    assert splits.labels == labels
    assert [len(rows) for rows in (splits.train, splits.validation, splits.test)] == [3, 3, rows_of_test]
    first = next(iter(splits.train))
    assert (first["text"], first["label"]) == (text, label)
