"""A sweep that names a metric of a form measures its architectures in it, chooses by it, and exports the student."""

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from kdray.choice.rule import Choose
from kdray.errors import ExportError, ResourceError, SpecError
from kdray.evaluation.costs import Costs
from kdray.export import exporting
from kdray.export.checks import EXPORT_FILE, ExportResult, read_export_result
from kdray.forms import libraries
from kdray.run import Outcome, RunOptions, run
from kdray.search.settings import Search, at_least, at_most
from kdray.slots.pool import SlotSettings
from kdray.stages.named_forms import check_speedups, forms_of
from kdray.stages.reading import read_figures
from kdray.storage.files import read_json
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tracking.settings import Tracking
from kdray.training.settings import Training
from tests.cli.test_cli import kdray
from tests.stages.conftest import RunTiny

BY_INT8: dict[str, Any] = {
    "name": "by-int8",
    "space": {"student.depth": [1, 2]},
    # The size in ONNX, too, so that all tests share the costs in both forms.
    "search": Search(
        trials=2,
        objectives=("accuracy", "int8_latency_ms", "onnx_size_mb"),
        constraints={"onnx_latency_ms": at_most(1e6)},
        stopping=None,
    ),
    "choose": Choose(smallest="int8_latency_ms", retention=0.1),
    "slots": SlotSettings(cpus=1),
    "tracking": Tracking(),
}


