"""The story of a sweep, on slots in this process: what it leaves behind, going on with it, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
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
TIMES = ("examples_per_s", "train_seconds", "eval_seconds")
ONE_THREAD = SlotSettings(cpus=1)


@pytest.fixture
def go(make_sweep: MakeSweep, tmp_path: Path) -> Callable[..., Outcome]:
    """Run the tiny sweep with these settings (by field) in the storage of this test."""

    def run_it(storage: Path = tmp_path, fresh: bool = False, **fields: Any) -> Outcome:
        sweep = make_sweep(**{"slots": ONE_THREAD} | fields)
        return run(sweep, SweepPaths(storage, sweep.name), RunOptions(fresh=fresh, local=True))

    return run_it


@pytest.fixture(scope="module")
def finished(make_sweep: MakeSweep, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A sweep that has run to its end, for looking at."""
    sweep = make_sweep(slots=ONE_THREAD)
    return run(sweep, SweepPaths(tmp_path_factory.mktemp("finished"), "tiny"), RunOptions(local=True))


@pytest.fixture
def copied(finished: Outcome, tmp_path: Path) -> Path:
    """The storage of the finished sweep, to go on with."""
    return Path(shutil.copytree(finished.paths.storage, tmp_path / "storage"))


class Noting(NullScreen):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self.notes.append(text)


def numbers(records: list[TrialRecord]) -> list[Any]:
    """All of the table but what a clock says."""
    return [
        (
            r.number,
            r.params,
            r.state,
            r.error,
            r.costs["parameters"],
            [{name: value for name, value in metrics.items() if name not in TIMES} for metrics in r.history],
        )
        for r in records
    ]


