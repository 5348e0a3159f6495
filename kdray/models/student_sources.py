"""What students are cut from: the teacher, or a smaller checkpoint, each with the rows in its own tokenizer's ids."""

from collections.abc import Iterable
from dataclasses import dataclass

from kdray.data.tokens import LabelledText, TokenSet, tokenised
from kdray.models.pretrained import Pretrained, adopted, found
from kdray.models.transformer import TransformerStudent
from kdray.storage.paths import StoragePaths
from kdray.tasks.task import Task


@dataclass(frozen=True)
class StudentSource:
    """A model that students are cut from, and the rows in its tokenizer's ids."""

    model: Pretrained
    tokens: TokenSet


def student_sources(
    students: Iterable[TransformerStudent],
    teacher: Pretrained,
    splits: LabelledText,
    task: Task,
    paths: StoragePaths,
    seed: int,
) -> dict[str | None, StudentSource]:
    """The source of every one of these students, by `student.checkpoint`; None is the teacher.

    Raises SpecError for a student that its source cannot make, TeacherError for a checkpoint that cannot be used.
    """
    sources: dict[str | None, StudentSource] = {
        None: StudentSource(teacher, tokenised(splits, task, teacher.tokenizer(), paths))
    }
    for student in students:
        name = student.checkpoint
        if name is not None and name not in sources:
            folder = found(name, student.revision, "student.checkpoint")
            model = adopted(folder, task, splits.labels, paths, seed)
            sources[name] = StudentSource(model, tokenised(splits, task, model.tokenizer(), paths))
        student.chosen_layers(sources[name].model.layers)
    return sources
