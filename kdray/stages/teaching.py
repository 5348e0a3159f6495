"""The stages that obtain the teacher: fine-tuning, the transfer set with its logits, and the check of its quality."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from kdray.evaluation.formatting import format_metric, noun
from kdray.models.lineage import Lineage
from kdray.models.pretrained import Pretrained
from kdray.models.student_sources import BySource, refuse_students_of
from kdray.report.screen import Screen
from kdray.slots.job import NOTE, Report
from kdray.stages.preparing import Material
from kdray.stages.session import Session
from kdray.storage.records import write_record
from kdray.sweep import Sweep
from kdray.teacher.teacher import FineTuning, check_quality, obtain_teacher
from kdray.teacher.transfer import Labelling, choose_padding, obtain_transfer_set
from kdray.training.trial import TrialInputs


@dataclass(frozen=True)
class Lessons:
    """The teacher, and the inputs that the students of a sweep learn from."""

    teacher: Pretrained
    inputs: BySource[TrialInputs]
    metrics: dict[str, float]
    """The metrics of the teacher on the validation rows."""
    lineage: Lineage


def teach(session: Session, material: Material) -> Lessons:
    """Obtain the teacher and its transfer set.

    Raises TeacherError for a teacher that is near chance, or whose outputs are in another order than the data's labels,
    and for students that are built from a teacher whose answer depends on padding.
    """
    sweep, paths, slots, screen = session.sweep, session.paths, session.slots, session.screen
    tokens = material.sources.teacher.tokens
    screen.stage("Teacher")
    fine_tuning = FineTuning(source=material.source, tokens=tokens, task=sweep.task, seed=sweep.seed)
    teacher = obtain_teacher(sweep.teacher, fine_tuning, paths, slots, _show_epochs(screen, sweep))
    screen.stage("Transfer set")
    labelling = choose_padding(Labelling(sweep.transfer, teacher, tokens), paths, slots, screen.note)
    if not labelling.padding:
        refuse_students_of(teacher, sweep.students)
    transfer = obtain_transfer_set(
        labelling,
        paths,
        slots,
        lambda done, shards: screen.progress("shards labelled", done, shards),
        screen.note,
    )
    validation = transfer.rows(tokens, "validation")
    outputs = sweep.task.outputs(validation.teacher_logits(), validation)
    check_quality(sweep.teacher, sweep.task, outputs, validation)
    inputs = material.sources.map(
        lambda source: TrialInputs(task=sweep.task, source=source.model, tokens=source.tokens, transfer=transfer)
    )
    # `material` has the teacher before fine-tuning, but students are built from the fine-tuned teacher.
    inputs = replace(inputs, teacher=replace(inputs.teacher, source=teacher))
    lineage = Lineage(
        teacher=sweep.teacher.display_name,
        teacher_weights=teacher.key,
        data=material.splits.key,
        test_rows=material.splits.content("test"),
    )
    write_record(paths.lineage, lineage)
    metrics = sweep.task.values(outputs, validation)
    return Lessons(teacher=teacher, inputs=inputs, metrics=metrics, lineage=lineage)


def _show_epochs(screen: Screen, sweep: Sweep) -> Callable[[Report], None]:
    """A function that shows the reports of the teacher's fine-tuning on the screen."""
    epochs = sweep.teacher.training.epochs if sweep.teacher.training else 0
    quality = sweep.task.quality.name

    def show(report: Report) -> None:
        if report.keys() == {NOTE}:
            screen.note(report[NOTE])
            return
        figure = f"{noun(quality)} {format_metric(quality, report[quality])}"
        screen.progress(f"epochs of the teacher ({figure})", report["epoch"], epochs)

    return show
