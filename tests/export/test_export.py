"""The exported forms answer as the student does and are measured, and the code in the card works without kdray."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForSequenceClassification

from kdray.evaluation.statistics import Interval
from kdray.export import card, exporting
from kdray.export.card import write_card
from kdray.export.checks import EXPORT_FILE, ExportResult, FormFigures, read_export_result
from kdray.export.shipped import copy_forms, read_shipped
from kdray.forms import graphs, libraries
from kdray.forms.onnx_model import OnnxModel
from kdray.models.pretrained import Pretrained, save_model
from kdray.run import RunOptions, run
from kdray.search.settings import Search
from kdray.slots.pool import SlotSettings
from kdray.stages.reading import read_figures
from kdray.storage.files import read_json, write_json
from kdray.storage.mirror import MIRROR_VARIABLE
from kdray.storage.owner import own_sweep
from kdray.storage.paths import SweepPaths, storage_path, sweep_paths
from kdray.sweep import Sweep
from tests.cli.test_cli import CommandResult, kdray
from tests.conftest import write_rows

ONNX, INT8 = "onnx/model.onnx", "onnx/model_quantized.onnx"
TINY: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_labels": 3,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "roberta": {"pad_token_id": 1},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "local_attention": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
}


@pytest.fixture(scope="module")
def exported(chosen: SweepPaths, tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    """A finished sweep with both ONNX forms, for tests that change nothing."""
    paths = _copy(chosen, tmp_path_factory.mktemp("exported"))
    done = kdray("export", paths.root)
    assert done.code == 0, done.err
    return paths


@pytest.fixture
def own(chosen: SweepPaths, tmp_path: Path) -> SweepPaths:
    """A copy of the finished sweep, for a test that changes it."""
    return _copy(chosen, tmp_path / "storage")


@pytest.fixture
def own_exported(exported: SweepPaths, tmp_path: Path) -> SweepPaths:
    """A copy of the sweep with both ONNX forms, for a test that changes it."""
    return _copy(exported, tmp_path / "storage")


def _copy(paths: SweepPaths, to: Path) -> SweepPaths:
    shutil.copytree(paths.storage, to, dirs_exist_ok=True)
    return SweepPaths(to, paths.name)


def _read_result(paths: SweepPaths) -> ExportResult:
    result = read_export_result(paths.chosen / "onnx" / EXPORT_FILE)
    assert result is not None
    return result


def _figures(result: ExportResult, form: Any) -> FormFigures:
    figures = result.figures_of(form)
    assert figures is not None
    return figures


def _inputs(rows: int, length: int, vocabulary: int, padding: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    if rows > 1 and length > 1:
        mask[1, length // 2 :], ids[1, length // 2 :] = 0, padding
    return {"input_ids": ids, "attention_mask": mask}


# The forms ------------------------------------------------------------------------------------------------------------


def test_each_form_answers_as_the_student_does_and_is_measured(exported: SweepPaths) -> None:
    result = _read_result(exported)
    assert (result.split, result.rows, result.missing) == ("test", 48, {})
    assert [figures.form for figures in result.forms] == ["pytorch", "onnx", "int8"]
    assert _figures(result, "onnx").agreement == 1.0
    assert _figures(result, "onnx").largest_difference < 1e-4
    assert _figures(result, "int8").agreement > 0.9
    assert 0 < _figures(result, "int8").largest_difference < 1
    measured = read_json(exported.choice)["measured"]["test"]
    for figures in result.forms:
        assert figures.size_mb == (exported.chosen / figures.file).stat().st_size / 1e6
        assert 0 < figures.latency_ms <= figures.latency_p95_ms
        assert figures.throughput_per_s > 0
        assert figures.metrics["accuracy"] == pytest.approx(
            measured["accuracy"], abs=0 if figures.form != "int8" else 0.1
        )
        assert figures.metrics["accuracy"] in figures.intervals["accuracy"]
        assert figures.difference is not None
    assert _figures(result, "int8").size_mb < _figures(result, "onnx").size_mb
    assert "16 tokens each, 1 thread, float32 (int8: weights in int8), " in result.conditions


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 16), (2, 7), (5, 3)])
def test_an_onnx_student_reads_any_number_and_length_of_texts(exported: SweepPaths, rows: int, length: int) -> None:
    student = Pretrained(exported.chosen, "")
    model = student.model()
    inputs = _inputs(rows, length, model.config.vocab_size, model.config.pad_token_id)
    with torch.inference_mode():
        expected = model(**inputs).logits
    logits = OnnxModel(exported.chosen / ONNX, threads=1)(**inputs).logits
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_onnx_graph_of_each_family_gives_the_same_logits(family: str, own: SweepPaths, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**TINY, **FAMILIES[family]})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    save_model(model, Pretrained(own.chosen, "").tokenizer(), tmp_path / "model")
    graphs.write_onnx(Pretrained(tmp_path / "model", ""), tmp_path / "model.onnx")
    for rows, length in ((1, 5), (3, 20)):
        inputs = _inputs(rows, length, 60, config.pad_token_id)
        if family == "gpt2":  # gpt2 uses token types only if they are given
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        with torch.inference_mode():
            expected = model(**inputs).logits
        np.testing.assert_allclose(OnnxModel(tmp_path / "model.onnx", 1)(**inputs).logits, expected, atol=1e-5)


def test_the_command_prints_the_exported_forms(
    own: SweepPaths, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = kdray("export", own.root, "--form", "int8", "--to", tmp_path / "there")
    assert done.code == 0, done.err
    for part in ("pytorch ", "int8 ", "agreement", "largest difference", "On 48 test rows", str(tmp_path / "there")):
        assert part in done.out
    assert "onnx " not in done.out
    assert sorted(path.name for path in (own.chosen / "onnx").iterdir()) == [EXPORT_FILE, "model_quantized.onnx"]
    assert (tmp_path / "there" / INT8).read_bytes() == (own.chosen / INT8).read_bytes()
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "there").iterdir()
    }
    assert capfd.readouterr().err == ""  # messages of the exporter and the quantiser go to the log file
    refused = kdray("export", own.root, "--to", tmp_path / "there")
    assert refused.code == 2
    assert f"--to {tmp_path / 'there'}: exists already" in refused.err


def test_exported_files_contain_no_paths_of_this_machine(exported: SweepPaths) -> None:
    for file in (
        *exported.chosen.rglob("*.onnx"),
        exported.chosen / "README.md",
        exported.chosen / "onnx" / EXPORT_FILE,
    ):
        content = file.read_bytes()
        assert b"site-packages" not in content
        assert str(exported.storage).encode() not in content
        assert str(Path.home()).encode() + b"/" not in content


# Refusals and failures ------------------------------------------------------------------------------------------------


def test_a_model_without_an_onnx_graph_keeps_its_folder(own: SweepPaths, capfd: pytest.CaptureFixture[str]) -> None:
    """Longformer pads its inputs to its attention window, and the exporter cannot trace that."""
    student = Pretrained(own.chosen, "")
    tokenizer, vocabulary = student.tokenizer(), student.model().config.vocab_size
    config = AutoConfig.for_model(
        "longformer", **{**TINY, "num_labels": 2, "vocab_size": vocabulary}, attention_window=4
    )
    config.id2label = dict(enumerate(("negative", "positive")))
    save_model(AutoModelForSequenceClassification.from_config(config), tokenizer, own.chosen)
    done = kdray("export", own.root)
    assert done.code == 1
    assert "kdray: onnx: this longformer model has no ONNX graph: " in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("kdray: ")]) == 1
    assert capfd.readouterr().err == ""
    result = _read_result(own)
    assert set(result.missing) == {"onnx", "int8"}
    assert [figures.form for figures in result.forms] == ["pytorch"]
    assert [path.name for path in (own.chosen / "onnx").iterdir()] == [EXPORT_FILE]
    assert "Not available: onnx, because this longformer model" in (own.chosen / "README.md").read_text()
    assert student.model().config.model_type == "longformer"


@pytest.mark.parametrize(
    "forms", [*(pytest.param((form,), marks=pytest.mark.slow) for form in ("onnx", "int8")), ("onnx", "int8")]
)
def test_a_graph_with_other_answers_is_deleted_in_every_form(
    own: SweepPaths, teacher: Pretrained, forms: tuple[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "write_onnx", lambda student, file: graphs.write_onnx(teacher, file))
    done = kdray("export", own.root, *(word for form in forms for word in ("--form", form)))
    assert done.code == 1
    for form in forms:
        assert f"{form}: the ONNX graph does not answer as the student does: an output is off by" in done.err
    assert [path.name for path in (own.chosen / "onnx").iterdir()] == [EXPORT_FILE]


def test_a_student_is_copied_into_the_empty_working_directory(
    own: SweepPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert kdray("export", own.root, "--form", "onnx", "--to", ".").code == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_choice_whose_student_is_not_shipped_yet_is_refused(own: SweepPaths) -> None:
    """This happens when another rule has chosen, and the process was killed before it shipped the student."""
    choice = {**read_json(own.choice), "chosen": 1}
    choice.pop("measured")
    write_json(own.choice, choice)
    for command in (("export", own.root), ("predict", own.root, "a text")):
        done = kdray(*command)
        assert done.code == 2
        assert "trial 1 was chosen, but its student is not in chosen/ yet" in done.err


def test_a_missing_library_is_reported_with_the_command_to_install_it(
    own: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    done = kdray("export", own.root)
    assert done.code == 2
    assert done.err.endswith("kdray: ONNX needs onnxscript, not installed here: pip install 'kdray[onnx]'\n")
    assert not (own.chosen / "onnx").exists()


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda paths: shutil.rmtree(paths.root), "there is no sweep here; give STORAGE/NAME"),
        (lambda paths: shutil.rmtree(paths.chosen), "there is no chosen student: the sweep has not ended"),
        (lambda paths: paths.settings.write_text("{"), "not a readable JSON file"),
    ],
)
def test_a_folder_without_a_finished_sweep_is_refused(
    own: SweepPaths, damage: Callable[[SweepPaths], Any], part: str
) -> None:
    damage(own)
    for command in (["export", own.root], ["predict", own.root, "a text"]):
        done = kdray(*command)
        assert done.code == 2
        assert part in done.err
        assert "Traceback" not in done.err + done.out


def test_an_unknown_form_and_a_running_sweep_are_refused(own: SweepPaths) -> None:
    done = kdray("export", own.root, "--form", "onx")
    assert done.code == 2
    assert "--form onx: no such form; did you mean 'onnx'?" in done.err
    with own_sweep(own.owner, lambda sentence: None):
        done = kdray("export", own.root)
    assert done.code == 2
    assert not (own.chosen / "onnx").exists()


def test_missing_data_are_reported_by_name(own: SweepPaths) -> None:
    settings = read_json(own.settings)
    settings["data"]["source"] = "/nowhere/reviews"
    own.settings.write_text(
        str(settings).replace("'", '"').replace("None", "null").replace("True", "true").replace("False", "false")
    )
    done = kdray("export", own.root)
    assert done.code == 2
    assert "data.source /nowhere/reviews: no such file or folder" in done.err


def test_changed_rows_are_refused(own: SweepPaths, make_sweep: Callable[..., Sweep]) -> None:
    lineage = read_json(own.lineage)
    write_json(own.lineage, {**lineage, "data": "before rows were added"})
    card = (own.chosen / "README.md").read_bytes()
    done = kdray("export", own.root)
    assert done.code == 2
    assert "its rows differ from those that the student was trained and measured on" in " ".join(done.err.split())
    assert (own.chosen / "README.md").read_bytes() == card


@pytest.mark.parametrize("has_record", [True, False])
def test_no_row_of_another_file_goes_to_the_storage(own: SweepPaths, tmp_path: Path, has_record: bool) -> None:
    """A stranger who can write into the storage could name a private file of the user as the data."""
    private = write_rows(tmp_path / "private")
    with (private / "train.csv").open("a") as file:
        file.write("a private text,positive\n")
    settings = read_json(own.settings)
    write_json(own.settings, {**settings, "data": {**settings["data"], "source": str(private)}})
    if not has_record:
        own.lineage.unlink()
    before = set(own.cache.rglob("*"))
    done = kdray("export", own.root)
    assert done.code == 2
    assert set(own.cache.rglob("*")) == before


# With the sweep -------------------------------------------------------------------------------------------------------


def test_forms_of_the_same_weights_are_kept(own_exported: SweepPaths, make_sweep: Callable[..., Sweep]) -> None:
    sweep = make_sweep(search=Search(trials=1, stopping=None), slots=SlotSettings(cpus=1))
    before = (own_exported.chosen / INT8).read_bytes()
    run(sweep, own_exported, RunOptions(local=True))  # nothing is left to do
    assert (own_exported.chosen / INT8).read_bytes() == before
    assert "onnx/model_quantized.onnx" in (own_exported.chosen / "README.md").read_text()


def test_forms_of_other_weights_are_not_copied(own_exported: SweepPaths, teacher: Pretrained, tmp_path: Path) -> None:
    copy_forms(own_exported.chosen, Path(shutil.copytree(teacher.folder, tmp_path / "now")))
    assert not (tmp_path / "now" / "onnx").exists()


@pytest.mark.slow
def test_a_student_in_a_bucket_is_complete_on_another_machine(
    bucket: str, make_sweep: Callable[..., Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep(search=Search(trials=1, stopping=None), slots=SlotSettings(cpus=1))
    run(sweep, SweepPaths(storage_path(bucket), sweep.name), RunOptions(local=True))
    folder = f"{bucket}/{sweep.name}"
    done = kdray("export", folder, "--form", "int8")
    assert done.code == 0, done.err
    assert f"Student  {folder}/chosen" in done.out
    answer = kdray("predict", folder, "good", "--form", "int8").out
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "other"))
    assert kdray("predict", folder, "good", "--form", "int8").out == answer != ""
    there = sweep_paths(folder).chosen
    assert str(tmp_path / "other") in str(there)
    assert "model_quantized.onnx" in (there / "README.md").read_text()


# The card -------------------------------------------------------------------------------------------------------------


def _read_card(paths: SweepPaths) -> tuple[dict[str, Any], str]:
    """The metadata and the text of the card."""
    _, head, text = (paths.chosen / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_finished_sweep_has_a_card(chosen: SweepPaths) -> None:
    head, text = _read_card(chosen)
    assert head["pipeline_tag"] == "text-classification"
    assert head["library_name"] == "transformers"
    assert "license" not in head
    measured = read_json(chosen.choice)["measured"]["test"]
    (result,) = head["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == pytest.approx(
        {"accuracy": measured["accuracy"], "f1": measured["macro_f1"], "matthews_correlation": measured["mcc"]},
        abs=1e-6,
    )
    assert result["dataset"]["split"] == "test"
    assert "negative, positive" in text
    assert "1 thread, float32" in text
    assert "| `distillation.temperature` | 2.00 |" in text
    assert "onnxruntime" not in text


def test_a_card_has_the_intervals_of_the_export(own_exported: SweepPaths) -> None:
    file = own_exported.chosen / "onnx" / EXPORT_FILE
    result = _read_result(own_exported)
    intervals = {"accuracy": Interval(0.9, 0.81, 0.95), "macro_f1": Interval(1.0, 1.0, 1.0)}
    pytorch = replace(_figures(result, "pytorch"), intervals=intervals)
    write_json(file, replace(result, forms=(pytorch, *result.forms[1:])).to_json())
    write_card(read_shipped(own_exported), read_figures(own_exported))
    text = _read_card(own_exported)[1]
    assert "[0.8100, 0.9500]" in text
    assert "[1.0000, 1.0000]" not in text  # all bootstrap draws are equal
    assert "In brackets: the 95 % confidence interval of the metric (bootstrap over the 48 test rows)." in text


def test_a_card_without_brackets_does_not_explain_them(own_exported: SweepPaths) -> None:
    """All bootstrap draws of a perfect model are equal, so its interval is not shown."""
    result = _read_result(own_exported)
    pytorch = replace(_figures(result, "pytorch"), intervals={"accuracy": Interval(1.0, 1.0, 1.0)})
    write_json(
        own_exported.chosen / "onnx" / EXPORT_FILE, replace(result, forms=(pytorch, *result.forms[1:])).to_json()
    )
    write_card(read_shipped(own_exported), read_figures(own_exported))
    text = _read_card(own_exported)[1]
    assert "In brackets" not in text
    assert "The validation rows were used to choose the student" in text


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("stanfordnlp/sst2", "stanfordnlp/sst2"),
        ("/home/anna/secret/tickets", "tickets"),
        ("./tickets", "tickets"),
        ("~/models/bert-large", "bert-large"),
        ("../a/b/c", "c"),
    ],
)
def test_a_card_contains_no_paths(name: str, public: str) -> None:
    assert card._public_name(name) == public


def test_the_code_in_the_card_runs_without_kdray(exported: SweepPaths) -> None:
    blocks = re.findall(r"```python\n(.*?)```", _read_card(exported)[1], re.DOTALL)
    assert len(blocks) == 2
    assert all(len(block.splitlines()) <= 12 for block in blocks)
    printed = [_run(block, exported.chosen).out for block in blocks]
    lines = [line.split("\t") for line in kdray("predict", exported.root, "one text", "another text").out.splitlines()]
    assert eval(printed[0]) == [(label, pytest.approx(float(p), abs=1e-4)) for label, p, _ in lines]
    label = read_shipped(exported).task.model_labels(exported.chosen)[int(np.argmax(eval(printed[1])))]
    assert label == kdray("predict", exported.root, "one text", "--form", "int8").out.split("\t")[0]


def _run(block: str, folder: Path) -> CommandResult:
    script = f"import sys; sys.modules['kdray'] = None\n{block}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return CommandResult(done.returncode, done.stdout, done.stderr)
