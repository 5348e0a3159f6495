"""Registration: which version is champion, loading it without kdray, and registries that refuse or do not answer."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from kdray.choice.champion import ChampionComparison, RegisteredFigures
from kdray.choice.reruns import Confirm
from kdray.choice.rule import Choose
from kdray.cli.running import print_outcome
from kdray.errors import SpecError
from kdray.models.folders import weights_fingerprint
from kdray.models.pretrained import Pretrained
from kdray.run import RunOptions, run
from kdray.search.settings import Search
from kdray.slots.pool import SlotSettings
from kdray.stages.shipping import Outcome
from kdray.storage.files import read_json
from kdray.storage.mirror import MIRROR_VARIABLE
from kdray.storage.paths import SweepPaths, storage_path
from kdray.sweep import Sweep
from kdray.tasks.text_classification import TextClassification
from kdray.tracking.mlflow_model import write_mlflow_model
from kdray.tracking.settings import Tracking, default_uri
from tests.cli.test_cli import kdray
from tests.tracking.mlflow_server import Fault, FaultyProxy, Server

UNREACHABLE = "http://127.0.0.1:9"
"""The discard port of the loopback interface: no process listens there."""
SMALLEST = Choose(best="accuracy", smallest="size_mb", retention=0.1)
TEXTS = ["a warm and witty film", "the dull plot of this cold film", "fresh", "stale " * 200]

RunDepth = Callable[..., Outcome]


@pytest.fixture(scope="module")
def run_depth(make_sweep: Callable[..., Sweep]) -> RunDepth:
    """A function that runs a sweep of one student of a given depth, confirmed with one seed; the smallest is best."""

    def run_sweep(storage: Path, depth: int, **fields: Any) -> Outcome:
        settings: dict[str, Any] = {
            "name": f"depth-{depth}",
            "space": {"student.depth": [depth]},
            "search": Search(trials=1, stopping=None),
            "confirm": Confirm(candidates=1, seeds=1, controls=False),
            "choose": SMALLEST,
            "slots": SlotSettings(cpus=1),
            "tracking": Tracking(model="films", patience_s=120),
        }
        sweep = make_sweep(**settings | fields)
        return run(sweep, SweepPaths(storage, sweep.name), RunOptions(local=True))

    return run_sweep


@dataclass(frozen=True)
class RegisteredSweeps:
    """Three sweeps in one storage and their registry, in the order in which they were run: depth 2, 3 and 1."""

    storage: Path
    outcomes: tuple[Outcome, ...]
    client: MlflowClient

    def path(self, depth: int) -> Path:
        return self.storage / f"depth-{depth}"

    def register(self, depth: int, model: str, *options: str) -> str:
        """Run `kdray register` for the sweep with this depth. Returns its output."""
        done = kdray("register", self.path(depth), "--model", model, *options)
        assert done.code == 0, done.err
        return done.out.strip()

    def champion(self, model: str) -> Any:
        return self.client.get_model_version_by_alias(model, "champion")


@pytest.fixture(scope="module")
def sweeps(run_depth: RunDepth, tmp_path_factory: pytest.TempPathFactory) -> RegisteredSweeps:
    storage = tmp_path_factory.mktemp("registered")
    outcomes = tuple(run_depth(storage, depth) for depth in (2, 3, 1))
    return RegisteredSweeps(storage, outcomes, MlflowClient(default_uri(outcomes[0].paths)))


# The champion ---------------------------------------------------------------------------------------------------------


def test_the_champion_survives_a_worse_sweep_and_moves_for_a_better_one(sweeps: RegisteredSweeps) -> None:
    first, worse, better = (outcome.registered for outcome in sweeps.outcomes)
    assert first == "models:/films@champion (version 1)"
    assert worse is not None
    assert worse.startswith(
        "models:/films/2; version 1 stays champion: by the rule the new student is no better on the same test rows: "
        "size 0."
    )
    assert worse.endswith(f"kdray register {sweeps.path(3)} --replace --model films")
    assert better == "models:/films@champion (version 3, in place of version 1)"
    assert sweeps.champion("films").version == 3
    assert [version.tags["kdray.sweep"] for version in sweeps.client.search_model_versions("name = 'films'")] == [
        "depth-1",
        "depth-3",
        "depth-2",
    ]


def test_a_version_records_its_origin(sweeps: RegisteredSweeps) -> None:
    paths = sweeps.outcomes[2].paths
    version = sweeps.champion("films")
    run = sweeps.client.get_run(version.run_id)
    assert run.info.run_name == "depth-1"
    assert version.source == f"{run.info.artifact_uri}/model/{weights_fingerprint(paths.chosen)}"
    tags, lineage = version.tags, read_json(paths.lineage)
    assert lineage.pop("models")[0]["weights"] == lineage["teacher_weights"]
    assert {name: tags[f"kdray.{name}"] for name in lineage} == lineage
    assert (tags["kdray.sweep"], tags["kdray.trial"]) == ("depth-1", "0")
    assert tags["kdray.task"] == "text classification"
    assert Choose(**json.loads(tags["kdray.rule"])) == SMALLEST
    assert "16 tokens each, 1 thread, float32" in tags["kdray.measured"]
    figures, verdict = json.loads(tags["kdray.figures"]), sweeps.outcomes[2].figures.verdict
    assert verdict is not None
    assert figures["student"]["accuracy"] == verdict.confirmed[0].metrics["accuracy"]
    assert figures["teacher"]["accuracy"] == verdict.teacher.estimate
    assert {"latency_ms", "size_mb", "parameters"} <= figures["student"].keys() & figures["teacher"].keys()
    assert version.description.startswith("Trial 0 was chosen")


def test_the_same_weights_make_one_version_and_replace_moves_the_champion(sweeps: RegisteredSweeps) -> None:
    assert sweeps.register(2, "again") == "Registry models:/again@champion (version 1)"
    assert sweeps.register(2, "again") == "Registry models:/again@champion (version 1)"
    assert "version 1 stays champion" in sweeps.register(3, "again")
    assert "version 1 stays champion" in sweeps.register(3, "again")
    moved = sweeps.register(3, "again", "--replace")
    assert moved == "Registry models:/again@champion (version 2, in place of version 1)"
    assert sweeps.champion("again").version == 2
    assert len(sweeps.client.search_model_versions("name = 'again'")) == 2


def test_a_sweep_that_is_run_again_registers_no_new_version(sweeps: RegisteredSweeps, run_depth: RunDepth) -> None:
    outcome = run_depth(sweeps.storage, 1)
    assert outcome.registered == "models:/films@champion (version 3)"
    assert len(sweeps.client.search_model_versions("name = 'films'")) == 3


def test_description_and_tags_of_a_version_are_brought_up_to_date(sweeps: RegisteredSweeps) -> None:
    sweeps.register(2, "words")
    first = sweeps.champion("words")
    sweeps.client.update_model_version("words", "1", "the description by an earlier rule")
    sweeps.client.set_model_version_tag("words", "1", "kdray.rule", "{}")
    sweeps.register(2, "words")
    second = sweeps.champion("words")
    assert (second.description, second.tags) == (first.description, first.tags)


@pytest.mark.parametrize(
    ("tag", "why"),
    [
        ("kdray.test_rows", "the two students were measured on different test rows"),
        ("kdray.figures", "the champion has no figures to compare with"),
    ],
)
def test_a_champion_that_cannot_be_compared_stays(sweeps: RegisteredSweeps, tag: str, why: str) -> None:
    model = tag.replace(".", "-")
    sweeps.register(2, model)
    sweeps.client.set_model_version_tag(model, "1", tag, "of something else")
    output = sweeps.register(1, model)
    assert output.startswith(f"Registry models:/{model}/2; version 1 stays champion: {why}. To make it champion anyway")
    assert sweeps.champion(model).version == 1
    assert "in place of version 1" in sweeps.register(1, model, "--replace")


def test_a_student_that_does_not_satisfy_the_rule_is_not_champion(
    sweeps: RegisteredSweeps, run_depth: RunDepth, tmp_path: Path
) -> None:
    demanding = Choose(smallest="size_mb", retention=5.0)
    outcome = run_depth(tmp_path, 1, choose=demanding)
    assert outcome.exit_code == 0
    assert outcome.registered is not None
    assert "models:/films/1; it does not become champion: the new student keeps" in outcome.registered
    assert "(the rule requires 500%)" in outcome.registered
    assert MlflowClient(default_uri(outcome.paths)).get_registered_model("films").aliases == {}


def test_only_a_confirmed_student_is_registered(run_depth: RunDepth, tmp_path: Path) -> None:
    outcome = run_depth(tmp_path, 1, confirm=Confirm(candidates=0, controls=False))
    assert outcome.registered is not None
    assert "its choice was not confirmed, and only a confirmed student is registered" in outcome.registered
    done = kdray("register", outcome.paths.root)
    assert done.code == 2
    assert "its choice was not confirmed" in done.err
    assert MlflowClient(default_uri(outcome.paths)).search_registered_models() == []


def test_the_printed_outcome_names_the_version(sweeps: RegisteredSweeps, capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome(sweeps.outcomes[2])
    assert "\nRegistry models:/films@champion (version 3, in place of version 1)\n" in capsys.readouterr().out


def test_runs_on_the_front_can_be_found_by_tag(sweeps: RegisteredSweeps) -> None:
    client = sweeps.client
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(ids, "tags.`kdray.front` = 'yes' and tags.`kdray.sweep` = 'depth-2'")
    assert [run.info.run_name for run in found] == ["trial 000 depth 2"]


# The comparison -------------------------------------------------------------------------------------------------------


STUDENT = {
    "accuracy": 0.9,
    "agreement": 0.95,
    "retention": 0.9,
    "latency_ms": 2.0,
    "size_mb": 10.0,
    "speedup": 5.0,
    "parameters": 1e6,
    "multiply_adds": 1e7,
}


def figures_with(**changes: Any) -> RegisteredFigures:
    """The figures of a typical student, with these changes to its metrics or to the other fields."""
    student = {name: changes.pop(name, value) for name, value in STUDENT.items()}
    fields = {"teacher_weights": "t", "test_rows": "r", "measured": "on one CPU"} | changes
    teacher = {"accuracy": 1.0, "latency_ms": 10.0}
    return RegisteredFigures(metric="accuracy", student=student, teacher=teacher, **fields)


@pytest.mark.parametrize(
    ("rule", "newcomer", "champion", "why"),
    [
        (Choose(best="accuracy", retention=0.8), {"latency_ms": 1.0, "parameters": 5e5}, {}, None),
        (
            Choose(best="accuracy", retention=0.8),
            {"latency_ms": 1.0},
            {},
            "no better",
        ),  # one shape: the clock measures noise
        (
            Choose(best="accuracy", retention=0.8),
            {"latency_ms": 3.0, "parameters": 5e5, "accuracy": 0.95},
            {},
            "no better",
        ),
        (
            Choose(best="accuracy", retention=0.8),
            {"latency_ms": 3.0, "parameters": 5e5},
            {"accuracy": 0.7},
            None,
        ),  # too poor for the rule
        (Choose(best="accuracy", retention=0.8), {}, {}, "no better"),
        (
            Choose(best="accuracy", retention=0.8),
            {"measured": "on a GPU", "latency_ms": 0.1},
            {},
            "the latency of the champion cannot",
        ),
        (Choose(best="accuracy", at_most={"size_mb": 20}), {"measured": "on a GPU", "accuracy": 0.91}, {}, None),
        (Choose(best="agreement", at_most={"size_mb": 20}), {"teacher_weights": "u"}, {}, "is with another teacher"),
        (Choose(best="accuracy", knee=True, smallest="size_mb"), {"size_mb": 5.0, "accuracy": 0.85}, {}, "no better"),
        (Choose(best="accuracy", knee=True, smallest="size_mb"), {"size_mb": 5.0}, {}, None),
    ],
)
def test_the_newer_rule_compares_both_students(
    rule: Choose, newcomer: dict[str, Any], champion: dict[str, Any], why: str | None
) -> None:
    objection = ChampionComparison(rule, figures_with(**newcomer), figures_with(**champion)).objection()
    if why is None:
        assert objection is None
    else:
        assert why in (objection or "")


def test_a_champion_is_compared_with_the_newer_teacher() -> None:
    """The champion kept 90 % of the quality of a perfect teacher, and keeps all of a poorer teacher's quality."""
    poorer = figures_with(latency_ms=3.0, parameters=5e5).model_copy(
        update={"teacher": {"accuracy": 0.9, "latency_ms": 6.0}}
    )
    beside = figures_with().beside(poorer)
    assert (beside["retention"], beside["speedup"]) == (1.0, 3.0)
    assert RegisteredFigures.read(poorer.tags()) == poorer


