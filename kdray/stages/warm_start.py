"""Decides which trials are comparable: trials with the same data, teacher and task, and the same fixed settings.

All trials of a sweep must be comparable, over all its sessions. Comparable trials of another sweep can be given to the
sampler (`search.warm_start`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from pydantic import BaseModel, Field, TypeAdapter
from pydantic_core import to_jsonable_python

from kdray.errors import StorageError
from kdray.evaluation.measuring import ARCHITECTURE_METRICS
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.claim import LEDGER, describe_differences, read_ledger, read_settings
from kdray.search.ledger import Ledger
from kdray.search.planner import EARLIER_TRIALS, EarlierTrials
from kdray.search.space import can_draw, distributions
from kdray.settings import dotted_values, identifying_values, names_that_may_change
from kdray.storage.bucket_copies import open_for_reading
from kdray.storage.paths import SweepPaths, display_path, sweep_paths
from kdray.storage.records import check_value
from kdray.sweep import Sweep
from kdray.training.settings import Training
from kdray.training.trial import Recipe

OTHER_LEDGER = replace(LEDGER, remedy="first run: kdray show {folder} {option} {address}")
"""The ledger of the other sweep; --ledger of the command that starts this sweep names this sweep's own ledger."""

MATERIAL = "material"
"""The ledger attribute that records what the trials of the ledger learnt from, by content."""

CHECKPOINTS = "student.checkpoint"
"""The key in MATERIAL for the fingerprints of the checkpoints' weights, by the name of the checkpoint."""

TEACHER_TRAINING = "teacher.training"
"""The key in MATERIAL for the settings of the teacher's fine-tuning."""


class _StoredMaterial(BaseModel):
    """The parts of MATERIAL that are read by name."""

    checkpoints: dict[str, str] = Field({}, alias=CHECKPOINTS)
    teacher_training: dict[str, Any] = Field({}, alias=TEACHER_TRAINING)


STORED_MATERIAL = TypeAdapter(_StoredMaterial)


class EarlierRecord(EarlierTrials):
    """The value of EARLIER_TRIALS, with what is shown about it."""

    folder: str
    left: dict[str, int]


EARLIER_RECORD = TypeAdapter(EarlierRecord)


@dataclass(frozen=True)
class TrialMaterial:
    """What a trial learns from. With its settings it determines the figures of the trial."""

    values: Mapping[str, Any]
    """JSON values by name."""

    @classmethod
    def of(
        cls,
        sweep: Sweep,
        data: str,
        teacher: str,
        checkpoints: Mapping[str, str],
        more: Mapping[str, str | None] | None = None,
    ) -> Self:
        """The material of a sweep. `data`, `teacher` and the values of `checkpoints` are fingerprints of content.

        `more` has the fingerprints of what a sweep may have or not, by the setting that asks for it; None: it has not.
        """
        return cls(
            {
                "data": data,
                "teacher": teacher,
                TEACHER_TRAINING: identifying_values(sweep.teacher.training) if sweep.teacher.training else {},
                "task": sweep.task.model_dump(mode="json"),
                "transfer.precision": sweep.transfer.precision,
                "seed": sweep.seed,
                CHECKPOINTS: dict(checkpoints),
                # Sweeps of earlier versions do not name what they could not have.
                **{name: key for name, key in (more or {}).items() if key is not None},
            }
        )

    @classmethod
    def read(cls, ledger: Ledger) -> "TrialMaterial | None":
        """The material of the trials in this ledger; None if the ledger does not record it."""
        values = ledger.attr(MATERIAL)
        if ledger.checked_attr(MATERIAL, STORED_MATERIAL) is None:
            return None
        # kdray 0.1 recorded all settings of the fine-tuning, also those that may change because they change no result.
        may_change = names_that_may_change(Training())
        training = {name: value for name, value in values.get(TEACHER_TRAINING, {}).items() if name not in may_change}
        return cls({**values, TEACHER_TRAINING: training})

    def differences(self, other: "TrialMaterial") -> list[str]:
        """The differences from this material to the other one, each as `name: was A, now B`.

        Only checkpoints that both have are compared: a trial that was built from another checkpoint exists on one side
        only, so there is nothing to compare it with.
        """
        ours, theirs = self.values.get(CHECKPOINTS, {}), other.values.get(CHECKPOINTS, {})
        common = ours.keys() & theirs.keys()
        return describe_differences(
            {**self.values, CHECKPOINTS: {name: ours[name] for name in common}},
            {**other.values, CHECKPOINTS: {name: theirs[name] for name in common}},
        )