@pytest.fixture(scope="session")
def by_int8(make_sweep: Callable[..., Sweep], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A finished sweep with the latency in int8 as objective and rule. Read it only."""
    return run(make_sweep(**BY_INT8), SweepPaths(tmp_path_factory.mktemp("forms"), "by-int8"), RunOptions(local=True))


@pytest.fixture
def own(by_int8: Outcome, tmp_path: Path) -> SweepPaths:
    """A copy of its storage, for a test that changes it."""
    shutil.copytree(by_int8.paths.storage, tmp_path, dirs_exist_ok=True)
    return SweepPaths(tmp_path, "by-int8")


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every export fail the test."""
    monkeypatch.setattr(torch.onnx, "export", lambda *values, **named: pytest.fail("a model was exported"))


def _read_result(paths: SweepPaths) -> ExportResult:
    result = read_export_result(paths.chosen / "onnx" / EXPORT_FILE)
    assert result is not None
    return result


# From the settings to the shipped student -----------------------------------------------------------------------------


def test_a_sweep_chooses_by_the_latency_in_int8_and_ships_the_student_in_int8(by_int8: Outcome) -> None:
    figures, paths = by_int8.figures, by_int8.paths
    assert by_int8.exit_code == 0
    by_number = {record.number: record.costs for record in figures.records}
    fastest = min(by_number, key=lambda number: by_number[number]["int8_latency_ms"])
    assert figures.chosen == fastest
    costs, teacher = by_number[fastest], figures.teacher
    for form in ("onnx", "int8"):
        assert costs[f"{form}_speedup"] == teacher[f"{form}_latency_ms"] / costs[f"{form}_latency_ms"]
        assert costs[f"{form}_latency_ms"] <= costs[f"{form}_latency_p95_ms"]
        assert costs[f"{form}_throughput_per_s"] > 0
    assert costs["int8_size_mb"] < costs["onnx_size_mb"] < teacher["onnx_size_mb"]
    result = _read_result(paths)
    assert [form.form for form in result.forms] == ["pytorch", "int8"]  # the rule names int8 only
    assert sorted(path.name for path in (paths.chosen / "onnx").iterdir()) == [EXPORT_FILE, "model_quantized.onnx"]
    shipped = result.figures_of("int8")
    assert shipped is not None
    # The trained student has the file size that its architecture was measured with.
    assert shipped.size_mb == pytest.approx(costs["int8_size_mb"], rel=1e-3)
    assert shipped.agreement > 0.8


def test_the_sentences_speak_of_what_is_served(by_int8: Outcome) -> None:
    first, *others = by_int8.figures.sentences
    costs = next(r.costs for r in by_int8.figures.records if r.number == by_int8.figures.chosen)
    assert "has the smallest int8 latency of these" in first
    assert f"and is {costs['int8_speedup']:.1f} times as fast as the teacher" in first
    assert "(teacher in int8: " in first
    assert "(teacher in ONNX: " in first
    assert others[-1].startswith("onnx/model_quantized.onnx is this student in int8. On the same test rows: accuracy ")
    assert "agreement with PyTorch " in others[-1]
    card = (by_int8.paths.chosen / "README.md").read_text()
    assert "is this student in int8" in card
    assert 'InferenceSession("onnx/model_quantized.onnx")' in card
    assert "| int8 latency | " in card


def test_the_report_has_the_forms_that_were_measured(by_int8: Outcome) -> None:
    report = (by_int8.paths.report / "report.md").read_text()
    assert "| latency | speed-up | ONNX latency | ONNX speed-up | int8 latency | int8 speed-up | parameters |" in report
    assert "; ONNX and int8 with onnxruntime on the CPU" in report
    assert "# The Pareto front of accuracy and int8 latency and ONNX size" in report
    with (by_int8.paths.report / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["int8_size_mb"]) == by_int8.figures.records[0].costs["int8_size_mb"]
    page = (by_int8.paths.report / "report.html").read_text()
    assert "int8 speed-up over the teacher" in page
    # The ids of runs in MLflow may arrive after the report: they are no figures.
    read, returned = (
        replace(figures, records=[replace(record, run_id=None) for record in figures.records])
        for figures in (read_figures(by_int8.paths), by_int8.figures)
    )
    assert read == returned


def test_mlflow_has_the_figures_of_the_forms(by_int8: Outcome) -> None:
    client = MlflowClient(f"sqlite:///{by_int8.paths.tracking_database}")
    (of_sweep,) = client.search_runs(["1"], f"tags.`kdray.chosen` = '{by_int8.figures.chosen}'")
    shipped = _read_result(by_int8.paths).figures_of("int8")
    assert shipped is not None
    logged = of_sweep.data.metrics
    assert logged["chosen.int8.accuracy"] == shipped.metrics["accuracy"]
    assert logged["chosen.int8.latency_ms"] == shipped.latency_ms
    assert logged["teacher.onnx_latency_ms"] == by_int8.figures.teacher["onnx_latency_ms"]
    trials = client.search_runs(["1"], "tags.`kdray.role` = 'search'")
    assert {run.data.metrics["int8_latency_ms"] for run in trials} == {
        record.costs["int8_latency_ms"] for record in by_int8.figures.records
    }


def test_a_sweep_that_continues_exports_nothing_again(
    own: SweepPaths, make_sweep: Callable[..., Sweep], by_int8: Outcome, no_export: None
) -> None:
    outcome = run(make_sweep(**BY_INT8), own, RunOptions(local=True))
    assert outcome.figures.sentences == by_int8.figures.sentences
    assert (own.chosen / "onnx" / "model_quantized.onnx").exists()


@pytest.mark.slow
def test_an_architecture_that_breaks_a_limit_in_onnx_is_never_trained(
    own: SweepPaths, make_sweep: Callable[..., Sweep], by_int8: Outcome, no_export: None
) -> None:
    """The costs are those of the finished sweep, from the cache that all sweeps of a storage share."""
    measured = {record.params["student.depth"]: record.costs for record in by_int8.figures.records}
    fast, slow = sorted(measured, key=lambda depth: measured[depth]["onnx_latency_ms"])
    limit = (measured[fast]["onnx_latency_ms"] + measured[slow]["onnx_latency_ms"]) / 2
    search = Search(trials=3, constraints={"onnx_latency_ms": at_most(limit)}, stopping=None)
    sweep = make_sweep(name="limited", search=search, slots=SlotSettings(cpus=1))
    outcome = run(sweep, SweepPaths(own.storage, "limited"), RunOptions(local=True))
    assert {record.params["student.depth"] for record in outcome.figures.records} == {fast}
    assert {record.costs["onnx_latency_ms"] for record in outcome.figures.records} == {
        measured[fast]["onnx_latency_ms"]
    }
    assert "int8_latency_ms" not in outcome.figures.records[0].costs  # measured there, but not named here
    assert not (outcome.paths.chosen / "onnx").exists()  # the rule names no form


@pytest.mark.slow
def test_a_trained_student_that_cannot_be_exported_is_shipped_without_the_form(
    own: SweepPaths, make_sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*values: object) -> None:
        raise ExportError("no graph today")

    shutil.rmtree(own.chosen / "onnx")
    monkeypatch.setattr(exporting, "write_onnx", refuse)
    outcome = run(make_sweep(**BY_INT8), own, RunOptions(local=True))
    assert outcome.exit_code == 0
    assert outcome.figures.sentences[-1] == "The trained student could not be exported in int8: no graph today."
    assert "Not available: int8, because no graph today." in (own.chosen / "README.md").read_text()


def test_another_rule_may_choose_by_a_form_that_was_measured(own: SweepPaths) -> None:
    done = kdray("choose", own.root, "--smallest", "onnx_size_mb", "--retention", "0.1", "--local")
    assert done.code == 0, done.err
    assert "has the smallest ONNX size of these" in done.out
    assert _read_result(own).figures_of("onnx") is not None


# Without a form, and refusals -----------------------------------------------------------------------------------------


def test_nothing_is_exported_for_a_sweep_that_names_no_form(run_tiny: RunTiny, no_export: None) -> None:
    outcome, _ = run_tiny()
    (record,) = outcome.figures.records
    assert not [name for name in (*record.costs, *outcome.figures.teacher) if name.startswith(("onnx", "int8"))]
    assert "ONNX" not in (outcome.paths.report / "report.md").read_text()
    assert not (outcome.paths.chosen / "onnx").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"search": Search(trials=1, objectives=("accuracy", "int8_size_mb"))},
        {"search": Search(trials=1, constraints={"onnx_latency_ms": at_most(5)})},
        {"choose": Choose(smallest="int8_latency_p95_ms")},
    ],
    ids=["objective", "constraint", "rule"],
)
def test_a_missing_library_is_reported_before_anything_starts(
    run_tiny: RunTiny, tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(
        ResourceError, match=r"^ONNX needs onnxruntime, not installed here: pip install 'kdray\[onnx\]'$"
    ):
        run_tiny(**fields)
    assert not (tmp_path / "cache").exists()


def test_a_rule_by_a_form_that_was_not_measured_is_refused(chosen: SweepPaths, tmp_path: Path) -> None:
    shutil.copytree(chosen.storage, tmp_path, dirs_exist_ok=True)
    own = SweepPaths(tmp_path, chosen.name)
    before = read_json(own.choice)
    done = kdray("choose", own.root, "--smallest", "int8_latency_ms", "--local")
    assert done.code == 2
    sentence = "choose 'int8_latency_ms': the trials of this sweep (there are 1) were not measured in this form."
    assert sentence in " ".join(done.err.split())
    assert read_json(own.choice) == before


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, []),
        ({"training": Training(quantised="int8")}, ["int8"]),
        ({"space": {"student.depth": [1, 2], "training.quantised": ["no", "int8"]}}, ["int8"]),
        ({"training": Training(quantised="int8"), "space": {"training.quantised": ["no"]}}, []),
    ],
)
def test_a_sweep_that_trains_for_int8_is_measured_in_it(
    make_sweep: Callable[..., Sweep], fields: dict[str, Any], names: list[str]
) -> None:
    assert [form.name for form in forms_of(make_sweep(**fields), [])] == names


