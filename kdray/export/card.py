"""The model card, README.md in the student's folder: use, quality, costs and settings, with metadata for model hubs.

Users publish the card with the folder, so it must not contain paths of this machine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from kdray.evaluation.formatting import format_metric, format_setting, heading, noun
from kdray.evaluation.statistics import Interval
from kdray.evaluation.trial_record import TrialRecord
from kdray.export.checks import EXPORT_FILE, ExportResult, read_export_result
from kdray.export.shipped import Shipped
from kdray.forms.form import FOLDER
from kdray.forms.forms import FILES
from kdray.report import confirmed, teachers
from kdray.report.figures import Figures
from kdray.safe_text.escaping import Markdown, markdown_code, markdown_table, markdown_text, yaml_text
from kdray.settings import dotted_values, names_that_may_change
from kdray.sources.generated.generators import OLDEST
from kdray.sources.opening import HUB_NAME
from kdray.tasks.counts import Metric
from kdray.tasks.kept_thresholds import read_thresholds
from kdray.training.trial import Recipe

FILE = "README.md"


_LOCAL_NAMES = ("student.checkpoint", "student.embeddings")
"""Settings that may name a file or folder of this machine, of which the card has the last part only."""


def write_card(student: Shipped, figures: Figures) -> None:
    """Write the card of the chosen student into its folder."""
    with student.edit_folder() as folder:
        (folder / FILE).write_text(model_card(student, figures, folder), encoding="utf-8")


def model_card(student: Shipped, figures: Figures, folder: Path) -> str:
    """The text of the card; `folder` is the student's folder, or the new copy that will replace it."""
    chosen = next(record for record in figures.records if record.number == figures.chosen)
    exported = read_export_result(folder / FOLDER / EXPORT_FILE)
    measured = student.decision.measured or {}
    labels = student.task.model_labels(student.folder)
    data, teacher = _data_name(student.settings), _teacher_name(student.settings)
    parts = [
        f"---\n{_metadata(student, figures, measured, data)}\n---",
        f"# {markdown_text(figures.name)}",
        f"A small model for {student.task.name}, distilled from {teacher} on {markdown_text(data)} with kdray. It "
        f"predicts {markdown_text(student.task.predicts(labels))}.",
        "\n".join(map(markdown_text, figures.sentences)),
        "## Usage",
        *([_code_block(student.task.pytorch_code(labels))] if student.model.is_plain else []),
        *_onnx_parts(student, exported),
        "## Quality",
        _quality_table(student, figures, chosen, exported),
        f"Agreement compares the student with the teacher: it is {student.task.agreement_meaning}. "
        f"{_about_retention(student.task.quality)}",
        *_interval_note(exported),
        *_label_parts(student, labels),
        *_confirmed_parts(figures),
        *_earlier_parts(figures),
        "## Costs",
        _cost_table(figures, chosen),
        markdown_text(teachers.about_teacher(figures)),
        *([markdown_text(f"Measured: {figures.measured}.")] if figures.measured else []),
        *_form_parts(student, exported),
        "## Settings",
        f"The model is the student of trial {chosen.number} (number of trials in the sweep: {len(figures.records)}). "
        "The settings of this trial that influence its metrics, fixed and searched ones:",
        markdown_table(["setting", "value"], _setting_rows(student, chosen)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(student: Shipped, figures: Figures, measured: Mapping[str, Mapping[str, float]], data: str) -> str:
    """The YAML block at the start of the card, which model hubs read."""
    pipeline, task = student.task.pipeline, student.task.name.replace(" ", "-")
    hub_names = {metric.name: metric.hub for metric in student.task.metrics(None) if metric.hub}
    split = "test" if "test" in measured else "validation"
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=yaml_text(data),
            dataset_name=yaml_text(data),
            dataset_split=split,
            metric_type=hub_names[name],
            metric_name=heading(name),
            metric_value=round(value, 6),
        )
        for name, value in measured.get(split, {}).items()
        if name in hub_names
    ]
    card = ModelCardData(
        library_name="transformers" if student.model.is_plain else "onnx",
        pipeline_tag=pipeline,
        tags=list(dict.fromkeys([pipeline, task, "knowledge-distillation", "kdray"])),
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=yaml_text(figures.name) if results else None,
        eval_results=results or None,
    )
    return str(card.to_yaml()).strip()