def check_unchanged(material: TrialMaterial, ledger: Ledger, paths: SweepPaths) -> None:
    """Record the material in the ledger. Raises StorageError if earlier trials have learnt from other material."""
    before = TrialMaterial.read(ledger)
    # Without a trial nothing has been learnt, so the data may still be corrected.
    if before is not None and len(ledger) and (differences := before.differences(material)):
        raise StorageError(
            f"{paths.root}: what its trials learnt from has changed: {'; '.join(differences)} (fingerprints of the "
            "content). Restore it, give this sweep another name (--set name=...), or start over with --fresh."
        )
    # A checkpoint that is not in the space any more stays recorded: trials of earlier sessions were built from it.
    checkpoints = before.values.get(CHECKPOINTS, {}) if before else {}
    values = {**material.values, CHECKPOINTS: {**checkpoints, **material.values[CHECKPOINTS]}}
    if ledger.attr(MATERIAL) != values:
        ledger.set_attr(MATERIAL, values)


def warm_start(sweep: Sweep, material: TrialMaterial, ledger: Ledger, paths: SweepPaths) -> str:
    """Record in the ledger the trials of `search.warm_start` that the sampler uses. Returns the outcome in words.

    The record is written once and never changes, even if the other folder changes or is deleted, because the settings
    that the sampler draws later depend on it. Raises StorageError if no trial of the other sweep can be used.
    """
    if ledger.attr(EARLIER_TRIALS) is None:
        other = sweep_paths(str(sweep.search.warm_start))
        ledger.set_attr(EARLIER_TRIALS, _comparable_trials(sweep, other, material, paths))
    known = check_value(EARLIER_RECORD, ledger.attr(EARLIER_TRIALS), f"ledger {ledger.location}, {EARLIER_TRIALS!r}")
    return _describe(**known)


def _describe(folder: str, trials: Sequence[Any], left: Mapping[str, int]) -> str:
    """The outcome of a warm start in words. The parameters are the keys of EARLIER_TRIALS; `left` counts by reason."""
    used = f"The sampler knows {len(trials)} of the {len(trials) + sum(left.values())} trials of {folder}"
    return f"{used}; left out: {_format_reasons(left)}." if left else f"{used}."


def _format_reasons(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} ({reason})" for reason, count in left_out.items())


def _comparable_trials(sweep: Sweep, other: SweepPaths, material: TrialMaterial, own: SweepPaths) -> dict[str, Any]:
    """The comparable trials of another sweep, and the number of the other trials by the reason; as JSON values.

    `own` are the paths of `sweep`. Raises StorageError if there is no comparable trial.
    """
    where = f"search.warm_start {display_path(other.root)}"
    if other.root == own.root:
        raise StorageError(f"{where}: this is the sweep's own folder. Give the folder of another sweep.")
    try:
        with open_for_reading(other) as copies:
            settings, ledger = read_settings(copies), read_ledger(copies, OTHER_LEDGER)
    except StorageError as error:
        raise StorageError(f"{where}: its trials cannot be read. {error}") from None
    theirs = TrialMaterial.read(ledger)
    differences = theirs.differences(material) if theirs else ["its ledger does not record what its trials learnt from"]
    if differences:
        raise StorageError(
            f"{where}: its trials are not comparable: {'; '.join(differences)} (fingerprints of the content). Give a "
            "sweep with the same data, task and teacher, or leave search.warm_start out."
        )
    trials, left_out = [], Counter[str]()
    for record in ledger.records():
        params, reason = _params_in_space(sweep, _recipe_values(settings), record)
        if reason:
            left_out[reason] += 1
        else:
            trials.append({"params": params, "metrics": record.metrics})
    if not trials:
        reasons = _format_reasons(left_out) or "it has no trials"
        raise StorageError(
            f"{where}: none of its trials can be used: {reasons}. Give another sweep, or leave search.warm_start out."
        )
    return {"folder": display_path(other.root), "trials": trials, "left": dict(left_out)}


def _params_in_space(sweep: Sweep, fixed: Mapping[str, Any], record: TrialRecord) -> tuple[dict[str, Any], str | None]:
    """The params by which this sweep could have drawn a trial of another sweep, and the reason if it could not.

    `fixed` are the recipe settings of the other sweep; the params of the record replace those that it searched.
    """
    # A setting may be searched in one sweep and fixed in the other. What counts is the value that the trial had.
    theirs, ranges = {**fixed, **record.params}, distributions(sweep.space)
    params = {name: theirs.get(name) for name in sweep.search_space.conditions.names(theirs, sweep.space)}
    if record.state != "completed":
        return params, record.state
    for name, distribution in ((name, ranges[name]) for name in params):
        if not can_draw(distribution, name, params[name]):
            return params, f"{name} {params[name]} is not in the space"
    for name, value in _recipe_values(sweep.identity()).items():
        if name not in sweep.space and theirs.get(name) != value:
            return params, f"{name} is {theirs.get(name)}, here {value}"
    missing = [
        name for name in sweep.search.objectives if name not in ARCHITECTURE_METRICS and name not in record.metrics
    ]
    return params, f"without {missing[0]}" if missing else None


def _recipe_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> JSON value, for every setting of the recipe in the settings of a sweep.

    A setting that is not written has its default.
    """
    defaults: dict[str, Any] = to_jsonable_python(dotted_values(Recipe()))
    parts = {part: settings.get(part, {}) for part in Recipe.model_fields}
    written = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    return defaults | written
