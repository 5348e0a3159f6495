"""The stages that obtain the teacher: fine-tuning, the transfer set with its logits, and the check of its quality."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import TransferSet
from kdray.evaluation.formatting import format_metric, noun
from kdray.models.lineage import CheckpointModel, Lineage, TeacherModel
from kdray.models.pretrained import Pretrained
from kdray.report.screen import Screen
from kdray.slots.job import NOTE, Report
from kdray.stages.ancestry import measured_rows
from kdray.stages.ordering import order_units
from kdray.stages.preparing import Material
from kdray.stages.session import Session
from kdray.stages.signals import give_signals
from kdray.storage.files import fingerprint
from kdray.storage.records import write_record
from kdray.students.sources import BySource, StudentSource, refuse_students_of, with_trained_teacher
from kdray.sweep import Sweep
from kdray.teacher.answers import Answers
from kdray.teacher.averaging import LabelledTeacher, average
from kdray.teacher.teacher import FineTuning, check_quality, display_name, obtain_teacher
from kdray.teacher.transfer import Labelling, choose_padding, obtain_transfer_set, write_transfer_set
from kdray.training.trial import TrialInputs


@dataclass(frozen=True)
class Lessons:
    """The teacher, and the inputs that the students of a sweep learn from."""

    sources: BySource[StudentSource]
    """The models that students are built from, before any fine-tuning: their costs are those of the fine-tuned ones."""
    inputs: BySource[TrialInputs]
    metrics: dict[str, float]
    """The metrics of the teacher on the validation rows."""
    lineage: Lineage


@dataclass(frozen=True)
class _Taught:
    """What teaches, when it has answered all rows."""

    transfer: TransferSet
    key: str
    """A fingerprint of what teaches."""
    models: tuple[TeacherModel, ...] = ()
    source: int | None = None
    """The number of the model that students are built from."""
    source_model: Pretrained | None = None
    """That model after its fine-tuning."""
    padding: bool = True
    """See `Labelling`, for that model."""


def teach(session: Session, material: Material) -> Lessons:
    """Obtain the teacher and its transfer set.

    Raises TeacherError for a teacher that is near chance, or whose outputs are in another order than the data's labels,
    and for students that are built from a teacher whose answer depends on padding. See also `give_signals`.
    """
    sweep = session.sweep
    if material.answers is not None:
        taught = _write_answers(session, material, material.answers)
    else:
        taught = _teach_with_models(session, material)
    sources = material.sources(taught.source)
    metrics = _check(sweep, taught.transfer, sources.first.tokens, "the teacher")
    trained = sources
    if taught.source_model is not None:
        # The sources have the teacher before fine-tuning, but students are built from the fine-tuned teacher.
        trained = with_trained_teacher(sources, taught.source_model, session.paths)
    inputs = trained.map(
        lambda source: TrialInputs(task=sweep.task, source=source.model, tokens=source.tokens, transfer=taught.transfer)
    )
    inputs = give_signals(session, order_units(session, inputs), taught.padding)
    lineage = Lineage(
        teacher=sweep.teacher.display_name,
        teacher_weights=taught.key,
        data=material.splits.key,
        test_rows=measured_rows(sweep.task, material.splits, sources.first.tokens),
        models=taught.models,
        checkpoints=material.made_checkpoints,
        teacher_rows=0 if material.own_rows is None else len(material.own_rows.train),
    )
    write_record(session.paths.lineage, lineage)
    if lineage.checkpoints:
        session.tracker.sweep(tags=_tags(lineage.checkpoints))
    return Lessons(sources=sources, inputs=inputs, metrics=metrics, lineage=lineage)


def _tags(checkpoints: Sequence[CheckpointModel]) -> dict[str, str]:
    """The tags of the sweep's run that say which sweeps made the checkpoints of the students."""
    return {
        "kdray.checkpoint_sweeps": ", ".join(each.earlier.name for each in checkpoints),
        "kdray.checkpoint_teachers": ", ".join(each.earlier.teacher for each in checkpoints),
        "kdray.checkpoint_weights": ", ".join(each.weights for each in checkpoints),
        "kdray.checkpoint_data": ", ".join(each.earlier.data for each in checkpoints),
    }


def _write_answers(session: Session, material: Material, answers: Answers) -> _Taught:
    """Write the transfer set of a teacher that is a file."""
    session.screen.stage("Transfer set")
    tokens, shard_rows = material.sources(None).first.tokens, session.sweep.transfer.shard_rows
    folder = session.paths.transfer(fingerprint(answers.key, tokens.key, shard_rows))
    transfer = write_transfer_set(answers.logits_of, tokens, shard_rows, folder, session.screen.note)
    return _Taught(transfer, answers.key)