def test_less_of_a_minimized_metric_is_a_better_champion() -> None:
    """The retention of an error is the teacher's over the student's."""
    good, bad = (
        RegisteredFigures(
            metric="mse",
            student={**STUDENT, "mse": mse, "retention": 0.5 / mse},
            teacher={"mse": 0.5, "latency_ms": 10.0},
            teacher_weights="t",
            test_rows="r",
            measured="on one CPU",
        )
        for mse in (0.6, 0.8)
    )
    assert bad.beside(good)["retention"] == pytest.approx(0.625)
    rule = Choose(best="mse", retention=0.5, smallest=None)
    assert ChampionComparison(rule, good, bad).objection() is None
    assert "no better on the same test rows: MSE 0.8000" in (ChampionComparison(rule, bad, good).objection() or "")


def test_an_invalid_name_of_a_registered_model_is_refused() -> None:
    with pytest.raises(SpecError, match=r"Tracking\.model: no registered model can be called 'a/b'; leave out"):
        Tracking(model="a/b")


def test_a_smoke_run_has_a_registered_model_of_its_own(make_sweep: Callable[..., Sweep]) -> None:
    assert make_sweep(tracking=Tracking(model="films")).smoke_copy().tracking.model == "films-smoke"
    assert make_sweep().smoke_copy().tracking.model is None


