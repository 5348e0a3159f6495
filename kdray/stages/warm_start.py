"""Which trials may be compared: those that learnt the same from the same teacher, and differ in searched settings only.

All trials of a sweep must be comparable, over all its sessions. Comparable trials of another sweep may be shown to the
sampler.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from kdray.errors import StorageError
from kdray.evaluation.measuring import ARCHITECTURE_METRICS
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.claim import describe_differences, read_ledger, read_settings
from kdray.search.ledger import Ledger
from kdray.search.planner import EARLIER_TRIALS
from kdray.search.space import can_draw, distributions
from kdray.settings import identifying_values, names_that_may_change
from kdray.storage.bucket_copies import open_for_reading
from kdray.storage.paths import SweepPaths, display_path, sweep_paths
from kdray.sweep import Sweep
from kdray.training.settings import Training
from kdray.training.trial import Recipe

MATERIAL = "material"
"""The name of the ledger's note of what its trials learnt from, by content."""

CHECKPOINTS = "student.checkpoint"
"""In that note: the fingerprint of the weights of each checkpoint, by its name."""

TEACHER_TRAINING = "teacher.training"
"""In that note: the settings of the teacher's fine-tuning."""


@dataclass(frozen=True)
class TrialMaterial:
    """What decides, beside the settings of a trial, what it measures: JSON values by name."""

    values: Mapping[str, Any]

    @classmethod
    def of(cls, sweep: Sweep, data: str, teacher: str, checkpoints: Mapping[str, str]) -> Self:
        """The material of this sweep. `data`, `teacher` and the values of `checkpoints` are fingerprints."""
        return cls(
            {
                "data": data,
                "teacher": teacher,
                TEACHER_TRAINING: identifying_values(sweep.teacher.training) if sweep.teacher.training else {},
                "task": sweep.task.model_dump(mode="json"),
                "transfer.precision": sweep.transfer.precision,
                "seed": sweep.seed,
                CHECKPOINTS: dict(checkpoints),
            }
        )

    @classmethod
    def noted_in(cls, ledger: Ledger) -> "TrialMaterial | None":
        """What the trials of this ledger learnt from; None where it has no such note."""
        values = ledger.attr(MATERIAL)
        if values is None:
            return None
        # kdray 0.1 noted settings here that may change.
        may_change = names_that_may_change(Training())
        training = {name: value for name, value in values.get(TEACHER_TRAINING, {}).items() if name not in may_change}
        return cls({**values, TEACHER_TRAINING: training})

    def differences(self, other: "TrialMaterial") -> list[str]:
        """What differs in the other one, as `name: was A, now B`.

        Only checkpoints that both know are compared: no trial of both sides was built from the others.
        """
        ours, theirs = self.values.get(CHECKPOINTS, {}), other.values.get(CHECKPOINTS, {})
        both = ours.keys() & theirs.keys()
        return describe_differences(
            {**self.values, CHECKPOINTS: {name: ours[name] for name in both}},
            {**other.values, CHECKPOINTS: {name: theirs[name] for name in both}},
        )


def check_unchanged(material: TrialMaterial, ledger: Ledger, paths: SweepPaths) -> None:
    """Note in the ledger what its trials learn from. Raises StorageError when earlier ones learnt something else."""
    before = TrialMaterial.noted_in(ledger)
    if before is not None and len(ledger) and (differences := before.differences(material)):
        raise StorageError(
            f"{paths.root}: what its trials learnt from has changed since: {'; '.join(differences)} (fingerprints of "
            "the content). Restore it, give this sweep another name (--set name=...), or start over with --fresh."
        )
    checkpoints = before.values.get(CHECKPOINTS, {}) if before else {}
    known = {**material.values, CHECKPOINTS: {**checkpoints, **material.values[CHECKPOINTS]}}
    if ledger.attr(MATERIAL) != known:
        ledger.set_attr(MATERIAL, known)


def warm_start(sweep: Sweep, material: TrialMaterial, ledger: Ledger, paths: SweepPaths) -> str:
    """Note in the ledger which trials of `search.warm_start` the sampler shall know; the outcome in a sentence.

    The note is written once and stays, whatever happens to the other folder, because later draws depend on it. Raises
    StorageError when no trial of the other sweep can be taken.
    """
    if ledger.attr(EARLIER_TRIALS) is None:
        ledger.set_attr(EARLIER_TRIALS, _trials_of(sweep, sweep_paths(str(sweep.search.warm_start)), material, paths))
    return _describe(**ledger.attr(EARLIER_TRIALS))


def _describe(folder: str, trials: Sequence[Any], left: Mapping[str, int]) -> str:
    known = f"The sampler knows {len(trials)} of the {len(trials) + sum(left.values())} trials of {folder}"
    return f"{known}; left out: {_reasons(left)}." if left else f"{known}."


def _reasons(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{number} ({reason})" for reason, number in left_out.items())


def _trials_of(sweep: Sweep, other: SweepPaths, material: TrialMaterial, own: SweepPaths) -> dict[str, Any]:
    """The comparable trials of another sweep, and how many were left out for which reason."""
    where = f"search.warm_start {display_path(other.root)}"
    if other.root == own.root:
        raise StorageError(f"{where}: is the sweep's own folder. Name another one.")
    try:
        with open_for_reading(other) as there:
            settings, ledger = read_settings(there), read_ledger(there)
    except StorageError as error:
        raise StorageError(f"{where}: no trials can be taken from there. {error}") from None
    theirs = TrialMaterial.noted_in(ledger)
    differences = theirs.differences(material) if theirs else ["it has no note of what its trials learnt from"]
    if differences:
        raise StorageError(
            f"{where}: its trials measured something else: {'; '.join(differences)} (fingerprints of the content). "
            "Name a sweep over the same data, task and teacher, or leave it out."
        )
    trials, left_out = [], Counter[str]()
    for record in ledger.records():
        params, reason = _as_drawn_here(sweep, _recipe_values(settings), record)
        if reason:
            left_out[reason] += 1
        else:
            trials.append({"params": params, "metrics": record.metrics})
    if not trials:
        why = _reasons(left_out) or "it has none"
        raise StorageError(f"{where}: none of its trials can be taken: {why}. Name another sweep, or leave it out.")
    return {"folder": display_path(other.root), "trials": trials, "left": dict(left_out)}


def _as_drawn_here(sweep: Sweep, fixed: Mapping[str, Any], record: TrialRecord) -> tuple[dict[str, Any], str | None]:
    """The settings by which this sweep could have drawn the same trial, and the reason if it could not."""
    theirs = {**fixed, **record.params}
    params = {name: theirs.get(name) for name in sweep.space}
    if record.state != "completed":
        return params, record.state
    for name, distribution in distributions(sweep.space).items():
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
    """Dotted name -> value of the recipe in the settings of a sweep, as JSON."""
    return {f"{part}.{name}": value for part in Recipe.model_fields for name, value in settings[part].items()}
