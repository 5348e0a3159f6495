"""`kdray export`: the chosen student in the forms that were asked for, each checked against PyTorch and measured.

A form that cannot be made, or that does not answer as the student does, is left out, and the figures say why.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from kdray.data.rows import Rows
from kdray.data.splits import load_splits
from kdray.data.tokens import tokenise
from kdray.errors import DataError, ExportError, StorageError
from kdray.export.card import FILE as CARD
from kdray.export.card import model_card
from kdray.export.checks import EXPORT_FILE, ExportResult, FormChecker, FormFigures
from kdray.export.forms import FILES, FOLDER, Form, OnnxModel, require_installed
from kdray.export.graphs import NEEDED, write_int8, write_onnx
from kdray.export.shipped import Shipped
from kdray.report.figures import Figures
from kdray.report.screen import Screen
from kdray.storage.files import replace_folder, write_json

ONNX_FORMS: tuple[Form, ...] = ("onnx", "int8")
FORM_NAMES = {"onnx": "ONNX", "int8": "ONNX in int8"}
LARGEST_LOGIT_DIFFERENCE = 0.01
"""How far a logit may be off in float32: rounding alone stays far below it."""


def export_forms(student: Shipped, forms: Sequence[Form], figures: Figures, screen: Screen) -> ExportResult:
    """Make these forms in the student's folder, in place of those made before; PyTorch's is there already.

    The card tells of them. They are checked on the test split. Raises DataError when the sweep's data are not there any
    more, or are others, ResourceError when what the forms need is not installed.
    """
    asked = [form for form in ONNX_FORMS if form in forms]
    if asked:
        require_installed(NEEDED)
    screen.stage("Data")
    checks = FormChecker(student, _test_rows(student), "test")
    screen.stage("PyTorch")
    made = [checks("pytorch", student.model.model(), student.folder / FILES["pytorch"])]
    missing: dict[str, str] = {}
    with student.changed() as folder:
        place = folder / FOLDER
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for form in asked:
            screen.stage(FORM_NAMES[form])
            try:
                made.append(_made(form, student, checks, place))
            except ExportError as error:
                missing[form] = str(error)
                screen.note(f"{form}: {error}")
        exported = checks.conclusion(made, missing)
        _drop_all_but(exported, place)
        write_json(place / EXPORT_FILE, exported.written())
        (folder / CARD).write_text(model_card(student, figures, folder), encoding="utf-8")
    return exported


def check_empty(to: Path) -> None:
    """Raise StorageError when there is something already, or nothing can be put there."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StorageError(f"--to {to}: there is something already. Name a folder that is empty or not there yet.")
    there = next(folder for folder in (to.absolute(), *to.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"--to {to}: you may not write into {there}. Name another place.")


def copy_student(folder: Path, to: Path) -> None:
    """Copy a student's whole folder to one that is empty or not there yet."""
    check_empty(to)
    if to.exists():  # it may be a mount point, or where this process stands: nothing can take its place
        shutil.copytree(folder, to, dirs_exist_ok=True)
        return
    with replace_folder(to) as place:
        shutil.copytree(folder, place, dirs_exist_ok=True)


def _test_rows(student: Shipped) -> Rows:
    splits = load_splits(student.data, student.task)
    if student.lineage is not None and splits.key != student.lineage.data:
        raise DataError(
            f"data.source {student.data.source}: its rows are others now than those that the student learnt from and "
            "was measured on, so no form can be compared by them. Restore them."
        )
    return tokenise(splits, student.task, student.model.tokenizer(), student.paths).rows("test")


def _made(form: Form, student: Shipped, checks: FormChecker, place: Path) -> FormFigures:
    """Write the form and measure it; int8 is made from a graph that has been checked. Raises as `_graph_checked`."""
    graph, file = (place / Path(FILES[name]).name for name in ("onnx", form))
    if not graph.exists():
        figures = _graph_checked(student, checks, graph)
        if form == "onnx":
            return figures
    write_int8(graph, file)
    return checks(form, OnnxModel(file, student.latency.threads), file)


def _graph_checked(student: Shipped, checks: FormChecker, graph: Path) -> FormFigures:
    """Write the float32 graph. Raises ExportError when it cannot be, or does not answer as the student does."""
    write_onnx(student.model, graph)
    figures = checks("onnx", OnnxModel(graph, student.latency.threads), graph)
    if not figures.largest_difference <= LARGEST_LOGIT_DIFFERENCE:
        graph.unlink()
        raise ExportError(
            f"the ONNX graph does not answer as the student does: a logit is off by {figures.largest_difference:.3g}, "
            f"and {figures.agreement:.1%} of the answers are the same"
        )
    return figures


def _drop_all_but(exported: ExportResult, place: Path) -> None:
    """Remove a graph that nobody asked for, or that is wrong."""
    for form in ONNX_FORMS:
        if exported.of(form) is None:
            for file in place.glob(f"{Path(FILES[form]).name}*"):
                file.unlink()
