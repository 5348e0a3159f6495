"""What inner terms add: the control "logits alone", and its sentence in the verdict."""

from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from kdray.choice.controls import controls_of_front
from kdray.choice.decision import Decision
from kdray.choice.reruns import Confirm, ControlsOf, Rerun, planned_reruns
from kdray.choice.rule import Choose
from kdray.choice.verdict import Verdict
from kdray.evaluation.trial_record import TrialRecord
from kdray.losses.distillation import Distillation
from kdray.losses.inner_terms import INNER_TERMS
from kdray.report import confirmed, terms
from kdray.run import RunOptions, run
from kdray.search.settings import Search
from kdray.slots.pool import SlotSettings
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tasks.text_classification import TextClassification
from kdray.training.trial import Recipe
from tests.choice.test_confirmation import FakeTestRows, searched

INNER: dict[str, Any] = {
    "distillation.hidden_mse": 0.5,
    "distillation.relations": 0.1,
    "distillation.relation_heads": 4,
    "distillation.layer_map": "last",
    "distillation.inner_first": 0.3,
}


def controls_of(recipe: Recipe, has_more_text: bool = False) -> ControlsOf:
    return ControlsOf(recipe, has_more_text=lambda tuned: has_more_text)


def keys_by_role(runs: list[Rerun]) -> dict[str, str]:
    return {run.role: run.key for run in runs}


def test_a_recipe_with_inner_terms_has_a_control_without_them(recipe: Recipe) -> None:
    without = recipe.with_dotted({"distillation.temperature": 3.0, "distillation.alpha": 0.8, "student.depth": 1})
    tuned = without.with_dotted(INNER)
    controls = controls_of(recipe, has_more_text=True)(tuned)
    assert list(controls) == ["labels only", "labelled rows", "logits alone", "default distillation"]
    # The same text, steps, student and training: only the inner terms differ.
    assert controls["logits alone"] == without
    assert controls["labelled rows"].distillation == tuned.distillation
    assert controls["default distillation"].distillation == Distillation()


@pytest.mark.parametrize("name", INNER_TERMS)
@pytest.mark.parametrize("ending", ["", "_end"])
def test_every_inner_term_has_the_control_also_at_the_end_of_a_schedule(recipe: Recipe, name: str, ending: str) -> None:
    schedule = {"distillation.schedule": "linear", "distillation.alpha_end": 0.1}
    without = recipe.with_dotted(schedule)
    tuned = without.with_dotted({f"distillation.{name}{ending}": 0.2})
    assert controls_of(recipe)(tuned)["logits alone"] == without


def test_without_inner_terms_no_other_students_are_trained(recipe: Recipe) -> None:
    """A layer map that no term reads is no inner term. The reruns have the keys that they would have without it."""
    tuned = recipe.with_dotted({"distillation.temperature": 3.0})
    unread = tuned.with_dotted({"distillation.layer_map": "last"})
    assert list(controls_of(recipe)(unread)) == ["labels only", "default distillation"]
    of_inner, of_none = (
        keys_by_role(planned_reruns(Confirm(seeds=1), {1: each}, controls_of(recipe), seed=0))
        for each in (tuned.with_dotted(INNER), tuned)
    )
    assert of_inner.keys() - of_none.keys() == {"logits alone"}
    # The control is the training that the same trial without inner terms is: it is trained once.
    assert of_inner["logits alone"] == of_none["candidate"] != of_inner["candidate"]
    for role in ("labels only", "default distillation"):
        assert of_inner[role] == of_none[role]


def test_labels_only_has_no_inner_terms_whatever_the_recipe_has() -> None:
    """The key is that of version 0.1."""
    for values in (INNER, {"distillation.hidden_mse_end": 0.1, "distillation.schedule": "cosine"}):
        tuned = Recipe().with_dotted({"distillation.temperature": 4.0, **values})
        control = controls_of(Recipe())(tuned)["labels only"]
        assert control.distillation.inner_terms == {}
        assert not control.distillation.needs_teacher
        assert Rerun(trial=0, role="labels only", seed=1, recipe=control).key == "dfe014eab5eba9e3"


def test_on_the_front_the_trials_with_inner_terms_have_the_control(recipe: Recipe) -> None:
    def trial(number: int, accuracy: float, latency_ms: float, **params: Any) -> TrialRecord:
        record = searched(number, accuracy, latency_ms=latency_ms)
        return TrialRecord(
            number=number,
            params={"student.depth": number, **params},
            state=record.state,
            history=record.history,
            costs=record.costs,
        )

    records = [trial(1, 0.8, 1.0), trial(2, 0.9, 2.0, **INNER)]
    metrics = ("accuracy", "latency_ms")
    runs = controls_of_front(records, metrics, recipe.with_dotted, controls_of(recipe), seed=5)
    assert {run.trial for run in runs} == {1, 2}
    assert [(run.trial, run.seed, run.recipe.student.depth) for run in runs if run.role == "logits alone"] == [
        (2, 5, 2)
    ]