def test_a_metric_of_a_form_that_does_not_exist_is_refused(make_sweep: Callable[..., Sweep]) -> None:
    with pytest.raises(SpecError, match=r"did you mean 'int8_latency_ms'"):
        make_sweep(search=Search(objectives=("accuracy", "int4_latency_ms")))
    with pytest.raises(SpecError, match=r"int8_speedup is not a metric to minimize"):
        make_sweep(choose=Choose(smallest="int8_speedup"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"search": Search(objectives=("accuracy", "int8_speedup"))},
        {"search": Search(constraints={"int8_speedup": at_least(2)})},
        {"choose": Choose(smallest=None, best="int8_speedup")},
    ],
    ids=["objective", "constraint", "rule"],
)
def test_a_speed_up_over_a_teacher_without_a_graph_is_refused(
    make_sweep: Callable[..., Sweep], fields: dict[str, Any]
) -> None:
    sweep = make_sweep(**fields)
    in_int8 = {"latency_ms": 4.0, "int8_latency_ms": 2.0}
    costs = Costs(machine={}, teacher=in_int8, by_teacher=(in_int8,), by_student={}, conditions="")
    check_speedups(sweep, costs)
    without = replace(costs, teacher={"latency_ms": 4.0}, notes=("The teacher has no costs in int8 (no graph).",))
    sentence = r"^int8_speedup: The teacher has no costs in int8 \(no graph\)\. Name int8_latency_ms instead\.$"
    with pytest.raises(SpecError, match=sentence):
        check_speedups(sweep, without)