def _onnx_parts(student: Shipped, exported: ExportResult | None) -> list[str]:
    """How to use the model without PyTorch; empty without an ONNX form or a tokenizer that `tokenizers` can load."""
    if exported is None or not (student.folder / "tokenizer.json").exists():
        return []
    form = exported.figures_of("int8") or exported.figures_of("onnx")
    if form is None:
        return []
    if not student.model.is_plain:
        return ["With onnxruntime and tokenizers:", _code_block(student.task.onnx_code(FILES[form.form]))]
    return ["Without PyTorch, with onnxruntime:", _code_block(student.task.onnx_code(FILES[form.form]))]


def _quality_table(student: Shipped, figures: Figures, chosen: TrialRecord, exported: ExportResult | None) -> str:
    intervals, metrics = _pytorch_intervals(exported), student.task.metric_names(None)
    measured = student.decision.measured or {}
    validation, test = measured.get("validation", chosen.metrics), measured.get("test", {})
    names = [name for name in (*metrics, "agreement", "retention") if name in validation]
    rows = [
        [
            heading(name),
            teachers.teacher_value(figures, name),
            format_metric(name, validation.get(name)),
            Markdown(format_metric(name, test.get(name)) + _format_bounds(name, intervals.get(name))),
        ]
        for name in names
    ]
    return markdown_table(["metric", "teacher, validation", "student, validation", "student, test"], rows)


def _about_retention(quality: Metric) -> str:
    """What retention is; of a metric whose small values are good, it is the other way round."""
    one, other = ("student", "teacher") if quality.direction == "maximize" else ("teacher", "student")
    return f"Retention is the {one}'s {noun(quality.name)} divided by the {other}'s."


def _pytorch_intervals(exported: ExportResult | None) -> Mapping[str, Interval]:
    pytorch = exported.figures_of("pytorch") if exported is not None else None
    return pytorch.intervals if pytorch is not None else {}


def _interval_note(exported: ExportResult | None) -> list[str]:
    if exported is None or not _pytorch_intervals(exported):
        return []
    # Without brackets in the table, there is nothing to explain about them.
    intervals = [_format_bounds(name, interval) for name, interval in _pytorch_intervals(exported).items()]
    brackets = (
        f"In brackets: the 95 % confidence interval of the metric (bootstrap over the {exported.rows:,} "
        f"{markdown_text(exported.split)} rows). "
    )
    return [
        f"{brackets if any(intervals) else ''}The validation rows were used to choose the student, so its metrics on "
        "these rows tend to be too good."
    ]


def _confirmed_parts(figures: Figures) -> list[str]:
    if figures.verdict is None:
        return []
    rows = [cells for _, cells in confirmed.rows(figures.verdict, figures.task)]
    return [confirmed.about(figures.verdict), markdown_table(confirmed.titles(figures.verdict), rows)]


def _earlier_parts(figures: Figures) -> list[str]:
    """The sweeps that made the teacher; their names of models are public ones, as all in the card."""
    if not teachers.earlier_sweeps(figures):
        return []
    rows = [[cells[0], _public_names(cells[1]), *cells[2:]] for cells in teachers.earlier_rows(figures)]
    table = markdown_table(teachers.earlier_titles(figures), rows)
    return [f"## {teachers.EARLIER_TITLE}", markdown_text(teachers.earlier_about(figures)), table]


def _cost_table(figures: Figures, chosen: TrialRecord) -> str:
    rows = [
        [heading(name), teachers.teacher_value(figures, name), format_metric(name, chosen.metrics.get(name))]
        for name in figures.costs
        if name in chosen.metrics
    ]
    return markdown_table(["cost", "teacher", "student"], rows)


