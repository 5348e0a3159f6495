"""Every form in the list is written, loaded and answers as the model does; its metrics follow from the list."""

import shutil
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from kdray.errors import StorageError
from kdray.evaluation.formatting import format_metric, heading
from kdray.evaluation.measuring import ARCHITECTURE_METRICS, COST_METRICS, SPEEDUP_METRICS
from kdray.evaluation.pareto import direction
from kdray.forms.form import Form, size_mb
from kdray.forms.forms import FILES, FORMS, GRAPH_FORMS, ONNX, FormName, open_form
from kdray.forms.metrics import FORM_METRICS, metric_name, named_forms, split_form
from kdray.forms.synthetic import synthetic_inputs
from kdray.models.pretrained import Pretrained
from tests.forms.conftest import Exported

EVERY_FORM = pytest.mark.parametrize("form", GRAPH_FORMS, ids=lambda form: form.name)


@EVERY_FORM
def test_a_form_answers_as_the_model_does_for_any_size(form: Form, exported: Exported) -> None:
    file = form.write(exported.graph)
    assert file == exported.student.folder / form.file == exported.student.folder / FILES[form.name]
    for opened in (form.open(file, 1), open_form(exported.student, form.name, 1)):
        for rows, length in ((1, 5), (3, 9)):
            inputs = synthetic_inputs(exported.model, rows, length, torch.device("cpu"))
            inputs["attention_mask"][0, length - 2 :] = 0
            with torch.inference_mode():
                expected = exported.model(**inputs).logits
            difference = opened(**inputs).logits - expected
            # int8 rounds each weight to one of 127 values; the others compute in float32.
            assert difference.norm() < (1e-5 if form is ONNX else 0.5) * expected.norm()
    assert size_mb(file) == file.stat().st_size / 1e6


@EVERY_FORM
def test_a_form_that_was_not_exported_is_refused_with_the_command(
    form: Form, exported: Exported, tmp_path: Path
) -> None:
    for file in exported.student.folder.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    with pytest.raises(StorageError, match=rf"not exported yet\. Make it with `kdray export .* --form {form.name}`"):
        open_form(Pretrained(tmp_path, ""), form.name)


def test_only_names_in_the_list_are_forms() -> None:
    names = TypeAdapter(FormName)
    assert [names.validate_python(name) for name in FORMS] == ["pytorch", "onnx", "int8"]
    with pytest.raises(ValidationError, match="no such form; did you mean 'int8'"):
        names.validate_python("int4")


@EVERY_FORM
def test_the_metrics_of_a_form_follow_from_those_of_pytorch(form: Form) -> None:
    names = {base: metric_name(form, base) for base in ("latency_ms", "latency_p95_ms", "throughput_per_s", "size_mb")}
    assert set(names.values()) <= set(COST_METRICS)
    speedup = metric_name(form, "speedup")
    assert SPEEDUP_METRICS[speedup] == names["latency_ms"]
    assert speedup in ARCHITECTURE_METRICS
    for base, name in {**names, "speedup": speedup}.items():
        assert direction(name) == direction(base)
        assert heading(name) == f"{form.label} {heading(base)}"
        assert format_metric(name, 1.25) == format_metric(base, 1.25)
        assert split_form(name) == (form, base)
        assert split_form(base) == (None, base)


def test_the_forms_are_those_of_the_named_metrics() -> None:
    assert [form.name for form in named_forms(["int8_size_mb", "accuracy", "onnx_speedup", "int8_latency_ms"])] == [
        "onnx",
        "int8",
    ]
    assert named_forms(["latency_ms", "cpu_latency_ms", "quality"]) == ()
    assert len(FORM_METRICS) == 5 * len(GRAPH_FORMS)