def written(folder: Path) -> dict[str, int]:
    """Every file below the folder and when it was written, logs and ledger locks aside."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# What it leaves behind ------------------------------------------------------------------------------------------------


def test_a_sweep_chooses_a_student(finished: Outcome) -> None:
    figures, paths = finished.figures, finished.paths
    assert finished.exit_code == 0
    assert [record.state for record in figures.records] == ["completed"] * 3
    assert figures.chosen in {record.number for record in figures.records}
    assert figures.teacher["accuracy"] > 0.7
    assert {record.params["student.depth"] for record in figures.records} <= {1, 2}
    assert f"Trial {figures.chosen}" in figures.sentences[0] or f"trial {figures.chosen}" in figures.sentences[0]
    assert "48 test rows, which nothing was chosen by" in figures.sentences[1]
    assert {path.name for path in paths.report.iterdir()} >= {"results.csv", "report.md", "front.png", "report.html"}
    kept = {int(path.name) for path in (paths.root / "trials").iterdir()}
    assert set(figures.front) <= kept
    assert not list(paths.root.rglob("checkpoint*"))
    assert "16 tokens each, 1 thread, float32" in figures.conditions
    assert figures.conditions in (paths.report / "report.md").read_text()


def test_the_chosen_student_needs_no_kdray(finished: Outcome, data_folder: Path) -> None:
    """Plain transformers loads it and gets exactly the accuracy on record."""
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


def test_the_same_on_ray(finished: Outcome, make_sweep: MakeSweep, tmp_path: Path) -> None:
    """One slot, one processor: the same seed gives the same table, and the same student to the last bit."""
    sweep = make_sweep(slots=SlotSettings(count=1, cpus=1))
    outcome = run(sweep, SweepPaths(tmp_path, "tiny"))
    assert numbers(outcome.figures.records) == numbers(finished.figures.records)
    front = set(outcome.figures.front) & set(finished.figures.front)
    weights = [
        [paths.student(number) / "model.safetensors" for number in sorted(front)]
        for paths in (outcome.paths, finished.paths)
    ]
    assert [file.read_bytes() for file in weights[0]] == [file.read_bytes() for file in weights[1]]


def test_early_stopping_leaves_nothing_of_what_it_stopped(go: Callable[..., Outcome]) -> None:
    space = {"training.learning_rate": [1e-6, 0.1]}  # a student as deep as its teacher: one stays good, one is spoilt
    search = Search(trials=6, sampler="random", objectives=("accuracy",), stopping=Halving(reduction=2))
    outcome = go(space=space, search=search)
    stopped = [record for record in outcome.figures.records if record.state == "stopped"]
    assert stopped
    assert all(len(record.history) == 1 for record in stopped)
    kept = {int(path.name) for path in (outcome.paths.root / "trials").iterdir()}
    assert kept.isdisjoint(record.number for record in stopped)
    assert not list(outcome.paths.root.rglob("checkpoint*"))


# Going on -------------------------------------------------------------------------------------------------------------


def test_the_same_again_does_nothing_twice(finished: Outcome, copied: Path, go: Callable[..., Outcome]) -> None:
    shared, trials = written(copied / "cache"), written(copied / "tiny" / "trials")
    again = go(storage=copied)
    assert written(copied / "cache") == shared
    assert written(copied / "tiny" / "trials") == trials
    assert again.figures == finished.figures


def test_a_sweep_that_goes_on_elsewhere_keeps_the_costs_of_where_it_began(
    finished: Outcome, copied: Path, go: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdray.evaluation.costs.hardware_name", lambda device=None: "another machine")
    extended = go(storage=copied, search=Search(trials=4, stopping=None)).figures
    assert (extended.conditions, extended.teacher) == (finished.figures.conditions, finished.figures.teacher)
    costs = {record.params["student.depth"]: record.costs for record in finished.figures.records}
    assert all(record.costs == costs.get(record.params["student.depth"], record.costs) for record in extended.records)
    with pytest.raises(
        ResourceError, match=r"the costs of a student of depth 3 were not measured on .*, where this sweep"
    ):
        go(storage=copied, space={"student.depth": [3, 1, 2], "training.learning_rate": [1e-3, 3e-3]})


def test_more_trials_extend_it(finished: Outcome, copied: Path, go: Callable[..., Outcome], tmp_path: Path) -> None:
    extended = go(storage=copied, search=Search(trials=5, stopping=None)).figures.records
    assert extended[:3] == finished.figures.records
    assert [record.state for record in extended] == ["completed"] * 5
    at_once = go(storage=tmp_path / "other", search=Search(trials=5, stopping=None)).figures.records
    assert numbers(at_once) == numbers(extended)


def test_a_longer_list_of_values_extends_it(finished: Outcome, copied: Path, go: Callable[..., Outcome]) -> None:
    longer = {"student.depth": [3, 1, 2], "training.learning_rate": [1e-3, 3e-3]}
    extended = go(storage=copied, space=longer, search=Search(trials=9, stopping=None)).figures
    assert extended.records[:3] == finished.figures.records
    assert 3 in {record.params["student.depth"] for record in extended.records[3:]}
    assert {record.state for record in extended.records} == {"completed"}
    written_down = json.loads((copied / "tiny" / "sweep.json").read_text())["space"]["student.depth"]
    assert written_down["attributes"]["choices"] == [3, 1, 2]
    with pytest.raises(StorageError, match=r"space\.student\.depth\.choices: was \[3, 1, 2\], now \[1, 2\]"):
        go(storage=copied)


def test_it_may_begin_with_what_another_sweep_found(copied: Path, make_sweep: MakeSweep, tmp_path: Path) -> None:
    """The other sweep's trials are no rows here, and the same are drawn when the other one is gone."""

    def warm(name: str, trials: int) -> tuple[list[str], Outcome]:
        search = Search(trials=trials, stopping=None, warm_start=str(copied / "tiny"))
        sweep = make_sweep(name=name, slots=ONE_THREAD, search=search)
        screen = Noting()
        return screen.notes, run(sweep, SweepPaths(tmp_path / "new", name), RunOptions(local=True), screen=screen)

    notes, whole = warm("whole", 4)
    said = f"The sampler knows 3 of the 3 trials of {copied / 'tiny'}."
    assert said in notes
    assert [record.number for record in whole.figures.records] == [0, 1, 2, 3]
    warm("parts", 2)
    shutil.rmtree(copied / "tiny")
    notes, parts = warm("parts", 4)
    assert said in notes
    assert numbers(parts.figures.records) == numbers(whole.figures.records)


