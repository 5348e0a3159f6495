"""The student of a masked and of a causal language model: predictions, pipelines, forms, card, registry."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, pipeline

from kdray.errors import DataError, SpecError
from kdray.export.checks import EXPORT_FILE, FormChecker, read_export_result
from kdray.export.exporting import _test_rows
from kdray.export.prediction import Predictor
from kdray.export.shipped import read_shipped
from kdray.forms.onnx_model import OnnxModel
from kdray.storage.files import read_json
from kdray.storage.paths import SweepPaths
from kdray.tasks.answers import Continuation
from tests.cli.test_cli import kdray
from tests.export.conftest import BLOCK, LANGUAGE, GetSweep, copy_sweep
from tests.export.test_predicting_tasks import _read as read_predicted
from tests.export.test_prediction import run_with_input, write_file
from tests.export.test_served import _served as served
from tests.export.test_served import _write as write_served

MASKED = [
    "the [MASK] king sees the house .",
    "the old [MASK] likes a [MASK] .",
    " ".join(["this new film knows the river ."] * 8 + ["a warm [MASK] sees this king ."] * 3),
]
"""Texts with one mask, with two, and one of several blocks with three."""
PROMPTS = ["the old king", "", "this film", " ".join(["a small river sees the film ."] * 8)]
NEW = 10
each = pytest.mark.parametrize("name", LANGUAGE)
each_form = pytest.mark.parametrize("form", ["pytorch", "onnx", "int8"])


def _answers(paths: SweepPaths, texts: list[str], form: str = "pytorch", **how: Any) -> list[Any]:
    predictor = Predictor(read_shipped(paths), form, 3, Continuation(**{"tokens": NEW} | how))
    return list(predictor.answers(texts, None))


def _card(paths: SweepPaths) -> tuple[dict[str, Any], str]:
    _, head, text = (paths.chosen / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


# Masks ----------------------------------------------------------------------------------------------------------------


def test_the_tokens_at_masks_are_those_of_the_pipeline(finished: GetSweep) -> None:
    paths = finished("masked")
    fill = pipeline("fill-mask", model=str(paths.chosen))
    for text, answer in zip(MASKED[:2], _answers(paths, MASKED[:2]), strict=True):
        found = fill(text)
        masks = [found] if text.count("[MASK]") == 1 else found
        assert len(answer.masks) == len(masks)
        for candidates, expected in zip(answer.masks, masks, strict=True):
            assert [one.token for one in candidates] == [one["token_str"] for one in expected]
            scores = [one["score"] for one in expected]
            assert [one.probability for one in candidates] == pytest.approx(scores, abs=1e-5)
        assert answer.probability == pytest.approx(math.prod(one[0]["score"] for one in masks), abs=1e-5)


def test_masks_of_a_long_text_are_read_in_windows_around_them(finished: GetSweep) -> None:
    """A block has room for 30 words; a mask has 7 or more of them on both sides, as far as the text reaches."""
    paths = finished("masked")
    fill = pipeline("fill-mask", model=str(paths.chosen))
    words = MASKED[2].split()
    masks = [58, 65, 72]
    words[40] = words[20] = "[MASK]"
    (answer,) = _answers(paths, [" ".join(words)])
    windows = [(13, 43, [20]), (33, 63, [40]), (47, 77, masks)]
    expected = []
    for begin, end, inside in windows:
        found = fill(" ".join(words[begin:end]))
        places = [place for place in range(begin, end) if words[place] == "[MASK]"]
        by_place = dict(zip(places, [found] if len(places) == 1 else found, strict=True))
        expected += [by_place[place][0] for place in inside]
    assert [mask[0].token for mask in answer.masks] == [one["token_str"] for one in expected]
    scores = [one["score"] for one in expected]
    assert [mask[0].probability for mask in answer.masks] == pytest.approx(scores, abs=1e-5)


@each_form
def test_texts_lines_and_files_with_masks(with_forms: GetSweep, tmp_path: Path, form: str) -> None:
    paths = with_forms("masked")
    expected = _answers(paths, MASKED, form)
    done = kdray("predict", paths.root, "--form", form, *MASKED)
    assert done.code == 0, done.err
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [line[0] for line in lines] == [answer.text for answer in expected]
    assert [len(line) for line in lines] == [4, 5, 6]  # the candidates of each mask, and the text
    if form == "pytorch":
        assert run_with_input("\n".join(MASKED).encode(), "predict", paths.root, "-").out == done.out
    source = write_file(tmp_path, "in.jsonl", [{"text": text} for text in MASKED])
    for ending in ("csv", "jsonl", "parquet"):
        target = tmp_path / f"out.{ending}"
        assert kdray("predict", paths.root, "--file", source, "--to", target, "--form", form).code == 0
        rows = read_predicted(target)
        assert list(rows[0]) == ["text", "predicted", "probability", "candidates"]
        assert [row["predicted"] for row in rows] == [answer.text for answer in expected]
        lists = [json.loads(row["candidates"]) if ending == "csv" else row["candidates"] for row in rows]
        assert [len(masks) for masks in lists] == [1, 2, 3]
        assert lists[1][1][0]["token"] == expected[1].masks[1][0].token


def test_a_text_without_a_mask_is_refused(finished: GetSweep, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'the old king': this student fills masks, and the text has none. Write \["):
        _answers(finished("masked"), ["the [MASK] king", "the old king"])
    done = kdray("predict", finished("masked").root, "the king")
    assert done.code == 2
    done = kdray("predict", finished("masked").root, "--tokens", "3", "the [MASK]")
    assert done.code == 2
    assert "--tokens: this student does not continue texts; its task is masked language modelling" in done.err


# Continuations --------------------------------------------------------------------------------------------------------


def test_a_continuation_is_that_of_the_pipeline(finished: GetSweep) -> None:
    paths = finished("causal")
    generate = pipeline("text-generation", model=str(paths.chosen))
    answers = _answers(paths, PROMPTS[:3])
    for text, answer in zip(PROMPTS, answers, strict=False):
        (expected,) = generate(text, max_new_tokens=NEW, do_sample=False, return_full_text=False)
        # The pipeline leaves out the space before the first word.
        assert answer.text.split() == expected["generated_text"].split()
        assert 0 < answer.probability <= 1
    assert len({answer.text for answer in answers}) > 1


def test_a_graph_continues_texts_as_pytorch_does(with_forms: GetSweep) -> None:
    paths = with_forms("causal")
    expected = _answers(paths, PROMPTS)
    for answer, other in zip(_answers(paths, PROMPTS, "onnx"), expected, strict=True):
        assert answer.text == other.text
        assert answer.probability == pytest.approx(other.probability, abs=1e-5)
    alone = [_answers(paths, [text])[0].text for text in PROMPTS]
    assert alone == [answer.text for answer in expected]
    assert all(answer.text for answer in _answers(paths, PROMPTS[:1], "int8"))


@pytest.mark.parametrize("form", ["pytorch", "onnx"])
def test_tokens_are_drawn_by_seed_and_temperature(with_forms: GetSweep, form: str) -> None:
    paths = with_forms("causal")

    def drawn(**how: Any) -> list[str]:
        return [answer.text for answer in _answers(paths, PROMPTS, form, **how)]

    assert drawn(temperature=1.0, seed=1) == drawn(temperature=1.0, seed=1) != drawn(temperature=1.0, seed=2)
    assert drawn(temperature=1e-4, seed=1) == drawn()


@pytest.mark.parametrize("form", ["pytorch", "onnx"])
def test_a_continuation_ends_behind_the_end_token(with_forms: GetSweep, form: str) -> None:
    """As if the point were the end token: nothing follows, and texts that ended earlier wait for the others."""
    paths = with_forms("causal")
    student = read_shipped(paths)
    predictor = Predictor(student, form, 3, Continuation(tokens=20))
    whole = [answer.text for answer in predictor.answers(PROMPTS[:3], None)]
    assert any("." in text for text in whole)
    predictor.tokenizer.eos_token = "."
    ended = [answer.text for answer in predictor.answers(PROMPTS[:3], None)]
    assert ended == [text[: text.index(".") + 1] if "." in text else text for text in whole]


def test_texts_lines_and_files_are_continued(finished: GetSweep, tmp_path: Path) -> None:
    paths = finished("causal")
    expected = _answers(paths, PROMPTS)
    done = kdray("predict", paths.root, "--tokens", str(NEW), *PROMPTS)
    assert done.code == 0, done.err
    assert [line.split("\t")[0] for line in done.out.splitlines()] == [answer.text.strip() for answer in expected]
    lines = run_with_input("\n".join(PROMPTS).encode(), "predict", paths.root, "-", "--tokens", str(NEW))
    assert lines.out == done.out
    source = write_file(tmp_path, "in.csv", [{"text": text} for text in PROMPTS if text])
    target = tmp_path / "out.jsonl"
    assert kdray("predict", paths.root, "--file", source, "--to", target, "--tokens", str(NEW)).code == 0
    rows = read_predicted(target)
    assert list(rows[0]) == ["text", "predicted", "probability"]
    assert [row["predicted"] for row in rows] == [answer.text for answer in expected if answer is not expected[1]]


def test_more_tokens_than_a_block_has_are_refused(finished: GetSweep) -> None:
    with pytest.raises(SpecError, match=f"--tokens {BLOCK}: this student reads blocks of {BLOCK} tokens.*most 31"):
        _answers(finished("causal"), PROMPTS, tokens=BLOCK)
    assert _answers(finished("causal"), PROMPTS, tokens=BLOCK - 1)[3].text


# The folder -----------------------------------------------------------------------------------------------------------


@each
def test_tied_weights_are_stored_once(finished: GetSweep, name: str) -> None:
    folder = finished(name).chosen
    head = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM}[name]
    model, info = head.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with safe_open(folder / "model.safetensors", "pt") as weights:
        size = sum(weights.get_tensor(key).numel() for key in weights.keys())  # noqa: SIM118 - no mapping
    assert size == sum(parameter.numel() for parameter in model.parameters())


def test_generation_knows_the_tokens_of_the_tokenizer(finished: GetSweep) -> None:
    folder = finished("causal").chosen
    tokenizer = read_shipped(finished("causal")).model.tokenizer()
    generation = read_json(folder / "generation_config.json")
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert generation["pad_token_id"] == tokenizer.pad_token_id


# Forms and card -------------------------------------------------------------------------------------------------------


@each
def test_each_form_is_compared_by_probabilities(with_forms: GetSweep, name: str) -> None:
    paths = with_forms(name)
    result = read_export_result(paths.chosen / "onnx" / EXPORT_FILE)
    assert result is not None
    assert result.missing == {}
    forms = {figures.form: figures for figures in result.forms}
    recorded = read_json(paths.choice)["measured"]["test"]
    for form, close in (("pytorch", 1e-4), ("onnx", 1e-4), ("int8", 0.3)):
        assert forms[form].metrics["perplexity"] == pytest.approx(recorded["perplexity"], abs=close)
        assert forms[form].metrics["perplexity"] in forms[form].intervals["perplexity"]
        assert forms[form].latency_ms > 0
    assert forms["onnx"].largest_difference < 1e-4
    assert 0 < forms["int8"].largest_difference < 0.5


@each
def test_a_graph_gives_few_logits_at_once(with_forms: GetSweep, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Smaller batches give the same figures."""
    student = read_shipped(with_forms(name))
    rows = _test_rows(student)
    shapes: list[Any] = []
    forward = OnnxModel.forward

    def spy(model: OnnxModel, **inputs: Any) -> Any:
        shapes.append(inputs["input_ids"].shape)
        return forward(model, **inputs)

    monkeypatch.setattr(OnnxModel, "forward", spy)
    monkeypatch.setattr("kdray.export.checks.TOKENS", 2 * BLOCK)
    checker = FormChecker(student, rows, "test")
    checker.measure("pytorch", student.model.model(), student.folder / "model.safetensors")
    graph = student.folder / "onnx" / "model.onnx"
    figures = checker.measure("onnx", OnnxModel(graph, 1), graph)
    of_rows = [shape for shape in shapes if shape[1] != student.latency.length]
    assert max(shape[0] for shape in of_rows) == 2
    assert figures.largest_difference < 1e-4
    result = read_export_result(student.folder / "onnx" / EXPORT_FILE)
    assert result is not None
    assert figures.metrics == pytest.approx(result.forms[1].metrics, abs=1e-4)


