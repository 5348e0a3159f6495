"""The stages that make a teacher and record what it says: fine-tuning, the transfer set, the check of its quality."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from kdray.models.lineage import Lineage
from kdray.models.pretrained import Pretrained
from kdray.models.student_sources import BySource
from kdray.report.screen import Screen
from kdray.slots.job import NOTE, Report
from kdray.stages.preparing import Material
from kdray.stages.session import Session
from kdray.storage.records import write_record
from kdray.sweep import Sweep
from kdray.teacher.teacher import FineTuning, check_quality, obtain_teacher
from kdray.teacher.transfer import Labelling, obtain_transfer_set
from kdray.training.trial import TrialInputs


@dataclass(frozen=True)
class Lessons:
    """What the students of a sweep learn from."""

    teacher: Pretrained
    inputs: BySource[TrialInputs]
    metrics: dict[str, float]
    """The teacher's, on the validation rows."""
    lineage: Lineage


def teach(session: Session, material: Material) -> Lessons:
    """Obtain the teacher and its transfer set, and refuse a teacher that is not good enough (TeacherError)."""
    sweep, paths, slots, screen = session.sweep, session.paths, session.slots, session.screen
    tokens = material.sources.teacher.tokens
    screen.stage("Teacher")
    start = FineTuning(material.source, tokens, sweep.task, sweep.seed)
    teacher = obtain_teacher(sweep.teacher, start, paths, slots, _show_epochs(screen, sweep))
    screen.stage("Transfer set")
    transfer = obtain_transfer_set(
        Labelling(sweep.transfer, teacher, tokens),
        paths,
        slots,
        lambda done, shards: screen.progress("shards labelled", done, shards),
        screen.note,
    )
    logits, validation = transfer.logits("validation").all(), transfer.rows(tokens, "validation")
    check_quality(sweep.teacher, logits, validation.labels, material.splits.labels)
    inputs = material.sources.map(lambda each: TrialInputs(sweep.task, each.model, each.tokens, transfer))
    inputs = replace(inputs, teacher=replace(inputs.teacher, source=teacher))  # students are cut from the tuned teacher
    lineage = Lineage(
        teacher=sweep.teacher.display_name,
        teacher_weights=teacher.key,
        data=material.splits.key,
        test_rows=material.splits.content("test"),
    )
    write_record(paths.lineage, lineage)
    return Lessons(teacher, inputs, sweep.task.metrics(logits, validation.labels), lineage)


def _show_epochs(screen: Screen, sweep: Sweep) -> Callable[[Report], None]:
    """Shows the teacher's epochs on the screen."""
    epochs = sweep.teacher.training.epochs if sweep.teacher.training else 0
    quality = sweep.task.quality

    def show(report: Report) -> None:
        if report.keys() == {NOTE}:
            screen.note(report[NOTE])
            return
        screen.progress(f"epochs of the teacher ({quality} {report[quality]:.4f})", report["epoch"], epochs)

    return show
