"""The files in sweeps/: each is valid, and the commands in its docstring read its data as published."""

import json
import re
import runpy
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from kdray.data.splits import load_splits
from kdray.models.fresh import word_tokenizer
from kdray.run import RunOptions, run
from kdray.settings import parse_value
from kdray.stages.shipping import Outcome
from kdray.storage.paths import SweepPaths
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
        (file,) = (word for word in command if word.startswith("sweeps/"))
        other, _ = (sweep, "") if file == f"sweeps/{name}.py" else read_sweep(Path(file).stem)
        other.smoke_copy().with_changes(changes_of(command))
    assert any(f"sweeps/{name}.py" in command for command in found)


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


# The two sweeps of language models, and the sweep that begins with the student of one of them, on tiny models ---------

WORDS = ("a", "dog", "runs", "home", ",", "the", "cat", "sleeps", "there", "and", "no", "film", "is", "as", "warm")
DOCUMENTS = [" ".join(WORDS[(row % 2 + place) % len(WORDS)] for place in range(12 + row)) for row in range(40)]
TINY = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


def write_documents(folder: Path) -> None:
    for split, texts in {"train": DOCUMENTS[:24], "validation": DOCUMENTS[24:32], "test": DOCUMENTS[32:]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def save_language_model(folder: Path, *, is_causal: bool) -> None:
    """A tiny BERT of six layers, or a tiny Llama of fifteen, with a tokenizer of the words of `DOCUMENTS`."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(DOCUMENTS, 60, 64, is_causal)
    sizes = {
        **TINY,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }
    if is_causal:
        config = LlamaConfig(**sizes, num_hidden_layers=15, bos_token_id=2, eos_token_id=3)
        LlamaForCausalLM(config).save_pretrained(folder)
    else:
        BertForMaskedLM(BertConfig(**sizes, num_hidden_layers=6)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_smoke(name: str, folder: Path, **changes: Any) -> Outcome:
    """Run the smoke copy of a sweep with the changes of its command for local folders, all of them in `folder`."""
    sweep, local = local_command(name, folder)
    quick: dict[str, Any] = {"latency.warmup": 1, "latency.repeats": 3, "tracking.enabled": False}
    changed = sweep.smoke_copy().with_changes({**local, **quick, **changes})
    return run(changed, SweepPaths(folder / "results", name), RunOptions(local=True))


@pytest.fixture
def untrained_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept teachers with random weights, whose perplexity is that of chance or worse: training one takes minutes."""
    monkeypatch.setattr("kdray.stages.teaching.check_quality", lambda *arguments, **named: None)


@pytest.mark.usefixtures("untrained_teachers")
# The test below runs the smoke copy of general, too.
@pytest.mark.parametrize("name", [pytest.param("general", marks=pytest.mark.slow), "smollm"])
def test_the_smoke_copy_of_a_language_model_runs_on_local_folders(name: str, tmp_path: Path) -> None:
    write_documents(tmp_path)
    save_language_model(tmp_path, is_causal=name == "smollm")
    outcome = run_smoke(name, tmp_path)
    assert [record.state for record in outcome.figures.records] == ["completed", "completed"]
    assert outcome.figures.quality == "perplexity"
    (sentence,) = (each for each in outcome.figures.sentences if each.startswith("Due to distillation"))
    assert "the same student trained without the teacher" in sentence
    assert (outcome.paths.chosen / "model.safetensors").is_file()


@pytest.mark.usefixtures("untrained_teachers")
def test_the_student_of_general_begins_the_sweep_of_a_task_as_documented(tmp_path: Path) -> None:
    write_documents(tmp_path)
    save_language_model(tmp_path, is_causal=False)
    general = run_smoke("general", tmp_path)
    _, docstring = read_sweep("general")
    (command,) = (command for command in commands(docstring) if "sweeps/sst2.py" in command)
    assert changes_of(command) == {"student.checkpoint": "results/general/chosen"}
    layers = AutoModelForMaskedLM.from_pretrained(general.paths.chosen).config.num_hidden_layers

    reviews = tmp_path / "reviews"
    reviews.mkdir()
    for split in ("train", "dev", "test"):
        rows = [f"{DOCUMENTS[row]} {split}\t{row % 2}\n" for row in range(40)]
        (reviews / f"{split}.tsv").write_text("".join(rows))
    changes = {"data.source": str(reviews), "student.checkpoint": str(general.paths.chosen)}
    outcome = run_smoke("sst2", tmp_path, **changes, **{"student.depth": layers, "latency.length": 32})
    assert [record.state for record in outcome.figures.records] == ["completed", "completed"]
    assert outcome.figures.quality == "accuracy"
