"""The table of trials on the terminal, and the files of the report."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kdray.choice.controls import Control
from kdray.choice.reruns import CONTROLS
from kdray.evaluation.formatting import format_metric, format_setting, headings
from kdray.evaluation.trial_record import State, TrialRecord
from kdray.losses.distillation import Distillation
from kdray.report.controls import TITLE
from kdray.report.controls import about as about_controls
from kdray.report.figures import Figures
from kdray.report.files import markdown, results_csv, write_report
from kdray.report.page import page
from kdray.report.plots import front_plot, speed_plot
from kdray.report.screen import PlainScreen
from kdray.report.table import table
from kdray.report.teachers import teacher_value
from kdray.tasks.regression import Regression
from kdray.tasks.text_classification import TextClassification

TEACHER = {"accuracy": 0.887, "latency_ms": 8.2, "parameters": 22_713_986.0}


def trial(
    number: int, depth: int, accuracy: float, state: State = "completed", error: str | None = None
) -> TrialRecord:
    params = {
        "distillation.temperature": 1.5 + number,
        "distillation.alpha": 0.7,
        "student.depth": depth,
        "training.learning_rate": 1.234567e-4,
    }
    evaluation = {"epoch": 2.0, "step": 432.0, "accuracy": accuracy, "retention": accuracy / 0.887}
    costs = {"latency_ms": 0.8 * depth, "speedup": 8.2 / (0.8 * depth), "parameters": 1.2e7 + 1.8e6 * depth}
    return TrialRecord(
        number=number,
        params=params,
        state=state,
        history=(evaluation,),
        costs=costs,
        error=error,
        started=100.0,
        ended=160.0,
    )


RECORDS = (
    trial(0, 1, 0.81),
    trial(1, 3, 0.86),
    trial(2, 2, 0.85),
    trial(3, 2, 0.79, "stopped"),
    trial(4, 3, float("nan"), "failed", "loss is nan | at epoch 2\nsecond line"),
)
FIGURES = Figures(
    "tiny",
    TEACHER,
    RECORDS,
    objectives=("accuracy", "latency_ms"),
    task=TextClassification(),
    front=(0, 1, 2),
    chosen=2,
    sentences=("Trial 002 is the fastest that keeps 95 %.",),
    searched=tuple(RECORDS[0].params),
)


def printed_table(figures: Figures, width: int = 140) -> list[str]:
    """The lines of the table on a terminal with this number of columns."""
    console = Console(file=io.StringIO(), width=width)
    console.print(table(figures))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_table_has_the_teacher_first_then_the_trials_by_quality():
    lines = [" ".join(line.split()) for line in printed_table(FIGURES) if line.strip()]
    assert lines[1] == "trial depth T alpha lr accuracy retention latency speed-up parameters status"
    assert lines[3] == "teacher 0.8870 100.0% 8.20 ms 1.0 x 22.7 M"
    assert [line[:5] for line in lines[4:7]] == ["● 001", "★ 002", "● 000"]
    assert lines[5] == "★ 002 2 3.50 0.70 1.2e-4 0.8500 95.8% 1.60 ms 5.1 x 15.6 M completed"
    assert lines[7].startswith("003")
    assert lines[7].endswith("stopped at epoch 2")
    assert lines[8].startswith("004")
    assert "failed: loss is nan" in lines[8]


def test_table_and_report_give_the_conditions_of_the_latency():
    measured = replace(FIGURES, conditions="latency of 1 example a pass, 64 tokens each, 1 thread, some processor")
    assert any("measured: latency of 1 example a pass" in line for line in printed_table(measured))
    assert "Measured: latency of 1 example a pass" in markdown(measured)
    assert "easured" not in "".join(printed_table(FIGURES)) + markdown(FIGURES)


def test_figures_of_the_cpu_are_shown_if_another_device_was_measured():
    def with_cpu(metrics, **cpu):
        return {**metrics, "cpu_latency_ms": 40.0, **cpu}

    records = [replace(r, costs=with_cpu(r.costs)) for r in RECORDS]
    on_gpu = replace(FIGURES, teacher=with_cpu(TEACHER), records=records)
    assert any("CPU latency" in line for line in printed_table(on_gpu, width=200))
    assert "| CPU latency | 40.0 ms | 40.0 ms |" in markdown(on_gpu)
    alike = replace(FIGURES, teacher=with_cpu(TEACHER, cpu_latency_ms=TEACHER["latency_ms"]), records=records)
    assert "CPU latency" not in "".join(printed_table(alike, width=200)) + markdown(alike) + page(alike)


def test_narrow_terminal_cuts_the_right_end_of_the_table():
    chosen = next(line for line in printed_table(FIGURES, width=80) if "★" in line)
    assert " ".join(chosen.split()).startswith("★ 002 2 3.50 0.70 1.2e-4 0.8500")


def test_brackets_in_names_are_not_markup():
    figures = replace(
        FIGURES,
        name="runs[/old]",
        searched=("student.checkpoint",),
        records=[replace(RECORDS[0], params={"student.checkpoint": "models[v2]/small"})],
    )
    text = " ".join(" ".join(printed_table(figures)).split())
    assert "runs[/old]" in text
    assert "models[v2]/small" in text


def test_sweep_without_results_has_a_table_and_a_report(tmp_path: Path):
    failed = TrialRecord(0, dict(RECORDS[0].params), "failed", error="out of memory")
    figures = Figures(
        "none", {}, [failed], ("accuracy", "latency_ms"), TextClassification(), searched=tuple(failed.params)
    )
    assert any("failed: out of memory" in line for line in printed_table(figures))
    write_report(figures, tmp_path / "report")
    assert "out of memory" in (tmp_path / "report" / "report.md").read_text()


def test_csv_has_every_trial_in_full_precision_under_dotted_names():
    rows = list(csv.DictReader(io.StringIO(results_csv(FIGURES))))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["place"] for row in rows] == ["front", "front", "chosen", "", ""]
    assert float(rows[1]["training.learning_rate"]) == 1.234567e-4
    assert float(rows[1]["latency_ms"]) == 0.8 * 3
    assert rows[4]["error"] == "loss is nan | at epoch 2\nsecond line"


def test_report_has_the_choice_the_teacher_and_the_failures(tmp_path: Path):
    write_report(FIGURES, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Trial 002 is the fastest that keeps 95 %." in text
    assert "| accuracy | 0.8870 | 0.8500 |" in text
    assert "- trial 004: loss is nan \\| at epoch 2 second line" in text
    tables = [line for line in text.splitlines() if line.startswith("| 00")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {12}


def test_controls_are_listed_by_cost_beside_the_trials_of_the_front():
    controls = [
        Control(trial=2, role="labels only", metrics={"accuracy": 0.83}),
        Control(trial=2, role="default distillation", metrics={"accuracy": 0.84}),
        Control(trial=0, role="labels only", metrics={"accuracy": 0.78}),
        Control(trial=0, role="default distillation", error="out of\nmemory"),
    ]
    figures = replace(FIGURES, controls=controls)
    text = markdown(figures)
    lines = text[text.index(f"## {TITLE}") :].splitlines()
    assert lines[4] == "| trial | depth | latency | accuracy, best trial | labels only | default distillation |"
    assert lines[6] == "| 000 | 1 | 0.80 ms | 0.8100 | 0.7800 | failed |"
    assert lines[7] == "| 002 | 2 | 1.60 ms | 0.8500 | 0.8300 | 0.8400 |"
    assert lines[9] == "- trial 000, default distillation: out of memory"
    assert [list(points.y) for points in front_plot(figures).data if points.name in CONTROLS] == [[0.83, 0.78], [0.84]]
    assert TITLE not in markdown(FIGURES)
    assert TITLE in page(figures)
    assert TITLE not in page(FIGURES)


def test_picture_is_a_png_and_the_page_needs_no_network(tmp_path: Path):
    write_report(FIGURES, tmp_path / "report")
    assert (tmp_path / "report" / "front.png").read_bytes().startswith(b"\x89PNG")
    html = (tmp_path / "report" / "report.html").read_text()
    assert "trial 002" in html
    assert "T 3.50" in html
    assert 'src="http' not in html


def test_the_page_counts_its_trials():
    assert "Distilled with kdray: 5 trials, 1 stopped, 1 failed." in page(FIGURES)
    assert "Distilled with kdray: 1 trial." in page(replace(FIGURES, records=RECORDS[:1], front=(), chosen=None))


def test_what_is_not_a_number_is_a_dash():
    """A trial that failed has a quality that is not a number."""
    shown = "".join(printed_table(FIGURES)) + markdown(FIGURES) + page(FIGURES).partition("<body>")[2]
    assert "nan%" not in shown
    assert "| nan |" not in shown
    assert format_metric("retention", float("nan")) == format_metric("accuracy", float("nan")) == "-"


def test_the_text_about_controls_has_the_defaults_of_distillation():
    assert "default distillation (T 2, alpha 0.5, " in about_controls(FIGURES)
    defaults = Distillation()
    assert f"(T {defaults.temperature:g}, alpha {defaults.alpha:g}, " in about_controls(FIGURES)
    numbers = about_controls(replace(FIGURES, task=Regression()))
    assert "default distillation (alpha 0.5, " in numbers


def test_writing_again_replaces_the_report_folder(tmp_path: Path):
    folder = tmp_path / "report"
    write_report(FIGURES, folder)
    (folder / "old").touch()
    write_report(FIGURES, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["front.png", "report.html", "report.md", "results.csv"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.9e-4, "1.9e-4"), (0.0, "0.000"), (3.14159, "3.14"), (12.34, "12.3"), (250000.0, "2.5e5"), (2, "2")],
)
def test_format_setting(value: object, text: str):
    assert format_setting(value) == text


def test_settings_with_the_same_last_name_have_different_headings():
    names = ["a.rate", "b.rate", "training.batch_size", "student.depth"]
    assert headings(names) == {
        "student.depth": "depth",
        "a.rate": "a.rate",
        "b.rate": "b.rate",
        "training.batch_size": "batch size",
    }


# Forms ----------------------------------------------------------------------------------------------------------------

IN_INT8 = {"int8_latency_ms": 0.5, "int8_latency_p95_ms": 0.6, "int8_throughput_per_s": 2000.0, "int8_size_mb": 12.5}
SERVED = replace(
    FIGURES,
    teacher={**TEACHER, **IN_INT8, "int8_latency_ms": 2.0},
    records=[replace(each, costs={**each.costs, **IN_INT8, "int8_speedup": 4.0}) for each in RECORDS],
    objectives=("accuracy", "int8_latency_ms"),
    conditions="some processor",
)
"""The figures of a sweep whose objective is the latency in int8."""


def test_forms_that_were_measured_have_columns() -> None:
    assert [form.name for form in SERVED.forms] == ["int8"]
    assert SERVED.columns == [
        "accuracy",
        "retention",
        "latency_ms",
        "speedup",
        "int8_latency_ms",
        "int8_speedup",
        "parameters",
    ]
    assert (SERVED.cost, SERVED.speedup) == ("int8_latency_ms", "int8_speedup")
    lines = [" ".join(line.split()) for line in printed_table(SERVED, 200) if line.strip()]
    assert lines[1].endswith("latency speed-up int8 latency int8 speed-up parameters status")
    teacher = next(line for line in lines if line.startswith("teacher"))
    assert "2.00 ms 1.0 x" in teacher
    assert "measured: some processor; int8 with onnxruntime on the CPU" in lines[-1]
    text = markdown(SERVED)
    assert "| int8 throughput | 2,000/s | 2,000/s |" in text
    assert "onnx" not in text.replace("onnxruntime", "").lower()


def test_students_trained_for_int8_have_their_quality_in_it_beside_their_own() -> None:
    first, *others = RECORDS
    last = {**first.history[-1], "int8_accuracy": 0.8124, "int8_agreement": 0.991}
    trained = replace(FIGURES, records=[replace(first, history=(*first.history[:-1], last)), *others])
    assert trained.columns[:4] == ["accuracy", "int8_accuracy", "int8_agreement", "retention"]
    lines = [" ".join(line.split()) for line in printed_table(trained, 200) if line.strip()]
    assert "accuracy int8 accuracy int8 agreement retention" in lines[1]
    number = f"{first.number:03d} "
    assert " 0.8124 99.1% " in next(line for line in lines if number in line)
    assert " - - " in next(line for line in lines if f"{others[0].number:03d} " in line)


def test_without_forms_nothing_of_them_is_shown() -> None:
    assert FIGURES.forms == ()
    assert FIGURES.speedup == "speedup"
    assert not [name for name in FIGURES.costs if name.startswith(("onnx", "int8"))]
    assert FIGURES.measured == FIGURES.conditions


def test_the_page_draws_the_speed_up_of_the_form_that_is_searched() -> None:
    plot = speed_plot(SERVED)
    assert plot is not None
    assert plot.layout.xaxis.title.text == "int8 speed-up over the teacher"
    assert {x for trace in plot.data for x in trace.x} == {4.0}
    usual = speed_plot(FIGURES)
    assert usual is not None
    assert usual.layout.xaxis.title.text == "speed-up over the teacher"
    text = page(SERVED)
    assert "int8 latency (teacher 2.00 ms)" in text
    assert "int8 latency (ms, median)" in text


def test_a_teacher_without_a_graph_has_no_figures_in_the_form() -> None:
    alone = replace(
        SERVED,
        teacher=TEACHER,
        records=[replace(each, costs={**each.costs, **IN_INT8}) for each in RECORDS],
    )
    assert "int8_speedup" not in alone.columns
    assert alone.speedup == "speedup"
    assert teacher_value(alone, "int8_latency_ms") == "-"
    assert "| 0.50 ms |" in next(line for line in markdown(alone).splitlines() if line.startswith("| int8 latency |"))


def test_the_screen_shows_the_latency_of_a_form_in_the_line_of_a_trial() -> None:
    stream = io.StringIO()
    PlainScreen(stream).trials([SERVED.records[0]], 1, None, "accuracy")
    assert "latency 0.80 ms, speed-up 10.2 x, int8 latency 0.50 ms" in stream.getvalue()
