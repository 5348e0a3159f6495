"""The first stage: the rows, and the models that teacher and students start from, before any slot is needed."""

from dataclasses import dataclass

from kdray.data.splits import Splits, load_splits
from kdray.data.truncation import describe_truncation
from kdray.models.pretrained import Pretrained
from kdray.models.student_sources import BySource, StudentSource, load_student_sources
from kdray.report.screen import Screen
from kdray.search.ledger import Ledger
from kdray.sources.tables import short_list
from kdray.stages.warm_start import TrialMaterial, check_unchanged, warm_start
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.teacher.teacher import obtain_source


@dataclass(frozen=True)
class Material:
    """The rows and the models that a sweep starts from."""

    splits: Splits
    source: Pretrained
    """The teacher before any fine-tuning."""
    sources: BySource[StudentSource]


def prepare(sweep: Sweep, paths: SweepPaths, ledger: Ledger, screen: Screen) -> Material:
    """Load the rows and the models, and check that earlier trials of the sweep learnt from the same ones.

    Raises Refused for data or models that cannot be used, StorageError if earlier trials learnt from something else.
    """
    screen.stage("Data")
    splits = load_splits(sweep.data, sweep.task)
    sweep.check_classes(splits)
    for note in (*splits.notes, _describe_rows(splits)):
        screen.note(note)
    source = obtain_source(sweep.teacher, sweep.task, splits, paths, sweep.seed)
    sources = load_student_sources(sweep.students, source, splits, sweep.task, paths, sweep.seed)
    for note in describe_truncation(sources.teacher.tokens, splits, sweep.task, source.tokenizer()):
        screen.note(note)
    weights = {name: checkpoint.model.key for name, checkpoint in sources.checkpoints.items()}
    trial_material = TrialMaterial.of(sweep, splits.text_key, source.key, weights)
    check_unchanged(trial_material, ledger, paths)
    if sweep.search.warm_start is not None:
        screen.note(warm_start(sweep, trial_material, ledger, paths))
    return Material(splits, source, sources)


def _describe_rows(splits: Splits) -> str:
    rows = (
        f"{len(splits.train):,} rows to train on, {len(splits.validation):,} to validate, {len(splits.test):,} to test"
    )
    more = "" if splits.unlabelled is None else f"; {len(splits.unlabelled):,} texts without labels"
    return f"{rows}{more}; labels {short_list(splits.labels)}" if splits.labels else f"{rows}{more}"
