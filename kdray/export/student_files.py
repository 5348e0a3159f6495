"""The files of a student's folder that are copied and published: those of its model, its card, its exported forms."""

import shutil
from pathlib import Path

from kdray.forms.form import FOLDER
from kdray.models.folders import FILES
from kdray.storage.names import check_regular_files

FORM_FILES = (f"{FOLDER}/*.onnx", f"{FOLDER}/*.onnx.data", f"{FOLDER}/*.json")
"""Patterns of the exported forms and their figures."""
STUDENT_FILES = (*FILES, "README.md", "LICENSE", "LICENSE.*", "NOTICE", *FORM_FILES)
"""Patterns of all files of a student."""


def copy_student_files(folder: Path, target: Path, patterns: tuple[str, ...] = STUDENT_FILES) -> list[str]:
    """Copy the files of a student into the existing folder `target`; return the names of the other files in its folder.

    Raises StorageError if something in the folder is a link that leads out of it, or no regular file.
    """
    check_regular_files(folder)
    known = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    known = {path for path in known if not path.name.startswith(".")}
    for path in sorted(known):
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path not in known)
