"""The model registry: who is champion, loading it without kdray, and a registry that refuses."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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
from kdray.models.pretrained import Pretrained, weights_fingerprint
from kdray.run import RunOptions, run
from kdray.search.settings import Search
from kdray.slots.pool import SlotSettings
from kdray.stages.shipping import Outcome
from kdray.storage.files import read_json
from kdray.storage.mirror import ROOT
from kdray.storage.paths import SweepPaths, storage_path
from kdray.sweep import Sweep
from kdray.tasks.text_classification import TextClassification
from kdray.tracking.mlflow_model import write_mlflow_model
from kdray.tracking.settings import Tracking, default_uri
from tests.cli.test_cli import kdray
from tests.tracking.mlflow_server import Fault, FaultyProxy, Server

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there
SMALLEST = Choose(smallest="size_mb", retention=0.1)
TEXTS = ["a warm and witty film", "the dull plot of this cold film", "fresh", "stale " * 200]

Go = Callable[..., Outcome]


@pytest.fixture(scope="module")
def go(make_sweep: Callable[..., Sweep]) -> Go:
    """Run a sweep of one student of this depth, confirmed over one seed; the smallest one is the best."""

    def run_it(storage: Path, depth: int, **fields: Any) -> Outcome:
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

    return run_it


@dataclass(frozen=True)
class Team:
    """Three sweeps of one storage, in the order in which they were run: depth 2, 3 and 1."""

    storage: Path
    outcomes: tuple[Outcome, ...]
    client: MlflowClient

    def path(self, depth: int) -> Path:
        return self.storage / f"depth-{depth}"

    def register(self, depth: int, model: str, *options: str) -> str:
        """What `kdray register` says of the sweep with this depth."""
        done = kdray("register", self.path(depth), "--model", model, *options)
        assert done.code == 0, done.err
        return done.out.strip()

    def champion(self, model: str) -> Any:
        return self.client.get_model_version_by_alias(model, "champion")


@pytest.fixture(scope="module")
def team(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Team:
    storage = tmp_path_factory.mktemp("team")
    outcomes = tuple(go(storage, depth) for depth in (2, 3, 1))
    return Team(storage, outcomes, MlflowClient(default_uri(outcomes[0].paths)))


# Who is champion ------------------------------------------------------------------------------------------------------


def test_the_champion_survives_a_worse_sweep_and_moves_for_a_better_one(team: Team) -> None:
    first, worse, better = (outcome.registered for outcome in team.outcomes)
    assert first == "models:/films@champion (version 1)"
    assert worse is not None
    assert worse.startswith(
        "models:/films/2; version 1 stays champion: by the rule this one is no better on the same test rows: size 0."
    )
    assert worse.endswith(f"kdray register {team.path(3)} --replace --model films")
    assert better == "models:/films@champion (version 3, in the place of version 1)"
    assert team.champion("films").version == 3
    assert [version.tags["kdray.sweep"] for version in team.client.search_model_versions("name = 'films'")] == [
        "depth-1",
        "depth-3",
        "depth-2",
    ]


def test_a_version_says_where_it_comes_from(team: Team) -> None:
    paths = team.outcomes[2].paths
    version = team.champion("films")
    run = team.client.get_run(version.run_id)
    assert run.info.run_name == "depth-1"
    assert version.source == f"{run.info.artifact_uri}/model/{weights_fingerprint(paths.chosen)}"
    tags, lineage = version.tags, read_json(paths.lineage)
    assert {name: tags[f"kdray.{name}"] for name in lineage} == lineage
    assert (tags["kdray.sweep"], tags["kdray.trial"]) == ("depth-1", "0")
    assert Choose(**json.loads(tags["kdray.rule"])) == SMALLEST
    assert "16 tokens each, 1 thread, float32" in tags["kdray.measured"]
    figures, verdict = json.loads(tags["kdray.figures"]), team.outcomes[2].figures.verdict
    assert verdict is not None
    assert figures["student"]["accuracy"] == verdict.confirmed[0].metrics["accuracy"]
    assert figures["teacher"]["accuracy"] == verdict.teacher.estimate
    assert {"latency_ms", "size_mb", "parameters"} <= figures["student"].keys() & figures["teacher"].keys()
    assert version.description.startswith("Trial 0 was chosen")


def test_the_same_weights_make_one_version_and_the_command_moves_the_champion(team: Team) -> None:
    assert team.register(2, "again") == "Registry models:/again@champion (version 1)"
    assert team.register(2, "again") == "Registry models:/again@champion (version 1)"
    assert "version 1 stays champion" in team.register(3, "again")
    assert "version 1 stays champion" in team.register(3, "again")
    moved = team.register(3, "again", "--replace")
    assert moved == "Registry models:/again@champion (version 2, in the place of version 1)"
    assert team.champion("again").version == 2
    assert len(team.client.search_model_versions("name = 'again'")) == 2


def test_a_sweep_that_is_run_again_registers_nothing_new(team: Team, go: Go) -> None:
    outcome = go(team.storage, 1)
    assert outcome.registered == "models:/films@champion (version 3)"
    assert len(team.client.search_model_versions("name = 'films'")) == 3


def test_what_a_version_says_of_itself_is_brought_up_to_date(team: Team) -> None:
    team.register(2, "words")
    made = team.champion("words")
    team.client.update_model_version("words", "1", "what an earlier rule had said")
    team.client.set_model_version_tag("words", "1", "kdray.rule", "{}")
    team.register(2, "words")
    now = team.champion("words")
    assert (now.description, now.tags) == (made.description, made.tags)


@pytest.mark.parametrize(
    ("tag", "why"),
    [
        ("kdray.test_rows", "they were measured on different test rows"),
        ("kdray.figures", "the champion has no figures to compare by"),
    ],
)
def test_a_champion_that_cannot_be_compared_stays(team: Team, tag: str, why: str) -> None:
    model = tag.replace(".", "-")
    team.register(2, model)
    team.client.set_model_version_tag(model, "1", tag, "of something else")
    said = team.register(1, model)
    assert said.startswith(f"Registry models:/{model}/2; version 1 stays champion: {why}. To make it champion all the")
    assert team.champion(model).version == 1
    assert "in the place of version 1" in team.register(1, model, "--replace")


def test_a_student_that_misses_the_rule_is_no_champion(team: Team, go: Go, tmp_path: Path) -> None:
    demanding = Choose(smallest="size_mb", retention=5.0)
    outcome = go(tmp_path, 1, choose=demanding)
    assert outcome.exit_code == 0
    assert outcome.registered is not None
    assert "models:/films/1; it is no champion: this one keeps" in outcome.registered
    assert "(500% asked for)" in outcome.registered
    assert MlflowClient(default_uri(outcome.paths)).get_registered_model("films").aliases == {}


def test_only_a_confirmed_student_is_registered(go: Go, tmp_path: Path) -> None:
    outcome = go(tmp_path, 1, confirm=Confirm(candidates=0, controls=False))
    assert outcome.registered is not None
    assert "its choice was not confirmed, and only a confirmed student is registered" in outcome.registered
    done = kdray("register", outcome.paths.root)
    assert done.code == 2
    assert "its choice was not confirmed" in done.err
    assert MlflowClient(default_uri(outcome.paths)).search_registered_models() == []


def test_the_last_lines_name_the_version(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome(team.outcomes[2])
    assert "\nRegistry models:/films@champion (version 3, in the place of version 1)\n" in capsys.readouterr().out


def test_members_of_the_front_can_be_searched_for(team: Team) -> None:
    client = team.client
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(ids, "tags.`kdray.front` = 'yes' and tags.`kdray.sweep` = 'depth-2'")
    assert [run.info.run_name for run in found] == ["trial 000 depth 2"]


# By which rule --------------------------------------------------------------------------------------------------------


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


def standing(**changes: Any) -> RegisteredFigures:
    """A student like any other, but for these figures and what else is known of it."""
    student = {name: changes.pop(name, value) for name, value in STUDENT.items()}
    known = {"teacher_weights": "t", "test_rows": "r", "measured": "on one CPU"} | changes
    return RegisteredFigures(metric="accuracy", student=student, teacher={"accuracy": 1.0, "latency_ms": 10.0}, **known)


@pytest.mark.parametrize(
    ("rule", "newcomer", "champion", "why"),
    [
        (Choose(retention=0.8), {"latency_ms": 1.0, "parameters": 5e5}, {}, None),
        (Choose(retention=0.8), {"latency_ms": 1.0}, {}, "no better"),  # of one shape: the clock says nothing
        (Choose(retention=0.8), {"latency_ms": 3.0, "parameters": 5e5, "accuracy": 0.95}, {}, "no better"),
        (Choose(retention=0.8), {"latency_ms": 3.0, "parameters": 5e5}, {"accuracy": 0.7}, None),  # it misses the rule
        (Choose(retention=0.8), {}, {}, "no better"),
        (Choose(retention=0.8), {"measured": "on a GPU", "latency_ms": 0.1}, {}, "the latency of the champion cannot"),
        (Choose(at_most={"size_mb": 20}), {"measured": "on a GPU", "accuracy": 0.91}, {}, None),
        (Choose(best="agreement", at_most={"size_mb": 20}), {"teacher_weights": "u"}, {}, "is with another teacher"),
        (Choose(knee=True, smallest="size_mb"), {"size_mb": 5.0, "accuracy": 0.85}, {}, "no better"),
        (Choose(knee=True, smallest="size_mb"), {"size_mb": 5.0}, {}, None),
    ],
)
def test_the_newer_rule_is_asked_of_both(
    rule: Choose, newcomer: dict[str, Any], champion: dict[str, Any], why: str | None
) -> None:
    objection = ChampionComparison(rule, standing(**newcomer), standing(**champion)).objection()
    assert objection is None if why is None else why in (objection or "")


def test_a_champion_is_held_against_the_newer_teacher() -> None:
    """It kept 90 % of a perfect teacher, and keeps all of a poorer one."""
    poorer = standing(latency_ms=3.0, parameters=5e5).model_copy(
        update={"teacher": {"accuracy": 0.9, "latency_ms": 6.0}}
    )
    beside = standing().beside(poorer)
    assert (beside["retention"], beside["speedup"]) == (1.0, 3.0)
    assert RegisteredFigures.read(poorer.tags()) == poorer


def test_a_name_that_no_registered_model_can_have_is_refused() -> None:
    with pytest.raises(SpecError, match=r"Tracking\.model: no registered model can be called 'a/b'; leave out"):
        Tracking(model="a/b")


def test_a_smoke_run_has_a_registered_model_of_its_own(make_sweep: Callable[..., Sweep]) -> None:
    assert make_sweep(tracking=Tracking(model="films")).smoke_copy().tracking.model == "films-smoke"
    assert make_sweep().smoke_copy().tracking.model is None


# Loading it -----------------------------------------------------------------------------------------------------------

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


def loaded_elsewhere(store: str, folder: Path) -> list[list[str]]:
    """What the champion says of the texts, by pyfunc and by transformers, in a process of this folder without kdray."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", LOAD, store, json.dumps(TEXTS)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return said