@pytest.mark.parametrize(
    ("logits_alone", "number", "remark"),
    [
        ((0.80, 0.79, 0.81), "+10.0", ""),
        ((0.90, 0.89, 0.91), "+0.0", "; no gain is shown"),
        ((0.97, 0.97, 0.97), "-7.0", "; the chosen student is worse"),
    ],
)
def test_the_sentence_says_what_inner_terms_add(logits_alone: tuple[float, ...], number: str, remark: str) -> None:
    chosen, labels_only = (0.90, 0.91, 0.89), (0.70, 0.71, 0.69)
    verdict: Verdict = FakeTestRows().verdict(
        {(1, "candidate"): chosen, (1, "labels only"): labels_only, (1, "logits alone"): logits_alone},
        [searched(1, 0.9)],
        Choose(best="accuracy"),
    )
    assert [gain.over for gain in verdict.gains] == ["labels only", "logits alone"]
    (sentence,) = [each for each in verdict.sentences if each.startswith("Due to the inner terms")]
    assert sentence == verdict.sentences[3]
    assert sentence.startswith(f"Due to the inner terms: accuracy {number} points (95%: ")
    assert sentence.endswith(f") over the same distillation on logits alone{remark}.")
    names = [cells[0] for _, cells in confirmed.rows(verdict, TextClassification())]
    assert names == ["teacher", "trial 001", "trial 001, labels only", "trial 001, logits alone"]


OLDER_DECISION = """{
  "chosen": 1,
  "controls": [{"trial": 1, "role": "labels only", "metrics": {"accuracy": 0.7}}],
  "confirmation": {
    "metric": "accuracy", "rows": 400, "teacher": {"estimate": 0.9, "low": 0.87, "high": 0.93},
    "confirmed": [{
      "trial": 1, "role": "default distillation", "seeds": 1, "metric": {"estimate": 0.8, "low": 0.7, "high": 0.9},
      "retention": {"estimate": 0.9, "low": 0.8, "high": 1}, "metrics": {"accuracy": 0.8}, "misses": []
    }],
    "chosen": 1, "satisfied": true, "sentences": [],
    "gains": [{"over": "labels only", "difference": {"estimate": 0.1, "low": 0, "high": 0.2}}]
  }
}"""
"""The record choice.json of a sweep from before there were inner terms."""


def test_a_decision_with_the_control_is_stored_and_an_older_one_is_read() -> None:
    older = Decision.model_validate_json(OLDER_DECISION)
    assert older.confirmation is not None
    assert [older.controls[0].role, older.confirmation.confirmed[0].role] == ["labels only", "default distillation"]
    accuracies: dict[tuple[int, str], Any] = {(1, "candidate"): (0.9, 0.9), (1, "logits alone"): (0.85, 0.85)}
    verdict: Verdict = FakeTestRows().verdict(accuracies, [searched(1, 0.9)], Choose(best="accuracy"))
    newer = Decision(chosen=1, confirmation=verdict)
    assert Decision.model_validate_json(newer.model_dump_json()) == newer


def test_a_sweep_with_inner_terms_says_what_they_add(
    make_sweep: Callable[..., Sweep], recipe: Recipe, tmp_path: Path
) -> None:
    sweep = make_sweep(
        distillation=Distillation(hidden_mse=0.5),
        training=recipe.training.model_copy(update={"epochs": 1}),
        space={"student.depth": [2]},
        search=Search(trials=1, stopping=None),
        choose=Choose(retention=0.1),
        confirm=Confirm(candidates=1, seeds=1),
        slots=SlotSettings(cpus=1),
    )
    paths = SweepPaths(tmp_path, sweep.name)
    figures = run(sweep, paths, RunOptions(local=True)).figures
    # Without more text, no control sees the labelled rows alone.
    roles = ["labels only", "logits alone", "default distillation"]
    assert [control.role for control in figures.controls] == roles
    assert [control.error for control in figures.controls] == [None] * 3
    assert "share_hidden_mse" in figures.records[0].metrics
    assert [control.role for control in figures.controls if "share_hidden_mse" in control.metrics] == []
    verdict = figures.verdict
    assert verdict is not None
    assert verdict.failed == {}
    assert [student.role for student in verdict.confirmed] == ["candidate", *roles]
    (sentence,) = [each for each in figures.sentences if each.startswith("Due to the inner terms: accuracy ")]
    report, html = (unescape((paths.report / name).read_text()) for name in ("report.md", "report.html"))
    card = (paths.chosen / "README.md").read_text()
    for text in (report, card):
        assert " over the same distillation on logits alone" in text
        assert "| trial 000, logits alone | 1 |" in text
    assert sentence in html
    assert f"## {terms.TITLE}" in report
    assert "| hidden mse |" in report
    assert f"<h2>{terms.TITLE}</h2>" in html
