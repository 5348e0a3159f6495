"""The forms and the card of a tagger, of a student for several labels, and of one for numbers."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file
from seqeval.metrics.sequence_labeling import get_entities

from kdray.export.card import write_card
from kdray.export.checks import EXPORT_FILE, read_export_result
from kdray.export.prediction import Predictor
from kdray.export.shipped import read_shipped
from kdray.stages.reading import read_figures
from kdray.storage.files import read_json, write_json
from kdray.storage.paths import SweepPaths
from kdray.tasks.multi_label import SetAnswer
from kdray.tasks.regression import Regression
from kdray.tasks.span_answers import SpanAnswer
from kdray.tasks.task import Outputs
from kdray.tasks.token_classification import TokenClassification
from kdray.tasks.usage import SENTENCE
from tests.cli.test_cli import kdray
from tests.export.conftest import BIOES, TASKS, GetSweep, copy_sweep, read_test_rows

QUALITY = {"tags": "span_f1", "labels": "macro_f1", "numbers": "pearson"}
HUB = {
    "tags": ["f1", "f1", "precision", "recall", "accuracy"],
    "labels": ["f1", "f1", "accuracy"],
    "numbers": ["pearsonr", "spearmanr", "mse", "mae"],
}
"""What the hub calls the metrics of each task."""
CARD = {
    "tags": ("spans of 4 types: person, place, product, work.", "words with the same predicted tag"),
    "labels": ("any number of 9 labels, also none: anger, fear", "rows with exactly the same predicted labels"),
    "numbers": ("It predicts a number from 0 to 5.", "it is Pearson's correlation of the predicted numbers"),
}
"""Parts of each card."""
each_task = pytest.mark.parametrize("name", TASKS)


def _figures(paths: SweepPaths) -> dict[str, Any]:
    """Form -> its figures."""
    result = read_export_result(paths.chosen / "onnx" / EXPORT_FILE)
    assert result is not None
    assert result.missing == {}
    return {figures.form: figures for figures in result.forms}


def _read_card(paths: SweepPaths) -> tuple[dict[str, Any], str]:
    """The metadata and the text of the card."""
    _, head, text = (paths.chosen / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def _run_code(paths: SweepPaths, sentence: str = SENTENCE) -> list[str]:
    """What the two pieces of code in the card print, without kdray; `sentence` stands in the place of `SENTENCE`."""
    printed = []
    for block in re.findall(r"```python\n(.*?)```", _read_card(paths)[1], re.DOTALL):
        script = f"import sys; sys.modules['kdray'] = None\n{block.replace(SENTENCE, sentence)}"
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=paths.chosen, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert len(printed) == 2
    return printed


def _sentence_with_spans(paths: SweepPaths) -> str:
    """A test row in which the student and its int8 form find the same spans, at least two."""
    for words in read_test_rows(paths)["text"]:
        sentence = " ".join(words)
        spans = [_answers(paths, form, [sentence])[0].spans for form in ("pytorch", "int8")]
        if len(spans[0]) > 1 and [span.label for span in spans[0]] == [span.label for span in spans[1]]:
            return sentence
    raise AssertionError("no such row")


def _answers(paths: SweepPaths, form: Any, texts: list[str], pairs: list[str] | None = None) -> Sequence[Any]:
    return list(Predictor(read_shipped(paths), form, 8).answers(texts, pairs))


# Forms ----------------------------------------------------------------------------------------------------------------


@each_task
def test_each_form_is_compared_by_the_metrics_of_the_task(with_forms: GetSweep, name: str) -> None:
    paths = with_forms(name)
    forms, recorded = _figures(paths), read_json(paths.choice)["measured"]["test"]
    assert forms.keys() == {"pytorch", "onnx", "int8"}
    quality = QUALITY[name]
    for form, close in (("pytorch", 1e-4), ("onnx", 1e-4), ("int8", 0.1)):
        assert forms[form].metrics[quality] == pytest.approx(recorded[quality], abs=close)
        assert forms[form].metrics[quality] in forms[form].intervals[quality]
    assert forms["onnx"].agreement == pytest.approx(1.0)
    assert forms["onnx"].largest_difference < 1e-4
    assert forms["int8"].agreement > 0.8
    assert 0 < forms["int8"].largest_difference < 0.5
    assert forms["int8"].difference.estimate == pytest.approx(
        forms["int8"].metrics[quality] - forms["pytorch"].metrics[quality]
    )


def test_rounding_is_measured_in_the_units_of_the_numbers(finished: GetSweep, tmp_path: Path) -> None:
    """The numbers of this student are as large as prices of houses: float32 rounds them more coarsely than logits."""
    paths = copy_sweep(finished("numbers"), tmp_path)
    file = paths.chosen / "model.safetensors"
    weights = load_file(file)
    for head in ("classifier.weight", "classifier.bias"):
        weights[head] = weights[head] * 1e6
    save_file(weights, file, metadata={"format": "pt"})
    done = kdray("export", paths.root)
    assert done.code == 0, done.err
    forms = _figures(paths)
    assert 0.01 < forms["onnx"].largest_difference < 1000
    assert forms["onnx"].agreement == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("numbers", "allowed"),
    [([0.0, 2.0], 0.01), ([2e5, 4e5], 1004.0), ([2000.0, 2000.0], 0.02), ([0.001, 0.003], 1e-5)],
)
def test_the_allowed_difference_is_a_share_of_the_spread(numbers: list[float], allowed: float) -> None:
    outputs = Outputs(np.array(numbers, np.float32)[:, None])
    assert Regression().allowed_difference(outputs) == pytest.approx(allowed, rel=0.01)


# The card -------------------------------------------------------------------------------------------------------------


@each_task
def test_a_card_speaks_of_its_task(with_forms: GetSweep, name: str) -> None:
    paths = with_forms(name)
    head, text = _read_card(paths)
    assert head["pipeline_tag"] == TASKS[name]["task"].pipeline
    (result,) = head["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == HUB[name]
    assert head["metrics"] == list(dict.fromkeys(HUB[name]))
    recorded = read_json(paths.choice)["measured"]["test"]
    assert result["metrics"][0]["value"] == pytest.approx(recorded[QUALITY[name]], abs=1e-6)
    for part in CARD[name]:
        assert part in text
    assert str(paths.storage) not in text
    assert "one of" not in text.split("## Usage")[0]


def test_a_card_has_the_figures_of_each_label(finished: GetSweep) -> None:
    tags, labels, numbers = (_read_card(finished(name))[1] for name in TASKS)
    person = read_json(finished("tags").choice)["by_label"]["person"]
    assert "| label | F1, test | spans, test |" in tags
    assert f"| person | {person['f1']:.4f} | {person['count']} |" in tags
    joy = read_json(finished("labels").choice)["by_label"]["joy"]
    config = read_json(finished("labels").chosen / "config.json")
    threshold = config["thresholds"][config["label2id"]["joy"]]
    assert "| label | F1, test | rows, test | threshold |" in labels
    assert f"| joy | {joy['f1']:.4f} | {joy['count']} | {threshold:.4f} |" in labels
    assert "| label |" not in numbers


def test_the_code_in_the_card_of_a_tagger_runs(with_forms: GetSweep) -> None:
    paths = with_forms("tags")
    sentence = _sentence_with_spans(paths)
    by_pipeline, by_onnx = _run_code(paths, sentence)
    (answer,) = _answers(paths, "pytorch", [sentence])
    lines = [line.split() for line in by_pipeline.splitlines()]
    assert isinstance(answer, SpanAnswer)
    assert [(int(line[0]), int(line[1]), line[-2]) for line in lines] == [
        (span.start, span.end, span.label) for span in answer.spans
    ]
    assert [float(line[-1]) for line in lines] == pytest.approx([span.score for span in answer.spans], abs=1e-3)
    (answer,) = _answers(paths, "int8", [sentence])
    tagged = eval(by_onnx)
    assert [word for word, _ in tagged] == sentence.split()
    starts = np.cumsum([0, *(len(word) + 1 for word, _ in tagged)])
    assert [(int(starts[first]), kind) for kind, first, _ in get_entities([tag for _, tag in tagged])] == [
        (span.start, span.label) for span in answer.spans
    ]


def test_the_code_in_the_card_of_several_labels_runs(with_forms: GetSweep) -> None:
    paths = with_forms("labels")
    by_pytorch, by_onnx = _run_code(paths)
    for printed, form, texts in (
        (by_pytorch, "pytorch", ["one text", "another text"]),
        (by_onnx, "int8", ["one text"]),
    ):
        found = [eval(line) for line in printed.splitlines()]
        for scores, answer in zip(found, _answers(paths, form, texts), strict=True):
            assert isinstance(answer, SetAnswer)
            assert scores == pytest.approx({label: answer.probabilities[label] for label in answer.labels}, abs=1e-3)


def test_the_code_in_the_card_of_numbers_runs(with_forms: GetSweep) -> None:
    paths = with_forms("numbers")
    by_pipeline, by_onnx = _run_code(paths)
    texts, pairs = ["one text", "another text"], ["its second text"] * 2
    expected = [answer.value for answer in _answers(paths, "pytorch", texts, pairs)]
    assert eval(by_pipeline) == pytest.approx(expected, abs=1e-3)
    assert float(by_onnx) == pytest.approx(_answers(paths, "int8", texts[:1], pairs[:1])[0].value, abs=1e-3)


def test_the_code_for_tags_that_the_pipeline_does_not_group_prints_them(finished: GetSweep) -> None:
    """The pipeline of transformers would make two spans of B-person and E-person."""
    task = TokenClassification(max_length=96)
    assert 'aggregation_strategy="first"' in task.pytorch_code(("O", "B-person", "I-person"))
    code = task.pytorch_code(("O", "B-person", "I-person", "E-person", "S-person"))
    paths = finished(BIOES)
    assert code in _read_card(paths)[1]
    sentence = " ".join(read_test_rows(paths)["text"][0])
    command = [sys.executable, "-c", code.replace(SENTENCE, sentence)]
    done = subprocess.run(command, cwd=paths.chosen, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tagged = eval(done.stdout)
    (answer,) = _answers(paths, "pytorch", [sentence])
    assert [word for word, _ in tagged] == sentence.split()
    assert {tag[0] for _, tag in tagged} & {"S", "E"}
    assert [kind for kind, _, _ in get_entities([tag for _, tag in tagged])] == [span.label for span in answer.spans]


def test_a_record_without_figures_of_labels_has_a_card_without_them(finished: GetSweep, tmp_path: Path) -> None:
    """Earlier versions of kdray have not recorded them. The thresholds are in config.json."""
    paths = copy_sweep(finished("labels"), tmp_path)
    choice = read_json(paths.choice)
    del choice["by_label"]
    write_json(paths.choice, choice)
    write_card(read_shipped(paths), read_figures(paths))
    text = _read_card(paths)[1]
    assert "| label | threshold |" in text
    assert "F1 of each label" not in text