# Loading --------------------------------------------------------------------------------------------------------------

LOAD = """
import json, sys
sys.modules["kdray"] = None
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
texts = json.loads(sys.argv[2])
answers = mlflow.pyfunc.load_model("models:/films@champion").predict(texts)
pipe = mlflow.transformers.load_model("models:/films@champion")
print(json.dumps([list(answers["label"]), [answer["label"] for answer in pipe(texts, truncation=True, max_length=16)]]))
"""


def predict_without_kdray(store: str, folder: Path) -> list[list[str]]:
    """The champion's labels of TEXTS, by pyfunc and by transformers, from a process in `folder` without kdray."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", LOAD, store, json.dumps(TEXTS)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    labels: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return labels


def predict_from_folder(folder: Path) -> list[str]:
    """The labels of TEXTS that the student in this folder predicts."""
    student = Pretrained(folder, "")
    model = student.model()
    inputs = student.tokenizer()(TEXTS, truncation=True, max_length=16, padding=True, return_tensors="pt")
    return [model.config.id2label[answer] for answer in model(**inputs).logits.argmax(1).tolist()]


def test_the_champion_loads_without_kdray_and_predicts_the_same(sweeps: RegisteredSweeps, tmp_path: Path) -> None:
    paths = sweeps.outcomes[2].paths
    assert predict_without_kdray(default_uri(paths), tmp_path) == [predict_from_folder(paths.chosen)] * 2


def test_a_version_contains_safetensors_and_text_only(sweeps: RegisteredSweeps) -> None:
    version = sweeps.champion("films")
    folder = Path(mlflow.artifacts.download_artifacts(version.source))
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert Path("model/model.safetensors") in files
    assert {path.suffix for path in files} == {".safetensors", ".json", ".yaml", ".txt", ".md", ""}
    # MLflow adds registered_model_meta when it downloads a version.
    without_suffix = {str(path) for path in files if not path.suffix} - {"registered_model_meta"}
    assert without_suffix == {"MLmodel"}
    for path in files:
        if path.suffix != ".safetensors":
            assert str(sweeps.storage) not in (folder / path).read_text()
    required = [line.partition("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()]
    assert required == ["mlflow", "torch", "transformers", "safetensors"]


def test_a_student_of_text_pairs_predicts_pairs(chosen: SweepPaths, tmp_path: Path) -> None:
    task = TextClassification(pair="other", max_length=16)
    write_mlflow_model(Pretrained(chosen.chosen, ""), task, "tiny", tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    pairs = [{"text": "a good film", "text_pair": "the cast"}, {"text": "a bad film", "text_pair": "cast " * 50}]
    answers = model.predict(pairs)
    assert len(answers) == 2
    assert list(model.predict(pd.DataFrame(pairs))["score"]) == list(answers["score"])


# Registries that refuse or do not answer ------------------------------------------------------------------------------


def test_an_unreachable_server_fails_no_sweep_and_the_student_is_registered_later(
    run_depth: RunDepth, tmp_path: Path
) -> None:
    outcome = run_depth(tmp_path, 1, tracking=Tracking(uri=UNREACHABLE, timeout_s=1, patience_s=0))
    assert outcome.exit_code == 0
    assert outcome.registered == (
        f"MLflow at {UNREACHABLE} has no run of this sweep yet, so no student can be registered. Register it later "
        f"with: kdray register {outcome.paths.root}"
    )
    failed = kdray("register", outcome.paths.root)
    assert failed.code == 1
    assert "has no run of this sweep yet" in failed.err
    assert "Traceback" not in failed.out + failed.err
    done = kdray("register", outcome.paths.root, "--tracking-uri", default_uri(outcome.paths))
    assert done.code == 0, done.err
    assert done.out == "Registry models:/depth-1@champion (version 1)\n"


@pytest.mark.faults
@pytest.mark.slow
def test_a_server_whose_registry_fails_is_told_later(run_depth: RunDepth, tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server, FaultyProxy(server) as proxy:

        def fate(method: str, path: str) -> Fault:
            return "error 500" if "model-versions" in path else "passes"

        proxy.fate = fate
        tracking = Tracking(uri=proxy.uri, model="films", timeout_s=10, patience_s=3)
        outcome = run_depth(tmp_path / "storage", 1, tracking=tracking)
        assert outcome.exit_code == 0
        assert outcome.registered is not None
        assert "does not register the student (it answers HTTP 500). Register it later with" in outcome.registered
        proxy.fate = lambda method, path: "lost answer" if path.endswith("model-versions/create") else "passes"
        done = kdray("register", outcome.paths.root)
        assert done.out == "Registry models:/films@champion (version 1)\n"
        assert sum(request.endswith("model-versions/create") for request in proxy.requests) == 1
        labels = predict_without_kdray(proxy.uri, tmp_path)
    assert labels == [predict_from_folder(outcome.paths.chosen)] * 2


@pytest.fixture
def refused_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let MLflow refuse to create registered models. Gives the names of the refused models."""
    names: list[str] = []

    def refuse(self: MlflowClient, name: str) -> None:
        names.append(name)
        raise MlflowException("you may not write here", PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "create_registered_model", refuse)
    return names