def test_another_bar_is_another_choice_without_training(copied: Path, go: Callable[..., Outcome]) -> None:
    trials = written(copied / "tiny" / "trials")
    outcome = go(storage=copied, choose=Choose(retention=5.0, otherwise="none"))
    assert (outcome.exit_code, outcome.figures.chosen) == (3, None)
    assert "No student keeps 500% of the teacher. The nearest: trial" in outcome.figures.sentences[0]
    assert written(copied / "tiny" / "trials") == trials


def test_the_name_of_another_sweep_is_refused(finished: Outcome, copied: Path, go: Callable[..., Outcome]) -> None:
    before = (copied / "tiny" / "sweep.json").read_text()
    with pytest.raises(StorageError) as caught:
        go(storage=copied, training=Training(epochs=7, precision="fp32"))
    assert "the name 'tiny' is used by a sweep with other settings" in str(caught.value)
    assert "training.epochs: was 2, now 7" in str(caught.value)
    assert "--set name=" in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert (copied / "tiny" / "sweep.json").read_text() == before
    fresh = go(storage=copied, fresh=True, training=Training(epochs=1, precision="fp32"))
    assert [len(record.history) for record in fresh.figures.records] == [1, 1, 1]


def test_a_refused_sweep_leaves_its_name_free(go: Callable[..., Outcome]) -> None:
    """The setting is mended and the same command given again."""
    with pytest.raises(SpecError):
        go(space={"student.depth": [9]})
    with pytest.raises(DataError):
        go(task=TextClassification(label="stars"))
    assert go(search=Search(trials=1)).exit_code == 0


def test_data_that_were_changed_in_place_are_refused(
    go: Callable[..., Outcome], data_folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(data_folder, tmp_path / "data"))
    assert go(data=Data(source=str(data)), search=Search(trials=1)).exit_code == 0
    with (data / "train.csv").open("a") as file:
        file.write("a witty warm fresh film,positive\n")
    with pytest.raises(StorageError, match="what its trials learnt from has changed since: data: was") as caught:
        go(data=Data(source=str(data)), search=Search(trials=2))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("fresh", [False, True])
def test_a_running_sweep_is_left_alone(
    finished: Outcome, copied: Path, go: Callable[..., Outcome], fresh: bool
) -> None:
    with (
        own_sweep(copied / "tiny" / "owner.json", print),
        pytest.raises(StorageError, match=rf"pid {os.getpid()}, since .* runs this sweep"),
    ):
        go(storage=copied, fresh=fresh)
    assert read_figures(SweepPaths(copied, "tiny")) == finished.figures
    assert go(storage=copied).figures == finished.figures


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_is_no_sweep_is_left_alone(go: Callable[..., Outcome], tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="holds something that is no sweep"):
        go(fresh=fresh)
    assert (tmp_path / "tiny" / "thesis.tex").exists()


def test_a_label_mapping_that_is_offered_can_be_given_under_the_same_name(
    go: Callable[..., Outcome], teacher: Pretrained, tmp_path: Path
) -> None:
    """A teacher whose outputs have no names, and are in the other order."""
    model = teacher.model()
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    model.config.id2label, model.config.label2id = {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}
    save_model(model, teacher.tokenizer(), tmp_path / "teacher")
    with pytest.raises(TeacherError, match=r"Say --set teacher\.labels=positive,negative\.$"):
        go(teacher=Teacher(model=str(tmp_path / "teacher")))
    named = Teacher(model=str(tmp_path / "teacher"), labels=("positive", "negative"))
    outcome = go(teacher=named, search=Search(trials=1))
    assert outcome.figures.teacher["accuracy"] > 0.7
    assert Pretrained(outcome.paths.chosen, "").model().config.id2label == {0: "negative", 1: "positive"}


