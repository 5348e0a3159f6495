"""A complete sweep, on slots in this process: its results, its continuation, and the mistakes that it refuses."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from kdray.choice.rule import Choose
from kdray.data.splits import Data
from kdray.errors import DataError, Refused, ResourceError, SpecError, StorageError, SweepFailed, TeacherError
from kdray.evaluation.trial_record import TrialRecord
from kdray.models.pretrained import Pretrained, save_model
from kdray.report.screen import NullScreen
from kdray.run import RunOptions, run
from kdray.search.settings import Search, at_most
from kdray.search.stopping import Halving
from kdray.slots.pool import SlotSettings
from kdray.stages.reading import read_figures
from kdray.stages.shipping import Outcome
from kdray.storage.owner import own_sweep
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.teacher import Teacher
from kdray.tracking.settings import Tracking
from kdray.training.settings import Training
from tests.conftest import TINY

MakeSweep = Callable[..., Sweep]
CLOCK_METRICS = ("examples_per_s", "train_seconds", "eval_seconds")
ONE_THREAD = SlotSettings(cpus=1)


@pytest.fixture
def run_tiny(make_sweep: MakeSweep, tmp_path: Path) -> Callable[..., Outcome]:
    """A function that runs the tiny sweep in the storage of this test; its arguments replace fields of the sweep."""

    def run_sweep(storage: Path = tmp_path, fresh: bool = False, **fields: Any) -> Outcome:
        sweep = make_sweep(**{"slots": ONE_THREAD} | fields)
        return run(sweep, SweepPaths(storage, sweep.name), RunOptions(fresh=fresh, local=True))

    return run_sweep


@pytest.fixture(scope="module")
def finished(make_sweep: MakeSweep, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The outcome of a finished sweep. Read it only."""
    sweep = make_sweep(slots=ONE_THREAD)
    return run(sweep, SweepPaths(tmp_path_factory.mktemp("finished"), "tiny"), RunOptions(local=True))


@pytest.fixture
def storage_copy(finished: Outcome, tmp_path: Path) -> Path:
    """A copy of the finished sweep's storage, which a test may change."""
    return Path(shutil.copytree(finished.paths.storage, tmp_path / "storage"))


class NoteScreen(NullScreen):
    """A screen that stores the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Store the note."""
        self.notes.append(text)


def without_clock_metrics(records: Sequence[TrialRecord]) -> list[Any]:
    """The rows of the table, without the values that depend on the clock."""
    return [
        (
            record.number,
            record.params,
            record.state,
            record.error,
            record.costs["parameters"],
            [{name: value for name, value in row.items() if name not in CLOCK_METRICS} for row in record.history],
        )
        for record in records
    ]


def modification_times(folder: Path) -> dict[str, int]:
    """The modification time of every file below the folder, in nanoseconds."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# Results --------------------------------------------------------------------------------------------------------------


def test_a_sweep_chooses_a_student(finished: Outcome) -> None:
    figures, paths = finished.figures, finished.paths
    assert finished.exit_code == 0
    assert [record.state for record in figures.records] == ["completed"] * 3
    assert figures.chosen in {record.number for record in figures.records}
    assert figures.teacher["accuracy"] > 0.7
    assert {record.params["student.depth"] for record in figures.records} <= {1, 2}
    assert f"Trial {figures.chosen}" in figures.sentences[0] or f"trial {figures.chosen}" in figures.sentences[0]
    assert "48 test rows, which were not used to choose it" in figures.sentences[1]
    assert {path.name for path in paths.report.iterdir()} >= {"results.csv", "report.md", "front.png", "report.html"}
    trials_on_disk = {int(path.name) for path in (paths.root / "trials").iterdir()}
    assert set(figures.front) <= trials_on_disk
    assert not list(paths.root.rglob("checkpoint*"))
    assert "16 tokens each, 1 thread, float32" in figures.conditions
    assert figures.conditions in (paths.report / "report.md").read_text()


def test_the_chosen_student_needs_no_kdray(finished: Outcome, data_folder: Path) -> None:
    """transformers alone loads it, and gives exactly the recorded accuracy."""
    script = f"""
