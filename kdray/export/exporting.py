"""`kdray export`: writes the chosen student in the requested forms, compares each with PyTorch, and measures it.

A form that cannot be exported, or that does not answer as the student does, is left out, and the result has the reason.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from kdray.data.rows import Rows
from kdray.data.splits import load_splits
from kdray.data.tokens import tokenise
from kdray.errors import DataError, ExportError, StorageError
from kdray.export.card import FILE as CARD
from kdray.export.card import model_card
from kdray.export.checks import EXPORT_FILE, ExportResult, FormChecker, FormFigures, read_export_result
from kdray.export.shipped import Shipped
from kdray.export.student_files import copy_student_files
from kdray.forms.form import FOLDER, Form
from kdray.forms.forms import FILES, GRAPH_FORMS, ONNX, PYTORCH
from kdray.forms.graphs import write_onnx
from kdray.forms.libraries import require_installed
from kdray.report.figures import Figures
from kdray.report.screen import NullScreen, Screen
from kdray.storage.files import replace_folder, write_json


def export_forms(student: Shipped, forms: Sequence[str], figures: Figures, screen: Screen) -> ExportResult:
    """Write these forms into the student's folder, in place of earlier exports, and write the model card again.

    The forms are compared with PyTorch on the test split. Raises DataError if the data of the sweep are missing or have
    changed, ResourceError if a library for the forms is missing.
    """
    requested = [form for form in GRAPH_FORMS if form.name in forms]
    if requested:
        require_installed()
    screen.stage("Data")
    rows = _test_rows(student)
    with student.edit_folder() as folder:
        result = _write_forms(FormChecker(student, rows, "test"), student, requested, folder, screen)
        (folder / CARD).write_text(model_card(student, figures, folder), encoding="utf-8")
    return result


def export_named_forms(
    student: Shipped, forms: Sequence[Form], rows: Rows, note: Callable[[str], None]
) -> ExportResult:
    """Write the forms that a sweep is chosen by into the student's folder, and compare them with PyTorch on test rows.

    `rows` are the tokenised test rows, `note` receives the reason why a form is left out. If all forms are there, they
    stay, with their figures: they were copied with the weights that they were made from. Raises ResourceError if a
    library for the forms is missing.
    """
    earlier = read_export_result(student.folder / FOLDER / EXPORT_FILE)
    if earlier is not None and all(earlier.figures_of(form.name) for form in forms):
        return earlier
    require_installed()
    names = {form.name for form in forms} | {figures.form for figures in (earlier.forms if earlier else ())}
    all_forms = [form for form in GRAPH_FORMS if form.name in names]
    with student.edit_folder() as folder:
        return _write_forms(FormChecker(student, rows, "test"), student, all_forms, folder, _NoteScreen(note))


class _NoteScreen(NullScreen):
    """Shows the notes only: all forms together are one part of a stage of the sweep."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def note(self, text: str) -> None:
        """See Screen."""
        self._note(text)


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


def _write_forms(
    checker: FormChecker, student: Shipped, forms: Sequence[Form], folder: Path, screen: Screen
) -> ExportResult:
    """Write these forms and their figures into `folder`, a copy of the student's folder, in place of earlier forms."""
    screen.stage("PyTorch")
    exported = [checker.measure(PYTORCH, student.model.model(), student.folder / FILES[PYTORCH])]
    missing: dict[str, str] = {}
    place = folder / FOLDER
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for form in forms:
        screen.stage(form.title)
        try:
            exported.append(_export_form(form, student, checker, place))
        except ExportError as error:
            missing[form.name] = str(error)
            screen.note(f"{form.name}: {error}")
    result = checker.result(exported, missing)
    _delete_other_graphs(result, place)
    write_json(place / EXPORT_FILE, result.to_json())
    return result


def _export_form(form: Form, student: Shipped, checker: FormChecker, place: Path) -> FormFigures:
    """Write the form into the folder `place` and measure it. Raises ExportError as `_export_graph` and `Form.write`."""
    graph = place / ONNX.file_name
    # The other forms are made from the float32 graph. That graph is checked even if it is not requested, because the
    # limit for the difference of an output cannot be applied to int8.
    if not graph.exists():
        figures = _export_graph(student, checker, graph)
        if form == ONNX:
            return figures
    file = form.write(graph)
    return checker.measure(form.name, form.open(file, student.latency.threads), file)


def _export_graph(student: Shipped, checker: FormChecker, graph: Path) -> FormFigures:
    """Write the float32 graph and measure it.

    Raises ExportError if the model has no graph, or if the graph does not answer as the student does.
    """
    write_onnx(student.model, graph)
    figures = checker.measure(ONNX.name, ONNX.open(graph, student.latency.threads), graph)
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
    for form in GRAPH_FORMS:
        if result.figures_of(form.name) is None:
            for file in place.glob(f"{form.file_name}*"):
                file.unlink()
