"""All families of students. A new family is a file with its class, and a line in `STUDENTS`."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, SerializeAsAny

from kdray.errors import SpecError, did_you_mean
from kdray.students.convolutional import ConvolutionalStudent
from kdray.students.recurrent import RecurrentStudent
from kdray.students.static import StaticStudent
from kdray.students.student import Student
from kdray.students.transformer import TransformerStudent

STUDENTS: tuple[type[Student], ...] = (TransformerStudent, RecurrentStudent, ConvolutionalStudent, StaticStudent)
"""The first one is the family of a sweep that names none."""

FAMILIES: Mapping[str, type[Student]] = {student.model_fields["family"].default: student for student in STUDENTS}
"""The value of `student.family` -> the class with its settings."""

Student.kinds = FAMILIES


def student_of(settings: Any) -> Any:
    """The student with these settings: a student itself, or a mapping whose `family` names one.

    Raises SpecError for an unknown family, and for settings that the family does not have.
    """
    if not isinstance(settings, Mapping):
        return settings
    family = settings.get("family", next(iter(FAMILIES)))
    if not isinstance(family, str) or family not in FAMILIES:
        raise SpecError(f"student.family: got {family!r}; {did_you_mean(str(family), FAMILIES)}")
    return FAMILIES[family](**settings)


AnyStudent: TypeAlias = Annotated[SerializeAsAny[Student], BeforeValidator(student_of)]
"""The type of a setting that holds a student."""