@each
def test_a_card_speaks_of_a_language_model(with_forms: GetSweep, name: str) -> None:
    head, text = _card(with_forms(name))
    assert head["pipeline_tag"] == LANGUAGE[name].pipeline
    (result,) = head["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == ["perplexity", "accuracy"]
    assert "It predicts " + {"masked": "the tokens at the masks", "causal": "the next token"}[name] in text
    assert "Retention is the teacher's perplexity divided by the student's." in text
    assert "the share of tokens for which both have the same most probable one" in text
    assert str(with_forms(name).storage) not in text


@each
def test_the_code_in_the_card_runs(with_forms: GetSweep, name: str) -> None:
    paths = with_forms(name)
    blocks = re.findall(r"```python\n(.*?)```", _card(paths)[1], re.DOTALL)
    assert len(blocks) == 2
    printed = []
    for block in blocks:
        command = [sys.executable, "-c", f"import sys; sys.modules['kdray'] = None\n{block}"]
        done = subprocess.run(command, cwd=paths.chosen, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert "pad_token" not in done.stderr
        printed.append(done.stdout.strip())
    by_pytorch, by_onnx = printed
    if name == "masked":
        (one,), (other,) = (_answers(paths, ["one [MASK] text"], form) for form in ("pytorch", "int8"))
        assert [line.split()[0] for line in by_pytorch.splitlines()] == [each.token for each in one.masks[0]]
        assert json.loads(by_onnx.replace("'", '"')) == [each.token for each in other.masks[0]]
    else:
        (one,), (other,) = (_answers(paths, ["one text"], form, tokens=20) for form in ("pytorch", "int8"))
        assert by_pytorch.removeprefix("one text").split() == one.text.split()
        assert by_onnx.endswith(other.text.strip())


# Registry and later commands ------------------------------------------------------------------------------------------


def test_language_models_are_served_without_kdray(finished: GetSweep, tmp_path: Path) -> None:
    texts = {"masked": MASKED, "causal": PROMPTS}
    folders = {name: str(write_served(finished(name), tmp_path / name)) for name in LANGUAGE}
    answers = served({folders[name]: texts[name] for name in LANGUAGE}, tmp_path)
    masked, causal = answers[folders["masked"]], answers[folders["causal"]]
    for row, answer in zip(masked, _answers(finished("masked"), MASKED), strict=True):
        assert [[one["token"] for one in mask["candidates"]] for mask in row["masks"]] == [
            [one.token for one in mask] for mask in answer.masks
        ]
        assert [mask["score"] for mask in row["masks"]] == pytest.approx(
            [mask[0].probability for mask in answer.masks], abs=1e-4
        )
    tokens = min(Continuation.tokens, BLOCK // 2)
    for row, answer in zip(causal, _answers(finished("causal"), PROMPTS, tokens=tokens), strict=True):
        assert row["continuation"] == answer.text
        assert row["score"] == pytest.approx(answer.probability, abs=1e-4)
    model = mlflow.pyfunc.load_model(folders["causal"], model_config={"tokens": 3})
    assert len(model.predict([PROMPTS[0]])["continuation"][0].split()) <= 3


@each
def test_a_finished_sweep_is_shown_registered_and_chosen_from_again(
    finished: GetSweep, tmp_path: Path, name: str
) -> None:
    paths = copy_sweep(finished(name), tmp_path)
    shown = kdray("show", paths.root)
    assert shown.code == 0, shown.err
    assert "perplexity" in shown.out
    registered = kdray("register", paths.root)
    assert registered.code == 0, registered.err
    assert "version 1" in registered.out
    chosen = kdray("choose", paths.root, "--best", "quality", "--local")
    assert chosen.code == 0, chosen.err
    assert (paths.chosen / "model.safetensors").exists()
