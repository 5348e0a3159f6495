"""Texts from strangers on the screen and in a report: each target shows them, and obeys no part of them."""

import csv
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kdray.choice.controls import Control
from kdray.report.figures import Figures
from kdray.report.files import markdown, results_csv
from kdray.report.front import front_picture
from kdray.report.page import page
from kdray.report.screen import LiveScreen, PlainScreen, Screen
from kdray.report.table import table
from kdray.tasks.label_figures import LabelFigures
from tests.report.test_report import FIGURES, RECORDS, TEACHER
from tests.safe_text.hostile import HOSTILE, assert_no_control_characters, html_tags, markdown_tags

EVERY_TEXT = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def figures_with(text: str) -> Figures:
    """Figures with this text in every place where a stranger can write one."""
    params = {**RECORDS[0].params, "student.checkpoint": text, f"student.{text}": text, "student.depth": text}
    metrics = {f"metric {text}": 0.5}
    records = [
        replace(record, params=params, host=text, title=text, error=text if record.error else None, run_id=text)
        for record in RECORDS
    ]
    records[0] = replace(records[0], history=({**records[0].history[0], **metrics},))
    records[2] = replace(records[2], history=({**records[2].history[0], f"share_{text}": 0.5},))
    return replace(
        FIGURES,
        name=text,
        records=records,
        teacher={**TEACHER, f"metric {text}": 0.5},
        sentences=(text, f"Trial 002 is {text}."),
        conditions=text,
        searched=tuple(params),
        importances=dict.fromkeys(params, 0.1),
        times={text: 1.0},
        origin={"command": text, "commit": text, text: text},
        controls=[
            Control(trial=2, role="labels only", error=text),
            Control(trial=2, role="default distillation", metrics={"accuracy": 0.84}),
        ],
        objectives=("accuracy", "latency_ms", f"metric {text}"),
        by_label={text: LabelFigures(f1=0.5, count=3)},
    )


@EVERY_TEXT
def test_the_table_on_a_terminal(text: str) -> None:
    console = Console(file=io.StringIO(), width=1000)
    console.print(table(figures_with(text)))
    assert_no_control_characters(console.file.getvalue())  # type: ignore[attr-defined]


def show_everything(screen: Screen, text: str) -> None:
    records = figures_with(text).records
    running = [replace(record, state="running", ended=0.0) for record in records[:1]]
    screen.stage(text)
    screen.note(f"labels {text}")
    screen.progress(text, 1, 1)
    screen.trials([*running, *records[1:]], 24, records[1], f"metric {text}")


@EVERY_TEXT
def test_the_progress_in_a_pipe(text: str) -> None:
    stream = io.StringIO()
    show_everything(PlainScreen(stream), text)
    assert_no_control_characters(stream.getvalue())
    assert all(line.startswith(("[0:0", "    ")) for line in stream.getvalue().splitlines())


@EVERY_TEXT
def test_the_live_display(text: str) -> None:
    console = Console(file=io.StringIO(), width=1000)
    screen = LiveScreen(console)
    show_everything(screen, text)
    console.print(screen._render())
    assert_no_control_characters(console.file.getvalue())  # type: ignore[attr-defined]


@EVERY_TEXT
def test_report_md_has_the_structure_of_an_ordinary_report(text: str) -> None:
    hostile, ordinary = markdown(figures_with(text)), markdown(figures_with("ordinary"))
    assert markdown_tags(hostile) == markdown_tags(ordinary)
    assert_no_control_characters(hostile)


@EVERY_TEXT
def test_report_html_has_the_structure_of_an_ordinary_report(text: str) -> None:
    hostile, ordinary = page(figures_with(text)), page(figures_with("ordinary"))
    assert html_tags(hostile) == html_tags(ordinary)
    own_part = hostile[hostile.index("<body>") :]
    assert "\x1b" not in own_part
    assert "\u202e" not in own_part


@EVERY_TEXT
def test_labels_of_plots_have_no_tags_of_their_own(text: str) -> None:
    """plotly writes its labels into the page as JSON, and reads HTML in them when the page is shown."""
    hostile = page(figures_with(f"<a href='http://evil'>{text}</a>"))
    assert "\\u003ca href" not in hostile[hostile.index("<body>") :]


@EVERY_TEXT
def test_results_csv_has_no_formulas_and_no_further_rows(text: str) -> None:
    rows = list(csv.reader(io.StringIO(results_csv(figures_with(text)), newline="")))
    assert len(rows) == 1 + len(RECORDS)
    assert not [cell for row in rows for cell in row if cell.lstrip().startswith(("=", "@", "+"))]


@EVERY_TEXT
def test_the_picture_can_be_drawn(text: str) -> None:
    front_picture(figures_with(text)).savefig(io.BytesIO(), dpi=20)


WRITE_FRONT = """
import sys
from pathlib import Path
from kdray.report.front import front_picture, write_front
from tests.report.test_report import FIGURES
if sys.argv[1] == "own":
    front_picture(FIGURES).savefig("front.png")
else:
    write_front(FIGURES, Path("front.png"))
"""


@pytest.mark.slow
def test_settings_of_matplotlib_in_the_working_directory_run_no_latex(tmp_path: Path) -> None:
    marker = tmp_path / "latex-was-run"
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    (tmp_path / "latex").write_text(f"#!/bin/sh\ntouch '{marker}'\nexit 1\n")
    (tmp_path / "latex").chmod(0o755)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(root)}
    # The attack is real: a picture in matplotlib's current style runs LaTeX.
    for style, was_run in (("default", False), ("own", True)):
        command = [sys.executable, "-c", WRITE_FRONT, style]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=False)
        assert (done.returncode == 0) is not was_run, done.stderr.decode()
        assert marker.exists() is was_run
    assert (tmp_path / "front.png").stat().st_size > 1000
