"""README.md in the student's folder: what it is, how good, how fast, and how to load it, with the hub's metadata.

It goes wherever the folder goes, so it names no place on this machine.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from kdray.data.sources import HUB_NAME
from kdray.evaluation.formatting import format_metric, format_setting, heading
from kdray.evaluation.statistics import Interval
from kdray.evaluation.trial_record import TrialRecord
from kdray.export.checks import EXPORT_FILE, ExportResult, read_export_result
from kdray.export.forms import FOLDER
from kdray.export.shipped import Shipped
from kdray.report import confirmed
from kdray.report.figures import Figures
from kdray.settings import dotted_values, names_that_may_change
from kdray.training.trial import Recipe

FILE = "README.md"
HUB_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "mcc": "matthews_correlation"}
"""What the hub calls them."""


def write_card(student: Shipped, figures: Figures) -> None:
    """Write the card of the chosen student, with all that is known of it by now."""
    with student.changed() as folder:
        (folder / FILE).write_text(model_card(student, figures, folder), encoding="utf-8")


def model_card(student: Shipped, figures: Figures, folder: Path) -> str:
    """The card's text, for this folder, in which the student and its forms lie."""
    chosen = next(record for record in figures.records if record.number == figures.chosen)
    exported = read_export_result(folder / FOLDER / EXPORT_FILE)
    measured = student.decision.measured or {}
    labels = student.task.model_labels(student.folder)
    data, teacher = _data_name(student.settings), _teacher_name(student.settings)
    parts = [
        f"---\n{_metadata(student, figures, measured, data)}\n---",
        f"# {figures.name}",
        f"A small model for {student.task.name}, distilled from {teacher} on {data} with kdray. It tells apart "
        f"{len(labels)} labels: {', '.join(labels)}.",
        "\n".join(figures.sentences),
        "## How to use it",
        _block(_loading(student)),
        *_onnx_parts(student, exported),
        "## How good it is",
        _quality_table(figures, chosen, measured, exported),
        *_interval_note(exported),
        *_confirmed_parts(figures),
        "## What it costs",
        _cost_table(figures, chosen),
        *([f"Measured: {figures.conditions}."] if figures.conditions else []),
        *_form_parts(exported),
        "## How it was made",
        f"Trial {chosen.number} of {len(figures.records)}. What every trial of the sweep was told, or this one found:",
        _table(["setting", "value"], _settings(student, chosen)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(student: Shipped, figures: Figures, measured: Mapping[str, Mapping[str, float]], data: str) -> str:
    """The block at the head, in YAML, that model hubs read."""
    pipeline = student.task.name.replace(" ", "-")
    split = "test" if "test" in measured else "validation"
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=data,
            dataset_name=data,
            dataset_split=split,
            metric_type=HUB_METRICS[name],
            metric_name=heading(name),
            metric_value=round(value, 6),
        )
        for name, value in measured.get(split, {}).items()
        if name in HUB_METRICS
    ]
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=[pipeline, "knowledge-distillation", "kdray"],
        metrics=[result.metric_type for result in results] or None,
        model_name=figures.name if results else None,
        eval_results=results or None,
    )
    return str(card.to_yaml()).strip()


def _loading(student: Shipped) -> str:
    """How to load it and ask it something, in ten lines."""
    pairs = 'pairs = ["and what goes with the one", "and with the other"]\n' if student.task.pair else ""
    given = "texts, pairs" if student.task.pair else "texts"
    return f"""import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True).eval()
texts = ["one text", "another one"]
{pairs}cut = {{"truncation": True, "max_length": {student.task.max_length}, "padding": True}}
inputs = tokenizer({given}, **cut, return_tensors="pt")
with torch.inference_mode():
    probabilities = model(**inputs).logits.softmax(dim=-1)
print([(model.config.id2label[int(row.argmax())], round(float(row.max()), 4)) for row in probabilities])"""


def _onnx_parts(student: Shipped, exported: ExportResult | None) -> list[str]:
    form = exported and (exported.of("int8") or exported.of("onnx"))
    if not form:
        return []
    return (
        [
            "Without PyTorch, by onnxruntime:",
            _block(f"""import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_truncation({student.task.max_length})
text = tokenizer.encode("one text"{', "and what goes with it"' if student.task.pair else ""})
session = onnxruntime.InferenceSession("{form.file}")
known = {{"input_ids": text.ids, "attention_mask": text.attention_mask, "token_type_ids": text.type_ids}}
inputs = {{entry.name: np.array([known[entry.name]]) for entry in session.get_inputs()}}
print(session.run(["logits"], inputs)[0][0].tolist())"""),
        ]
        if (student.folder / "tokenizer.json").exists()
        else []
    )