def _label_parts(student: Shipped, labels: Sequence[str]) -> list[str]:
    """The figures of each label, and its threshold if it has one; empty where there is neither."""
    by_label, thresholds_C = student.decision.by_label or {}, read_thresholds(student.model.config())
    columns: dict[str, Mapping[str, str]] = {}
    notes = []
    if by_label:
        counted = student.task.counted
        columns["F1, test"] = {label: f"{figures.f1:.4f}" for label, figures in by_label.items()}
        columns[f"{counted}, test"] = {label: f"{figures.count:,}" for label, figures in by_label.items()}
        notes.append(f"The F1 of each label on the test rows, and the number of {counted} that have it there.")
    if thresholds_C is not None:
        thresholds = zip(labels, thresholds_C, strict=True)
        columns["threshold"] = {label: f"{threshold:.4f}" for label, threshold in thresholds}
        notes.append(
            "A label is predicted where its probability is above its threshold. The thresholds are the best ones on "
            "the validation rows; config.json has them as `thresholds`."
        )
    if not columns:
        return []
    names = next(iter(columns.values()))
    rows = [[markdown_text(name), *(column.get(name, "-") for column in columns.values())] for name in names]
    return [" ".join(notes), markdown_table(["label", *columns], rows)]


def _form_parts(student: Shipped, exported: ExportResult | None) -> list[str]:
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
        "agreement with PyTorch",
        "largest output difference from PyTorch",
    ]
    rows = [
        [
            form.form,
            markdown_code(FILES[form.form]),
            format_metric("size_mb", form.size_mb),
            format_metric("latency_ms", form.latency_ms),
            format_metric("latency_p95_ms", form.latency_p95_ms),
            format_metric("throughput_per_s", form.throughput_per_s),
            Markdown(
                format_metric(quality, form.metrics[quality]) + _format_bounds(quality, form.intervals.get(quality))
            ),
            format_metric("agreement", form.agreement),
            f"{form.largest_difference:.2g}",
        ]
        for form in exported.forms
    ]
    introduction = (
        f"The forms of the model, measured on the same machine. The columns {heading(quality)} and agreement "
        f"({student.task.agreement_meaning}) are from the {exported.rows:,} {markdown_text(exported.split)} rows. "
        f"Conditions: {markdown_text(exported.conditions)}."
    )
    missing = [markdown_text(f"Not available: {form}, because {reason}.") for form, reason in exported.missing.items()]
    return [introduction, markdown_table(titles, rows), *missing]


def _setting_rows(student: Shipped, chosen: TrialRecord) -> list[list[str]]:
    """Name and value of each setting that influences the metrics of the chosen trial."""
    fixed = {name: student.settings[name] for name in Recipe.model_fields if name in student.settings}
    recipe = Recipe(**fixed).with_dotted(chosen.params)
    left_out = names_that_may_change(recipe)
    return [
        [markdown_code(name), _format_value(name, value)]
        for name, value in dotted_values(recipe).items()
        if value is not None and name not in left_out
    ]


def _format_value(name: str, value: Any) -> str:
    return _public_name(value) if name in _LOCAL_NAMES else format_setting(value)


def _teacher_name(settings: Mapping[str, Any]) -> str:
    teacher = settings["teacher"]
    if teacher.get("outputs"):
        return f"the answers in {markdown_code(_public_name(teacher['outputs']['source']))}"
    models = teacher["model"] if isinstance(teacher["model"], list | tuple) else [teacher["model"]]
    names = [
        markdown_code(_public_name(model)) if isinstance(model, str) else "a Transformer trained from scratch"
        for model in models
    ]
    return names[0] if len(names) == 1 else f"the mean of {len(names)} teachers ({', '.join(names)})"


def _data_name(settings: Mapping[str, Any]) -> str:
    source = settings["data"]["source"]
    return _public_name(source) if isinstance(source, str) else f"generated {source.get('kind', OLDEST)}"


def _public_name(name: str) -> str:
    """The name of a model or data set on the hub; for a path its last part, because the rest may be confidential."""
    return name if HUB_NAME.fullmatch(name) and not name.startswith(".") else Path(name).name


def _public_names(teacher: str) -> str:
    """The public names of a teacher of several models, as `Teacher.display_name` writes them."""
    return " + ".join(map(_public_name, teacher.split(" + ")))


def _format_bounds(metric: str, interval: Interval | None) -> str:
    """The bounds of the interval in brackets; empty without an interval, and for one of width 0.

    All bootstrap draws of an interval of width 0 are equal, so it does not show how certain the metric is.
    """
    if interval is None or not interval.width:
        return ""
    return f" [{format_metric(metric, interval.low)}, {format_metric(metric, interval.high)}]"


def _code_block(code: str) -> str:
    return f"```python\n{code}\n```"
