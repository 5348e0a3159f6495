"""`pipeline(...)` of plain transformers on `chosen/` gives the metrics that the sweep has recorded for the test rows.

The metrics are computed by seqeval, scikit-learn and scipy. Shapes: N rows, C labels.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import accuracy_score as tag_accuracy
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from sklearn import metrics
from transformers import pipeline

from kdray.storage.files import read_json
from kdray.storage.paths import SweepPaths
from tests.export.conftest import BIOES, GetSweep, read_test_rows

ROUNDING = 1e-9
"""The metrics are sums of float64 numbers in another order."""


def _recorded(paths: SweepPaths) -> dict[str, float]:
    metrics: dict[str, float] = read_json(paths.choice)["measured"]["test"]
    return metrics


def _check_labels(paths: SweepPaths, expected: dict[str, tuple[float, int]]) -> None:
    """Compare the recorded figures of each label; `expected` has F1 and number of each."""
    by_label = read_json(paths.choice)["by_label"]
    assert {label: each["count"] for label, each in by_label.items()} == {
        label: count for label, (_, count) in expected.items()
    }
    assert {label: each["f1"] for label, each in by_label.items()} == pytest.approx(
        {label: f1 for label, (f1, _) in expected.items()}, abs=ROUNDING
    )


def _labels(paths: SweepPaths) -> list[str]:
    return list(read_json(paths.chosen / "config.json")["id2label"].values())


def _gold_tags(paths: SweepPaths, rows: datasets.Dataset) -> list[list[str]]:
    labels = _labels(paths)
    return [[labels[number] for number in numbers] for numbers in rows["label"]]


def _tags_of_spans(words: Sequence[str], spans: Sequence[dict[str, Any]]) -> list[str]:
    """BIO tags of the words, from the spans of the text in which one space stands between two words."""
    tags, start = [], 0
    for word in words:
        inside = [span for span in spans if span["start"] <= start < span["end"]]
        prefix = "B" if inside and inside[0]["start"] == start else "I"
        tags.append(f"{prefix}-{inside[0]['entity_group']}" if inside else "O")
        start += len(word) + 1
    return tags


def _tags_of_tokens(words: Sequence[str], tokens: Sequence[dict[str, Any]]) -> list[str]:
    """The tag of each word is that of its first token."""
    tag_of_place = {token["start"]: token["entity"] for token in reversed(tokens)}
    starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
    return [tag_of_place[int(start)] for start in starts]


def _tags_by_word(paths: SweepPaths, rows: datasets.Dataset) -> list[list[str]]:
    tagger = pipeline("token-classification", model=str(paths.chosen), ignore_labels=[])
    answers = tagger(list(rows["text"]), is_split_into_words=True, delimiter=" ")
    return [_tags_of_tokens(words, tokens) for words, tokens in zip(rows["text"], answers, strict=True)]


def _check_tags(paths: SweepPaths, gold: list[list[str]], predicted: list[list[str]]) -> None:
    recorded = _recorded(paths)
    assert recorded["span_f1"] > 0.05
    assert f1_score(gold, predicted) == pytest.approx(recorded["span_f1"], abs=ROUNDING)
    assert precision_score(gold, predicted) == pytest.approx(recorded["precision"], abs=ROUNDING)
    assert recall_score(gold, predicted) == pytest.approx(recorded["recall"], abs=ROUNDING)
    assert f1_score(gold, predicted, average="macro") == pytest.approx(recorded["macro_f1"], abs=ROUNDING)
    report = classification_report(gold, predicted, output_dict=True)
    kinds = [kind for kind in report if not kind.endswith(" avg")]
    _check_labels(paths, {kind: (report[kind]["f1-score"], report[kind]["support"]) for kind in kinds})


def test_the_spans_of_a_pipeline_have_the_recorded_f1(finished: GetSweep) -> None:
    paths = finished("tags")
    rows = read_test_rows(paths)
    tagger = pipeline("token-classification", model=str(paths.chosen), aggregation_strategy="first")
    spans = tagger(list(rows["text"]), is_split_into_words=True, delimiter=" ")
    predicted = [_tags_of_spans(words, found) for words, found in zip(rows["text"], spans, strict=True)]
    _check_tags(paths, _gold_tags(paths, rows), predicted)


@pytest.mark.parametrize("name", ["tags", BIOES])
def test_the_tags_of_a_pipeline_have_the_recorded_f1(finished: GetSweep, name: str) -> None:
    """The pipeline does not group the tags of BIOES as spans, but its tags are those of the words in every scheme."""
    paths = finished(name)
    rows = read_test_rows(paths)
    gold, predicted = _gold_tags(paths, rows), _tags_by_word(paths, rows)
    assert tag_accuracy(gold, predicted) == pytest.approx(_recorded(paths)["token_accuracy"], abs=ROUNDING)
    _check_tags(paths, gold, predicted)


def test_the_labels_of_a_pipeline_have_the_recorded_metrics(finished: GetSweep) -> None:
    paths = finished("labels")
    rows, recorded, labels = read_test_rows(paths), _recorded(paths), _labels(paths)
    thresholds_C = read_json(paths.chosen / "config.json")["thresholds"]
    predict = pipeline("text-classification", model=str(paths.chosen), top_k=None)
    answers = predict(list(rows["text"]), truncation=True, max_length=48)
    scores_NxC = pd.DataFrame([{each["label"]: each["score"] for each in row} for row in answers])[labels].to_numpy()
    predicted_NxC = scores_NxC > thresholds_C
    gold_NxC = np.array([[label in row for label in range(len(labels))] for row in rows["label"]])
    assert recorded["macro_f1"] > 0.05
    f1_C = metrics.f1_score(gold_NxC, predicted_NxC, average=None, zero_division=0)
    assert f1_C.mean() == pytest.approx(recorded["macro_f1"], abs=ROUNDING)
    micro_f1 = metrics.f1_score(gold_NxC, predicted_NxC, average="micro", zero_division=0)
    assert micro_f1 == pytest.approx(recorded["micro_f1"], abs=ROUNDING)
    assert metrics.accuracy_score(gold_NxC, predicted_NxC) == pytest.approx(recorded["subset_accuracy"], abs=ROUNDING)
    precisions = metrics.average_precision_score(gold_NxC, scores_NxC, average=None)
    assert precisions.mean() == pytest.approx(recorded["average_precision"], abs=ROUNDING)
    _check_labels(paths, dict(zip(labels, zip(f1_C, gold_NxC.sum(axis=0), strict=True), strict=True)))


def test_the_numbers_of_a_pipeline_have_the_recorded_metrics(finished: GetSweep) -> None:
    paths = finished("numbers")
    rows, recorded = read_test_rows(paths), _recorded(paths)
    predict = pipeline("text-classification", model=str(paths.chosen))
    pairs = [{"text": text, "text_pair": pair} for text, pair in zip(rows["text"], rows["pair"], strict=True)]
    predicted_N = np.array([answer["score"] for answer in predict(pairs, truncation=True, max_length=64)])
    gold_N = np.array(rows["label"])
    assert recorded["pearson"] > 0.05
    # In a batch with longer texts, a number differs in the last digits of float32.
    for name, value in {
        "pearson": pearsonr(predicted_N, gold_N).statistic,
        "spearman": spearmanr(predicted_N, gold_N).statistic,
        "mse": metrics.mean_squared_error(gold_N, predicted_N),
        "mae": metrics.mean_absolute_error(gold_N, predicted_N),
    }.items():
        assert value == pytest.approx(recorded[name], abs=1e-5), name
    assert read_json(paths.choice)["by_label"] is None


def test_the_classes_of_a_pipeline_have_the_recorded_metrics(chosen: SweepPaths) -> None:
    rows, recorded, labels = read_test_rows(chosen), _recorded(chosen), _labels(chosen)
    predict = pipeline("text-classification", model=str(chosen.chosen))
    predicted = [answer["label"] for answer in predict(list(rows["text"]), truncation=True, max_length=16)]
    gold = [labels[number] for number in rows["label"]]
    assert metrics.accuracy_score(gold, predicted) == pytest.approx(recorded["accuracy"], abs=ROUNDING)
    f1_C = metrics.f1_score(gold, predicted, average=None, labels=labels)
    counts = [gold.count(label) for label in labels]
    _check_labels(chosen, dict(zip(labels, zip(f1_C, counts, strict=True), strict=True)))