def _quality_table(
    figures: Figures, chosen: TrialRecord, measured: Mapping[str, Mapping[str, float]], exported: ExportResult | None
) -> str:
    intervals = _intervals(exported)
    validation = measured.get("validation", chosen.metrics)
    test = measured.get("test", {})
    names = [name for name in (*HUB_METRICS, "agreement", "retention") if name in validation]
    rows = [
        [
            heading(name),
            format_metric(name, figures.teacher.get(name, 1.0 if name == "retention" else None)),
            format_metric(name, validation.get(name)),
            format_metric(name, test.get(name)) + _bounds(name, intervals.get(name)),
        ]
        for name in names
    ]
    return _table(["", "teacher, validation", "student, validation", "student, test"], rows)


def _intervals(exported: ExportResult | None) -> Mapping[str, Interval]:
    pytorch = exported.of("pytorch") if exported is not None else None
    return pytorch.intervals if pytorch is not None else {}


def _interval_note(exported: ExportResult | None) -> list[str]:
    if exported is None or not _intervals(exported):
        return []
    return [
        f"In brackets: where the figure would lie on other {exported.split} rows of this kind, at 95 % confidence "
        f"(bootstrap over the {exported.rows:,} rows). The validation rows chose the student, and flatter it."
    ]


def _confirmed_parts(figures: Figures) -> list[str]:
    if figures.verdict is None:
        return []
    rows = [cells for _, cells in confirmed.rows(figures.verdict)]
    return [confirmed.about(figures.verdict), _table(confirmed.titles(figures.verdict), rows)]


def _cost_table(figures: Figures, chosen: TrialRecord) -> str:
    rows = [
        [heading(name), format_metric(name, figures.teacher.get(name)), format_metric(name, chosen.metrics.get(name))]
        for name in figures.costs
        if name in chosen.metrics
    ]
    return _table(["", "teacher", "student"], rows)


def _form_parts(exported: ExportResult | None) -> list[str]:
    if exported is None or len(exported.forms) + len(exported.missing) < 2:
        return []
    quality = next(iter(exported.forms[0].metrics))
    titles = [
        "form",
        "file",
        "size",
        "latency",
        "p95 latency",
        "throughput",
        heading(quality),
        "agreement",
        "largest difference of a logit",
    ]
    rows = [
        [
            form.form,
            f"`{form.file}`",
            format_metric("size_mb", form.size_mb),
            format_metric("latency_ms", form.latency_ms),
            format_metric("latency_p95_ms", form.latency_p95_ms),
            format_metric("throughput_per_s", form.throughput_per_s),
            format_metric(quality, form.metrics[quality]) + _bounds(quality, form.intervals.get(quality)),
            format_metric("agreement", form.agreement),
            f"{form.largest_difference:.2g}",
        ]
        for form in exported.forms
    ]
    missing = [f"Not there: {form}, for {why}." for form, why in exported.missing.items()]
    said = (
        f"Its forms, measured beside each other on the {exported.rows:,} {exported.split} rows ({exported.conditions}):"
    )
    return [said, _table(titles, rows), *missing]


def _settings(student: Shipped, chosen: TrialRecord) -> list[list[str]]:
    told = {name: student.settings.get(name, {}) for name in Recipe.model_fields}
    recipe = Recipe(**told).with_dotted(chosen.params)
    left_out = names_that_may_change(recipe)
    listed = {
        name: value for name, value in dotted_values(recipe).items() if value is not None and name not in left_out
    }
    return [[f"`{name}`", _shown(name, value)] for name, value in listed.items()]


def _shown(name: str, value: Any) -> str:
    return _public(value) if name == "student.checkpoint" else format_setting(value)


def _teacher_name(settings: Mapping[str, Any]) -> str:
    model = settings["teacher"]["model"]
    return f"`{_public(model)}`" if isinstance(model, str) else "a Transformer trained from scratch"


def _data_name(settings: Mapping[str, Any]) -> str:
    source = settings["data"]["source"]
    return _public(source) if isinstance(source, str) else "generated reviews"


def _public(name: str) -> str:
    """A hub name as it is; of a path its last part, for what lies above it is nobody's business."""
    return name if HUB_NAME.fullmatch(name) and not name.startswith(".") else Path(name).name


def _bounds(metric: str, bounds: Interval | None) -> str:
    """In brackets; none where every draw was alike, for then the rows say nothing about how sure the figure is."""
    return (
        f" [{format_metric(metric, bounds.low)}, {format_metric(metric, bounds.high)}]"
        if bounds and bounds.width
        else ""
    )


def _block(code: str) -> str:
    return f"```python\n{code}\n```"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return "\n".join(f"| {' | '.join(re.sub(r'[|]', '/', cell) for cell in line)} |" for line in lines)