def answers(folder: Path) -> list[str]:
    """What the student in this folder says of the texts."""
    student = Pretrained(folder, "")
    model = student.model()
    inputs = student.tokenizer()(TEXTS, truncation=True, max_length=16, padding=True, return_tensors="pt")
    return [model.config.id2label[answer] for answer in model(**inputs).logits.argmax(1).tolist()]


def test_the_champion_loads_without_kdray_and_says_the_same(team: Team, tmp_path: Path) -> None:
    paths = team.outcomes[2].paths
    assert loaded_elsewhere(default_uri(paths), tmp_path) == [answers(paths.chosen)] * 2


def test_a_version_holds_safetensors_and_text_only(team: Team) -> None:
    version = team.champion("films")
    folder = Path(mlflow.artifacts.download_artifacts(version.source))
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert Path("model/model.safetensors") in files
    assert {path.suffix for path in files} == {".safetensors", ".json", ".yaml", ".txt", ".md", ""}
    ours = {str(path) for path in files if not path.suffix} - {"registered_model_meta"}  # MLflow's, when it is loaded
    assert ours == {"MLmodel"}
    for path in files:
        if path.suffix != ".safetensors":
            assert str(team.storage) not in (folder / path).read_text()
    required = [line.partition("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()]
    assert required == ["mlflow", "torch", "transformers", "safetensors"]


def test_a_student_of_pairs_answers_pairs(chosen: SweepPaths, tmp_path: Path) -> None:
    task = TextClassification(pair="other", max_length=16)
    write_mlflow_model(Pretrained(chosen.chosen, ""), task, "tiny", tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    pairs = [{"text": "a good film", "text_pair": "the cast"}, {"text": "a bad film", "text_pair": "cast " * 50}]
    answers = model.predict(pairs)
    assert len(answers) == 2
    assert list(model.predict(pd.DataFrame(pairs))["score"]) == list(answers["score"])


# A registry that refuses ----------------------------------------------------------------------------------------------


def test_a_server_that_is_away_fails_no_sweep_and_is_told_later(go: Go, tmp_path: Path) -> None:
    outcome = go(tmp_path, 1, tracking=Tracking(uri=NOBODY, timeout_s=1, patience_s=0))
    assert outcome.exit_code == 0
    assert outcome.registered == (
        f"MLflow at {NOBODY} has no run of this sweep yet to register a student of. Register it later with: "
        f"kdray register {outcome.paths.root}"
    )
    away = kdray("register", outcome.paths.root)
    assert away.code == 1
    assert "has no run of this sweep yet" in away.err
    assert "Traceback" not in away.out + away.err
    done = kdray("register", outcome.paths.root, "--tracking-uri", default_uri(outcome.paths))
    assert done.code == 0, done.err
    assert done.out == "Registry models:/depth-1@champion (version 1)\n"


@pytest.mark.faults
@pytest.mark.slow
def test_a_server_whose_registry_fails_is_told_later(go: Go, tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server, FaultyProxy(server) as door:

        def fate(method: str, path: str) -> Fault:
            return "error 500" if "model-versions" in path else "passes"

        door.fate = fate
        tracking = Tracking(uri=door.uri, model="films", timeout_s=10, patience_s=3)
        outcome = go(tmp_path / "storage", 1, tracking=tracking)
        assert outcome.exit_code == 0
        assert outcome.registered is not None
        assert "does not register the student (it answers HTTP 500). Register it later with" in outcome.registered
        door.fate = lambda method, path: "lost answer" if path.endswith("model-versions/create") else "passes"
        done = kdray("register", outcome.paths.root)
        assert done.out == "Registry models:/films@champion (version 1)\n"
        assert sum(request.endswith("model-versions/create") for request in door.requests) == 1
        loaded = loaded_elsewhere(door.uri, tmp_path)
    assert loaded == [answers(outcome.paths.chosen)] * 2


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """No registered model can be made."""
    asked: list[str] = []

    def refuse(self: MlflowClient, name: str) -> None:
        asked.append(name)
        raise MlflowException("you may not write here", PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "create_registered_model", refuse)
    return asked


def test_a_registry_that_refuses_is_said_at_once(team: Team, refused: list[str]) -> None:
    done = kdray("register", team.path(2), "--model", "forbidden")
    assert done.code == 1
    assert "does not register the student (you may not write here). Run the same command again when" in done.err
    assert "Traceback" not in done.out + done.err
    assert refused == ["forbidden"]


def test_an_answer_that_was_lost_makes_no_second_version(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = MlflowClient.create_model_version, list[str]()

    def lost(self: MlflowClient, name: str, *arguments: Any, **named: Any) -> Any:
        calls.append(name)
        real(self, name, *arguments, **named)
        raise ConnectionError("the answer is lost")

    monkeypatch.setattr(MlflowClient, "create_model_version", lost)
    assert team.register(2, "lost") == "Registry models:/lost@champion (version 1)"
    assert calls == ["lost"]


def test_a_sweep_without_a_student_or_tracking_is_refused(chosen: SweepPaths, tmp_path: Path) -> None:
    done = kdray("register", tmp_path / "nothing")
    assert (done.code, done.out) == (2, "")
    assert "there is no sweep here" in done.err
    done = kdray("register", chosen.root)
    assert done.code == 2
    assert "the sweep was not tracked" in done.err


def test_a_storage_in_a_bucket(go: Go, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    outcome = go(storage_path(bucket), 1, tracking=Tracking(uri=uri, patience_s=120))
    assert outcome.registered == "models:/depth-1@champion (version 1)"
    monkeypatch.setenv(ROOT, str(tmp_path / "another-node"))
    done = kdray("register", f"{bucket}/depth-1", "--model", "elsewhere")
    assert done.code == 0, done.err
    assert done.out == "Registry models:/elsewhere@champion (version 1)\n"