def _teach_with_models(session: Session, material: Material) -> _Taught:
    """Obtain the models that teach, and the transfer set of the only one, or of their mean."""
    sweep, screen = session.sweep, session.screen
    screen.stage("Teacher")
    tuned = [_obtain(session, material, number) for number in range(len(material.teachers))]
    screen.stage("Transfer set")
    labelled = [
        _label(session, Labelling(sweep.transfer, model, source.tokens), number)
        for number, (model, source) in enumerate(zip(tuned, material.teachers, strict=True))
    ]
    if len(labelled) == 1:
        metrics = [_check(sweep, labelled[0].transfer, labelled[0].labelling.tokens, "the teacher")]
    else:
        metrics = [
            _check(sweep, each.transfer, each.labelling.tokens, _owner(sweep, number))
            for number, each in enumerate(labelled)
        ]
    source = _source_of_students(sweep, material, metrics)
    if not labelled[source].labelling.padding:
        refuse_students_of(tuned[source], sweep.students)
    models = tuple(
        TeacherModel(
            name=display_name(sweep.teacher.models[number]),
            weights=model.key,
            share=sweep.teacher.shares[number],
            seed=sweep.seed + number,
            figures=metrics[number],
            gave_students=number == source and any(student.checkpoint is None for student in sweep.students),
            earlier=material.earlier[number],
        )
        for number, model in enumerate(tuned)
    )
    padding = labelled[source].labelling.padding
    if len(labelled) == 1:
        return _Taught(labelled[0].transfer, tuned[0].key, models, source, tuned[0], padding)
    # The gold decides the units of outputs in training; the stored ones are in the units of the data.
    distribution = sweep.task.distribution(np.zeros(1))
    tokens = material.teachers[source].tokens
    transfer = average(labelled, distribution, tokens, session.paths, screen.note)
    key = fingerprint("mean", [model.key for model in tuned], sweep.teacher.shares)
    screen.note(_describe_mean(sweep, models, source))
    return _Taught(transfer, key, models, source, tuned[source], padding)


def _obtain(session: Session, material: Material, number: int) -> Pretrained:
    """The model of this number, fine-tuned if requested; each with a seed of its own."""
    sweep, source = session.sweep, material.teachers[number]
    tokens = material.own_tokens[number] if material.own_tokens else source.tokens
    tuning = FineTuning(source=source.model, tokens=tokens, task=sweep.task, seed=sweep.seed + number)
    return obtain_teacher(
        sweep.teacher, tuning, session.paths, session.slots, _show_epochs(session.screen, sweep, number)
    )


def _label(session: Session, labelling: Labelling, number: int) -> LabelledTeacher:
    sweep, screen = session.sweep, session.screen
    what = "shards labelled" if len(sweep.teacher.models) == 1 else f"shards labelled by teacher {number}"
    labelling = choose_padding(labelling, session.paths, session.slots, screen.note)
    transfer = obtain_transfer_set(
        labelling,
        session.paths,
        session.slots,
        lambda done, shards: screen.progress(what, done, shards),
        screen.note,
    )
    return LabelledTeacher(labelling, transfer, sweep.teacher.shares[number])


def _check(sweep: Sweep, transfer: TransferSet, tokens: TokenSet, owner: str) -> dict[str, float]:
    """The metrics of a transfer set on the validation rows. Raises TeacherError if it is not good enough."""
    validation = transfer.rows(tokens, "validation")
    outputs = sweep.task.outputs(validation.teacher_logits(), validation)
    check_quality(sweep.teacher, sweep.task, outputs, validation, owner)
    return sweep.task.values(outputs, validation)


def _owner(sweep: Sweep, number: int) -> str:
    return f"teacher.model {number} ({display_name(sweep.teacher.models[number])})"


def _source_of_students(sweep: Sweep, material: Material, metrics: Sequence[dict[str, float]]) -> int:
    """The number of the model that students are built from: the named one, or the best on the validation rows."""
    if material.named_source is not None:
        return material.named_source
    quality = sweep.task.quality
    sign = -1 if quality.direction == "minimize" else 1
    return max(range(len(metrics)), key=lambda number: sign * metrics[number][quality.name])


def _describe_mean(sweep: Sweep, models: Sequence[TeacherModel], source: int) -> str:
    quality = sweep.task.quality.name
    each = ", ".join(
        f"{model.name} {format_metric(quality, model.figures[quality])} (weight {model.share:.2g})" for model in models
    )
    why = "" if sweep.student.source is not None else ", the best one"
    return (
        f"{len(models)} teachers, validation {noun(quality)}: {each}. Students are built from teacher {source} "
        f"({models[source].name}){why}."
    )


def _show_epochs(screen: Screen, sweep: Sweep, number: int) -> Callable[[Report], None]:
    """A function that shows the reports of the fine-tuning of a teacher on the screen."""
    epochs = sweep.teacher.training.epochs if sweep.teacher.training else 0
    quality = sweep.task.quality.name
    name = "the teacher" if len(sweep.teacher.models) == 1 else f"teacher {number}"

    def show(report: Report) -> None:
        if report.keys() == {NOTE}:
            screen.note(report[NOTE])
            return
        figure = f"{noun(quality)} {format_metric(quality, report[quality])}"
        screen.progress(f"epochs of {name} ({figure})", report["epoch"], epochs)

    return show