def test_the_same_seed_gives_the_same_table(finished: Outcome, go: Callable[..., Outcome]) -> None:
    assert numbers(go().figures.records) == numbers(finished.figures.records)


# What goes wrong ------------------------------------------------------------------------------------------------------


class NoTraining:
    """Any training fails the test."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        raise AssertionError("something was trained")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdray.training.fit.Step", NoTraining)


@pytest.mark.usefixtures("untrained")
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
def test_what_is_refused_before_any_training(
    go: Callable[..., Outcome], fields: dict[str, Any], error: type[Refused], part: str
) -> None:
    with pytest.raises(error) as caught:
        go(**fields)
    assert part in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.usefixtures("untrained")
def test_a_teacher_near_chance_is_refused_before_any_trial(source: Pretrained, go: Callable[..., Outcome]) -> None:
    with pytest.raises(TeacherError, match="near chance"):
        go(teacher=Teacher(model=str(source.folder)))


def test_a_failed_trial_is_a_row_and_the_sweep_goes_on(go: Callable[..., Outcome]) -> None:
    outcome = go(
        space={"training.learning_rate": [1e-3, 1e30]},
        search=Search(trials=4, sampler="random", objectives=("accuracy",), stopping=None, seed=3),
    )
    states = {record.params["training.learning_rate"]: record.state for record in outcome.figures.records}
    assert states == {1e-3: "completed", 1e30: "failed"}
    failed = [record.error or "" for record in outcome.figures.records if record.state == "failed"]
    assert all("not finite (nan or inf)" in error for error in failed)
    assert outcome.exit_code == 0
    assert outcome.figures.chosen is not None


def test_when_all_trials_fail_the_first_cause_is_said(go: Callable[..., Outcome]) -> None:
    with pytest.raises(SweepFailed) as caught:
        go(space={"training.learning_rate": [1e30, 1e31]}, search=Search(trials=2, stopping=None))
    assert "none of the 2 trials ran to its end; the first: the loss or its gradient was not finite" in str(
        caught.value
    )
    assert caught.value.exit_code == 1


def test_a_broken_constraint_is_never_trained(go: Callable[..., Outcome], finished: Outcome) -> None:
    parameters = {r.params["student.depth"]: r.costs["parameters"] for r in finished.figures.records}
    limit = {"parameters": at_most(min(parameters.values()))}
    records = go(search=Search(trials=3, stopping=None, constraints=limit)).figures.records
    assert {record.costs["parameters"] for record in records} == {min(parameters.values())}


def test_a_teacher_is_trained_within_the_sweep(go: Callable[..., Outcome]) -> None:
    trained = Training(epochs=6, learning_rate=3e-3, precision="fp32")
    outcome = go(teacher=Teacher(model=TINY, training=trained), search=Search(trials=1))
    assert outcome.figures.teacher["accuracy"] > 0.7
    assert outcome.exit_code == 0


def test_a_student_may_start_from_a_checkpoint(go: Callable[..., Outcome], source: Pretrained) -> None:
    space = {"student.checkpoint": [str(source.folder), None], "training.learning_rate": [1e-3]}
    search = Search(trials=4, sampler="random", stopping=None)
    records = go(space=space, search=search).figures.records
    assert {record.params["student.checkpoint"] for record in records} == {str(source.folder), None}
    assert {record.state for record in records} == {"completed"}


# Tracking -------------------------------------------------------------------------------------------------------------


def test_every_trial_is_tracked_once(go: Callable[..., Outcome], tmp_path: Path) -> None:
    for trials in (1, 2, 2):
        outcome = go(search=Search(trials=trials, stopping=None), tracking=Tracking())
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