def test_a_refusal_of_the_registry_is_reported_without_retries(
    sweeps: RegisteredSweeps, refused_names: list[str]
) -> None:
    done = kdray("register", sweeps.path(2), "--model", "forbidden")
    assert done.code == 1
    assert "does not register the student (you may not write here). Run the same command again when" in done.err
    assert "Traceback" not in done.out + done.err
    assert refused_names == ["forbidden"]


def test_a_lost_answer_makes_no_second_version(sweeps: RegisteredSweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = MlflowClient.create_model_version, list[str]()

    def lose_answer(self: MlflowClient, name: str, *arguments: Any, **named: Any) -> Any:
        calls.append(name)
        real(self, name, *arguments, **named)
        raise ConnectionError("the answer is lost")

    monkeypatch.setattr(MlflowClient, "create_model_version", lose_answer)
    assert sweeps.register(2, "lost") == "Registry models:/lost@champion (version 1)"
    assert calls == ["lost"]


def test_a_sweep_without_a_student_or_tracking_is_refused(chosen: SweepPaths, tmp_path: Path) -> None:
    done = kdray("register", tmp_path / "nothing")
    assert (done.code, done.out) == (2, "")
    assert "there is no sweep here" in done.err
    done = kdray("register", chosen.root)
    assert done.code == 2
    assert "the sweep was not tracked" in done.err


def test_a_sweep_in_a_bucket_is_registered_from_another_machine(
    run_depth: RunDepth, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    outcome = run_depth(storage_path(bucket), 1, tracking=Tracking(uri=uri, patience_s=120))
    assert outcome.registered == "models:/depth-1@champion (version 1)"
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "another-node"))
    done = kdray("register", f"{bucket}/depth-1", "--model", "elsewhere")
    assert done.code == 0, done.err
    assert done.out == "Registry models:/elsewhere@champion (version 1)\n"
