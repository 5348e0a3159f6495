"""`kdray export`: writes the chosen student in the requested forms, compares each with PyTorch, and measures it.

A form that cannot be exported, or that does not answer as the student does, is left out, and the result has the reason.
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
from kdray.export.student_files import copy_student_files
from kdray.report.figures import Figures
from kdray.report.screen import Screen
from kdray.storage.files import replace_folder, write_json

ONNX_FORMS: tuple[Form, ...] = ("onnx", "int8")
FORM_NAMES = {"onnx": "ONNX", "int8": "ONNX in int8"}


def export_forms(student: Shipped, forms: Sequence[Form], figures: Figures, screen: Screen) -> ExportResult:
    """Write these forms into the student's folder, in place of earlier exports, and write the model card again.

    The forms are compared with PyTorch on the test split. Raises DataError if the data of the sweep are missing or have
    changed, ResourceError if a library for the forms is missing.
    """
    requested = [form for form in ONNX_FORMS if form in forms]
    if requested:
        require_installed(NEEDED)
    screen.stage("Data")
    checker = FormChecker(student, _test_rows(student), "test")
    screen.stage("PyTorch")
    exported = [checker.measure("pytorch", student.model.model(), student.folder / FILES["pytorch"])]
    missing: dict[str, str] = {}
    with student.edit_folder() as folder:
        place = folder / FOLDER
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for form in requested:
            screen.stage(FORM_NAMES[form])
            try:
                exported.append(_export_form(form, student, checker, place))
            except ExportError as error:
                missing[form] = str(error)
                screen.note(f"{form}: {error}")
        result = checker.result(exported, missing)
        _delete_other_graphs(result, place)
        write_json(place / EXPORT_FILE, result.to_json())
        (folder / CARD).write_text(model_card(student, figures, folder), encoding="utf-8")
    return result


def check_empty(to: Path) -> None:
    """Raise StorageError unless `to` is an empty folder, or does not exist and can be created."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StorageError(f"--to {to}: exists already. Name an empty folder, or one that does not exist yet.")
    existing = next(folder for folder in (to.absolute(), *to.absolute().parents) if folder.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(f"--to {to}: you may not write into {existing}. Name another folder.")


def copy_student(folder: Path, to: Path) -> list[str]:
    """Copy the files of a student, and return the names of the other files in its folder, which are not copied.

    `to` must be empty or missing; raises StorageError otherwise, and for a link that leads out of the folder.
    """
    check_empty(to)
    # An existing folder cannot be replaced if it is a mount point or the working directory.
    if to.exists():
        return copy_student_files(folder, to)
    with replace_folder(to) as place:
        return copy_student_files(folder, place)


def _test_rows(student: Shipped) -> Rows:
    """The tokenised test rows. Raises DataError unless they are rows of the data that the student was trained on.

    The settings in the storage name the file with the rows, and somebody else may have written them. Its token ids go
    to the storage, so a private file of this user must not pass: nobody else knows the fingerprint of its rows.
    """
    if student.lineage is None:
        raise DataError(
            f"{student.paths.lineage}: is missing, so it is not known which rows the student was trained on. Run the "
            "sweep's own command again: it writes this record, and trains nothing that is there already."
        )
    splits = load_splits(student.data, student.task)
    if splits.key != student.lineage.data:
        raise DataError(
            f"data.source {student.data.source}: its rows differ from those that the student was trained and measured "
            "on, so the forms cannot be compared on them. Restore the data."
        )
    return tokenise(splits, student.task, student.model.tokenizer(), student.paths).rows("test")


def _export_form(form: Form, student: Shipped, checker: FormChecker, place: Path) -> FormFigures:
    """Write the form into the folder `place` and measure it. Raises ExportError as `_export_graph` and `write_int8`."""
    graph, file = (place / Path(FILES[name]).name for name in ("onnx", form))
    # int8 is made from the float32 graph. That graph is checked even if only int8 is requested, because the limit for
    # the difference of an output cannot be applied to int8.
    if not graph.exists():
        figures = _export_graph(student, checker, graph)
        if form == "onnx":
            return figures
    write_int8(graph, file)
    return checker.measure(form, OnnxModel(file, student.latency.threads), file)


def _export_graph(student: Shipped, checker: FormChecker, graph: Path) -> FormFigures:
    """Write the float32 graph and measure it.

    Raises ExportError if the model has no graph, or if the graph does not answer as the student does.
    """
    write_onnx(student.model, graph)
    figures = checker.measure("onnx", OnnxModel(graph, student.latency.threads), graph)
    if not figures.largest_difference <= checker.allowed_difference:  # not `>`, which would let NaN pass
        graph.unlink()
        raise ExportError(
            "the ONNX graph does not answer as the student does: an output is off by "
            f"{figures.largest_difference:.3g}, and the agreement ({student.task.agreement_meaning}) is "
            f"{figures.agreement:.1%}"
        )
    return figures


def _delete_other_graphs(result: ExportResult, place: Path) -> None:
    """Delete the files of forms that are not in the result: a graph that was only needed for int8, or that failed."""
    for form in ONNX_FORMS:
        if result.figures_of(form) is None:
            for file in place.glob(f"{Path(FILES[form]).name}*"):
                file.unlink()