import csv, json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained({str(finished.paths.chosen)!r}).eval()
tokenizer = AutoTokenizer.from_pretrained({str(finished.paths.chosen)!r})
rows = list(csv.DictReader(open({str(data_folder / "dev.csv")!r})))
right = 0
for row in rows:
    inputs = tokenizer(row["text"], truncation=True, max_length=16, return_tensors="pt")
    with torch.inference_mode():
        answer = int(model(**inputs).logits.argmax())
    right += model.config.id2label[answer] == row["label"]
assert "kdray" not in sys.modules
print(json.dumps(right / len(rows)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (record,) = (record for record in finished.figures.records if record.number == finished.figures.chosen)
    measured = json.loads(finished.paths.choice.read_text())["measured"]["validation"]["accuracy"]
    assert json.loads(done.stdout) == record.metrics["accuracy"] == measured


def test_ray_gives_the_same_results(finished: Outcome, make_sweep: MakeSweep, tmp_path: Path) -> None:
    """One slot with one CPU: the same seed gives the same table, and the same student to the last bit."""
    sweep = make_sweep(slots=SlotSettings(count=1, cpus=1))
    outcome = run(sweep, SweepPaths(tmp_path, "tiny"))
    assert without_clock_metrics(outcome.figures.records) == without_clock_metrics(finished.figures.records)
    front = set(outcome.figures.front) & set(finished.figures.front)
    weights = [
        [paths.student(number) / "model.safetensors" for number in sorted(front)]
        for paths in (outcome.paths, finished.paths)
    ]
    assert [file.read_bytes() for file in weights[0]] == [file.read_bytes() for file in weights[1]]


def test_no_files_of_stopped_trials_remain(run_tiny: Callable[..., Outcome]) -> None:
    # The student is as deep as its teacher: the first learning rate leaves it good, the second one ruins it.
    space = {"training.learning_rate": [1e-6, 0.1]}
    search = Search(trials=6, sampler="random", objectives=("accuracy",), stopping=Halving(reduction=2))
    outcome = run_tiny(space=space, search=search)
    stopped = [record for record in outcome.figures.records if record.state == "stopped"]
    assert stopped
    assert all(len(record.history) == 1 for record in stopped)
    trials_on_disk = {int(path.name) for path in (outcome.paths.root / "trials").iterdir()}
    assert trials_on_disk.isdisjoint(record.number for record in stopped)
    assert not list(outcome.paths.root.rglob("checkpoint*"))


# Continuation ---------------------------------------------------------------------------------------------------------


def test_running_a_finished_sweep_again_repeats_no_work(
    finished: Outcome, storage_copy: Path, run_tiny: Callable[..., Outcome]
) -> None:
    cache, trials = modification_times(storage_copy / "cache"), modification_times(storage_copy / "tiny" / "trials")
    again = run_tiny(storage=storage_copy)
    assert modification_times(storage_copy / "cache") == cache
    assert modification_times(storage_copy / "tiny" / "trials") == trials
    assert again.figures == finished.figures


def test_a_sweep_that_continues_on_another_machine_keeps_its_first_costs(
    finished: Outcome, storage_copy: Path, run_tiny: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdray.evaluation.costs.hardware_name", lambda device=None: "another machine")
    extended = run_tiny(storage=storage_copy, search=Search(trials=4, stopping=None)).figures
    assert (extended.conditions, extended.teacher) == (finished.figures.conditions, finished.figures.teacher)
    costs = {record.params["student.depth"]: record.costs for record in finished.figures.records}
    assert all(record.costs == costs.get(record.params["student.depth"], record.costs) for record in extended.records)
    with pytest.raises(
        ResourceError, match=r"the costs of a student of depth 3 were not measured on .*, where this sweep"
    ):
        run_tiny(storage=storage_copy, space={"student.depth": [3, 1, 2], "training.learning_rate": [1e-3, 3e-3]})


def test_more_trials_extend_a_finished_sweep(
    finished: Outcome, storage_copy: Path, run_tiny: Callable[..., Outcome], tmp_path: Path
) -> None:
    extended = run_tiny(storage=storage_copy, search=Search(trials=5, stopping=None)).figures.records
    assert extended[:3] == finished.figures.records
    assert [record.state for record in extended] == ["completed"] * 5
    at_once = run_tiny(storage=tmp_path / "other", search=Search(trials=5, stopping=None)).figures.records
    assert without_clock_metrics(at_once) == without_clock_metrics(extended)


def test_a_longer_list_of_values_extends_a_finished_sweep(
    finished: Outcome, storage_copy: Path, run_tiny: Callable[..., Outcome]
) -> None:
    longer = {"student.depth": [3, 1, 2], "training.learning_rate": [1e-3, 3e-3]}
    extended = run_tiny(storage=storage_copy, space=longer, search=Search(trials=9, stopping=None)).figures
    assert extended.records[:3] == finished.figures.records
    assert 3 in {record.params["student.depth"] for record in extended.records[3:]}
    assert {record.state for record in extended.records} == {"completed"}
    recorded = json.loads((storage_copy / "tiny" / "sweep.json").read_text())["space"]["student.depth"]
    assert recorded["attributes"]["choices"] == [3, 1, 2]
    with pytest.raises(StorageError, match=r"space\.student\.depth\.choices: was \[3, 1, 2\], now \[1, 2\]"):
        run_tiny(storage=storage_copy)


def test_a_sweep_may_start_from_the_trials_of_another_sweep(
    storage_copy: Path, make_sweep: MakeSweep, tmp_path: Path
) -> None:
    """The other sweep's trials are not in the table, and deleting the other sweep does not change the draws."""

    def run_warm(name: str, trials: int) -> tuple[list[str], Outcome]:
        search = Search(trials=trials, stopping=None, warm_start=str(storage_copy / "tiny"))
        sweep = make_sweep(name=name, slots=ONE_THREAD, search=search)
        screen = NoteScreen()
        return screen.notes, run(sweep, SweepPaths(tmp_path / "new", name), RunOptions(local=True), screen=screen)

    notes, one_session = run_warm("one-session", 4)
    expected_note = f"The sampler knows 3 of the 3 trials of {storage_copy / 'tiny'}."
    assert expected_note in notes
    assert [record.number for record in one_session.figures.records] == [0, 1, 2, 3]
    run_warm("two-sessions", 2)
    shutil.rmtree(storage_copy / "tiny")
    notes, two_sessions = run_warm("two-sessions", 4)
    assert expected_note in notes
    assert without_clock_metrics(two_sessions.figures.records) == without_clock_metrics(one_session.figures.records)


def test_another_rule_chooses_again_without_training(storage_copy: Path, run_tiny: Callable[..., Outcome]) -> None:
    trials = modification_times(storage_copy / "tiny" / "trials")
    outcome = run_tiny(storage=storage_copy, choose=Choose(retention=5.0, otherwise="none"))
    assert (outcome.exit_code, outcome.figures.chosen) == (3, None)
    sentence = outcome.figures.sentences[0]
    assert "No student keeps at least 500% of the teacher's quality. Closest to the rule: trial" in sentence
    assert modification_times(storage_copy / "tiny" / "trials") == trials


def test_the_name_of_another_sweep_is_refused(
    finished: Outcome, storage_copy: Path, run_tiny: Callable[..., Outcome]
) -> None:
    before = (storage_copy / "tiny" / "sweep.json").read_text()
    with pytest.raises(StorageError) as caught:
        run_tiny(storage=storage_copy, training=Training(epochs=7, precision="fp32"))
    assert "the name 'tiny' is used by a sweep with other settings" in str(caught.value)
    assert "training.epochs: was 2, now 7" in str(caught.value)
    assert "--set name=" in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert (storage_copy / "tiny" / "sweep.json").read_text() == before
    fresh = run_tiny(storage=storage_copy, fresh=True, training=Training(epochs=1, precision="fp32"))
    assert [len(record.history) for record in fresh.figures.records] == [1, 1, 1]


def test_a_refused_sweep_leaves_its_name_free(run_tiny: Callable[..., Outcome]) -> None:
    """The user corrects the setting and gives the same command again."""
    with pytest.raises(SpecError):
        run_tiny(space={"student.depth": [9]})
    with pytest.raises(DataError):
        run_tiny(task=TextClassification(label="stars"))
    assert run_tiny(search=Search(trials=1)).exit_code == 0


def test_data_that_were_changed_in_place_are_refused(
    run_tiny: Callable[..., Outcome], data_folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(data_folder, tmp_path / "data"))
    assert run_tiny(data=Data(source=str(data)), search=Search(trials=1)).exit_code == 0
    with (data / "train.csv").open("a") as file:
        file.write("a witty warm fresh film,positive\n")
    with pytest.raises(StorageError, match="what its trials learnt from has changed: data: was") as caught:
        run_tiny(data=Data(source=str(data)), search=Search(trials=2))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("fresh", [False, True])
def test_a_running_sweep_is_not_touched(
    finished: Outcome, storage_copy: Path, run_tiny: Callable[..., Outcome], fresh: bool
) -> None:
    with (
        own_sweep(storage_copy / "tiny" / "owner.json", print),
        pytest.raises(StorageError, match=rf"pid {os.getpid()}, since .* runs this sweep"),
    ):
        run_tiny(storage=storage_copy, fresh=fresh)
    assert read_figures(SweepPaths(storage_copy, "tiny")) == finished.figures
    assert run_tiny(storage=storage_copy).figures == finished.figures


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_is_no_sweep_is_not_touched(
    run_tiny: Callable[..., Outcome], tmp_path: Path, fresh: bool
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="holds something that is no sweep"):
        run_tiny(fresh=fresh)
    assert (tmp_path / "tiny" / "thesis.tex").exists()


def test_a_suggested_label_mapping_works_under_the_same_sweep_name(
    run_tiny: Callable[..., Outcome], teacher: Pretrained, tmp_path: Path
) -> None:
    """A teacher whose outputs have no names, and are in the other order."""
    model = teacher.model()
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    model.config.id2label, model.config.label2id = {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}
    save_model(model, teacher.tokenizer(), tmp_path / "teacher")
    with pytest.raises(TeacherError, match=r"Say --set teacher\.labels=positive,negative\.$"):
        run_tiny(teacher=Teacher(model=str(tmp_path / "teacher")))
    named = Teacher(model=str(tmp_path / "teacher"), labels=("positive", "negative"))
    outcome = run_tiny(teacher=named, search=Search(trials=1))
    assert outcome.figures.teacher["accuracy"] > 0.7
    assert Pretrained(outcome.paths.chosen, "").model().config.id2label == {0: "negative", 1: "positive"}


def test_the_same_seed_gives_the_same_table(finished: Outcome, run_tiny: Callable[..., Outcome]) -> None:
    assert without_clock_metrics(run_tiny().figures.records) == without_clock_metrics(finished.figures.records)


# Errors ---------------------------------------------------------------------------------------------------------------


class ForbiddenStep:
    """A training step that fails the test."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        raise AssertionError("something was trained")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any training fail the test."""
    monkeypatch.setattr("kdray.training.fit.Step", ForbiddenStep)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("fields", "error", "part"),
    [
        ({"space": {"student.depth": [1, 5]}}, SpecError, "student.depth: got 5, but the model it is built from has 4"),
        ({"data": Data(source="nowhere.csv")}, DataError, "nowhere.csv"),
        ({"task": TextClassification(text="words")}, DataError, "words"),
        ({"teacher": Teacher(model="./nowhere")}, TeacherError, "teacher.model ./nowhere: no such folder"),
        ({"teacher": Teacher(model=TINY)}, TeacherError, "must be trained"),
        (
            {"search": Search(objectives=("accuracy", "mcc"), constraints={"parameters": at_most(9)})},
            SpecError,
            "search.constraints['parameters']: at most 9 is kept by none of the 2 architectures",
        ),
        ({"space": {"student.checkpoint": ["./nowhere"]}}, TeacherError, "student.checkpoint ./nowhere: no such"),
    ],
)
def test_mistakes_are_refused_before_any_training(
    run_tiny: Callable[..., Outcome], fields: dict[str, Any], error: type[Refused], part: str
) -> None:
    with pytest.raises(error) as caught:
        run_tiny(**fields)
    assert part in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.usefixtures("no_training")
def test_a_teacher_near_chance_is_refused_before_any_trial(
    source: Pretrained, run_tiny: Callable[..., Outcome]
) -> None:
    with pytest.raises(TeacherError, match="near chance"):
        run_tiny(teacher=Teacher(model=str(source.folder)))


def test_a_failed_trial_is_a_row_and_the_sweep_continues(run_tiny: Callable[..., Outcome]) -> None:
    outcome = run_tiny(
        space={"training.learning_rate": [1e-3, 1e30]},
        search=Search(trials=4, sampler="random", objectives=("accuracy",), stopping=None, seed=3),
    )
    states = {record.params["training.learning_rate"]: record.state for record in outcome.figures.records}
    assert states == {1e-3: "completed", 1e30: "failed"}
    failed = [record.error or "" for record in outcome.figures.records if record.state == "failed"]
    assert all("not finite (nan or inf)" in error for error in failed)
    assert outcome.exit_code == 0
    assert outcome.figures.chosen is not None


def test_when_all_trials_fail_the_first_error_is_reported(run_tiny: Callable[..., Outcome]) -> None:
    with pytest.raises(SweepFailed) as caught:
        run_tiny(space={"training.learning_rate": [1e30, 1e31]}, search=Search(trials=2, stopping=None))
    assert "none of the 2 trials completed; the first error: the loss or its gradient was not finite" in str(
        caught.value
    )
    assert caught.value.exit_code == 1


def test_an_architecture_that_breaks_a_constraint_is_never_trained(
    run_tiny: Callable[..., Outcome], finished: Outcome
) -> None:
    parameters = {record.params["student.depth"]: record.costs["parameters"] for record in finished.figures.records}
    limit = {"parameters": at_most(min(parameters.values()))}
    records = run_tiny(search=Search(trials=3, stopping=None, constraints=limit)).figures.records
    assert {record.costs["parameters"] for record in records} == {min(parameters.values())}


def test_a_teacher_is_trained_within_the_sweep(run_tiny: Callable[..., Outcome]) -> None:
    trained = Training(epochs=6, learning_rate=3e-3, precision="fp32")
    outcome = run_tiny(teacher=Teacher(model=TINY, training=trained), search=Search(trials=1))
    assert outcome.figures.teacher["accuracy"] > 0.7
    assert outcome.exit_code == 0


def test_a_student_may_start_from_a_checkpoint(run_tiny: Callable[..., Outcome], source: Pretrained) -> None:
    space = {"student.checkpoint": [str(source.folder), None], "training.learning_rate": [1e-3]}
    search = Search(trials=4, sampler="random", stopping=None)
    records = run_tiny(space=space, search=search).figures.records
    assert {record.params["student.checkpoint"] for record in records} == {str(source.folder), None}
    assert {record.state for record in records} == {"completed"}


# Tracking -------------------------------------------------------------------------------------------------------------


def test_every_trial_is_tracked_once(run_tiny: Callable[..., Outcome], tmp_path: Path) -> None:
    for trials in (1, 2, 2):
        outcome = run_tiny(search=Search(trials=trials, stopping=None), tracking=Tracking())
    assert not outcome.paths.spool.exists()
    client = MlflowClient(f"sqlite:///{outcome.paths.tracking_database}")
    (experiment,) = client.search_experiments(filter_string="name = 'kdray'")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 1 + len(children) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.tags["kdray.chosen"] == str(outcome.figures.chosen)
    assert parent.data.tags["kdray.measured"] == outcome.figures.conditions
    by_id = {run.info.run_id: run for run in children}
    for record in outcome.figures.records:
        tracked = by_id[record.run_id or ""].data
        assert tracked.params["student.depth"] == str(record.params["student.depth"])
        assert {"distillation.temperature", "distillation.alpha", "training.learning_rate"} <= set(tracked.params)
        assert tracked.metrics["accuracy"] == record.metrics["accuracy"]
        assert tracked.metrics["retention"] == record.metrics["retention"]
        assert {"latency_ms", "speedup", "parameters", "agreement", "share_soft"} <= set(tracked.metrics)
        assert {"throughput_per_s", "multiply_adds"} <= set(tracked.metrics)
        assert tracked.tags["kdray.front"] == ("yes" if record.number in outcome.figures.front else "no")
    assert client.list_artifacts(by_id[outcome.figures.records[outcome.figures.front[0]].run_id].info.run_id, "student")
